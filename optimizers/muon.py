"""Muon's direction (Jordan et al. 2024; Liu et al., arXiv 2502.16982)."""

import math
from typing import Any, NamedTuple

import optax
from optax import contrib

from steepest.optimizers import adamw
from steepest.optimizers.boxes import Split
from steepest.optimizers.hyperparameters import Hyperparameters, Number, like

# What is orthogonalised grows with the width as a matrix, not entry by entry.
RATES = {'hidden': 'spectral'}
_MATRICES = ('hidden',)
# Root mean square of an update's entries: that of AdamW's (arXiv 2502.16982).
_RMS = 0.2
_ITERATIONS = 5


class ScaleByMuonState(NamedTuple):
  """Of the matrices, and of the parameters left to AdamW."""

  matrices: Any
  rest: adamw.ScaleByAdamWState


def scale_by_muon(
  momentum: float, b1: Number, b2: Number, eps: Number, kinds: Any
) -> optax.GradientTransformation:
  r"""Orthogonalised momentum for matrices in the blocks, AdamW for the rest.

  .. math::
    u = 0.2 \sqrt{\max(n_{in}, n_{out})}\, U V^\top
    \quad\text{of}\quad U \Sigma V^\top = \text{Nesterov momentum}

  up to singular values near 1: five Newton-Schulz iterations, from Optax. The
  factor gives entries the size that AdamW's have, so both share learning rate
  and decay. Axes before the last two are layers, each with its own matrix.

  Args:
    momentum: decay of the matrices' momentum, a number or traced scalar.
    b1: AdamW's decay of the first moment; like b2 and eps a number, a traced
      scalar or a tree of them.
    b2: AdamW's decay of the second moment.
    eps: AdamW's.
    kinds: a tree of the roles' kinds.

  Returns:
    A transform whose update is u; decay and learning rate are the chain's.
  """
  split = Split(kinds, _MATRICES)
  axes = contrib.MuonDimensionNumbers(-2, -1)
  muon = contrib.scale_by_muon(
    ns_steps=_ITERATIONS,
    beta=momentum,
    weight_dimension_numbers=lambda matrices: [axes] * len(matrices),
  )
  rest_of = lambda value: split.parts(like(value, kinds))[1]
  others = adamw.scale_by_adamw(rest_of(b1), rest_of(b2), rest_of(eps))

  def init(params: Any) -> ScaleByMuonState:
    matrices, rest = split.parts(params)
    return ScaleByMuonState(muon.init(matrices), others.init(rest))

  def update(grads: Any, state: ScaleByMuonState, params: Any = None):
    del params
    matrices, rest = split.parts(grads)
    matrices, of_matrices = muon.update(matrices, state.matrices)
    matrices = [x * (_RMS * max(x.shape[-2:]) ** 0.5) for x in matrices]
    rest, of_rest = others.update(rest, state.rest)
    return split.whole(matrices, rest), ScaleByMuonState(of_matrices, of_rest)

  return optax.GradientTransformation(init, update)


def transform(hyper: Hyperparameters) -> optax.GradientTransformation:
  """The direction with the run's hyperparameters."""
  return scale_by_muon(
    hyper.momentum, hyper.b1, hyper.b2, hyper.eps, hyper.kinds
  )


def method(kind: str, shape: tuple[int, ...]) -> str:
  """Returns what moves a parameter."""
  del shape
  return 'muon' if kind in _MATRICES else 'adamw'


def update_flops(kind: str, shape: tuple[int, ...]) -> float:
  """Returns the FLOPs of a parameter's matrix products in an update."""
  if kind not in _MATRICES:
    return 0.0
  short, long = sorted(shape[-2:])
  # X·Xᵀ, its square and its product with X in each iteration.
  products = 4.0 * short * short * long + 2.0 * short**3
  return _ITERATIONS * products * math.prod(shape[:-2])

"""Muon (Jordan et al. 2024; Liu et al., arXiv 2502.16982), from Optax."""

import math
from typing import Any

import optax
from optax import contrib

from steepest.optimizers.alias import alias
from steepest.optimizers.optimizer import MUP, Optimizer, lr, momentum

# Root mean square of an update's entries: that of AdamW's (arXiv 2502.16982).
_RMS = 0.2
_ITERATIONS = 5


def scale_by_muon(b1: float) -> optax.GradientTransformation:
  r"""Orthogonalised Nesterov momentum of matrices, a list of leaves.

  .. math::
    u = 0.2 \sqrt{\max(n_{in}, n_{out})}\, U V^\top
    \quad\text{of}\quad U \Sigma V^\top = \text{Nesterov momentum}

  up to singular values near 1: five Newton-Schulz iterations. The factor gives
  entries the size that AdamW's have, so both share learning rate and decay.
  Axes before the last two are layers, each with its own matrix.

  Args:
    b1: decay of the momentum, a number or traced scalar.
  """
  axes = contrib.MuonDimensionNumbers(-2, -1)
  muon = contrib.scale_by_muon(
    ns_steps=_ITERATIONS,
    beta=b1,
    weight_dimension_numbers=lambda matrices: [axes] * len(matrices),
  )

  def update(grads: Any, state: Any, params: Any = None):
    updates, state = muon.update(grads, state, params)
    return [u * (_RMS * max(u.shape[-2:]) ** 0.5) for u in updates], state

  return optax.GradientTransformation(muon.init, update)


def _flops(shape: tuple[int, ...], static: Any) -> float:
  """X·Xᵀ, its square and its product with X in each iteration."""
  del static
  short, long = sorted(shape[-2:])
  products = 4.0 * short * short * long + 2.0 * short**3
  return _ITERATIONS * products * math.prod(shape[:-2])


OPTIMIZER = Optimizer(
  name='muon',
  label='Muon',
  reference='Jordan et al. 2024; Liu et al., arXiv 2502.16982, equation 4',
  transform=lambda h: scale_by_muon(h.b1),
  hyperparameters={
    'lr': lr(6e-4, range=(1e-3, 8e-3)),
    'b1': momentum(0.95, meaning='Decay rate of what is orthogonalised.'),
  },
  # What is orthogonalised grows with the width as a matrix, not entry by entry.
  lr_factors={**MUP, 'hidden': 'spectral'},
  moves=('hidden',),
  flops=_flops,
)
muon = alias(OPTIMIZER)

"""NorMuon (Li et al., arXiv 2510.05491)."""

from typing import Any, NamedTuple

import jax
from jax import numpy as jnp
import optax

from steepest.optimizers import muon
from steepest.optimizers.alias import alias
from steepest.optimizers.optimizer import (
  MUP,
  Hyper,
  Optimizer,
  epsilon,
  lr,
  memory,
  momentum,
)
from steepest.optimizers.trees import array_in, box_like, zeros_like

_EPS = 1e-10
_ITERATIONS = 5


class ScaleByNorMuonState(NamedTuple):
  """Momentum, and the mean square of each output's update row."""

  m: list[jax.Array]
  v: list[jax.Array]


def scale_by_normuon(
  b1: float,
  b2: float,
  scale: str = 'shape',
  precision: str = 'momentum',
  layout: muon.Layout = None,
) -> optax.GradientTransformation:
  r"""Orthogonalised momentum with rows (one per output) of equal size.

  .. math::
    O = U V^\top \text{ of the Nesterov momentum}, \quad
    v_i = b_2 v_i + (1 - b_2)\, \mathrm{mean}_j O_{ij}^2, \quad
    N_{ij} = O_{ij} / \sqrt{v_i}, \quad
    u = \sqrt{\max(1, n_{out} / n_{in})}\, N \|O\| / \|N\|

  This follows the authors' code (zichongli5/NorMuon, normuon.py); v starts at 0
  without bias correction, which the norm cancels. Their paper fixes the root
  mean square: u = 0.2·√(n_in·n_out)·N / |N|. Axes before the last two are
  layers, each with its own matrix.

  Args:
    b1: decay of the momentum; like b2, a number or traced scalar.
    b2: decay of the rows' mean squares.
    scale: 'shape' (the code's) or 'rms' (the paper's).
    precision: of the Newton-Schulz iterations, see muon.orthogonalize.
    layout: see muon.orthogonalize.
  """

  def init(params: Any) -> ScaleByNorMuonState:
    return ScaleByNorMuonState(zeros_like(params), [_rows(p) for p in params])

  def update(grads: Any, state: ScaleByNorMuonState, params: Any = None):
    del params
    directions, m = muon.nesterov(b1, state.m, grads)
    updates, vs = [], []
    orthogonal = muon.orthogonalize(directions, precision, layout=layout)
    for o, v in zip(orthogonal, state.v):
      v = b2 * v + (1 - b2) * (o * o).mean(-2)
      n = o / (jnp.sqrt(v)[..., None, :] + _EPS)
      norm = lambda x: jnp.linalg.norm(x, axis=(-2, -1), keepdims=True)
      if scale == 'rms':
        size = muon.RMS * (o.shape[-2] * o.shape[-1]) ** 0.5
      else:
        size = max(1.0, muon.fan_ratio(o.shape)) ** 0.5 * norm(o)
      updates.append(n * (size / (norm(n) + _EPS)))
      vs.append(v)
    return updates, ScaleByNorMuonState(m, vs)

  return optax.GradientTransformation(init, update)


def _rows(parameter: Any) -> Any:
  """Returns one zero per output of a kernel (…, in, out)."""
  array = array_in(parameter)
  zeros = jnp.zeros((*array.shape[:-2], array.shape[-1]), array.dtype)
  before = range(array.ndim - 2)
  return box_like(parameter, zeros, (*before, array.ndim - 1))


OPTIMIZER = Optimizer(
  name='normuon',
  label='NorMuon',
  reference='Li et al., arXiv 2510.05491',
  transform=lambda h: scale_by_normuon(
    h.b1, h.b2, h.scale, h.newton_schulz, h.layout
  ),
  hyperparameters={
    # The authors use 0.01, 0.02 and 0.035 in three repositories.
    'lr': lr(0.02, range=(0.007, 0.056)),
    'b1': momentum(0.95, meaning='Decay rate of what is orthogonalised.'),
    'b2': memory(0.95, meaning="Decay rate of the rows' mean squares."),
    'scale': Hyper(
      'shape',
      static=True,
      choices=('shape', 'rms'),
      meaning="Size of a step: √max(1, out / in), or 0.2 as AdamW's entries.",
    ),
    'newton_schulz': muon.PRECISION,
    # For embeddings, readout and vectors, as in the authors' code.
    'auxiliary_lr': lr(3e-4, range=(3e-4, 9.6e-3), meaning='Of the rest.'),
    'auxiliary_eps': epsilon(1e-10, factor='eps'),
    'auxiliary_weight_decay': Hyper(0.0, meaning='Of the rest.'),
  },
  # The authors give none. Rows of equal size leave the spectral norm near that
  # of Muon's update, so Muon's rule applies (arXiv 2310.17813, condition 1).
  lr_factors=lambda static: {
    **MUP,
    'hidden': 'norm' if static['scale'] == 'shape' else 'spectral',
  },
  moves=('hidden',),
  flops=lambda _, shape, static: muon.newton_schulz_flops(shape, _ITERATIONS),
  exchanged=muon.exchanged,
)
normuon = alias(OPTIMIZER)

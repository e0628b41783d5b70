"""Dion (Ahn et al., arXiv 2504.05295)."""

import math
from typing import Any, NamedTuple

import jax
from jax import numpy as jnp
import optax

from steepest.optimizers import muon
from steepest.optimizers.alias import alias
from steepest.optimizers.optimizer import MUP, Hyper, Optimizer, lr, momentum
from steepest.optimizers.trees import array_in, box_like, zeros_like

_EPS = 1e-8


class ScaleByDionState(NamedTuple):
  """Momentum, and the basis of each matrix's shorter side."""

  m: list[jax.Array]
  q: list[jax.Array]


def scale_by_dion(
  b1: float, rank_fraction: float
) -> optax.GradientTransformation:
  r"""Low-rank orthogonal updates by one power iteration of the momentum.

  .. math::
    M = M + G, \quad P = \mathrm{QR}(M Q), \quad R = M^\top P, \quad
    M \leftarrow M - (1 - b_1) P R^\top, \quad
    u = \sqrt{n_{out} / n_{in}}\, P Q^\top

  where the new Q is R with columns of length 1, and M has at least as many rows
  as columns (transposed if there are fewer outputs than inputs), as in the
  authors' reference code (microsoft/dion, dion_reference.py). What the rank
  leaves out stays in M. Q starts normal; while M is zero there is no step.
  Axes before the last two are layers, each with its own matrix.

  Args:
    b1: share of a step's direction that stays in M, a number or traced scalar.
    rank_fraction: rank divided by the shorter side.
  """

  def init(params: Any) -> ScaleByDionState:
    bases = [_basis(p, rank_fraction, i) for i, p in enumerate(params)]
    return ScaleByDionState(zeros_like(params), bases)

  def update(grads: Any, state: ScaleByDionState, params: Any = None):
    del params
    found = [_step(m + g, q, b1) for m, g, q in zip(state.m, grads, state.q)]
    updates, ms, qs = ([x[i] for x in found] for i in range(3))
    return updates, ScaleByDionState(ms, qs)

  return optax.GradientTransformation(init, update)


def _tall(shape: tuple[int, ...]) -> bool:
  """Whether a kernel (…, in, out) has more inputs than outputs."""
  return shape[-2] > shape[-1]


def _rank(shape: tuple[int, ...], rank_fraction: float) -> int:
  return math.ceil(rank_fraction * min(shape[-2:]))


def _basis(parameter: Any, rank_fraction: float, index: int) -> Any:
  """Returns the first Q, (…, shorter side, rank)."""
  array = array_in(parameter)
  before, side = range(array.ndim - 2), -1 if _tall(array.shape) else -2
  rank = _rank(array.shape, rank_fraction)
  shape = (*array.shape[:-2], array.shape[side], rank)
  key = jax.random.fold_in(jax.random.key(0), index)
  normal = jax.random.normal(key, shape, array.dtype)
  return box_like(parameter, normal, (*before, side, None))


def _step(
  kernel: jax.Array, q: jax.Array, b1: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns a matrix's direction, and the next momentum and Q."""
  turn = (lambda x: x) if _tall(kernel.shape) else (lambda x: x.mT)
  m = turn(kernel)
  some = jnp.any(m != 0, axis=(-2, -1), keepdims=True)
  p = jnp.linalg.qr(m @ q)[0]
  r = m.mT @ p
  q = jnp.where(some, r, q)
  q = q / (jnp.linalg.norm(q, axis=-2, keepdims=True) + _EPS)
  u = muon.fan_ratio(kernel.shape) ** 0.5 * p @ q.mT
  return turn(jnp.where(some, u, 0)), turn(m - (1 - b1) * p @ r.mT), q


def _flops(kind: str, shape: tuple[int, ...], static: Any) -> float:
  """M·Q, Mᵀ·P, P·Rᵀ and P·Qᵀ, and the QR decomposition with its Q."""
  del kind
  short, long = sorted(shape[-2:])
  rank = _rank(shape, static['rank_fraction'])
  products = 4 * 2.0 * short * long * rank
  qr = 4.0 * long * rank**2 - 4.0 * rank**3 / 3
  return (products + qr) * math.prod(shape[:-2])


OPTIMIZER = Optimizer(
  name='dion',
  label='Dion',
  reference='Ahn et al., arXiv 2504.05295',
  transform=lambda h: scale_by_dion(h.b1, h.rank_fraction),
  hyperparameters={
    # The authors use 0.01 by default, 0.02 for 160M parameters.
    'lr': lr(0.01, range=(4e-3, 0.032)),
    'b1': momentum(0.95, meaning='Share of a used direction that stays.'),
    'rank_fraction': Hyper(
      1.0,
      least=1e-6,
      below=math.nextafter(1, 2),
      static=True,
      meaning='Rank over the shorter side.',
    ),
  },
  # The authors scale orthonormal columns by √(out / in), the spectral norm of
  # arXiv 2310.17813, condition 1.
  lr_factors={**MUP, 'hidden': 'norm'},
  moves=('hidden',),
  flops=_flops,
)
dion = alias(OPTIMIZER)

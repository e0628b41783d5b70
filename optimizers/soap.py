"""SOAP (Vyas et al., arXiv 2409.11321)."""

import math
from typing import Any, NamedTuple

import jax
from jax import numpy as jnp
import optax

from steepest.optimizers.alias import alias
from steepest.optimizers.optimizer import (
  Hyper,
  Optimizer,
  epsilon,
  lr,
  memory,
  momentum,
)
from steepest.optimizers.trees import Number, array_in, box_like, like

# Longer sides are not rotated, as in the authors' code.
_LONGEST = 10_000
_EXACT = jax.lax.Precision.HIGHEST


class Basis(NamedTuple):
  """For one side of a matrix: average of G·Gᵀ, its eigenvectors as columns."""

  covariance: jax.Array
  vectors: jax.Array


class MatrixState(NamedTuple):
  """Momentum, second moment in the bases, and each side's basis or None."""

  m: jax.Array
  v: jax.Array
  left: Basis | None
  right: Basis | None


class ScaleBySoapState(NamedTuple):
  """Steps, and the states of the matrices."""

  steps: jax.Array
  matrices: list[MatrixState]


def scale_by_soap(
  b1: Number,
  b2: Number,
  eps: Number,
  precondition_every: Any,
  step: Any = None,
) -> optax.GradientTransformation:
  r"""Adam in the eigenbasis of Shampoo's preconditioner, for a list of leaves.

  .. math::
    u = Q_L\, \frac{Q_L^\top \hat m Q_R}
      {\sqrt{\hat v} + \epsilon}\, Q_R^\top, \quad
    v = b_2 v + (1 - b_2) (Q_L^\top G Q_R)^2

  The covariances G·Gᵀ and Gᵀ·G are averaged with b2. Every few steps one power
  iteration and a QR decomposition update the bases (algorithm 4), sorted by
  estimated eigenvalues as in the authors' code (nikhilvyas/SOAP, soap.py). As
  there, the first gradient only gives the first bases: in its own basis, v
  would be zero off the diagonal. Axes before the last two are layers, each with
  its own matrix.

  Args:
    b1: decay of the first moment; like b2 and eps, a number, a traced scalar
      or a tree of them.
    b2: decay of the second moment and of the covariances.
    eps: added to the denominator, outside the root.
    precondition_every: steps between new bases, a number or traced scalar.
    step: number of steps before this one; None: number of updates.
  """

  def init(params: Any) -> ScaleBySoapState:
    matrices = [_init_matrix(p) for p in params]
    return ScaleBySoapState(jnp.zeros([], jnp.int32), matrices)

  def update(grads: Any, state: ScaleBySoapState, params: Any = None):
    del params
    at = state.steps if step is None else step
    every = jnp.asarray(precondition_every).astype(jnp.int32)
    # Eigenvectors at the first step, later power iterations.
    how = jnp.where(at == 0, 0, jnp.where(at % every == 0, 1, 2))
    hypers = (like(x, grads) for x in (b1, b2, eps))
    found = [
      _update_matrix(g, of, how, state.steps, *hyper)
      for g, of, *hyper in zip(grads, state.matrices, *hypers)
    ]
    updates, matrices = [u for u, _ in found], [s for _, s in found]
    return updates, ScaleBySoapState(state.steps + 1, matrices)

  return optax.GradientTransformation(init, update)


def _init_matrix(parameter: Any) -> MatrixState:
  shape = array_in(parameter).shape
  before = tuple(range(len(shape) - 2))
  dtype = array_in(parameter).dtype

  def basis(side: int) -> Basis | None:
    size = shape[side]
    if size > _LONGEST:
      return None
    whole = (*shape[:-2], size, size)
    # Shard like the matrix: rows by this side's axis, columns by the other's.
    box = lambda x: box_like(parameter, x, (*before, side, -3 - side))
    return Basis(
      box(jnp.zeros(whole, dtype)),
      box(jnp.broadcast_to(jnp.eye(size, dtype=dtype), whole)),
    )

  zeros = lambda: jax.tree.map(jnp.zeros_like, parameter)
  return MatrixState(zeros(), zeros(), basis(-2), basis(-1))


def _update_matrix(
  g: jax.Array,
  state: MatrixState,
  how: jax.Array,
  steps: jax.Array,
  b1: Any,
  b2: Any,
  eps: Any,
) -> tuple[jax.Array, MatrixState]:
  """Returns a matrix's direction and its next state; see scale_by_soap."""
  first = how == 0
  left, right = state.left, state.right
  m = b1 * state.m + (1 - b1) * g
  turned = _rotate(g, left, right)
  v = b2 * state.v + (1 - b2) * (turned * turned)
  # The first gradient does not enter the averages.
  t = jnp.maximum(steps, 1).astype(m.dtype)
  m_hat = _rotate(m, left, right) / (1 - b1**t)
  u = m_hat / (jnp.sqrt(v / (1 - b2**t)) + eps)
  u = _rotate(u, left, right, back=True)
  keep = lambda new, old: jnp.where(first, old, new)
  left, v = _follow(left, -2, _product(g, g.mT), v, how, b2)
  right, v = _follow(right, -1, _product(g.mT, g), v, how, b2)
  state = MatrixState(keep(m, state.m), keep(v, state.v), left, right)
  return keep(u, jnp.zeros_like(u)), state


def _follow(
  basis: Basis | None,
  side: int,
  covariance: jax.Array,
  v: jax.Array,
  how: jax.Array,
  b2: Any,
) -> tuple[Basis | None, jax.Array]:
  """Returns a side's next basis, updated if due, and v in that basis."""
  if basis is None:
    return None, v
  average = b2 * basis.covariance + (1 - b2) * covariance

  def eigenvectors():
    # Largest first, as power iterations leave them.
    return jnp.linalg.eigh(average)[1][..., ::-1], v

  def power_iteration():
    moved = _product(average, basis.vectors)
    eigenvalues = (basis.vectors * moved).sum(-2)
    order = jnp.argsort(-eigenvalues, axis=-1)
    columns = jnp.take_along_axis(moved, order[..., None, :], -1)
    along = order[..., None] if side == -2 else order[..., None, :]
    return jnp.linalg.qr(columns)[0], jnp.take_along_axis(v, along, side)

  vectors, v = jax.lax.switch(
    how, (eigenvectors, power_iteration, lambda: (basis.vectors, v))
  )
  return Basis(average, vectors), v


def _rotate(
  x: jax.Array, left: Basis | None, right: Basis | None, back: bool = False
) -> jax.Array:
  """Returns Qₗᵀ·X·Qᵣ, or Qₗ·X·Qᵣᵀ."""
  if left is not None:
    x = _product(left.vectors if back else left.vectors.mT, x)
  if right is not None:
    x = _product(x, right.vectors.mT if back else right.vectors)
  return x


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
  return jnp.matmul(a, b, precision=_EXACT)


def _flops(kind: str, shape: tuple[int, ...], static: Any) -> float:
  """Three rotations and the covariances; updates of the bases are rare."""
  del kind, static
  products = sum(
    4 * 2.0 * math.prod(shape[-2:]) * size
    for size in shape[-2:]
    if size <= _LONGEST
  )
  return products * math.prod(shape[:-2])


OPTIMIZER = Optimizer(
  name='soap',
  label='SOAP',
  reference='Vyas et al., arXiv 2409.11321, algorithm 3',
  transform=lambda h: scale_by_soap(
    h.b1, h.b2, h.eps, h.precondition_every, h.step
  ),
  hyperparameters={
    'lr': lr(6e-4, range=(1e-3, 8e-3)),
    'b1': momentum(0.95),
    'b2': memory(0.95),
    'eps': epsilon(1e-8, factor='eps'),
    'precondition_every': Hyper(
      10, least=1, unit='steps', meaning='Steps between moves of the bases.'
    ),
    'auxiliary_b1': memory('b1', range=None),
    'auxiliary_b2': memory('b2', range=None),
  },
  moves=('hidden',),
  flops=_flops,
)
soap = alias(OPTIMIZER)

"""SOAP (Vyas et al., arXiv 2409.11321)."""

import functools
import math
from typing import Any, NamedTuple

import jax
from jax import numpy as jnp
from jax.sharding import PartitionSpec
import optax

from steepest.optimizers import spread
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


class _Given(NamedTuple):
  """What a matrix's direction depends on; numbers as 1×1 matrices."""

  g: Any
  m: Any
  v: Any
  left: Any
  right: Any
  b1: Any
  b2: Any
  eps: Any


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
  layout: Any = None,
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
  its own matrix. On a mesh, each device is given whole matrices
  (optimizers/spread.py); what is averaged entry by entry stays split.

  Args:
    b1: decay of the first moment; like b2 and eps, a number, a traced scalar
      or a tree of them.
    b2: decay of the second moment and of the covariances.
    eps: added to the denominator, outside the root.
    precondition_every: steps between new bases, a number or traced scalar.
    step: number of steps before this one; None: number of updates.
    layout: PartitionSpecs of the state, or of one that contains it; None: the
      mesh splits nothing, or is unknown.
  """
  specs = _states(layout) or None

  def init(params: Any) -> ScaleBySoapState:
    matrices = [_init_matrix(p) for p in params]
    return ScaleBySoapState(jnp.zeros([], jnp.int32), matrices)

  def update(grads: Any, state: ScaleBySoapState, params: Any = None):
    del params
    at = state.steps if step is None else step
    every = jnp.asarray(precondition_every).astype(jnp.int32)
    # Eigenvectors at the first step, later power iterations.
    how = jnp.where(at == 0, 0, jnp.where(at % every == 0, 1, 2))
    b1s, b2s, epss = (like(x, grads) for x in (b1, b2, eps))
    old = state.matrices
    average = lambda b, x, new: b * x + (1 - b) * new
    ms = [average(b, s.m, g) for b, s, g in zip(b1s, old, grads)]
    found = spread.each(
      functools.partial(_direction, state.steps),
      [_given(*x) for x in zip(grads, ms, old, b1s, b2s, epss)],
      specs and [_given(s.m, s.m, s, *[PartitionSpec()] * 3) for s in specs],
      lambda s: (s.m, s.v, s.left, s.right),
    )
    keep = lambda new, old: jnp.where(how == 0, old, new)
    updates, matrices = [], []
    for (u, v, *products), m, s, b in zip(found, ms, old, b2s):
      bases = [
        basis and Basis(average(b, basis.covariance, product), basis.vectors)
        for basis, product in zip((s.left, s.right), products)
      ]
      updates.append(keep(u, jnp.zeros_like(u)))
      matrices.append(MatrixState(keep(m, s.m), keep(v, s.v), *bases))
    renew = lambda fn: lambda given: spread.each(fn, given, specs, _turned)
    turned = jax.lax.switch(
      how,
      (
        renew(_eigenvectors),
        renew(_power_iteration),
        lambda given: [_turned(s) for s in given],
      ),
      matrices,
    )
    matrices = [
      s._replace(
        v=v,
        left=s.left and s.left._replace(vectors=left),
        right=s.right and s.right._replace(vectors=right),
      )
      for s, (v, left, right) in zip(matrices, turned)
    ]
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


def _states(tree: Any) -> list[MatrixState]:
  """Returns the matrices' states in a tree."""
  is_state = lambda x: isinstance(x, MatrixState)
  return [x for x in jax.tree.leaves(tree, is_leaf=is_state) if is_state(x)]


def _given(g: Any, m: Any, state: MatrixState, *numbers: Any) -> _Given:
  if not isinstance(g, PartitionSpec):
    shape = (*g.shape[:-2], 1, 1)
    numbers = tuple(jnp.broadcast_to(x, shape) for x in numbers)
  _, left, right = _turned(state)
  return _Given(g, m, state.v, left, right, *numbers)


def _turned(state: MatrixState) -> tuple[Any, Any, Any]:
  """Returns what new bases change: v and the vectors."""
  vectors = lambda basis: basis and basis.vectors
  return state.v, vectors(state.left), vectors(state.right)


def _direction(steps: jax.Array, x: _Given) -> tuple[Any, Any, Any, Any]:
  """Returns a matrix's u, next v, G·Gᵀ and Gᵀ·G; see scale_by_soap."""
  turned = _rotate(x.g, x.left, x.right)
  v = x.b2 * x.v + (1 - x.b2) * (turned * turned)
  # The first gradient does not enter the averages.
  t = jnp.maximum(steps, 1).astype(x.m.dtype)
  m_hat = _rotate(x.m, x.left, x.right) / (1 - x.b1**t)
  u = m_hat / (jnp.sqrt(v / (1 - x.b2**t)) + x.eps)
  u = _rotate(u, x.left, x.right, back=True)
  left = None if x.left is None else _product(x.g, x.g.mT)
  right = None if x.right is None else _product(x.g.mT, x.g)
  return u, v, left, right


def _eigenvectors(state: MatrixState) -> tuple[Any, Any, Any]:
  # Largest first, as power iterations leave them.
  vectors = lambda x: jnp.linalg.eigh(x)[1][..., ::-1]
  left, right = (b and vectors(b.covariance) for b in (state.left, state.right))
  return state.v, left, right


def _power_iteration(state: MatrixState) -> tuple[Any, Any, Any]:
  v = state.v
  vectors: list[Any] = []
  for side, basis in ((-2, state.left), (-1, state.right)):
    if basis is None:
      vectors.append(None)
      continue
    moved = _product(basis.covariance, basis.vectors)
    eigenvalues = (basis.vectors * moved).sum(-2)
    order = jnp.argsort(-eigenvalues, axis=-1)
    columns = jnp.take_along_axis(moved, order[..., None, :], -1)
    along = order[..., None] if side == -2 else order[..., None, :]
    v = jnp.take_along_axis(v, along, side)
    vectors.append(jnp.linalg.qr(columns)[0])
  return v, vectors[0], vectors[1]


def _rotate(x: jax.Array, left: Any, right: Any, back: bool = False) -> Any:
  """Returns Qₗᵀ·X·Qᵣ, or Qₗ·X·Qᵣᵀ."""
  if left is not None:
    x = _product(left if back else left.mT, x)
  if right is not None:
    x = _product(x, right.mT if back else right)
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


def _exchanged(matrices: Any, state: Any, static: Any) -> int:
  """Returns the bytes that a device exchanges in most steps.

  Those that renew no bases.
  """
  del matrices, static
  return spread.exchanged(
    _states(state),
    lambda s: (s.m, s.m, *_turned(s)),
    lambda s: (s.m, *_turned(s)),
  )


OPTIMIZER = Optimizer(
  name='soap',
  label='SOAP',
  reference='Vyas et al., arXiv 2409.11321, algorithm 3',
  transform=lambda h: scale_by_soap(
    h.b1, h.b2, h.eps, h.precondition_every, h.step, h.state_layout
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
  exchanged=_exchanged,
)
soap = alias(OPTIMIZER)

"""SOAP's direction (Vyas et al., arXiv 2409.11321, algorithm 3)."""

import math
from typing import Any, NamedTuple

import jax
from jax import numpy as jnp
import optax

from steepest.optimizers import adamw
from steepest.optimizers.boxes import Split, array_in, box_like
from steepest.optimizers.hyperparameters import Hyperparameters, Number, like

_MATRICES = ('hidden',)
# Longer sides keep their basis, as in the authors' code.
_LONGEST = 10_000
_EXACT = jax.lax.Precision.HIGHEST


class Basis(NamedTuple):
  """Of one side of a matrix: average of G·Gᵀ, its eigenvectors as columns."""

  covariance: jax.Array
  vectors: jax.Array


class MatrixState(NamedTuple):
  """Momentum, second moment in the bases, and a basis a side or None."""

  m: jax.Array
  v: jax.Array
  left: Basis | None
  right: Basis | None


class ScaleBySoapState(NamedTuple):
  """Steps, the states of the matrices, and that of AdamW for the rest."""

  steps: jax.Array
  matrices: list[MatrixState]
  rest: adamw.ScaleByAdamWState


def scale_by_soap(
  b1: Number,
  b2: Number,
  eps: Number,
  precondition_every: Any,
  kinds: Any,
  step: Any = None,
) -> optax.GradientTransformation:
  r"""Adam in the eigenbasis of Shampoo's preconditioner, AdamW for the rest.

  .. math::
    u = Q_L\, \frac{Q_L^\top \hat m Q_R}
      {\sqrt{\hat v} + \epsilon}\, Q_R^\top, \quad
    v = b_2 v + (1 - b_2) (Q_L^\top G Q_R)^2

  for matrices in the blocks. The covariances G·Gᵀ and Gᵀ·G are averaged with
  b2; every few steps one power iteration and a QR decomposition move the
  bases (algorithm 4). The first gradient serves its eigenvectors alone, as in
  the authors' code: in a basis of its own v would be zero off the diagonal.
  Axes before the last two are layers, each with its own matrix.

  Args:
    b1: decay of the first moment; like b2 and eps a number, a traced scalar
      or a tree of them.
    b2: decay of the second moment and of the covariances.
    eps: added to the denominator, outside the root.
    precondition_every: steps between new bases, a number or traced scalar.
    kinds: a tree of the roles' kinds.
    step: steps done before; None: as many as updates.

  Returns:
    A transform whose update is u; decay and learning rate are the chain's.
  """
  split = Split(kinds, _MATRICES)
  hypers = [split.parts(like(value, kinds)) for value in (b1, b2, eps)]
  others = adamw.scale_by_adamw(*(rest for _, rest in hypers))

  def init(params: Any) -> ScaleBySoapState:
    matrices, rest = split.parts(params)
    return ScaleBySoapState(
      jnp.zeros([], jnp.int32),
      [_init_matrix(p) for p in matrices],
      others.init(rest),
    )

  def update(grads: Any, state: ScaleBySoapState, params: Any = None):
    del params
    matrices, rest = split.parts(grads)
    rest, of_rest = others.update(rest, state.rest)
    at = state.steps if step is None else step
    every = jnp.asarray(precondition_every).astype(jnp.int32)
    # Eigenvectors at the first step, then a power iteration now and then.
    how = jnp.where(at == 0, 0, jnp.where(at % every == 0, 1, 2))
    found = [
      _update_matrix(g, of, how, state.steps, *hyper)
      for g, of, *hyper in zip(
        matrices, state.matrices, *(chosen for chosen, _ in hypers)
      )
    ]
    updates = split.whole([u for u, _ in found], rest)
    of_matrices = [s for _, s in found]
    return updates, ScaleBySoapState(state.steps + 1, of_matrices, of_rest)

  return optax.GradientTransformation(init, update)


def transform(hyper: Hyperparameters) -> optax.GradientTransformation:
  """The direction with the run's hyperparameters."""
  return scale_by_soap(
    hyper.b1,
    hyper.b2,
    hyper.eps,
    hyper.precondition_every,
    hyper.kinds,
    hyper.step,
  )


def method(kind: str, shape: tuple[int, ...]) -> str:
  """Returns what moves a parameter."""
  sides = sum(size <= _LONGEST for size in shape[-2:])
  if kind not in _MATRICES or not sides:
    return 'adamw'
  return 'soap' if sides == 2 else 'soap with one side'


def update_flops(kind: str, shape: tuple[int, ...]) -> float:
  """Returns the FLOPs of a parameter's matrix products in an update.

  Without those of new bases, which few updates have.
  """
  if kind not in _MATRICES:
    return 0.0
  # Three rotations, and the covariance.
  products = sum(
    4 * 2.0 * math.prod(shape[-2:]) * size
    for size in shape[-2:]
    if size <= _LONGEST
  )
  return products * math.prod(shape[:-2])


def _init_matrix(parameter: Any) -> MatrixState:
  shape = array_in(parameter).shape
  before = tuple(range(len(shape) - 2))
  dtype = array_in(parameter).dtype

  def basis(side: int) -> Basis | None:
    size = shape[side]
    if size > _LONGEST:
      return None
    whole = (*shape[:-2], size, size)
    box = lambda x: box_like(parameter, x, (*before, side, None))
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
  # The first gradient is not averaged.
  t = jnp.maximum(steps, 1).astype(m.dtype)
  m_hat = _rotate(m, left, right) / (1 - b1**t)
  u = m_hat / (jnp.sqrt(v / (1 - b2**t)) + eps)
  u = _rotate(u, left, right, back=True)
  keep = lambda new, old: jnp.where(first, old, new)
  state = MatrixState(
    keep(m, state.m),
    keep(v, state.v),
    left and _follow(left, _product(g, g.mT), how, b2),
    right and _follow(right, _product(g.mT, g), how, b2),
  )
  return keep(u, jnp.zeros_like(u)), state


def _follow(
  basis: Basis, covariance: jax.Array, how: jax.Array, b2: Any
) -> Basis:
  """Returns the next average and, where it is time, its eigenvectors."""
  average = b2 * basis.covariance + (1 - b2) * covariance
  vectors = jax.lax.switch(
    how,
    (
      # Largest first, as power iterations leave them.
      lambda: jnp.linalg.eigh(average)[1][..., ::-1],
      lambda: jnp.linalg.qr(_product(average, basis.vectors))[0],
      lambda: basis.vectors,
    ),
  )
  return Basis(average, vectors)


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

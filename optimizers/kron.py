"""PSGD Kron (Li, arXiv 1512.04202; Kronecker factors: arXiv 2211.04422)."""

from collections.abc import Callable
import functools
import math
from typing import Any, NamedTuple

import jax
from jax import numpy as jnp
from jax.scipy.linalg import solve_triangular
import numpy as np
import optax

from steepest.optimizers.alias import alias
from steepest.optimizers.optimizer import (
  Hyper,
  Optimizer,
  lr,
  momentum,
  weight_decay,
)
from steepest.optimizers.trees import (
  array_in,
  average,
  box_like,
  map_eps,
  zeros_like,
)

# The authors' constants: noise relative to a momentum's mean size, largest root
# mean square of a direction, and how the share of refitting steps falls.
_NOISE = float(np.sqrt(np.finfo(np.float32).eps))
_LARGEST = 1.1
_FULL_STEPS, _FALL, _LEAST_SHARE = 500, 0.001, 0.03
_VECTORS = ('gain', 'bias')
Factors = tuple[jax.Array, ...]


class ScaleByKronState(NamedTuple):
  """Steps, steps since the last refit, momentum, each parameter's factors."""

  steps: jax.Array
  since: jax.Array
  m: Any
  factors: list[Factors]


def scale_by_kron(
  b1: float,
  precond_lr: float,
  update_probability: float,
  kinds: Any,
  max_size_triangular: int = 8192,
  memory_save_mode: str = '',
) -> optax.GradientTransformation:
  r"""Momentum whitened by one factor per axis, Q₁ and Q₂.

  .. math::
    P = Q_1^\top Q_1 \hat m\, Q_2^\top Q_2, \quad
    u = P \min(1, 1.1 / \mathrm{rms}(P))

  A refit moves each Q against triu(A·Aᵀ - B·Bᵀ)·Q with A = Q₁·(m̂ + noise·V)·Q₂ᵀ
  and B = Q₁⁻ᵀ·V·Q₂⁻¹ for a normal V, divided by a lower bound on |A·Aᵀ + B·Bᵀ|.
  Results match psgd_jax 0.2.9, whose own transform takes no traced
  hyperparameters and keeps no axis names for a mesh; its balancing of factors,
  which changes no step, is left out. Vectors have a diagonal factor; axes
  before a matrix's last two are layers, each with its own factors.

  Args:
    b1: decay of the momentum; a number or traced scalar, as the next two.
    precond_lr: step size of the factors.
    update_probability: share of steps that refit; 0: all of the first 500, then
      fewer and fewer, down to 3 %.
    kinds: a tree of the roles.
    max_size_triangular: longer axes get a diagonal.
    memory_save_mode: 'one_diag' gives a matrix's longer axis a diagonal,
      'all_diag' both axes.
  """
  structure: Any = jax.tree.structure(kinds)
  axes = [1 if kind in _VECTORS else 2 for kind in jax.tree.leaves(kinds)]

  def init(params: Any) -> ScaleByKronState:
    factors = [
      _identities(p, n, max_size_triangular, memory_save_mode)
      for p, n in zip(structure.flatten_up_to(params), axes)
    ]
    zero = jnp.zeros([], jnp.int32)
    return ScaleByKronState(zero, zero, zeros_like(params), factors)

  def update(grads: Any, state: ScaleByKronState, params: Any = None):
    del params
    steps, since = state.steps + 1, state.since + 1
    m = average(b1, state.m, grads)
    leaves = [x / (1 - b1**steps) for x in jax.tree.leaves(m)]
    fall = jnp.exp(-_FALL * (steps - _FULL_STEPS))
    share = jnp.where(
      update_probability > 0,
      update_probability,
      jnp.clip(fall, _LEAST_SHARE, 1.0),
    )
    due = since >= 1 / share

    def refit() -> list[Factors]:
      key = jax.random.fold_in(jax.random.key(0), state.steps)
      with jax.default_matmul_precision('tensorfloat32'):
        return [
          _layers(functools.partial(_refit, precond_lr), x.ndim - n)(
            x,
            jax.random.normal(jax.random.fold_in(key, i), x.shape, x.dtype),
            qs,
          )
          for i, (x, n, qs) in enumerate(zip(leaves, axes, state.factors))
        ]

    factors = jax.lax.cond(due, refit, lambda: state.factors)
    updates = [
      _layers(_precondition, x.ndim - n)(x, qs)
      for x, n, qs in zip(leaves, axes, factors)
    ]
    state = ScaleByKronState(steps, jnp.where(due, 0, since), m, factors)
    return structure.unflatten(updates), state

  return optax.GradientTransformation(init, update)


def _diagonal(shape: tuple[int, ...], longest: int, mode: str) -> list[bool]:
  """Returns which of the last one or two axes have a diagonal factor."""
  if len(shape) == 1:
    return [True]
  one = 0 if shape[0] >= shape[1] else 1
  return [
    size == 1
    or size > longest
    or mode == 'all_diag'
    or (mode == 'one_diag' and axis == one)
    for axis, size in enumerate(shape)
  ]


def _identities(parameter: Any, n: int, longest: int, mode: str) -> Factors:
  """Returns the initial factors of a parameter, for its last n axes."""
  array = array_in(parameter)
  before = array.shape[: array.ndim - n]
  found = []
  own = array.shape[array.ndim - n :]
  for axis, diagonal in enumerate(_diagonal(own, longest, mode)):
    size = own[axis]
    make = jnp.ones if diagonal else jnp.eye
    factor = make(size, dtype=array.dtype)
    names = (*range(len(before)), len(before) + axis)
    names = names if diagonal else (*names, None)
    factor = jnp.broadcast_to(factor, (*before, *factor.shape))
    found.append(box_like(parameter, factor, names))
  return tuple(found)


def _layers(fn: Callable[..., Any], times: int) -> Callable[..., Any]:
  """Returns `fn` mapped over `times` leading axes."""
  for _ in range(times):
    fn = jax.vmap(fn)
  return fn


def _along(
  axis: int, fn: Callable[[jax.Array, jax.Array], jax.Array]
) -> Callable[[jax.Array, jax.Array], jax.Array]:
  """Returns `fn`, of a factor and columns, applied along a matrix's axis."""
  return lambda q, x: fn(q, x.T).T if axis else fn(q, x)


def _times(q: jax.Array, x: jax.Array) -> jax.Array:
  return q @ x if q.ndim == 2 else q[:, None] * x


def _gram(q: jax.Array, x: jax.Array) -> jax.Array:
  return _times(q.T, _times(q, x))


def _solve(q: jax.Array, x: jax.Array) -> jax.Array:
  """Returns Q⁻ᵀ·X."""
  return solve_triangular(q, x, trans='T') if q.ndim == 2 else x / q[:, None]


def _matrix(x: jax.Array) -> jax.Array:
  return x[:, None] if x.ndim == 1 else x


def _refit(precond_lr: Any, m: Any, v: Any, qs: Factors) -> Factors:
  """Returns the next factors of a matrix or vector; v is the random probe."""
  a = _matrix(m + _NOISE * jnp.abs(m).mean() * v)
  b = _matrix(v)
  for axis, q in enumerate(qs):
    a, b = _along(axis, _times)(q, a), _along(axis, _solve)(q, b)
  found = []
  for axis, q in enumerate(qs):
    x, y = (a.T, b.T) if axis else (a, b)
    if q.ndim == 2:
      s, t = x @ x.T, y @ y.T
      change = jnp.triu(s - t) @ q / _lower_bound(s + t)
    else:
      s, t = (x * x).sum(1), (y * y).sum(1)
      change = (s - t) * q / jnp.max(s + t)
    found.append(q - precond_lr * change)
  return tuple(found)


def _lower_bound(z: jax.Array) -> jax.Array:
  """Returns a tight lower bound on a symmetric matrix's norm."""
  largest = jnp.abs(z).max()
  z = z / largest
  longest = z[:, jnp.argmax((z * z).sum(0))] @ z
  return jnp.linalg.norm(z @ (longest / jnp.linalg.norm(longest))) * largest


def _precondition(m: jax.Array, qs: Factors) -> jax.Array:
  """Returns the direction of one matrix or vector."""
  p = _matrix(m)
  for axis, q in enumerate(qs):
    p = _along(axis, _gram)(q, p)
  rms = jnp.sqrt((p * p).mean())
  return p.reshape(m.shape) / jnp.maximum(1, rms / _LARGEST)


def _flops(kind: str, shape: tuple[int, ...], static: Any) -> float:
  """Applies each factor twice, and refits as often as at the end of a run."""
  if kind in _VECTORS:
    return 0.0
  found, size = 0.0, math.prod(shape[-2:])
  modes = static['max_size_triangular'], static['memory_save_mode']
  for n, diagonal in zip(shape[-2:], _diagonal(shape[-2:], *modes)):
    if not diagonal:
      # A and B (a solve is half a product), their squares, and triu(·)·Q.
      refit = (2 + 1 + 2 * 2) * n * size + 2 * n**3
      found += 2 * 2 * n * size + _LEAST_SHARE * refit
  return found * math.prod(shape[:-2])


OPTIMIZER = Optimizer(
  name='kron',
  label='PSGD Kron',
  reference='Li, arXiv 2211.04422; psgd_jax 0.2.9, kron.py',
  # Factors start at 1 and grow by a tenth per refit until they whiten gradients
  # of any size; under µP, gradients start at the same size at every width.
  transform=map_eps(
    lambda h: scale_by_kron(
      h.b1,
      h.precond_lr,
      h.update_probability,
      h.kinds,
      h.max_size_triangular,
      h.memory_save_mode,
    )
  ),
  hyperparameters={
    # The authors use 3e-4 to 1e-3, a third of Adam's.
    'lr': lr(3e-4, range=(3e-4, 2.4e-3)),
    'b1': momentum(0.9),
    'weight_decay': weight_decay(0.0),
    'precond_lr': Hyper(0.1, meaning='Step of the factors.'),
    'update_probability': Hyper(
      0.0,
      below=math.nextafter(1, 2),
      meaning='Share of steps that refit; 0: all of 500, then fewer, to 3 %.',
    ),
    'max_size_triangular': Hyper(
      8192, static=True, meaning='Longer axes have a diagonal factor.'
    ),
    'memory_save_mode': Hyper(
      '',
      static=True,
      choices=('', 'one_diag', 'all_diag'),
      meaning='Gives matrices a diagonal on their longer axis, or on both.',
    ),
  },
  # No rule is published that we could read. Entries of a whitened momentum are
  # about 1 at any width, as with Adam (see soap in docs/parametrization.md).
  flops=_flops,
)
kron = alias(OPTIMIZER)

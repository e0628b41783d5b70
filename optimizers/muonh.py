"""MuonH: Muon on a sphere (Wen et al., arXiv 2606.16899, Hyperball)."""

from types import SimpleNamespace
from typing import Any

import jax
from jax import numpy as jnp
import optax

from steepest.optimizers import muon
from steepest.optimizers.alias import alias
from steepest.optimizers.optimizer import MUP, Hyper, Optimizer, lr, momentum
from steepest.optimizers.trees import zeros_like

_TINY = 1e-10
# Mean square of initial entries times fan_in, as for the matrices in the
# authors' records that do not start at zero.
_START = 0.33
# Coefficients that converge to singular values of 1, and iterations.
_EXACT, _ITERATIONS = (2.0, -1.5, 0.5), 12


def hyperball(
  transform: optax.GradientTransformation,
) -> optax.GradientTransformation:
  """Gives each update the norm of its matrix: u ← |θ|·u / |u|.

  With `on_sphere` as the path this is θ ← |θ|·y / |y|, y = θ - lr·|θ|·u / |u|,
  so that lr is about the angle by which a step turns a matrix.

  Args:
    transform: acts on a list of matrices, layer by layer.
  """

  def update(grads: Any, state: Any, params: Any = None):
    updates, state = transform.update(grads, state, params)
    scaled = [
      u * (_radius(p) / jnp.maximum(_norm(u), _TINY))
      for u, p in zip(updates, params)
    ]
    return scaled, state

  return optax.GradientTransformation(transform.init, update)


def on_sphere(
  state: Any, params: Any, changes: Any, h: SimpleNamespace
) -> tuple[Any, Any]:
  """Moves hidden matrices along their spheres, the rest in a straight line.

  A zero matrix has no sphere and would never move: it is first replaced by a
  normal one of mean square 0.33 / fan_in, the same in every run.
  """
  structure: Any = jax.tree.structure(params)

  def move(index: int, p: Any, change: Any, kind: str) -> Any:
    if kind != 'hidden':
      return p - change
    radius = _radius(p)

    def fresh() -> jax.Array:
      key = jax.random.fold_in(jax.random.key(0), index)
      normal = jax.random.normal(key, p.shape, p.dtype)
      start = normal * (radius / _norm(normal))
      return jnp.where(_norm(p) == 0, start, p)

    start = jax.lax.cond(jnp.any(_norm(p) == 0), fresh, lambda: p)
    moved = start - change
    return moved * (radius / jnp.maximum(_norm(moved), _TINY))

  trees = params, changes, h.kinds
  moved = [
    move(i, *each) for i, each in enumerate(zip(*map(jax.tree.leaves, trees)))
  ]
  return structure.unflatten(moved), state


def _norm(x: jax.Array) -> jax.Array:
  return jnp.linalg.norm(x, axis=(-2, -1), keepdims=True)


def _radius(p: jax.Array) -> jax.Array:
  """Returns each layer's norm; for a zero layer that of its replacement."""
  start = (_START * p.shape[-1]) ** 0.5
  return jnp.where(_norm(p) == 0, start, _norm(p))


def scale_by_muonh(
  b1: float,
  precision: str = 'momentum',
  layout: muon.Layout = None,
) -> optax.GradientTransformation:
  """Nesterov momentum, orthogonalised to singular values of 1, then rescaled.

  Twelve iterations, as in the authors' record (modded-nanogpt, track 3). Axes
  before the last two are layers, each with its own matrix.

  Args:
    b1: decay of the momentum, a number or traced scalar.
    precision: of the Newton-Schulz iterations, see muon.orthogonalize.
    layout: see muon.orthogonalize.
  """

  def update(grads: Any, m: Any, params: Any = None):
    del params
    directions, m = muon.nesterov(b1, m, grads)
    orthogonal = muon.orthogonalize(
      directions, precision, _EXACT, _ITERATIONS, layout=layout
    )
    return orthogonal, m

  return hyperball(optax.GradientTransformation(zeros_like, update))


# Hyperparameters shared by the methods that keep matrix norms fixed.
SHARED = {
  # The authors' records use 0.018, Levanter 0.005 to 0.02.
  'lr': lr(0.018, range=(0.006, 0.048), meaning='Peak angle of a step.'),
  # Decay cannot turn a matrix on its sphere; the records do not decay
  # embeddings or readout.
  'weight_decay': Hyper(0.0, meaning='Of the rest; the sphere undoes it.'),
  # For embeddings, readout and vectors, as in Levanter.
  'auxiliary_lr': lr(6e-4, range=(6e-4, 1.92e-2), meaning='Of the rest.'),
}


def zeros(params: Any, kinds: Any) -> str:
  """Returns a line on the matrices that start at zero, or ''."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(params)
  names = [
    jax.tree_util.keystr(path, simple=True, separator='/')
    for (path, p), kind in zip(leaves, jax.tree.leaves(kinds), strict=True)
    if kind == 'hidden' and jnp.any(_norm(p) == 0)
  ]
  if not names:
    return ''
  return (
    f'{", ".join(names)} start at zero, where no sphere is: the first step '
    f'makes them normal, of mean square {_START} / fan_in'
  )


OPTIMIZER = Optimizer(
  name='muonh',
  label='MuonH',
  reference='Wen et al., arXiv 2606.16899',
  transform=lambda h: scale_by_muonh(h.b1, h.newton_schulz, h.layout),
  path=on_sphere,
  remark=zeros,
  hyperparameters={
    **SHARED,
    'b1': momentum(0.95, meaning='Decay rate of what is orthogonalised.'),
    'newton_schulz': muon.PRECISION,
  },
  # The authors find that learning rates transfer across widths; turning a
  # matrix of norm √fan_out by a fixed angle takes steps of a fixed spectral
  # norm, as arXiv 2310.17813 requires.
  lr_factors={**MUP, 'hidden': 'norm'},
  moves=('hidden',),
  flops=lambda _, shape, static: muon.newton_schulz_flops(shape, _ITERATIONS),
  exchanged=muon.exchanged,
)
muonh = alias(OPTIMIZER)

"""Scion, constrained (Pethick et al., arXiv 2502.07529)."""

from typing import Any

import jax
from jax import numpy as jnp
import optax

from steepest.optimizers import muon
from steepest.optimizers.alias import alias
from steepest.optimizers.optimizer import ROLES, Hyper, Optimizer, lr, momentum
from steepest.optimizers.trees import average, zeros_like

_EPS = 1e-8
_ITERATIONS = 5


def scale_by_scion(
  b1: float,
  radius: float,
  outer_radius: float,
  vector_radius: float,
  kinds: Any,
  precision: str = 'momentum',
) -> optax.GradientTransformation:
  r"""The point of a norm ball that lies furthest along the momentum.

  .. math::
    d_t = b_1 d_{t-1} + (1 - b_1) g_t, \quad
    \theta_{t+1} = (1 - \eta) \theta_t - \eta u_t

  with u by role: hidden matrices are orthogonalised and scaled by √(out / in)
  and the radius (spectral norm); embeddings and readout use the sign divided by
  the width; vectors use the momentum divided by its root mean square. Each has
  its own radius. The chain's decay of 1 gives the first term, which keeps
  parameters in their balls; a decay of 0 drops the constraint. Values match the
  authors' code (LIONS-EPFL/scion, scion.py), whose `momentum` is 1 - b1. Axes
  before the last two are layers; initial values are the model's, not theirs.

  Args:
    b1: decay of the momentum; like the radii, a number or traced scalar.
    radius: of hidden matrices.
    outer_radius: of embeddings and readout.
    vector_radius: of gains and biases.
    kinds: a tree of the roles.
    precision: of the Newton-Schulz iterations, see muon.orthogonalize.
  """

  def furthest(d: jax.Array, kind: str) -> jax.Array:
    if kind == 'hidden':
      (orthogonal,) = muon.orthogonalize([d], precision)
      return radius * muon.fan_ratio(d.shape) ** 0.5 * orthogonal
    if kind in ('embedding', 'readout'):
      # Both are V×D.
      return outer_radius / d.shape[-1] * jnp.sign(d)
    rms = jnp.sqrt((d * d).mean(-1, keepdims=True))
    return vector_radius * d / (rms + _EPS)

  def update(grads: Any, d: Any, params: Any = None):
    del params
    d = average(b1, d, grads)
    return jax.tree.map(furthest, d, kinds), d

  return optax.GradientTransformation(zeros_like, update)


def _flops(kind: str, shape: tuple[int, ...], static: Any) -> float:
  del static
  if kind != 'hidden':
    return 0.0
  return muon.newton_schulz_flops(shape, _ITERATIONS)


OPTIMIZER = Optimizer(
  name='scion',
  label='Scion',
  reference='Pethick et al., arXiv 2502.07529',
  transform=lambda h: scale_by_scion(
    h.b1, h.radius, h.outer_radius, h.vector_radius, h.kinds, h.newton_schulz
  ),
  hyperparameters={
    # The authors use 2^-12 and 0.00036.
    'lr': lr(2**-12, range=(2**-13.5, 2**-10.5)),
    'b1': momentum(0.9, meaning="Decay rate; one minus the authors' momentum."),
    'weight_decay': Hyper(1.0, meaning='1: the constraint; 0: without it.'),
    'radius': Hyper(
      50.0, range=(12.5, 100.0), meaning='Spectral norm over √(out / in).'
    ),
    'outer_radius': Hyper(
      3000.0,
      range=(750.0, 6000.0),
      meaning='Largest entry of embeddings and readout, times width.',
    ),
    'vector_radius': Hyper(1.0, meaning='Root mean square of vectors.'),
    'newton_schulz': muon.PRECISION,
  },
  decay_mode='times_lr',
  # Under these norms learning rates transfer (the paper's claim): 1 for hidden
  # matrices; the readout's 1/m comes on top of its sign divided by the width.
  lr_factors=dict.fromkeys(ROLES, 'norm'),
  flops=_flops,
)
scion = alias(OPTIMIZER)

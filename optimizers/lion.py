"""Lion's direction (Chen et al., arXiv 2302.06675, algorithm 2)."""

from typing import Any, NamedTuple

import jax
from jax import numpy as jnp
import optax

from steepest.optimizers.hyperparameters import Hyperparameters, Number, like


class ScaleByLionState(NamedTuple):
  """Momentum."""

  m: Any


def scale_by_lion(b1: Number, b2: Number) -> optax.GradientTransformation:
  r"""The sign of an interpolation of momentum and gradient.

  .. math::
    u_t = \mathrm{sign}(b_1 m_{t-1} + (1 - b_1) g_t), \quad
    m_t = b_2 m_{t-1} + (1 - b_2) g_t

  The direction uses the old momentum (google/automl, lion_optax.py).

  Args:
    b1: weight of the momentum in the direction; like b2 a number, a traced
      scalar or a tree of them.
    b2: decay of the momentum.

  Returns:
    A transform whose update is u; decay and learning rate are the chain's.
  """

  def init(params: Any) -> ScaleByLionState:
    return ScaleByLionState(jax.tree.map(jnp.zeros_like, params))

  def update(grads: Any, state: ScaleByLionState, params: Any = None):
    del params
    updates = jax.tree.map(
      lambda m, g, b: jnp.sign(b * m + (1 - b) * g),
      state.m,
      grads,
      like(b1, grads),
    )
    m = jax.tree.map(
      lambda m, g, b: b * m + (1 - b) * g, state.m, grads, like(b2, grads)
    )
    return updates, ScaleByLionState(m)

  return optax.GradientTransformation(init, update)


def transform(hyper: Hyperparameters) -> optax.GradientTransformation:
  """The direction with the run's hyperparameters."""
  return scale_by_lion(hyper.b1, hyper.b2)

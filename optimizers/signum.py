"""Signum's direction (Bernstein et al., arXiv 1802.04434, algorithm 2)."""

from typing import Any, NamedTuple

import jax
from jax import numpy as jnp
import optax

from steepest.optimizers.hyperparameters import Hyperparameters, Number, like


class ScaleBySignumState(NamedTuple):
  """Momentum."""

  m: Any


def scale_by_signum(b1: Number) -> optax.GradientTransformation:
  r"""The sign of the momentum.

  .. math::
    m_t = b_1 m_{t-1} + (1 - b_1) g_t, \quad u_t = \mathrm{sign}(m_t)

  Args:
    b1: decay of the momentum; a number, a traced scalar or a tree of them.

  Returns:
    A transform whose update is u; decay and learning rate are the chain's.
  """

  def init(params: Any) -> ScaleBySignumState:
    return ScaleBySignumState(jax.tree.map(jnp.zeros_like, params))

  def update(grads: Any, state: ScaleBySignumState, params: Any = None):
    del params
    m = jax.tree.map(
      lambda m, g, b: b * m + (1 - b) * g, state.m, grads, like(b1, grads)
    )
    return jax.tree.map(jnp.sign, m), ScaleBySignumState(m)

  return optax.GradientTransformation(init, update)


def transform(hyper: Hyperparameters) -> optax.GradientTransformation:
  """The direction with the run's hyperparameters."""
  return scale_by_signum(hyper.b1)

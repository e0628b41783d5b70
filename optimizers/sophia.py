"""Sophia's direction (Liu et al., arXiv 2305.14342, algorithm 3).

The training step supplies the curvature: Gauss-Newton-Bartlett estimates make
it Sophia-G, Hutchinson's Sophia-H. Both share this file.
"""

from typing import Any, NamedTuple

import jax
from jax import numpy as jnp
import optax

from steepest.optimizers.hyperparameters import Hyperparameters, Number, like

# An update reads it and leaves it as it is.
READ_ONLY = ('h',)


class ScaleBySophiaState(NamedTuple):
  """Momentum, averaged curvature and how many estimates it holds."""

  m: Any
  h: Any
  estimates: jax.Array


def scale_by_sophia(
  b1: Number,
  b2: Number,
  rho: Number,
  eps: Number,
  bias_correction: bool = False,
) -> optax.GradientTransformation:
  r"""Momentum over curvature, clipped to [-1, 1] in each coordinate.

  .. math::
    m_t = b_1 m_{t-1} + (1 - b_1) g_t, \quad
    u_t = \mathrm{sign}(m_t) \min(|m_t| / (\rho h_t + \epsilon), 1)

  This is the authors' code (Liuhong99/Sophia, sophia.py), whose h times the
  tokens of a batch is the h here. It starts at zero, so the steps before the
  first estimate follow the momentum's sign; negative entries of h (Hutchinson)
  do likewise.

  Args:
    b1: decay of the momentum; like the others a number, a traced scalar or a
      tree of them.
    b2: decay of the curvature, used here only to correct its bias.
    rho: gradient-to-curvature ratio beyond which an update is clipped.
    eps: added to the denominator.
    bias_correction: divide h by 1 - b2^(estimates so far).

  Returns:
    A transform whose update is u; decay and learning rate are the chain's.
  """

  def init(params: Any) -> ScaleBySophiaState:
    return ScaleBySophiaState(
      jax.tree.map(jnp.zeros_like, params),
      jax.tree.map(jnp.zeros_like, params),
      jnp.zeros([], jnp.int32),
    )

  def update(grads: Any, state: ScaleBySophiaState, params: Any = None):
    del params
    m = jax.tree.map(
      lambda m, g, b: b * m + (1 - b) * g, state.m, grads, like(b1, grads)
    )
    n = state.estimates

    def direction(m, h, b2, rho, eps):
      if bias_correction:
        # Without an estimate h is zero, whatever it is divided by.
        h = h / (1 - b2 ** jnp.maximum(n, 1).astype(h.dtype))
      limit = rho * jnp.maximum(h, 0) + eps
      return jnp.sign(m) * jnp.minimum(jnp.abs(m) / limit, 1)

    updates = jax.tree.map(
      direction, m, state.h, like(b2, m), like(rho, m), like(eps, m)
    )
    return updates, state._replace(m=m)

  return optax.GradientTransformation(init, update)


def update_curvature(
  state: ScaleBySophiaState, curvature: Any, b2: Number
) -> ScaleBySophiaState:
  """Folds a diagonal estimate into the average.

  Args:
    state: of `scale_by_sophia`.
    curvature: a tree like the parameters.
    b2: decay of the average; a number, a traced scalar or a tree of them.
  """
  h = jax.tree.map(
    lambda h, c, b: b * h + (1 - b) * c, state.h, curvature, like(b2, state.h)
  )
  return state._replace(h=h, estimates=state.estimates + 1)


def transform(hyper: Hyperparameters) -> optax.GradientTransformation:
  """The direction with the run's hyperparameters."""
  return scale_by_sophia(
    hyper.b1, hyper.b2, hyper.rho, hyper.eps, hyper.bias_correction
  )

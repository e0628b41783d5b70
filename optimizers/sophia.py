"""Sophia (Liu et al., arXiv 2305.14342).

The training step supplies the curvature: with Gauss-Newton-Bartlett estimates
this is Sophia-G, with Hutchinson's Sophia-H.
"""

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
from steepest.optimizers.trees import Number, average, like, zeros_like


class ScaleBySophiaState(NamedTuple):
  """Momentum, averaged curvature and its number of estimates."""

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

  This follows the authors' code (Liuhong99/Sophia, sophia.py); our h is theirs
  times the tokens of a batch. It starts at zero, so steps before the first
  estimate follow the momentum's sign, as do entries with negative h
  (Hutchinson).

  Args:
    b1: decay of the momentum; like the others, a number, a traced scalar or a
      tree of them.
    b2: decay of the curvature, used here only to correct its bias.
    rho: momentum-to-curvature ratio beyond which an update is clipped.
    eps: added to the denominator.
    bias_correction: divide h by 1 - b2^(estimates so far).
  """

  def init(params: Any) -> ScaleBySophiaState:
    zeros = zeros_like(params), zeros_like(params)
    return ScaleBySophiaState(*zeros, jnp.zeros([], jnp.int32))

  def update(grads: Any, state: ScaleBySophiaState, params: Any = None):
    del params
    m = average(b1, state.m, grads)
    n = state.estimates

    def direction(m, h, b2, rho, eps):
      if bias_correction:
        # Before the first estimate h is zero, whatever divides it.
        h = h / (1 - b2 ** jnp.maximum(n, 1).astype(h.dtype))
      limit = rho * jnp.maximum(h, 0) + eps
      return jnp.sign(m) * jnp.minimum(jnp.abs(m) / limit, 1)

    u = jax.tree.map(
      direction, m, state.h, *(like(x, m) for x in (b2, rho, eps))
    )
    return u, state._replace(m=m)

  return optax.GradientTransformation(init, update)


def update_curvature(
  state: ScaleBySophiaState, curvature: Any, b2: Number
) -> ScaleBySophiaState:
  """Folds a diagonal estimate into the average with decay b2."""
  h = average(b2, state.h, curvature)
  return state._replace(h=h, estimates=state.estimates + 1)


OPTIMIZER = Optimizer(
  name='sophia',
  label='Sophia',
  reference='Liu et al., arXiv 2305.14342, algorithm 3',
  transform=lambda h: scale_by_sophia(
    h.b1, h.b2, h.rho, h.eps, h.hessian_bias_correction
  ),
  curvature=lambda state, diagonal, h: update_curvature(state, diagonal, h.b2),
  read_only=('h',),
  hyperparameters={
    'lr': lr(3e-4, range=(2e-4, 1.6e-3)),
    'b1': momentum(0.965),
    'b2': memory(
      0.99,
      unit='runs',
      range=(0.01, 0.5),
      every='hessian_every',
      meaning='Decay rate of the averaged curvature.',
    ),
    'rho': Hyper(
      0.05,
      range=(0.005, 0.5),
      factor='rho',
      meaning='Gradient-to-curvature ratio beyond which updates are clipped.',
    ),
    'eps': epsilon(1e-15, factor='eps'),
  },
)
sophia = alias(OPTIMIZER)

"""AdamW's direction (Loshchilov & Hutter, arXiv 1711.05101)."""

from typing import Any, NamedTuple

import jax
from jax import numpy as jnp
import optax

from steepest.optimizers.hyperparameters import Hyperparameters, Number, like


class ScaleByAdamWState(NamedTuple):
  """Steps taken, first and second moments."""

  steps: jax.Array
  m: Any
  v: Any


def scale_by_adamw(
  b1: Number, b2: Number, eps: Number
) -> optax.GradientTransformation:
  r"""Adam with bias-corrected moments, as in torch.optim.AdamW.

  .. math::
    m_t = b_1 m_{t-1} + (1 - b_1) g_t, \quad
    v_t = b_2 v_{t-1} + (1 - b_2) g_t^2, \quad
    u_t = \hat m_t / (\sqrt{\hat v_t} + \epsilon)

  Args:
    b1: decay of the first moment; like the others a number, a traced scalar
      or a tree of them.
    b2: decay of the second moment.
    eps: added to the denominator, outside the root.

  Returns:
    A transform whose update is u; decay and learning rate are the chain's.
  """

  def init(params: Any) -> ScaleByAdamWState:
    return ScaleByAdamWState(
      jnp.zeros([], jnp.int32),
      jax.tree.map(jnp.zeros_like, params),
      jax.tree.map(jnp.zeros_like, params),
    )

  def update(grads: Any, state: ScaleByAdamWState, params: Any = None):
    del params
    steps = state.steps + 1
    b1s, b2s, epss = like(b1, grads), like(b2, grads), like(eps, grads)
    m = jax.tree.map(lambda m, g, b: b * m + (1 - b) * g, state.m, grads, b1s)
    v = jax.tree.map(
      lambda v, g, b: b * v + (1 - b) * (g * g), state.v, grads, b2s
    )

    def direction(m, v, b1, b2, eps):
      t = steps.astype(m.dtype)
      m_hat = m / (1 - b1**t)
      return m_hat / (jnp.sqrt(v / (1 - b2**t)) + eps)

    updates = jax.tree.map(direction, m, v, b1s, b2s, epss)
    return updates, ScaleByAdamWState(steps, m, v)

  return optax.GradientTransformation(init, update)


def transform(hyper: Hyperparameters) -> optax.GradientTransformation:
  """The direction with the run's hyperparameters."""
  return scale_by_adamw(hyper.b1, hyper.b2, hyper.eps)

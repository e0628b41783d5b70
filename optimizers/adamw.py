"""AdamW (Loshchilov & Hutter, arXiv 1711.05101)."""

from typing import Any, NamedTuple

import jax
from jax import numpy as jnp
import optax

from steepest.optimizers.alias import alias
from steepest.optimizers.optimizer import (
  Optimizer,
  epsilon,
  lr,
  memory,
  momentum,
)
from steepest.optimizers.trees import (
  Number,
  average,
  like,
  square,
  zeros_like,
)


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
  """

  def init(params: Any) -> ScaleByAdamWState:
    zeros = zeros_like(params), zeros_like(params)
    return ScaleByAdamWState(jnp.zeros([], jnp.int32), *zeros)

  def update(grads: Any, state: ScaleByAdamWState, params: Any = None):
    del params
    steps = state.steps + 1
    m = average(b1, state.m, grads)
    v = average(b2, state.v, square(grads))

    def direction(m, v, b1, b2, eps):
      t = steps.astype(m.dtype)
      return m / (1 - b1**t) / (jnp.sqrt(v / (1 - b2**t)) + eps)

    u = jax.tree.map(direction, m, v, *(like(x, m) for x in (b1, b2, eps)))
    return u, ScaleByAdamWState(steps, m, v)

  return optax.GradientTransformation(init, update)


OPTIMIZER = Optimizer(
  name='adamw',
  label='AdamW',
  reference='Loshchilov & Hutter, arXiv 1711.05101, algorithm 2',
  transform=lambda h: scale_by_adamw(h.b1, h.b2, h.eps),
  hyperparameters={
    'lr': lr(6e-4, range=(1e-3, 8e-3)),
    'b1': momentum(0.9),
    'b2': memory(0.95),
    'eps': epsilon(1e-8, factor='eps'),
  },
)
adamw = alias(OPTIMIZER)

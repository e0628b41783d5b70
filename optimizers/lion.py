"""Lion (Chen et al., arXiv 2302.06675)."""

from typing import Any, NamedTuple

import jax
from jax import numpy as jnp
import optax

from steepest.optimizers.alias import alias
from steepest.optimizers.optimizer import Optimizer, lr, memory, momentum
from steepest.optimizers.trees import Number, average, zeros_like


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
    b1: weight of the momentum in the direction; like b2, a number, a traced
      scalar or a tree of them.
    b2: decay of the momentum.
  """

  def init(params: Any) -> ScaleByLionState:
    return ScaleByLionState(zeros_like(params))

  def update(grads: Any, state: ScaleByLionState, params: Any = None):
    del params
    updates = jax.tree.map(jnp.sign, average(b1, state.m, grads))
    return updates, ScaleByLionState(average(b2, state.m, grads))

  return optax.GradientTransformation(init, update)


OPTIMIZER = Optimizer(
  name='lion',
  label='Lion',
  reference='Chen et al., arXiv 2302.06675, algorithm 2',
  transform=lambda h: scale_by_lion(h.b1, h.b2),
  hyperparameters={
    'lr': lr(1e-4, range=(2e-4, 1.6e-3)),
    'b1': momentum(0.9),
    'b2': memory(0.99),
  },
)
lion = alias(OPTIMIZER)

"""Signum (Bernstein et al., arXiv 1802.04434)."""

import jax
from jax import numpy as jnp
import optax

from steepest.optimizers.alias import alias
from steepest.optimizers.lion import ScaleByLionState
from steepest.optimizers.optimizer import Optimizer, lr, momentum
from steepest.optimizers.trees import Number, average, zeros_like


def scale_by_signum(b1: Number) -> optax.GradientTransformation:
  """u = sign(m), with m the average of gradients with decay b1."""

  def init(params):
    return ScaleByLionState(zeros_like(params))

  def update(grads, state, params=None):
    del params
    m = average(b1, state.m, grads)
    return jax.tree.map(jnp.sign, m), ScaleByLionState(m)

  return optax.GradientTransformation(init, update)


OPTIMIZER = Optimizer(
  name='signum',
  label='Signum',
  reference='Bernstein et al., arXiv 1802.04434, algorithm 2',
  transform=lambda h: scale_by_signum(h.b1),
  hyperparameters={'lr': lr(1e-4, range=(2e-4, 1.6e-3)), 'b1': momentum(0.95)},
)
signum = alias(OPTIMIZER)

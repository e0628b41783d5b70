"""Prodigy (Mishchenko & Defazio, arXiv 2306.06101), from Optax."""

from typing import Any

import jax
from jax import numpy as jnp
import optax
from optax import contrib

from steepest.optimizers.alias import alias
from steepest.optimizers.optimizer import (
  Optimizer,
  epsilon,
  lr,
  memory,
  momentum,
)


def scale_by_prodigy(
  b1: float, b2: float, eps: float, learning_rate: Any, lr_factors: Any
) -> optax.GradientTransformation:
  r"""Adam's direction times an estimate d of the learning rate.

  d is the largest lower bound so far on the distance to the solution, from how
  gradients point back to the start; it begins at 1e-6. A role's factor r on the
  learning rate is treated as one on the parameter, θ = r·φ: gradients of φ are
  r·g, and d measures how far φ has to go, which does not depend on width. This
  is the form that is safe under warm-up.

  Args:
    b1: decay of the first moment; like b2, eps and learning_rate, a number or
      a traced scalar.
    b2: decay of the second moment.
    eps: added to the denominator, times d.
    learning_rate: s_t·lr, by which the chain multiplies later.
    lr_factors: a tree of r.
  """
  prodigy = contrib.prodigy(
    learning_rate, (b1, b2), eps=eps, weight_decay=0.0, safeguard_warmup=True
  )
  over = lambda r, x: jax.tree.map(lambda y: y if r == 1 else y / r, x)

  def init(params: Any) -> contrib.ProdigyState:
    state = prodigy.init(jax.tree.map(over, lr_factors, params))
    # Copy: a training step consumes the parameters' buffers.
    return state._replace(params0=jax.tree.map(jnp.copy, state.params0))

  def update(grads: Any, state: contrib.ProdigyState, params: Any = None):
    grads = jax.tree.map(lambda r, g: r * g, lr_factors, grads)
    params = jax.tree.map(over, lr_factors, params)
    updates, state = prodigy.update(grads, state, params)
    # At a learning rate of 0 all updates are 0.
    rate = jnp.where(learning_rate > 0, -learning_rate, 1)
    return jax.tree.map(lambda u: u / rate, updates), state

  return optax.GradientTransformation(init, update)


OPTIMIZER = Optimizer(
  name='prodigy',
  label='Prodigy',
  reference='Mishchenko & Defazio, arXiv 2306.06101, algorithm 4',
  transform=lambda h: scale_by_prodigy(
    h.b1, h.b2, h.eps, h.learning_rate, h.lr_factors
  ),
  hyperparameters={
    'lr': lr(1.0, range=(0.25, 2.0), meaning='Multiplies the estimate.'),
    'b1': momentum(0.9),
    'b2': memory(0.95),
    'eps': epsilon(1e-8),
  },
  statistics=lambda state: {'lr_estimate': state.estim_lr},
  read_only=('params0',),
)
prodigy = alias(OPTIMIZER)

"""AdEMAMix (Pagliardini et al., arXiv 2409.03137), from Optax."""

from types import SimpleNamespace

import jax
from jax import numpy as jnp
import optax
from optax import contrib

from steepest.optimizers.alias import alias
from steepest.optimizers.optimizer import (
  Hyper,
  Optimizer,
  epsilon,
  lr,
  memory,
  momentum,
)
from steepest.optimizers.trees import map_eps


def _transform(h: SimpleNamespace) -> optax.GradientTransformation:
  """Adam with a second, slow momentum: u = (m̂₁ + α_t·m₂) / (√v̂ + ε).

  Over the run's T steps its weight rises as α_t = α·t/T, and its decay goes
  from b1 to b3 with 1 / log(decay) changing linearly (section 3).
  """

  def progress(count: jax.Array) -> jax.Array:
    return jnp.minimum((count + 1) / jnp.maximum(h.steps, 1), 1)

  def decay(count: jax.Array) -> jax.Array:
    t = progress(count)
    # b1 = 0 has no logarithm.
    start, end = jnp.log(jnp.maximum(h.b1, 1e-8)), jnp.log(h.b3)
    return jnp.exp(start * end / ((1 - t) * end + t * start))

  return contrib.scale_by_ademamix(
    h.b1, h.b2, decay, lambda count: h.alpha * progress(count), h.eps
  )


OPTIMIZER = Optimizer(
  name='ademamix',
  label='AdEMAMix',
  reference='Pagliardini et al., arXiv 2409.03137, algorithm 1',
  transform=map_eps(_transform),
  depends_on_steps=True,
  hyperparameters={
    'lr': lr(6e-4, range=(5e-4, 4e-3)),
    'b1': momentum(0.9),
    'b2': memory(0.999),
    'b3': memory(
      0.9999,
      # The half-life of 0.9999 in the paper's 256,000 steps.
      half_life=0.027,
      unit='runs',
      range=(0.005, 0.25),
      meaning='Decay rate of the slow momentum at the end of the run.',
    ),
    'alpha': Hyper(
      5.0, range=(1.0, 16.0), meaning='Weight of the slow momentum at the end.'
    ),
    'eps': epsilon(1e-8),
  },
)
ademamix = alias(OPTIMIZER)

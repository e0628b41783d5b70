"""Adafactor (Shazeer & Stern, arXiv 1804.04235), from Optax."""

from typing import Any

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
from steepest.optimizers.trees import array_in, map_eps


def scale_by_adafactor(
  b1: float, b2: float, eps: float
) -> optax.GradientTransformation:
  r"""Momentum over gradients scaled by a factored second moment.

  .. math::
    u_t = b_1 u_{t-1} + (1 - b_1) \mathrm{clip}_{RMS \le 1}(g_t / \sqrt{v_t})

  where v is an average of g² + ε with decay min(b2, 1 - t^{-0.8}); of matrices
  with two sides of 128 or more it keeps row and column means alone. Momentum
  and the bound b2 are those of Zhai et al. (arXiv 2106.04560); learning rates
  are not multiplied by the parameter's size.

  Args:
    b1: decay of the momentum; like the others a number or traced scalar.
    b2: highest decay of the second moment.
    eps: added to squared gradients.
  """

  decay = lambda step, exponent: jnp.minimum(b2, 1 - (step + 1.0) ** -exponent)
  scale = optax.scale_by_factored_rms(epsilon=eps, decay_rate_fn=decay)
  clip, average = optax.clip_by_block_rms(1.0), optax.ema(b1, debias=False)

  def init(params: Any) -> Any:
    # Means of rows and columns are small: every device has them whole.
    boxes = jax.tree.leaves(params, is_leaf=lambda x: hasattr(x, 'names'))
    return scale.init([array_in(p) for p in boxes]), average.init(params)

  def update(grads: Any, state: Any, params: Any = None):
    del params
    leaves, structure = jax.tree.flatten(grads)
    # Of parameters it wants the shapes alone.
    leaves, factors = scale.update(leaves, state[0], leaves)
    leaves, _ = clip.update(leaves, optax.EmptyState())
    clipped = jax.tree.unflatten(structure, leaves)
    updates, averages = average.update(clipped, state[1])
    return updates, (factors, averages)

  return optax.GradientTransformation(init, update)


OPTIMIZER = Optimizer(
  name='adafactor',
  label='Adafactor',
  reference='Shazeer & Stern, arXiv 1804.04235; Zhai et al., arXiv 2106.04560',
  transform=map_eps(lambda h: scale_by_adafactor(h.b1, h.b2, h.eps)),
  hyperparameters={
    'lr': lr(6e-4, range=(1e-3, 8e-3)),
    'b1': momentum(0.9),
    'b2': memory(0.999),
    'eps': epsilon(1e-30, meaning='Added to squared gradients.'),
  },
)
adafactor = alias(OPTIMIZER)

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
from steepest.optimizers.trees import array_in, box_like, map_eps

# Stacked layers share one step count; their means are stacked.
_STACKED: Any = optax.FactoredState(None, 0, 0, 0)


def scale_by_adafactor(
  b1: float, b2: float, eps: float, layers: Any = 0
) -> optax.GradientTransformation:
  r"""Momentum over gradients scaled by a factored second moment.

  .. math::
    u_t = b_1 u_{t-1} + (1 - b_1) \mathrm{clip}_{RMS \le 1}(g_t / \sqrt{v_t})

  where v averages g² + ε with decay min(b2, 1 - t^{-0.8}); for matrices with
  both sides at least 128, only row and column means are kept. Momentum and the
  bound b2 follow Zhai et al. (arXiv 2106.04560); the learning rate is not
  multiplied by the parameter's size.

  Args:
    b1: decay of the momentum; like the others a number or traced scalar.
    b2: highest decay of the second moment.
    eps: added to squared gradients.
    layers: how many are stacked along each parameter's first axis, a number or
      a tree; 0: none.
  """

  decay = lambda step, exponent: jnp.minimum(b2, 1 - (step + 1.0) ** -exponent)
  scale = optax.scale_by_factored_rms(epsilon=eps, decay_rate_fn=decay)
  clip, average = optax.clip_by_block_rms(1.0), optax.ema(b1, debias=False)

  def of_one(g: jax.Array, *held: Any) -> tuple[jax.Array, optax.FactoredState]:
    # Optax only reads the parameters' shapes.
    g, factors = scale.update(g, optax.FactoredState(*held), g)
    return clip.update(g, optax.EmptyState())[0], factors

  def init(params: Any) -> Any:
    boxes = jax.tree.leaves(params, is_leaf=lambda x: hasattr(x, 'names'))
    found = [
      (jax.vmap(scale.init, out_axes=_STACKED) if n else scale.init)(
        array_in(box)
      )
      for box, n in zip(boxes, _counts(layers, boxes))
    ]
    # Row and column means are small, so every device keeps them whole.
    means = [
      [box_like(box, x, [None] * x.ndim) for box, x in zip(boxes, xs)]
      for xs in list(zip(*found))[1:]
    ]
    return optax.FactoredState(found[0].count, *means), average.init(params)

  def update(grads: Any, state: Any, params: Any = None):
    del params
    leaves, structure = jax.tree.flatten(grads)
    count, *means = state[0]
    by_layer = jax.vmap(of_one, (0, None, 0, 0, 0), (0, _STACKED))
    found = [
      (by_layer if n else of_one)(g, count, *held)
      for g, n, *held in zip(leaves, _counts(layers, leaves), *means)
    ]
    clipped = jax.tree.unflatten(structure, [g for g, _ in found])
    updates, averages = average.update(clipped, state[1])
    counts, *means = (list(xs) for xs in zip(*(held for _, held in found)))
    return updates, (optax.FactoredState(counts[0], *means), averages)

  return optax.GradientTransformation(init, update)


def _counts(layers: Any, leaves: list[Any]) -> list[int]:
  """Returns how many layers each leaf stacks; 0: none."""
  found = jax.tree.leaves(layers)
  return found if len(found) == len(leaves) else found * len(leaves)


OPTIMIZER = Optimizer(
  name='adafactor',
  label='Adafactor',
  reference='Shazeer & Stern, arXiv 1804.04235; Zhai et al., arXiv 2106.04560',
  transform=map_eps(lambda h: scale_by_adafactor(h.b1, h.b2, h.eps, h.layers)),
  hyperparameters={
    'lr': lr(6e-4, range=(1e-3, 8e-3)),
    'b1': momentum(0.9),
    'b2': memory(0.999),
    'eps': epsilon(1e-30, meaning='Added to squared gradients.'),
  },
)
adafactor = alias(OPTIMIZER)

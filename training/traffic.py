"""Bytes that devices send each other in a training step.

Ring algorithms: of n devices, each sends (n - 1)/n of an array to gather or
to reduce-scatter it, and twice that to reduce it everywhere.
"""

import math

from jax import numpy as jnp

from steepest.models.config import ModelConfig
from steepest.training.chips import Chip

# Of the axes data, fsdp, tensor and sequence, the last of them nearest.
Sizes = tuple[int, int, int, int]
# Share of a link's rate that collectives reach; assumed, not measured.
LINK = 0.8


def per_device(
  sizes: dict[str, int],
  model: ModelConfig,
  matrices: int,
  tokens: float,
  microbatches: int,
  remat: str,
) -> dict[str, float]:
  """Returns the bytes that a device sends, by mesh axis.

  Args:
    sizes: of the mesh.
    model: shapes.
    matrices: parameters in matrices.
    tokens: of a step on each device.
    microbatches: slices; along fsdp each gathers and reduces again.
    remat: 'full' gathers the weights a third time.
  """
  item = jnp.dtype(model.compute_dtype).itemsize
  ring = {axis: (n - 1) / n for axis, n in sizes.items()}
  weights = item * matrices / sizes['tensor']
  gathers = 3 if remat == 'full' else 2
  stream = item * tokens * model.width
  keys = item * tokens * model.num_kv_heads * model.head_dim / sizes['tensor']
  layers = model.num_layers
  return {
    # Each copy sums its micro-batches, in float32, and reduces them once.
    'data': (4 / item if microbatches > 1 else 1)
    * 2
    * ring['data']
    * weights
    / sizes['fsdp'],
    # Gathered for each use; the gradient is reduced and scattered.
    'fsdp': (gathers + 1) * ring['fsdp'] * weights * microbatches,
    # After attention, after the MLP, and for the gradients of both inputs.
    'tensor': 4 * 2 * layers * ring['tensor'] * stream,
    # Keys and values of the other parts, and their gradients.
    'sequence': (
      (gathers + 1) * 2 * layers * (sizes['sequence'] - 1) * keys
      + 2 * ring['sequence'] * weights / sizes['fsdp'] * microbatches
    ),
  }


def seconds(
  sent: dict[str, float], sizes: dict[str, int], chip: Chip
) -> dict[str, float]:
  """Returns how long each axis takes to send its bytes."""
  axes = list(sizes)
  return {
    axis: sent[axis] / (LINK * _rate(math.prod(list(sizes.values())[i:]), chip))
    for i, axis in enumerate(axes)
  }


def _rate(span: int, chip: Chip) -> float:
  """Returns the rate of rings through `span` neighbouring devices."""
  return chip.link if span <= chip.group else chip.network

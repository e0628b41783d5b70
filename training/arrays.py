"""What a model holds: parameters by their axes, and values that layers keep."""

import collections
import dataclasses
import math
from typing import Any

from flax import linen as nn
import jax
from jax import numpy as jnp

from steepest.models.config import ModelConfig
from steepest.training import mesh as mesh_lib, residuals
from steepest.training.loss import cross_entropy


@dataclasses.dataclass(frozen=True)
class Kept:
  """Values that wait for the backward pass.

  Attributes:
    layer: of each layer.
    rest: of what surrounds them.
  """

  layer: tuple[residuals.Value, ...]
  rest: tuple[residuals.Value, ...]


def init_shapes(module: nn.Module, model: ModelConfig) -> Any:
  """Returns the shapes of a model's parameters, boxed with their axes."""
  tokens_1xL = jnp.zeros((1, model.context), jnp.int32)
  return jax.eval_shape(
    lambda: module.init(jax.random.key(0), tokens_1xL)['params']
  )


@dataclasses.dataclass(frozen=True)
class Array:
  """Shape, logical axes and bytes of an element."""

  shape: tuple[int, ...]
  axes: tuple[Any, ...]
  itemsize: int


def leaves(boxed: Any) -> list[Array]:
  """Returns the arrays of a tree; what is not boxed has no axes."""
  arrays = jax.tree.leaves(
    boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned)
  )
  return [
    Array(tuple(x.value.shape), tuple(x.names), x.value.dtype.itemsize)
    if isinstance(x, nn.LogicallyPartitioned)
    else Array(tuple(x.shape), (), x.dtype.itemsize)
    for x in arrays
  ]


def sharded(arrays: list[Array], sizes: dict[str, int]) -> int:
  """Returns the bytes of a device's part of arrays."""
  # Parameters have no batch: each of their axes goes to one mesh axis.
  axes = {name: axis for name, axis in mesh_lib.RULES if isinstance(axis, str)}
  total = 0
  for a in arrays:
    parts = [sizes[axes[name]] for name in a.axes if name in axes]
    total += a.itemsize * math.ceil(math.prod(a.shape) / math.prod(parts))
  return total


def kept(model: ModelConfig, make_module: Any, remat: str) -> Kept:
  """Traces one and two layers: the difference is what a layer keeps."""
  one, two = (
    _stored(
      dataclasses.replace(model, num_layers=layers, remat=remat), make_module
    )
    for layers in (1, 2)
  )
  layer = _without(two, one)
  return Kept(tuple(layer), tuple(_without(one, layer)))


def _stored(model: ModelConfig, make_module: Any) -> list[residuals.Value]:
  module = make_module(model)
  params = nn.unbox(init_shapes(module, model))
  tokens_BxL = jax.ShapeDtypeStruct((residuals.ROWS, model.context), jnp.int32)

  def loss(params: Any, inputs_BxL: jax.Array, targets_BxL: jax.Array) -> Any:
    logits_BxLxV = module.apply({'params': params}, inputs_BxL)
    return cross_entropy(logits_BxLxV, targets_BxL).mean()

  return residuals.stored(loss, params, tokens_BxL, tokens_BxL)


def _without(
  values: list[residuals.Value], others: list[residuals.Value]
) -> list[residuals.Value]:
  """Returns `values` less one of the same shape for each of `others`."""
  counts = collections.Counter((v.shape, v.itemsize) for v in others)
  rest = []
  for value in values:
    key = (value.shape, value.itemsize)
    if counts[key]:
      counts[key] -= 1
    else:
      rest.append(value)
  return rest

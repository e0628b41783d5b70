"""A text a token at a time: keys and values of earlier tokens are kept.

B rows, L tokens of a call, C length of the cache, D width, V vocabulary.
"""

from typing import Any

from flax import linen as nn
import jax
from jax import numpy as jnp

from steepest.models.config import ModelConfig
from steepest.models.matmul import matmul

Cache = dict[str, Any]


def make_cache(model: ModelConfig, rows: int, length: int) -> Cache:
  """Returns an empty cache of C = `length` positions of each row."""
  shape = (rows, length, model.num_kv_heads, model.head_dim)
  zeros = lambda: jnp.zeros(shape, model.compute_dtype)
  return {
    f'block_{i}': {'keys': zeros(), 'values': zeros()}
    for i in range(model.num_layers)
  }


def extend(
  module: nn.Module,
  params: Any,
  cache: Cache,
  tokens_BxL: jax.Array,
  positions_BxL: jax.Array,
  last_B: jax.Array,
) -> tuple[jax.Array, Cache]:
  """Adds tokens to the rows and returns what comes next.

  Positions below those given must be in the cache. Tokens behind a row's last
  one may be anything: later calls write over them before they are seen.

  Args:
    module: the model.
    params: its parameters.
    cache: of the tokens so far.
    tokens_BxL: that follow.
    positions_BxL: theirs, each below C.
    last_B: index of each row's last token among its L.

  Returns:
    Float32 logits B×V after each row's last token, and the longer cache.
  """
  (x_BxLxD, readout_VxD), new = module.apply(
    {'params': params, 'cache': cache},
    tokens_BxL,
    None,
    positions_BxL,
    True,
    mutable=['cache'],
  )
  x_BxD = x_BxLxD[jnp.arange(last_B.shape[0]), last_B]
  logits_BxV = matmul(x_BxD, readout_VxD.astype(x_BxD.dtype).T)
  return logits_BxV.astype(jnp.float32), new['cache']

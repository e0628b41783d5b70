"""The blocks of a model, one after another or as one compiled loop.

Parameters are those of single blocks either way, `block_0` to `block_{n-1}`:
checkpoints, roles, weights for Hugging Face and statistics do not depend on it.

B batch, L length, D width.
"""

from typing import Any

from flax import linen as nn
import jax
from jax import numpy as jnp

from steepest.models import remat


def run(
  model: Any, kind: type[nn.Module], x_BxLxD: jax.Array, *inputs: Any
) -> jax.Array:
  """Returns B×L×D: what the blocks of `model` make of the stream.

  With `scan_layers` of its configuration the blocks' weights are stacked, in
  the dtype of the matrix products, and a loop runs over them: a block is
  compiled once, whatever the number of layers. It needs that copy of the
  weights and of their gradients, and what the backward pass needs is stored
  as remat says, none of it fused into what uses it. What a mesh splits stays
  split in the stack: each iteration gathers its own block's weights, and
  reduces their gradients.

  Args:
    model: the module that is called, with fields `config` and `rules`.
    kind: class of its blocks.
    x_BxLxD: the stream.
    *inputs: further arguments of every block.
  """
  c, rules = model.config, model.rules
  # Initial values, caches and what looks into blocks need them one by one.
  if not c.scan_layers or model.scope.mutable:
    block = remat.block(c.remat, kind)
    for i in range(c.num_layers):
      x_BxLxD = block(c, rules, name=f'block_{i}')(x_BxLxD, *inputs)
    return x_BxLxD
  looped: Any = remat.block(c.remat, kind, in_loop=True)
  block = looped(c, rules, parent=None)

  def body(x_BxLxD: jax.Array, params: Any) -> tuple[jax.Array, None]:
    return block.apply({'params': params}, x_BxLxD, *inputs), None

  blocks = (
    model.get_variable('params', f'block_{i}') for i in range(c.num_layers)
  )
  stacked = jax.tree.map(
    lambda *leaves: jnp.stack([_as_used(x, c.compute_dtype) for x in leaves]),
    *blocks,
  )
  return jax.lax.scan(body, x_BxLxD, stacked)[0]


def _as_used(leaf: jax.Array, dtype: Any) -> jax.Array:
  """Casts matrices as the products with them do; norms are in float32."""
  return leaf.astype(dtype) if leaf.ndim > 1 else leaf

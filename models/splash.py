"""Causal attention on TPUs by JAX's splash kernel, which keeps no L×L scores.

B batch, L length, H heads, K key-value heads, h head dim.
"""

import math
import types
from typing import Any

from flax import linen as nn
import jax

from steepest.models import remat

# Tokens of a tile; the kernel asks for multiples of 128.
TILES = (512, 256, 128)


def kernel() -> types.ModuleType:
  """Returns JAX's module of the kernel, which only TPUs take time to load."""
  from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel,
  )

  return splash_attention_kernel


def serves(length: int, segment_ids: jax.Array | None) -> bool:
  """Returns whether the kernel can do it.

  It needs whole tiles, sequences that lie whole on a device, and segments told
  by their numbers, B×L.
  """
  if length % TILES[-1] or (segment_ids is not None and segment_ids.ndim > 2):
    return False
  return sequence_parts() == 1


def sequence_parts() -> int:
  """Returns into how many parts the mesh splits a sequence."""
  spec = nn.logical_to_mesh_axes(('length',))
  axes = spec[0] if spec else None
  names = (axes,) if isinstance(axes, str) else axes or ()
  shape = jax.sharding.get_abstract_mesh().shape
  return math.prod(shape.get(name, 1) for name in names)


def attention(
  q_BxLxHxh: jax.Array,
  k_BxLxKxh: jax.Array,
  v_BxLxKxh: jax.Array,
  scale: float,
  segment_ids_BxL: jax.Array | None = None,
) -> jax.Array:
  """Returns B×L×H×h, as attention.causal_attention; see `serves`.

  Each device computes its own rows and heads.
  """
  rows = nn.logical_to_mesh_axes(('batch', None))
  heads, kv_heads = (
    nn.logical_to_mesh_axes(('batch', None, name, None))
    for name in ('heads', 'kv_heads')
  )
  q_BxLxHxh = (q_BxLxHxh * scale).astype(q_BxLxHxh.dtype)
  given: list[jax.Array] = [q_BxLxHxh, k_BxLxKxh, v_BxLxKxh]
  specs = [heads, kv_heads, kv_heads]
  if segment_ids_BxL is not None:
    given.append(segment_ids_BxL)
    specs.append(rows)
  if jax.sharding.get_abstract_mesh().empty:
    return _local(*given)
  return jax.shard_map(
    _local, in_specs=tuple(specs), out_specs=heads, check_vma=False
  )(*given)


def _local(
  q_BxLxHxh: jax.Array,
  k_BxLxKxh: jax.Array,
  v_BxLxKxh: jax.Array,
  segment_ids_BxL: jax.Array | None = None,
) -> jax.Array:
  length, heads = q_BxLxHxh.shape[1:3]
  attend, segment_ids = _kernel(length, heads), kernel().SegmentIds

  def one(q_LxHxh: Any, k_LxKxh: Any, v_LxKxh: Any, ids_L: Any) -> jax.Array:
    segments = None if ids_L is None else segment_ids(ids_L, ids_L)
    q_HxLxh, k_KxLxh, v_KxLxh = (
      x.swapaxes(0, 1) for x in (q_LxHxh, k_LxKxh, v_LxKxh)
    )
    return attend(q_HxLxh, k_KxLxh, v_KxLxh, segments).swapaxes(0, 1)

  return jax.vmap(one, (0, 0, 0, None if segment_ids_BxL is None else 0))(
    q_BxLxHxh, k_BxLxKxh, v_BxLxKxh, segment_ids_BxL
  )


def _kernel(length: int, heads: int) -> Any:
  from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_mask as masks,
  )

  tile = next(size for size in TILES if length % size == 0)
  return kernel().make_splash_mha(
    masks.MultiHeadMask([masks.CausalMask((length, length))] * heads),
    block_sizes=kernel().BlockSizes(
      block_q=tile,
      block_kv=tile,
      block_q_dkv=tile,
      block_kv_dkv=tile,
      use_fused_bwd_kernel=True,
    ),
    head_shards=1,
    q_seq_shards=1,
    residual_checkpoint_name=remat.KERNEL,
  )

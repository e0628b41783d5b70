"""Causal attention, with the fastest kernel that the device has.

B batch, L length, C length of a cache, H heads, K key-value heads, h head dim.
"""

from collections.abc import Callable
import functools
import math
import types
from typing import Any

from flax import linen as nn
import jax
from jax import numpy as jnp

from steepest.models import remat

# Tokens per tile on TPUs; the kernel needs multiples of the last.
TILES = (512, 256, 128)


def attend(
  module: nn.Module,
  q_BxLxHxh: jax.Array,
  k_BxLxKxh: jax.Array,
  v_BxLxKxh: jax.Array,
  scale: float,
  segment_ids_BxL: jax.Array | None,
  positions_BxL: jax.Array | None,
) -> jax.Array:
  """Returns B×L×H×h: attention among the tokens, or also over a cache.

  If `module` has a collection `cache` (models/decoding.py), keys and values are
  written into it at their positions, and each token attends to all of it up to
  its own position.
  """
  if not module.has_variable('cache', 'keys'):
    return causal_attention(
      q_BxLxHxh, k_BxLxKxh, v_BxLxKxh, scale, segment_ids_BxL
    )
  assert positions_BxL is not None and segment_ids_BxL is None
  rows_Bx1 = jnp.arange(positions_BxL.shape[0])[:, None]

  def extend(name: str, new_BxLxKxh: jax.Array) -> jax.Array:
    cached_BxCxKxh: jax.Array = module.get_variable('cache', name)
    cached_BxCxKxh = cached_BxCxKxh.at[rows_Bx1, positions_BxL].set(new_BxLxKxh)
    module.put_variable('cache', name, cached_BxCxKxh)
    return cached_BxCxKxh

  keys_BxCxKxh = extend('keys', k_BxLxKxh)
  values_BxCxKxh = extend('values', v_BxLxKxh)
  # Beyond a token's position the cache is stale or not written yet.
  index_1x1xC = jnp.arange(keys_BxCxKxh.shape[1])[None, None]
  mask_BxLxC = index_1x1xC <= positions_BxL[..., None]
  return jax.nn.dot_product_attention(
    q_BxLxHxh,
    keys_BxCxKxh,
    values_BxCxKxh,
    mask=mask_BxLxC[:, None],
    scale=scale,
  )


def causal_attention(
  q_BxLxHxh: jax.Array,
  k_BxLxKxh: jax.Array,
  v_BxLxKxh: jax.Array,
  scale: float,
  segment_ids_BxL: jax.Array | None = None,
) -> jax.Array:
  """Returns B×L×H×h; H is a multiple of K, softmax in float32.

  Half-precision inputs on GPUs use cuDNN's fused kernel, whole sequences on
  TPUs JAX's splash kernel; elsewhere XLA compiles the plain formula. Instead of
  segments, a B×L×L mask can say which earlier tokens each token sees. With
  either, or if a mesh splits sequences, cuDNN's kernel gets the mask as a bias
  and needs an even length for its backward pass.
  """
  if remat.platform() == 'tpu':
    if splash_serves(q_BxLxHxh.shape[1], segment_ids_BxL):
      return splash(q_BxLxHxh, k_BxLxKxh, v_BxLxKxh, scale, segment_ids_BxL)
  mask_Bx1xLxL = None
  if segment_ids_BxL is not None:
    same_BxLxL = segment_ids_BxL
    if segment_ids_BxL.ndim == 2:
      same_BxLxL = segment_ids_BxL[:, :, None] == segment_ids_BxL[:, None]
    mask_Bx1xLxL = same_BxLxL[:, None]
  splits = _sequence_splits()
  plain = mask_Bx1xLxL is None and splits == 1
  half = q_BxLxHxh.dtype in (jnp.bfloat16, jnp.float16)
  fused = remat.platform() == 'gpu' and half
  fused = fused and (plain or q_BxLxHxh.shape[1] // splits % 2 == 0)
  kernel = functools.partial(
    jax.nn.dot_product_attention,
    scale=scale,
    implementation='cudnn' if fused else 'xla',
  )
  operands = (
    remat.named(q_BxLxHxh, 'query'),
    remat.named(k_BxLxKxh, 'key'),
    remat.named(v_BxLxKxh, 'value'),
  )
  if fused and splits > 1:
    return _own_queries(kernel, *operands, mask_Bx1xLxL)
  y_BxLxHxh = kernel(*operands, mask=mask_Bx1xLxL, is_causal=True)
  # The fused kernel's output is already kept, with its statistics.
  return y_BxLxHxh if fused else remat.named(y_BxLxHxh, 'attention')


def _own_queries(
  kernel: Callable[..., jax.Array],
  q_BxLxHxh: jax.Array,
  k_BxLxKxh: jax.Array,
  v_BxLxKxh: jax.Array,
  mask_Bx1xLxL: jax.Array | None,
) -> jax.Array:
  """Attends on each device from its own queries to all keys, after a gather.

  cuDNN's partitioner only accepts whole sequences. A device's queries need not
  start where the keys do, so causality is a mask too, and the kernel computes
  even what the mask hides.
  """
  index_L = jnp.arange(q_BxLxHxh.shape[1])
  causal_1x1xLxL = (index_L[:, None] >= index_L[None])[None, None]
  if mask_Bx1xLxL is None:
    mask, rows = causal_1x1xLxL, None
  else:
    mask, rows = causal_1x1xLxL & mask_Bx1xLxL, 'batch'
  axes = nn.logical_to_mesh_axes
  own = axes(('batch', 'length', 'heads', None))
  whole = axes(('batch', None, 'kv_heads', None))
  return jax.shard_map(
    lambda q, k, v, mask: kernel(q, k, v, mask=mask),
    in_specs=(own, whole, whole, axes((rows, None, 'length', None))),
    out_specs=own,
    check_vma=False,
  )(q_BxLxHxh, k_BxLxKxh, v_BxLxKxh, mask)


def _sequence_splits() -> int:
  """Returns how many devices share a sequence."""
  spec = nn.logical_to_mesh_axes(('length',))
  axes = spec[0] if spec else None
  names = (axes,) if isinstance(axes, str) else axes or ()
  shape = jax.sharding.get_abstract_mesh().shape
  return math.prod(shape.get(name, 1) for name in names)


def splash_serves(length: int, segment_ids: jax.Array | None) -> bool:
  """Returns whether JAX's splash kernel can compute the attention.

  It needs whole tiles, whole sequences on each device, and segments given as
  ids, B×L.
  """
  if length % TILES[-1] or (segment_ids is not None and segment_ids.ndim > 2):
    return False
  return _sequence_splits() == 1


def splash(
  q_BxLxHxh: jax.Array,
  k_BxLxKxh: jax.Array,
  v_BxLxKxh: jax.Array,
  scale: float,
  segment_ids_BxL: jax.Array | None = None,
) -> jax.Array:
  """Returns `causal_attention` on TPUs without storing L×L scores.

  Each device computes its own rows and heads. See `splash_serves`.
  """
  rows = nn.logical_to_mesh_axes(('batch', None))
  heads, kv_heads = (
    nn.logical_to_mesh_axes(('batch', None, name, None))
    for name in ('heads', 'kv_heads')
  )
  q_BxLxHxh = (q_BxLxHxh * scale).astype(q_BxLxHxh.dtype)
  operands: list[jax.Array] = [q_BxLxHxh, k_BxLxKxh, v_BxLxKxh]
  specs = [heads, kv_heads, kv_heads]
  if segment_ids_BxL is not None:
    operands.append(segment_ids_BxL)
    specs.append(rows)
  if jax.sharding.get_abstract_mesh().empty:
    return _splash_on_device(*operands)
  return jax.shard_map(
    _splash_on_device, in_specs=tuple(specs), out_specs=heads, check_vma=False
  )(*operands)


def _splash_on_device(
  q_BxLxHxh: jax.Array,
  k_BxLxKxh: jax.Array,
  v_BxLxKxh: jax.Array,
  segment_ids_BxL: jax.Array | None = None,
) -> jax.Array:
  length, heads = q_BxLxHxh.shape[1:3]
  attend, segment_ids = _make_splash(length, heads), splash_kernel().SegmentIds

  def one(q_LxHxh: Any, k_LxKxh: Any, v_LxKxh: Any, ids_L: Any) -> jax.Array:
    segments = None if ids_L is None else segment_ids(ids_L, ids_L)
    q_HxLxh, k_KxLxh, v_KxLxh = (
      x.swapaxes(0, 1) for x in (q_LxHxh, k_LxKxh, v_LxKxh)
    )
    return attend(q_HxLxh, k_KxLxh, v_KxLxh, segments).swapaxes(0, 1)

  return jax.vmap(one, (0, 0, 0, None if segment_ids_BxL is None else 0))(
    q_BxLxHxh, k_BxLxKxh, v_BxLxKxh, segment_ids_BxL
  )


def _make_splash(length: int, heads: int) -> Any:
  from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_mask as masks,
  )

  tile = next(size for size in TILES if length % size == 0)
  return splash_kernel().make_splash_mha(
    masks.MultiHeadMask([masks.CausalMask((length, length))] * heads),
    block_sizes=splash_kernel().BlockSizes(
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


def splash_kernel() -> types.ModuleType:
  """Returns JAX's splash module, imported only when used."""
  from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel,
  )

  return splash_attention_kernel

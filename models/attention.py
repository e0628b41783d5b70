"""Causal attention, by the fastest kernel there is for the device.

B batch, L length, C length of a cache, H heads, K key-value heads, h head dim.
"""

from collections.abc import Callable
import functools

from flax import linen as nn
import jax
from jax import numpy as jnp

from steepest.models import matmul, remat, splash
from steepest.models.config import ModelConfig
from steepest.models.parametrization import Parametrization, declare


class HeadNorm(nn.Module):
  """Root-mean-square normalisation of each head's features, in float32.

  Of queries and keys, before rotary positions, so that their products cannot
  grow without bound (Dehghani et al., arXiv 2302.05442; this form, with a gain
  that the heads share, is Qwen3's, arXiv 2505.09388).
  """

  config: ModelConfig
  rules: Parametrization

  @nn.compact
  def __call__(self, x_BxLxHxh: jax.Array) -> jax.Array:
    c = self.config
    x = x_BxLxHxh.astype(jnp.float32)
    x *= jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + c.norm_eps)
    if c.norm_gain:
      gain_h = declare(
        self, 'gain', self.rules.gain(residual=True), ('norm',), (c.head_dim,)
      )
      x *= gain_h[None, None, None]
    return x.astype(c.compute_dtype)


def head_norm(
  config: ModelConfig, rules: Parametrization
) -> Callable[[str], Callable[[jax.Array], jax.Array]]:
  """Returns what makes a norm of that name; without `qk_norm`, no norm."""
  if config.qk_norm:
    return lambda name: HeadNorm(config, rules, name=name)
  return lambda name: lambda x_BxLxHxh: x_BxLxHxh


def attend(
  module: nn.Module,
  q_BxLxHxh: jax.Array,
  k_BxLxKxh: jax.Array,
  v_BxLxKxh: jax.Array,
  scale: float,
  segment_ids_BxL: jax.Array | None,
  positions_BxL: jax.Array | None,
) -> jax.Array:
  """Returns B×L×H×h: attention among the tokens, or over a cache as well.

  If `module` is given a collection `cache` (models/decoding.py), the keys and
  values go into it at their positions, and each token sees what is there up to
  its own position.
  """
  if not module.has_variable('cache', 'keys'):
    return causal_attention(
      q_BxLxHxh, k_BxLxKxh, v_BxLxKxh, scale, segment_ids_BxL
    )
  assert positions_BxL is not None and segment_ids_BxL is None
  rows_Bx1 = jnp.arange(positions_BxL.shape[0])[:, None]

  def extend(name: str, new_BxLxKxh: jax.Array) -> jax.Array:
    held_BxCxKxh: jax.Array = module.get_variable('cache', name)
    held_BxCxKxh = held_BxCxKxh.at[rows_Bx1, positions_BxL].set(new_BxLxKxh)
    module.put_variable('cache', name, held_BxCxKxh)
    return held_BxCxKxh

  keys_BxCxKxh = extend('keys', k_BxLxKxh)
  values_BxCxKxh = extend('values', v_BxLxKxh)
  # What a row holds beyond the position is stale or not written yet.
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

  cuDNN's fused kernel serves half-precision inputs on GPUs, models/splash.py
  whole sequences on TPUs; elsewhere XLA compiles the plain formula. Instead of
  segments, B×L×L says which token sees which of those before it. With either,
  or where a mesh splits sequences, cuDNN's kernel reads a mask as a bias, for
  whose backward pass it asks for an even length.
  """
  if matmul.platform() == 'tpu':
    if splash.serves(q_BxLxHxh.shape[1], segment_ids_BxL):
      return splash.attention(
        q_BxLxHxh, k_BxLxKxh, v_BxLxKxh, scale, segment_ids_BxL
      )
  mask_Bx1xLxL = None
  if segment_ids_BxL is not None:
    same_BxLxL = segment_ids_BxL
    if segment_ids_BxL.ndim == 2:
      same_BxLxL = segment_ids_BxL[:, :, None] == segment_ids_BxL[:, None]
    mask_Bx1xLxL = same_BxLxL[:, None]
  parts = splash.sequence_parts()
  plain = mask_Bx1xLxL is None and parts == 1
  half = q_BxLxHxh.dtype in (jnp.bfloat16, jnp.float16)
  fused = matmul.platform() == 'gpu' and half
  fused = fused and (plain or q_BxLxHxh.shape[1] // parts % 2 == 0)
  attend = functools.partial(
    jax.nn.dot_product_attention,
    scale=scale,
    implementation='cudnn' if fused else 'xla',
  )
  given = (
    remat.named(q_BxLxHxh, 'query'),
    remat.named(k_BxLxKxh, 'key'),
    remat.named(v_BxLxKxh, 'value'),
  )
  if fused and parts > 1:
    return _own_queries(attend, *given, mask_Bx1xLxL)
  y_BxLxHxh = attend(*given, mask=mask_Bx1xLxL, is_causal=True)
  # The fused kernel's output is kept as such, with its statistics.
  return y_BxLxHxh if fused else remat.named(y_BxLxHxh, 'attention')


def _own_queries(
  attend: Callable[..., jax.Array],
  q_BxLxHxh: jax.Array,
  k_BxLxKxh: jax.Array,
  v_BxLxKxh: jax.Array,
  mask_Bx1xLxL: jax.Array | None,
) -> jax.Array:
  """Each device attends with its part of the queries to all keys, gathered.

  Else cuDNN's partitioner, which knows whole sequences only, refuses. As a part
  need not begin where the keys do, what is causal is a mask too, and what it
  hides is computed.
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
    lambda q, k, v, mask: attend(q, k, v, mask=mask),
    in_specs=(own, whole, whole, axes((rows, None, 'length', None))),
    out_specs=own,
    check_vma=False,
  )(q_BxLxHxh, k_BxLxKxh, v_BxLxKxh, mask)


ACTIVATIONS = {
  'gelu_tanh': lambda x: jax.nn.gelu(x, approximate=True),
  'gelu': lambda x: jax.nn.gelu(x, approximate=False),
  'silu': jax.nn.silu,
}

"""LLaMA (arXiv 2302.13971, 2307.09288): RMSNorm, RoPE, SwiGLU, GQA.

B batch, L length, D width, H heads, K key-value heads, h head dim,
F MLP features, V vocabulary.
"""

from flax import linen as nn
import jax
from jax import numpy as jnp

from steepest.models import attention, remat
from steepest.models.config import ModelConfig
from steepest.models.matmul import matmul
from steepest.models.parametrization import Linear, Parametrization, declare


class RMSNorm(nn.Module):
  """Root-mean-square normalisation in float32, with a gain if configured."""

  config: ModelConfig
  rules: Parametrization
  residual: bool

  @nn.compact
  def __call__(self, x_BxLxD: jax.Array) -> jax.Array:
    c = self.config
    x = x_BxLxD.astype(jnp.float32)
    x *= jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + c.norm_eps)
    if c.norm_gain:
      gain_D = declare(
        self, 'gain', self.rules.gain(self.residual), ('norm',), (c.width,)
      )
      x *= gain_D[None, None]
    return x.astype(c.compute_dtype)


def rotate(
  x_BxLxHxh: jax.Array, base: float, positions_BxL: jax.Array | None = None
) -> jax.Array:
  """Rotary positions (arXiv 2104.09864) in Hugging Face's half-split order.

  Features i and i + h/2 turn by position · base^(-2i/h), in float32. Without
  positions a row's are 0, 1, ….
  """
  length, half = x_BxLxHxh.shape[1], x_BxLxHxh.shape[3] // 2
  frequency_h = base ** -(jnp.arange(half, dtype=jnp.float32) / half)
  if positions_BxL is None:
    positions_BxL = jnp.arange(length, dtype=jnp.float32)[None]
  positions_BxLx1 = positions_BxL.astype(jnp.float32)[..., None]
  angle_BxLxh = positions_BxLx1 * frequency_h[None, None]
  cos = jnp.cos(angle_BxLxh)[:, :, None]
  sin = jnp.sin(angle_BxLxh)[:, :, None]
  a, b = jnp.split(x_BxLxHxh.astype(jnp.float32), 2, axis=-1)
  turned = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
  return turned.astype(x_BxLxHxh.dtype)


class Block(nn.Module):
  """Attention and SwiGLU, each added to the residual stream."""

  config: ModelConfig
  rules: Parametrization

  @nn.compact
  def __call__(
    self,
    x_BxLxD: jax.Array,
    segment_ids_BxL: jax.Array | None,
    positions_BxL: jax.Array | None,
  ) -> jax.Array:
    scale = self.rules.residual_multiplier
    norm = lambda name: RMSNorm(
      self.config, self.rules, residual=True, name=name
    )
    x_BxLxD += scale * self._attention(
      norm('attention_norm')(x_BxLxD), segment_ids_BxL, positions_BxL
    )
    x_BxLxD = remat.named(x_BxLxD, 'residual')
    x_BxLxD += scale * self._mlp(norm('mlp_norm')(x_BxLxD))
    return nn.with_logical_constraint(x_BxLxD, ('batch', 'length', 'features'))

  def _linear(self, name, features, weight, axes) -> Linear:
    bias = self.rules.bias(residual=True) if self.config.bias else None
    dtype = self.config.compute_dtype
    return Linear(features, weight, axes, bias, dtype, name=name)

  def _attention(
    self,
    x_BxLxD: jax.Array,
    segment_ids_BxL: jax.Array | None,
    positions_BxL: jax.Array | None,
  ) -> jax.Array:
    c, rules = self.config, self.rules
    h, (B, L, _) = c.head_dim, x_BxLxD.shape
    role, init = rules.hidden('width', fan_out='heads')
    query = (role, nn.initializers.zeros if c.zero_init_query else init)
    key = value = rules.hidden('width', fan_out='kv_heads')
    project = lambda name, heads, weight, axis: self._linear(
      name, heads * h, weight, ('width', axis)
    )(x_BxLxD).reshape(B, L, heads, h)
    turn = lambda x_BxLxHxh: rotate(x_BxLxHxh, c.rope_base, positions_BxL)
    norm = attention.head_norm(c, rules)
    q_BxLxHxh = project('query', c.num_heads, query, 'heads')
    k_BxLxKxh = project('key', c.num_kv_heads, key, 'kv_heads')
    y_BxLxHxh = attention.attend(
      self,
      turn(norm('query_norm')(q_BxLxHxh)),
      turn(norm('key_norm')(k_BxLxKxh)),
      project('value', c.num_kv_heads, value, 'kv_heads'),
      rules.attention_scale,
      segment_ids_BxL,
      positions_BxL,
    )
    output = rules.hidden('heads', writes_residual=True)
    return self._linear('output', c.width, output, ('heads', 'width'))(
      y_BxLxHxh.reshape(B, L, c.num_heads * h)
    )

  def _mlp(self, x_BxLxD: jax.Array) -> jax.Array:
    c, rules = self.config, self.rules
    wide = lambda name: self._linear(
      name,
      c.mlp_dim,
      rules.hidden('width', fan_out='mlp'),
      ('width', 'mlp'),
    )
    down = self._linear(
      'mlp_down',
      c.width,
      rules.hidden('mlp', writes_residual=True),
      ('mlp', 'width'),
    )
    gate_BxLxF = remat.named(wide('mlp_gate')(x_BxLxD), 'mlp_gate')
    up_BxLxF = remat.named(wide('mlp_up')(x_BxLxD), 'mlp_up')
    activation = attention.ACTIVATIONS[c.activation]
    gated = remat.entrywise(lambda gate, up: activation(gate) * up)
    return down(gated(gate_BxLxF, up_BxLxF))


class Model(nn.Module):
  """Token ids to logits."""

  config: ModelConfig
  rules: Parametrization

  @nn.compact
  def __call__(
    self,
    tokens_BxL: jax.Array,
    segment_ids_BxL: jax.Array | None = None,
    positions_BxL: jax.Array | None = None,
    features: bool = False,
  ) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Returns logits B×L×V in the compute dtype.

    Args:
      tokens_BxL: ids.
      segment_ids_BxL: tokens see those of their own segment alone; None: a row
        is one segment. Or, B×L×L, which token sees which of those before it.
      positions_BxL: of the tokens; None: 0, 1, ….
      features: return instead what the readout is multiplied with, B×L×D, and
        the readout, V×D.
    """
    c, rules = self.config, self.rules
    embedding_VxD = declare(
      self,
      'embedding',
      rules.embedding(),
      ('vocab', 'width'),
      (c.vocab_size, c.width),
    )
    # Gathered as any weight, rather than what is looked up in it.
    whole_VxD = nn.with_logical_constraint(embedding_VxD, ('vocab', 'features'))
    x_BxLxD = whole_VxD[tokens_BxL].astype(c.compute_dtype)
    x_BxLxD = nn.with_logical_constraint(
      x_BxLxD, ('batch', 'length', 'features')
    )
    block = remat.block(c.remat, Block)
    for i in range(c.num_layers):
      x_BxLxD = block(c, rules, name=f'block_{i}')(
        x_BxLxD, segment_ids_BxL, positions_BxL
      )
    x_BxLxD = RMSNorm(c, rules, residual=False, name='norm')(x_BxLxD)
    x_BxLxD *= rules.readout_multiplier
    if c.tie_embeddings:
      readout_VxD = embedding_VxD
    else:
      role, init = rules.readout()
      if c.zero_init_readout:
        init = nn.initializers.zeros
      readout_VxD = declare(
        self,
        'readout',
        (role, init),
        ('vocab', 'width'),
        (c.vocab_size, c.width),
      )
    if features:
      return x_BxLxD, readout_VxD
    return matmul(x_BxLxD, readout_VxD.astype(c.compute_dtype).T)

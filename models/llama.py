"""LLaMA (arXiv 2302.13971, 2307.09288): RMSNorm, RoPE, SwiGLU, GQA.

B batch, L length, D width, H heads, K key-value heads, h head dim,
F MLP features, V vocabulary.
"""

from flax import linen as nn
import jax
from jax import numpy as jnp

from steepest.models import layers, remat
from steepest.models.config import ACTIVATIONS, ModelConfig
from steepest.models.parametrization import Parametrization

HABITS = {
  'bias': False,
  'tie_embeddings': False,
  'norm_eps': 1e-6,
  'activation': 'silu',
}


def default_mlp_dim(width: int) -> int:
  """Returns 8/3 of the width, rounded up to a multiple of 32."""
  return -(-8 * width // (3 * 32)) * 32


def check(config: ModelConfig) -> None:
  """Raises a ValueError if the number of features per head is odd."""
  if config.head_dim % 2:
    raise ValueError(
      f'model.head_dim={config.head_dim}: rotary positions need an even one'
    )


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
    """Returns logits B×L×V, or their two factors; see gpt2.Model."""
    c, rules = self.config, self.rules
    embedding_VxD = layers.embedding(self, rules)
    x_BxLxD = layers.stream(
      layers.look_up(embedding_VxD, tokens_BxL, c.compute_dtype)
    )
    x_BxLxD = layers.blocks(
      self, Block, x_BxLxD, segment_ids_BxL, positions_BxL
    )
    x_BxLxD = layers.RMSNorm(c, rules, residual=False, name='norm')(x_BxLxD)
    return layers.read_out(self, rules, x_BxLxD, embedding_VxD, features)


class Block(layers.Block):
  """Attention and SwiGLU, each added to the residual stream."""

  def norm(self, name: str) -> layers.Layer:
    return layers.RMSNorm(self.config, self.rules, residual=True, name=name)

  def rotate(
    self, x_BxLxHxh: jax.Array, positions_BxL: jax.Array | None
  ) -> jax.Array:
    return rotate(x_BxLxHxh, self.config.rope_base, positions_BxL)

  def mlp(self, x_BxLxD: jax.Array) -> jax.Array:
    """Returns what SwiGLU adds, B×L×D."""
    c, rules = self.config, self.rules
    into = rules.hidden('width', fan_out='mlp')
    out = rules.hidden('mlp', writes_residual=True)
    wide = lambda name: self.linear(name, c.mlp_dim, into, ('width', 'mlp'))
    down = self.linear('mlp_down', c.width, out, ('mlp', 'width'))
    gate_BxLxF = remat.named(wide('mlp_gate')(x_BxLxD), 'mlp_gate')
    up_BxLxF = remat.named(wide('mlp_up')(x_BxLxD), 'mlp_up')
    activation = ACTIVATIONS[c.activation]
    gated = remat.entrywise(lambda gate, up: activation(gate) * up)
    return down(gated(gate_BxLxF, up_BxLxF))


def rotate(
  x_BxLxHxh: jax.Array, base: float, positions_BxL: jax.Array | None = None
) -> jax.Array:
  """Rotary positions (arXiv 2104.09864) in Hugging Face's half-split order.

  Features i and i + h/2 rotate by position · base^(-2i/h), in float32.
  Positions default to 0, 1, … in each row.
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

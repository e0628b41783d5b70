"""GPT-2 (Radford et al. 2019): learned positions, LayerNorm, tanh-GELU.

B batch, L length, D width, F MLP features, V vocabulary, P positions.
"""

import functools
from typing import Any

from flax import linen as nn
import jax
from jax import numpy as jnp

from steepest.models import layers, remat
from steepest.models.config import ACTIVATIONS, ModelConfig
from steepest.models.parametrization import Parametrization

HABITS = {
  'bias': True,
  'tie_embeddings': True,
  'norm_eps': 1e-5,
  'activation': 'gelu_tanh',
}


def default_mlp_dim(width: int) -> int:
  """Returns four times the width."""
  return 4 * width


def check(config: ModelConfig) -> None:
  """Raises a ValueError if num_kv_heads differs from num_heads."""
  if config.num_kv_heads != config.num_heads:
    raise ValueError(
      'model.num_kv_heads: gpt2 has as many as query heads; set it to 0'
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
    """Returns logits B×L×V in the compute dtype.

    Args:
      tokens_BxL: ids.
      segment_ids_BxL: tokens only see their own segment; None: each row is one
        segment. Or a B×L×L mask: which earlier tokens each token sees.
      positions_BxL: positions of the tokens; None: 0, 1, ….
      features: return the two factors of the logits instead: the readout's
        input, B×L×D, and the readout, V×D.
    """
    c, rules = self.config, self.rules
    embedding_VxD = layers.embedding(self, rules)
    table_PxD = layers.declare(
      self,
      'positions',
      rules.embedding(),
      ('positions', 'width'),
      (c.context, c.width),
    )
    x_BxLxD = layers.look_up(embedding_VxD, tokens_BxL, c.compute_dtype)
    table_PxD = nn.with_logical_constraint(table_PxD, ('positions', 'features'))
    if positions_BxL is None:
      added_LxD = table_PxD[: tokens_BxL.shape[1]].astype(c.compute_dtype)
      # Each device sums its own tokens' gradient, then all are gathered.
      added_LxD = nn.with_logical_constraint(added_LxD, ('length', 'features'))
      x_BxLxD += _repeat(added_LxD, tokens_BxL.shape[0])
    else:
      x_BxLxD += table_PxD[positions_BxL].astype(c.compute_dtype)
    x_BxLxD = layers.stream(x_BxLxD)
    x_BxLxD = layers.blocks(
      self, Block, x_BxLxD, segment_ids_BxL, positions_BxL
    )
    x_BxLxD = LayerNorm(c, rules, residual=False, name='norm')(x_BxLxD)
    return layers.read_out(self, rules, x_BxLxD, embedding_VxD, features)


class Block(layers.Block):
  """Attention and MLP, each added to the residual stream."""

  def norm(self, name: str) -> layers.Layer:
    return LayerNorm(self.config, self.rules, residual=True, name=name)

  def mlp(self, x_BxLxD: jax.Array) -> jax.Array:
    """Returns what the MLP adds, B×L×D."""
    c, rules = self.config, self.rules
    into = rules.hidden('width', fan_out='mlp')
    out = rules.hidden('mlp', writes_residual=True)
    up = self.linear('mlp_up', c.mlp_dim, into, ('width', 'mlp'))
    down = self.linear('mlp_down', c.width, out, ('mlp', 'width'))
    h_BxLxF = remat.named(up(x_BxLxD), 'mlp_up')
    return down(remat.entrywise(ACTIVATIONS[c.activation])(h_BxLxF))


class LayerNorm(nn.Module):
  """Layer normalisation in float32, with a gain and a bias if configured."""

  config: ModelConfig
  rules: Parametrization
  residual: bool

  @nn.compact
  def __call__(self, x_BxLxD: jax.Array) -> jax.Array:
    c, rules = self.config, self.rules
    axes, shape = ('norm',), (c.width,)
    x = standardized(x_BxLxD, c.norm_eps)
    if c.norm_gain:
      gain = rules.gain(self.residual)
      x *= layers.declare(self, 'gain', gain, axes, shape)[None, None]
    if c.bias:
      bias = rules.bias(self.residual)
      x += layers.declare(self, 'bias', bias, axes, shape)[None, None]
    return x.astype(c.compute_dtype)


def _repeat(x_LxD: jax.Array, B: int) -> jax.Array:
  """Returns B copies, B×L×D, by a matrix product, as its gradient is one too.

  For a broadcast's gradient, XLA on GPUs would lay out the whole residual
  stream with the batch innermost, and transpose it for every product.
  """
  ones_B = jnp.ones(B, x_LxD.dtype)
  return jnp.einsum('b,ld->bld', ones_B, x_LxD)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def standardized(x_BxLxD: jax.Array, eps: float) -> jax.Array:
  """Returns x̂ = (x - μ) / √(σ² + eps) over the features, in float32.

  Its gradient is (g - E[g] - x̂·E[g·x̂]) / √(σ² + eps).
  """
  return _forward(x_BxLxD, eps)[0]


def _forward(x_BxLxD: jax.Array, eps: float) -> tuple[jax.Array, Any]:
  x = x_BxLxD.astype(jnp.float32)
  mean_BxLx1 = x.mean(-1, keepdims=True)
  if x_BxLxD.dtype == jnp.float32:
    variance_BxLx1 = jnp.square(x - mean_BxLx1).mean(-1, keepdims=True)
  else:
    # E[x²] - μ² takes one pass over x, which XLA fuses with the addition
    # before it. Cancellation loses less than rounding x already has.
    square_BxLx1 = (x * x).mean(-1, keepdims=True)
    variance_BxLx1 = jnp.maximum(square_BxLx1 - mean_BxLx1 * mean_BxLx1, 0)
  scale_BxLx1 = jax.lax.rsqrt(variance_BxLx1 + eps)
  return (x - mean_BxLx1) * scale_BxLx1, (x_BxLxD, mean_BxLx1, scale_BxLx1)


def _backward(
  eps: float, residuals: Any, g_BxLxD: jax.Array
) -> tuple[jax.Array]:
  del eps
  x_BxLxD, mean_BxLx1, scale_BxLx1 = residuals
  x_hat_BxLxD = (x_BxLxD.astype(jnp.float32) - mean_BxLx1) * scale_BxLx1
  mean = lambda x: x.mean(-1, keepdims=True)
  along_BxLxD = x_hat_BxLxD * mean(g_BxLxD * x_hat_BxLxD)
  gradient = scale_BxLx1 * (g_BxLxD - mean(g_BxLxD) - along_BxLxD)
  return (gradient.astype(x_BxLxD.dtype),)


standardized.defvjp(_forward, _backward)

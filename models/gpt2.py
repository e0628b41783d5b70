"""GPT-2 (Radford et al. 2019): learned positions, LayerNorm, tanh-GELU.

B batch, L length, D width, H heads, h head dim, F MLP features, V vocabulary,
P positions.
"""

import functools
from typing import Any

from flax import linen as nn
import jax
from jax import numpy as jnp

from steepest.models import attention, remat
from steepest.models.config import ModelConfig
from steepest.models.matmul import matmul
from steepest.models.parametrization import Linear, Parametrization, declare


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
    # In the same pass as the mean, which XLA joins with the addition before:
    # what it loses is less than what the input lacks.
    square_BxLx1 = (x * x).mean(-1, keepdims=True)
    variance_BxLx1 = jnp.maximum(square_BxLx1 - mean_BxLx1 * mean_BxLx1, 0)
  scale_BxLx1 = jax.lax.rsqrt(variance_BxLx1 + eps)
  return (x - mean_BxLx1) * scale_BxLx1, (x_BxLxD, mean_BxLx1, scale_BxLx1)


def _backward(eps: float, kept: Any, g_BxLxD: jax.Array) -> tuple[jax.Array]:
  del eps
  x_BxLxD, mean_BxLx1, scale_BxLx1 = kept
  out_BxLxD = (x_BxLxD.astype(jnp.float32) - mean_BxLx1) * scale_BxLx1
  mean = lambda x: x.mean(-1, keepdims=True)
  x_hat_part = out_BxLxD * mean(g_BxLxD * out_BxLxD)
  gradient = scale_BxLx1 * (g_BxLxD - mean(g_BxLxD) - x_hat_part)
  return (gradient.astype(x_BxLxD.dtype),)


standardized.defvjp(_forward, _backward)


class LayerNorm(nn.Module):
  """Layer normalisation in float32, with a gain and a bias if configured."""

  config: ModelConfig
  rules: Parametrization
  residual: bool

  @nn.compact
  def __call__(self, x_BxLxD: jax.Array) -> jax.Array:
    c, rules = self.config, self.rules
    x = standardized(x_BxLxD, c.norm_eps)
    if c.norm_gain:
      gain_D = declare(
        self, 'gain', rules.gain(self.residual), ('norm',), (c.width,)
      )
      x *= gain_D[None, None]
    if c.bias:
      bias_D = declare(
        self, 'bias', rules.bias(self.residual), ('norm',), (c.width,)
      )
      x += bias_D[None, None]
    return x.astype(c.compute_dtype)


class Block(nn.Module):
  """Attention and MLP, each added to the residual stream."""

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
    norm = lambda name: LayerNorm(
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
    size = c.num_heads * c.head_dim
    role, init = rules.hidden('width', fan_out='heads')
    query = (role, nn.initializers.zeros if c.zero_init_query else init)
    heads = ('width', 'heads')
    shape = (*x_BxLxD.shape[:2], c.num_heads, c.head_dim)
    q_BxLxHxh = self._linear('query', size, query, heads)(x_BxLxD)
    k_BxLxHxh = self._linear('key', size, (role, init), heads)(x_BxLxD)
    v_BxLxHxh = self._linear('value', size, (role, init), heads)(x_BxLxD)
    norm = attention.head_norm(c, rules)
    y_BxLxHxh = attention.attend(
      self,
      norm('query_norm')(q_BxLxHxh.reshape(shape)),
      norm('key_norm')(k_BxLxHxh.reshape(shape)),
      v_BxLxHxh.reshape(shape),
      rules.attention_scale,
      segment_ids_BxL,
      positions_BxL,
    )
    output = rules.hidden('heads', writes_residual=True)
    return self._linear('output', c.width, output, ('heads', 'width'))(
      y_BxLxHxh.reshape(*shape[:2], size)
    )

  def _mlp(self, x_BxLxD: jax.Array) -> jax.Array:
    c, rules = self.config, self.rules
    up = self._linear(
      'mlp_up',
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
    h_BxLxF = remat.named(up(x_BxLxD), 'mlp_up')
    return down(remat.entrywise(attention.ACTIVATIONS[c.activation])(h_BxLxF))


def _rows(x_LxD: jax.Array, B: int) -> jax.Array:
  """Returns B×L×D; gradients are summed by a matrix product.

  By the sum that a broadcast has for its gradient XLA would lay out the whole
  residual stream on GPUs: batch innermost, transposed for every product.
  """
  ones_B = jnp.ones(B, x_LxD.dtype)
  return jnp.einsum('b,ld->bld', ones_B, x_LxD)


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
    table_PxD = declare(
      self,
      'positions',
      rules.embedding(),
      ('positions', 'width'),
      (c.context, c.width),
    )
    # Gathered as any weight, rather than what is looked up in it.
    whole_VxD = nn.with_logical_constraint(embedding_VxD, ('vocab', 'features'))
    x_BxLxD = whole_VxD[tokens_BxL].astype(c.compute_dtype)
    table_PxD = nn.with_logical_constraint(table_PxD, ('positions', 'features'))
    if positions_BxL is None:
      added_LxD = table_PxD[: tokens_BxL.shape[1]].astype(c.compute_dtype)
      # Its gradient is summed where the tokens are, and gathered after that.
      added_LxD = nn.with_logical_constraint(added_LxD, ('length', 'features'))
      x_BxLxD += _rows(added_LxD, tokens_BxL.shape[0])
    else:
      x_BxLxD += table_PxD[positions_BxL].astype(c.compute_dtype)
    x_BxLxD = nn.with_logical_constraint(
      x_BxLxD, ('batch', 'length', 'features')
    )
    block = remat.block(c.remat, Block)
    for i in range(c.num_layers):
      x_BxLxD = block(c, rules, name=f'block_{i}')(
        x_BxLxD, segment_ids_BxL, positions_BxL
      )
    x_BxLxD = LayerNorm(c, rules, residual=False, name='norm')(x_BxLxD)
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

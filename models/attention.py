"""Causal attention, by the fastest kernel there is for the device.

B batch, L length, H heads, K key-value heads, h head dim.
"""

import jax
from jax import numpy as jnp


def causal_attention(
  q_BxLxHxh: jax.Array,
  k_BxLxKxh: jax.Array,
  v_BxLxKxh: jax.Array,
  scale: float,
) -> jax.Array:
  """Returns B×L×H×h; H is a multiple of K, softmax in float32.

  cuDNN's fused kernel serves half-precision inputs on GPUs; elsewhere XLA
  compiles the plain formula.
  """
  half = q_BxLxHxh.dtype in (jnp.bfloat16, jnp.float16)
  fused = jax.default_backend() == 'gpu' and half
  return jax.nn.dot_product_attention(
    q_BxLxHxh,
    k_BxLxKxh,
    v_BxLxKxh,
    scale=scale,
    is_causal=True,
    implementation='cudnn' if fused else 'xla',
  )


ACTIVATIONS = {
  'gelu_tanh': lambda x: jax.nn.gelu(x, approximate=True),
  'gelu': lambda x: jax.nn.gelu(x, approximate=False),
  'silu': jax.nn.silu,
}

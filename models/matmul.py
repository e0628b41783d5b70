"""Matrix products whose weight gradient suits XLA's CPU compiler.

I inputs, O outputs.
"""

import jax
from jax import numpy as jnp


def platform() -> str:
  """Returns what is compiled for: the mesh's devices, else JAX's own."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  return jax.default_backend() if device is None else device.platform


def matmul(x: jax.Array, w_IxO: jax.Array) -> jax.Array:
  """Returns x·W for x of shape (…, I), with the gradients of that formula.

  For the weight gradient xᵀ·g, XLA's CPU code is slow when x, whose transpose
  is taken, is the wider operand; then (gᵀ·x)ᵀ is computed instead, which makes
  whole training steps faster (docs/performance.md).
  """
  if platform() != 'cpu':
    return jnp.dot(x, w_IxO)
  return _product(x, w_IxO)


@jax.custom_vjp
def _product(x: jax.Array, w_IxO: jax.Array) -> jax.Array:
  return jnp.dot(x, w_IxO)


def _forward(x: jax.Array, w_IxO: jax.Array):
  return jnp.dot(x, w_IxO), (x, w_IxO)


def _backward(kept: tuple[jax.Array, jax.Array], g: jax.Array):
  x, w_IxO = kept
  # Not reshaped to a matrix: batch and length may be split over devices.
  rows = tuple(range(x.ndim - 1))
  if x.shape[-1] > g.shape[-1]:
    # The barrier keeps the compiler from undoing the transposition.
    gradient_OxI = jax.lax.optimization_barrier(
      jnp.tensordot(g, x, (rows, rows))
    )
    return jnp.dot(g, w_IxO.T), gradient_OxI.T
  gradient_IxO = jax.lax.optimization_barrier(jnp.tensordot(x, g, (rows, rows)))
  return jnp.dot(g, w_IxO.T), gradient_IxO


_product.defvjp(_forward, _backward)

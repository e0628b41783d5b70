"""Matrix products whose weight gradient suits XLA's CPU compiler.

N tokens, I inputs, O outputs.
"""

import jax
from jax import numpy as jnp


def matmul(x: jax.Array, w_IxO: jax.Array) -> jax.Array:
  """Returns x·W for x of shape (…, I), with the gradients of that formula.

  For the weight gradient xᵀ·g, XLA's CPU code is slow when x, whose transpose
  is taken, is the wider operand; then (gᵀ·x)ᵀ is computed instead, which makes
  whole training steps faster (benchmarks/weight_gradient.py).
  """
  if jax.default_backend() != 'cpu':
    return jnp.dot(x, w_IxO)
  x_NxI = x.reshape(-1, x.shape[-1])
  return _product(x_NxI, w_IxO).reshape(*x.shape[:-1], w_IxO.shape[1])


@jax.custom_vjp
def _product(x_NxI: jax.Array, w_IxO: jax.Array) -> jax.Array:
  return x_NxI @ w_IxO


def _forward(x_NxI: jax.Array, w_IxO: jax.Array):
  return x_NxI @ w_IxO, (x_NxI, w_IxO)


def _backward(kept: tuple[jax.Array, jax.Array], g_NxO: jax.Array):
  x_NxI, w_IxO = kept
  if x_NxI.shape[1] > g_NxO.shape[1]:
    # The barrier keeps the compiler from undoing the transposition.
    gradient_OxI = jax.lax.optimization_barrier(g_NxO.T @ x_NxI)
    return g_NxO @ w_IxO.T, gradient_OxI.T
  gradient_IxO = jax.lax.optimization_barrier(x_NxI.T @ g_NxO)
  return g_NxO @ w_IxO.T, gradient_IxO


_product.defvjp(_forward, _backward)

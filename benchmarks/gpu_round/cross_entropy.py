"""Mean cross-entropy and its gradient in one pass over the logits.

A Pallas kernel for GPUs: each program reads one token's logits in pieces, first
for their maximum and Σ exp, then, from the cache, for softmax - one-hot, which
overwrites the logits. training/loss.py reads them from memory twice for the
normalizer and once more for the gradient.

B batch, L length, V vocabulary, T tokens B·L, P entries of a piece.
"""

from collections.abc import Mapping
import functools
from typing import Any

import jax
from jax import numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from steepest.models import remat
from steepest.training import loss

# Entries that a program holds at once: a power of two, as Triton requires.
_PIECE = 4096
_WARPS = 8
_LEAST = float(jnp.finfo(jnp.float32).min)


def training_loss(
  logits_BxLxV: jax.Array, batch: Mapping[str, jax.Array], z_loss: float
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """As training/loss.py's, which still serves a z-loss and several devices."""
  if z_loss or jax.sharding.get_abstract_mesh().size > 1:
    return loss.training_loss(logits_BxLxV, batch, z_loss)
  mean = mean_cross_entropy(logits_BxLxV, batch['targets'])
  return mean, {'train/loss': mean}


@jax.custom_vjp
def mean_cross_entropy(
  logits_BxLxV: jax.Array, labels_BxL: jax.Array
) -> jax.Array:
  """Returns the mean over tokens, in float32 nats."""
  return loss.cross_entropy(logits_BxLxV, labels_BxL).mean()


def _forward(
  logits_BxLxV: jax.Array, labels_BxL: jax.Array
) -> tuple[jax.Array, jax.Array]:
  V = logits_BxLxV.shape[-1]
  loss_T, gradient_TxV = _once(
    logits_BxLxV.reshape(-1, V), labels_BxL.reshape(-1)
  )
  return loss_T.mean(), gradient_TxV.reshape(logits_BxLxV.shape)


def _backward(
  gradient_BxLxV: jax.Array, of_loss: jax.Array
) -> tuple[jax.Array, None]:
  # In a training step `of_loss` is the constant 1, and XLA drops the product.
  return gradient_BxLxV * of_loss.astype(gradient_BxLxV.dtype), None


mean_cross_entropy.defvjp(_forward, _backward)


def _once(
  logits_TxV: jax.Array, labels_T: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns each token's loss, and the gradient of their mean."""
  T, V = logits_TxV.shape
  shapes = (
    jax.ShapeDtypeStruct((T,), jnp.float32),
    jax.ShapeDtypeStruct((T, V), logits_TxV.dtype),
  )
  return pl.pallas_call(
    functools.partial(_program, T, V),
    shapes,
    grid=(T,),
    # The gradient overwrites the logits.
    input_output_aliases={0: 1},
    compiler_params=plgpu.CompilerParams(num_warps=_WARPS, num_stages=2),
    # On a CPU, for tests and dry runs.
    interpret=remat.platform() == 'cpu',
    name='cross_entropy',
  )(logits_TxV, labels_T)


def _program(
  T: int, V: int, logits: Any, labels: Any, losses: Any, gradients: Any
) -> None:
  row = pl.program_id(0)
  label = labels[row]
  # Before any of the row is overwritten.
  picked = logits[row, label].astype(jnp.float32)
  piece = min(_PIECE, pl.next_power_of_2(V))
  pieces = range(0, V, piece)
  index_P = jnp.arange(piece)

  def read(i: Any) -> tuple[Any, jax.Array, jax.Array, jax.Array]:
    at, column_P = (row, pl.ds(i * piece, piece)), i * piece + index_P
    inside_P = column_P < V
    x_P = plgpu.load(logits.at[at], mask=inside_P, other=_LEAST)
    return at, column_P, inside_P, x_P.astype(jnp.float32)

  def add(i: Any, held: tuple[jax.Array, jax.Array]) -> Any:
    most, total = held
    _, _, inside_P, x_P = read(i)
    larger = jnp.maximum(most, x_P.max())
    part = jnp.where(inside_P, jnp.exp(x_P - larger), 0).sum()
    return larger, total * jnp.exp(most - larger) + part

  start = jnp.float32(_LEAST), jnp.float32(0)
  most, total = jax.lax.fori_loop(0, len(pieces), add, start)
  normalizer = most + jnp.log(total)
  losses[row] = normalizer - picked

  def write(i: Any, _: None) -> None:
    at, column_P, inside_P, x_P = read(i)
    of_loss_P = jnp.exp(x_P - normalizer) - (column_P == label)
    of_mean_P = (of_loss_P / T).astype(gradients.dtype)
    plgpu.store(gradients.at[at], of_mean_P, mask=inside_P)

  jax.lax.fori_loop(0, len(pieces), write, None)

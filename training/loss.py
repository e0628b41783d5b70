"""Cross-entropy that keeps nothing but the logits for its backward pass.

B batch, L length, V vocabulary.

Differentiated by JAX, the formula keeps float32 exponentials, a second and
larger copy of the logits. They are written and read again, which at GPT-2 124M
is most of what plain JAX loses to PyTorch (docs/scaling.md). Here the gradient,
softmax - one-hot, is made from the logits in the dtype they have, in one pass.
"""

import jax
from jax import numpy as jnp


def cross_entropy(logits_BxLxV: jax.Array, labels_BxL: jax.Array) -> jax.Array:
  """Returns the loss of each token, B×L, in float32 nats."""
  return with_normalizer(logits_BxLxV, labels_BxL)[0]


@jax.custom_vjp
def with_normalizer(
  logits_BxLxV: jax.Array, labels_BxL: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns each token's loss and log Σ exp(logits), both B×L, in float32.

  Either may be differentiated: a penalty on the second is a function of it.

  Args:
    logits_BxLxV: float32 or bfloat16; the gradient has the same dtype, rounded
      once.
    labels_BxL: ids.
  """
  return _value(logits_BxLxV, labels_BxL)


def _value(
  logits_BxLxV: jax.Array, labels_BxL: jax.Array
) -> tuple[jax.Array, jax.Array]:
  logits = logits_BxLxV.astype(jnp.float32)
  normalizer_BxL = jax.nn.logsumexp(logits, -1)
  picked_BxL = jnp.take_along_axis(logits, labels_BxL[..., None], -1)[..., 0]
  return normalizer_BxL - picked_BxL, normalizer_BxL


def _forward(logits_BxLxV: jax.Array, labels_BxL: jax.Array):
  # Not `with_normalizer`: Sophia-H differentiates this forwards.
  loss_BxL, normalizer_BxL = _value(logits_BxLxV, labels_BxL)
  kept = logits_BxLxV, labels_BxL, normalizer_BxL
  return (loss_BxL, normalizer_BxL), kept


def _backward(
  kept: tuple[jax.Array, jax.Array, jax.Array],
  gradients: tuple[jax.Array, jax.Array],
):
  logits_BxLxV, labels_BxL, normalizer_BxL = kept
  of_loss_BxL, of_normalizer_BxL = gradients
  logits = logits_BxLxV.astype(jnp.float32)
  probability_BxLxV = jnp.exp(logits - normalizer_BxL[..., None])
  # Compared, not scattered: it fuses, and each device has its vocabulary's.
  index_1x1xV = jnp.arange(logits.shape[-1], dtype=labels_BxL.dtype)[None, None]
  gradient_BxLxV = probability_BxLxV * (of_loss_BxL + of_normalizer_BxL)[
    ..., None
  ] - jnp.where(index_1x1xV == labels_BxL[..., None], of_loss_BxL[..., None], 0)
  return gradient_BxLxV.astype(logits_BxLxV.dtype), None


with_normalizer.defvjp(_forward, _backward)

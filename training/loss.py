"""The loss that training minimises.

B batch, L length, V vocabulary.
"""

from collections.abc import Mapping

import jax
from jax import numpy as jnp


def training_loss(
  logits_BxLxV: jax.Array, batch: Mapping[str, jax.Array], z_loss: float
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Returns the mean loss over tokens, in nats, and what to log.

  A z-loss, w·mean((log Σ exp(logits))²), is added to what is minimised
  (Chowdhery et al., arXiv 2204.02311, section 5) and logged separately:
  `train/loss` remains the cross-entropy, by which runs are compared and whose
  curvature is estimated.

  Args:
    logits_BxLxV: the model's.
    batch: `targets`, B×L token ids, and whatever else data/pipeline.py yields.
    z_loss: its weight w.
  """
  loss_BxL, normalizer_BxL = with_normalizer(logits_BxLxV, batch['targets'])
  loss = loss_BxL.mean()
  if not z_loss:
    return loss, {'train/loss': loss}
  penalty = z_loss * (normalizer_BxL**2).mean()
  return loss + penalty, {'train/loss': loss, 'train/z_loss': penalty}


def cross_entropy(logits_BxLxV: jax.Array, labels_BxL: jax.Array) -> jax.Array:
  """Returns the loss of each token, B×L, in float32 nats."""
  return with_normalizer(logits_BxLxV, labels_BxL)[0]


@jax.custom_vjp
def with_normalizer(
  logits_BxLxV: jax.Array, labels_BxL: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns each token's loss and log Σ exp(logits), both B×L, in float32.

  If JAX differentiates the formula, it stores float32 exponentials, a second
  and larger copy of the logits. Writing and reading them is most of what plain
  JAX loses to PyTorch at GPT-2 124M (docs/scaling.md). This function computes
  the gradient, softmax - one-hot, from the logits in their own dtype, in one
  pass. Either result may be differentiated.

  Args:
    logits_BxLxV: float32 or bfloat16; the gradient has the same dtype and is
      rounded once.
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
  # Not `with_normalizer`: Sophia-H uses forward mode through this.
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
  # Comparing fuses, unlike scattering, and works per shard of the vocabulary.
  index_1x1xV = jnp.arange(logits.shape[-1], dtype=labels_BxL.dtype)[None, None]
  gradient_BxLxV = probability_BxLxV * (of_loss_BxL + of_normalizer_BxL)[
    ..., None
  ] - jnp.where(index_1x1xV == labels_BxL[..., None], of_loss_BxL[..., None], 0)
  return gradient_BxLxV.astype(logits_BxLxV.dtype), None


with_normalizer.defvjp(_forward, _backward)

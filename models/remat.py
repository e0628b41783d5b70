"""Rematerialisation: what a block stores for its backward pass, by policy.

  none   everything that JAX's backward pass reads.
  names  results of matrix products: queries, keys, values, attention's output,
         the stream after it and the activation's input. Norms and activations
         are recomputed.
  dots   only products with weights; attention is recomputed too, unless a
         fused kernel does it.
  full   only the block's input; everything is recomputed.

Each stores less than the one before (bytes in docs/scaling.md).
"""

from collections.abc import Callable
from typing import Any, TypeVar

from flax import linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name

# What the fused TPU kernel stores for its backward pass.
KERNEL = 'kernel'

POLICIES = ('none', 'names', 'dots', 'full')
_NAMES = (
  'query',
  'key',
  'value',
  'attention',
  'residual',
  'mlp_gate',
  'mlp_up',
)

AnyModule = TypeVar('AnyModule', bound=type[nn.Module])


def platform() -> str:
  """Returns the platform compiled for: the mesh's, else JAX's default."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  return jax.default_backend() if device is None else device.platform


def named(x: jax.Array, name: str) -> jax.Array:
  """Returns x under a name, so that the policy `names` keeps it."""
  assert name in _NAMES, name
  return checkpoint_name(x, name)


def entrywise(fn: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
  """Returns `fn` with a backward pass that starts from its operands.

  Otherwise XLA's forward pass writes the derivative, as large as the result, to
  memory, and the backward pass reads it. CPUs still do so: there computing
  costs more than memory.
  """
  return fn if platform() == 'cpu' else jax.checkpoint(fn)


def block(policy: str, kind: AnyModule, in_loop: bool = False) -> AnyModule:
  """Returns the class of a block with rematerialisation by `policy`.

  Outside loops, a barrier keeps XLA from reusing the forward pass's results
  instead of recomputing them.
  """
  if policy == 'none':
    return kind
  return nn.remat(kind, policy=_policy(policy), prevent_cse=not in_loop)


def _policy(name: str) -> Callable[..., Any] | None:
  known = jax.checkpoint_policies
  if name == 'full':
    return None
  if name == 'dots':
    return known.save_from_both_policies(
      known.dots_with_no_batch_dims_saveable, _kernels
    )
  return known.save_from_both_policies(
    known.save_only_these_names(*_NAMES), _kernels
  )


def _cudnn(primitive: Any, *_: Any, **__: Any) -> bool:
  """Whether this is cuDNN's kernel, whose output and statistics are kept."""
  return primitive.name.startswith('dot_product_attention_fwd')


# The TPU kernel names what must be kept.
_kernels = jax.checkpoint_policies.save_from_both_policies(
  jax.checkpoint_policies.save_only_these_names(KERNEL), _cudnn
)

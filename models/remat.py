"""Which values of a block wait for the backward pass, by name of a policy.

  none   all that JAX wants.
  names  what costs a matrix product: queries, keys, values, attention's output,
         the stream after it and what goes into the activation. Norms and
         activations are computed again.
  dots   results of products with weights; attention among tokens is computed
         again, unless a fused kernel does it.
  full   the block's input alone; everything is computed again.

Less is kept from the first to the last (training/planner.py says how much).
"""

from collections.abc import Callable
from typing import Any, TypeVar

from flax import linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name

from steepest.models.matmul import platform

# What a fused kernel leaves for its backward pass, on TPUs.
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


def named(x: jax.Array, name: str) -> jax.Array:
  """Returns x under a name that the policy `names` keeps."""
  assert name in _NAMES, name
  return checkpoint_name(x, name)


def entrywise(fn: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
  """Returns `fn`, of whose operands alone its backward pass is a function.

  Else XLA writes what the derivative needs in the forward pass, as large as the
  result, and reads it again. On CPUs, where functions cost more than memory, it
  may.
  """
  return fn if platform() == 'cpu' else jax.checkpoint(fn)


def block(policy: str, kind: AnyModule) -> AnyModule:
  """Returns a block's class, with recomputation by `policy`."""
  if policy == 'none':
    return kind
  return nn.remat(kind, policy=_policy(policy))


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
  """Whether this is cuDNN's kernel: its statistics are kept with its output."""
  return primitive.name.startswith('dot_product_attention_fwd')


# Of the kernel on TPUs, names say what is kept.
_kernels = jax.checkpoint_policies.save_from_both_policies(
  jax.checkpoint_policies.save_only_these_names(KERNEL), _cudnn
)

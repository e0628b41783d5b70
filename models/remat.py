"""Rematerialisation: what a block keeps for its backward pass, by policy.

  none   all that JAX asks for.
  names  the results of matrix products: queries, keys, values, attention's
         output, the stream after it and what goes into the activation. Norms
         and activations are computed again.
  dots   products with weights only; attention is computed again too, unless a
         fused kernel does it.
  full   the block's input only; everything is computed again.

Each keeps less than the one before (docs/scaling.md has the bytes).
"""

from collections.abc import Callable
from typing import Any, TypeVar

from flax import linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name

# What the fused kernel on TPUs leaves for its backward pass.
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
  """Returns what is compiled for: the mesh's devices, else JAX's default."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  return jax.default_backend() if device is None else device.platform


def named(x: jax.Array, name: str) -> jax.Array:
  """Returns x under a name, by which the policy `names` keeps it."""
  assert name in _NAMES, name
  return checkpoint_name(x, name)


def entrywise(fn: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
  """Returns `fn` with a backward pass that starts from its operands.

  Otherwise XLA writes its derivative, as large as its result, to memory in the
  forward pass and reads it back. CPUs, where computing costs more than memory,
  do that.
  """
  return fn if platform() == 'cpu' else jax.checkpoint(fn)


def block(policy: str, kind: AnyModule, in_loop: bool = False) -> AnyModule:
  """Returns the class of a block with rematerialisation by `policy`.

  Outside loops a barrier keeps XLA from taking the results of the first pass
  for those of the second.
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
  """Returns whether it is cuDNN's kernel, whose output and statistics stay."""
  return primitive.name.startswith('dot_product_attention_fwd')


# The kernel on TPUs names what has to stay.
_kernels = jax.checkpoint_policies.save_from_both_policies(
  jax.checkpoint_policies.save_only_these_names(KERNEL), _cudnn
)

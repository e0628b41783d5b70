"""What an optimizer's updates take, and what moves which parameter."""

import collections
import math
from typing import Any

import jax

from steepest.optimizers.build import Chain


def state_bytes(chain: Chain, params: Any) -> int:
  """Returns the bytes of the state of parameters, given as shapes."""
  return sum(_bytes(x) for x in jax.tree.leaves(_state(chain, params)))


def update_bytes(chain: Chain, params: Any) -> int:
  """Returns the bytes that an update has to move.

  It reads gradients, reads and writes parameters and state, and leaves what
  the optimizer's file calls READ_ONLY as it is.

  Args:
    chain: of the optimizer.
    params: arrays or their shapes.
  """
  size = sum(_bytes(x) for x in jax.tree.leaves(params))
  total = 3 * size
  fixed = set(getattr(chain.module, 'READ_ONLY', ()))
  leaves, _ = jax.tree_util.tree_flatten_with_path(_state(chain, params))
  for path, x in leaves:
    total += _bytes(x) * (1 if _names_in(path) & fixed else 2)
  return total


def _names_in(path: tuple[Any, ...]) -> set[str]:
  """Returns the names of the fields on a path into a state."""
  return {key.name for key in path if isinstance(key, jax.tree_util.GetAttrKey)}


def update_flops(chain: Chain, params: Any) -> float:
  """Returns the FLOPs of an update's matrix products; 0 of entrywise ones."""
  if not hasattr(chain.module, 'update_flops'):
    return 0.0
  return sum(
    chain.module.update_flops(kind, shape)
    for kind, shape in _kinds_and_shapes(chain, params)
  )


def description(chain: Chain, params: Any) -> str:
  """Returns a line on which method moves which parameters; '' with one alone.

  As in 'muon: 24 hidden (1,179,648 parameters); adamw: 2 embedding, 9 gain
  (66,688 parameters)'.
  """
  if not hasattr(chain.module, 'method'):
    return ''
  kinds: dict[str, collections.Counter[str]] = {}
  sizes: collections.Counter[str] = collections.Counter()
  for kind, shape in _kinds_and_shapes(chain, params):
    method = chain.module.method(kind, shape)
    kinds.setdefault(method, collections.Counter())[kind] += 1
    sizes[method] += math.prod(shape)
  parts = []
  for method in sorted(kinds, key=lambda m: m == 'adamw'):
    counts = ', '.join(f'{n} {kind}' for kind, n in kinds[method].items())
    parts.append(f'{method}: {counts} ({sizes[method]:,} parameters)')
  return '; '.join(parts)


def _kinds_and_shapes(
  chain: Chain, params: Any
) -> list[tuple[str, tuple[int, ...]]]:
  factors = jax.tree.leaves(chain.factors)
  arrays = jax.tree.leaves(params)
  return [(f.kind, x.shape) for f, x in zip(factors, arrays, strict=True)]


def _state(chain: Chain, params: Any) -> Any:
  return jax.eval_shape(chain.init, params)


def _bytes(x: Any) -> int:
  return math.prod(x.shape) * x.dtype.itemsize

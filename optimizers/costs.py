"""What an optimizer's updates cost, and which roles it moves."""

import collections
import math
from typing import Any

import jax
from jax.sharding import NamedSharding

from steepest.optimizers.build import Chain


def state_bytes(chain: Chain, params: Any) -> int:
  """Returns the bytes of optimizer state for parameters given as shapes."""
  return sum(_bytes(x) for x in jax.tree.leaves(_state(chain, params)))


def update_bytes(chain: Chain, params: Any, state: Any = None) -> int:
  """Returns the bytes that an update has to move.

  It reads gradients, reads and writes parameters and state, and does not write
  state that the optimizer calls `read_only`.

  Args:
    chain: the optimizer's chain.
    params: arrays or their shapes.
    state: the optimizer's state, likewise, if known.
  """
  total = 3 * sum(_bytes(x) for x in jax.tree.leaves(params))
  fixed = set(chain.optimizer.read_only)
  state = _state(chain, params) if state is None else state
  leaves, _ = jax.tree_util.tree_flatten_with_path(state)
  for path, x in leaves:
    fields = {k.name for k in path if isinstance(k, jax.tree_util.GetAttrKey)}
    total += _bytes(x) * (1 if fields & fixed else 2)
  return total


def update_flops(chain: Chain, params: Any) -> float:
  """Returns the FLOPs of an update's matrix products; 0 if it has none."""
  arrays = zip(jax.tree.leaves(chain.factors), jax.tree.leaves(params))
  return sum(
    chain.optimizer.flops(f.kind, x.shape, chain.static)
    for f, x in arrays
    if f.kind in chain.optimizer.moves
  )


def exchanged_bytes(chain: Chain, params: Any, state: Any) -> int:
  """Returns the bytes that a device of a mesh exchanges for the update itself.

  0 where the optimizer does not say (`Optimizer.exchanged`).

  Args:
    chain: the optimizer's chain.
    params: shapes with shardings; those of their momenta are the chain's.
    state: the optimizer's, likewise.
  """
  if chain.optimizer.exchanged is None:
    return 0
  trees = chain.factors, params, chain.layout
  arrays = zip(*map(jax.tree.leaves, trees), strict=True)
  moved = [
    x.update(sharding=NamedSharding(x.sharding.mesh, spec))
    for f, x, spec in arrays
    if f.kind in chain.optimizer.moves
  ]
  return chain.optimizer.exchanged(moved, state, chain.static)


def description(chain: Chain, params: Any) -> str:
  """Returns a line on which optimizer moves what; '' if one moves everything.

  As in 'muon: 24 hidden (1,179,648 parameters); adamw: 2 embedding, 9 gain
  (66,688 parameters)'.
  """
  if not chain.optimizer.leaves_some:
    return ''
  counts: dict[bool, collections.Counter[str]] = {}
  sizes: collections.Counter[bool] = collections.Counter()
  arrays = zip(jax.tree.leaves(chain.factors), jax.tree.leaves(params))
  for f, x in arrays:
    own = f.kind in chain.optimizer.moves
    counts.setdefault(own, collections.Counter())[f.kind] += max(f.layers, 1)
    sizes[own] += math.prod(x.shape)
  return '; '.join(
    f'{chain.optimizer.name if own else "adamw"}: '
    + ', '.join(f'{n} {kind}' for kind, n in counts[own].items())
    + f' ({sizes[own]:,} parameters)'
    for own in sorted(counts, reverse=True)
  )


def _state(chain: Chain, params: Any) -> Any:
  return jax.eval_shape(chain.init, params)


def _bytes(x: Any) -> int:
  return math.prod(x.shape) * x.dtype.itemsize

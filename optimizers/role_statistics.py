"""Logged statistics of a model's parts: its roles and its layers.

A layer is a top-level module of the model's parameter tree. Q: quantities,
P: parts.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax import numpy as jnp
import numpy as np

# Statistics of parameters and changes; an update may skip them.
MEASURED = ('param_norm', 'update_rms', 'parts', 'unclipped_fraction')
# Each quantity as a function of a part's sum and its number of coordinates.
_QUANTITIES = {
  'grad_norm': lambda total, size: jnp.sqrt(total),
  'update_rms': lambda total, size: jnp.sqrt(total / size),
  'unclipped_fraction': lambda total, size: total / size,
}


def measure(
  factors: Any, grads: Any, changes: Any, updates: Any | None
) -> dict[str, jax.Array]:
  """Returns `parts`, one Q×P array, read at once; `named` takes it apart.

  Args:
    factors: a tree like the parameters, see `build.Factors`.
    grads: gradients of the batch.
    changes: what is subtracted from the parameters.
    updates: the optimizer's direction, if it clips coordinates at 1: then also
      measures the share with |u| < 1, per part and over all coordinates.
  """
  counts = [f.layers for f in jax.tree.leaves(factors)]
  leaves = zip(
    counts,
    jax.tree.leaves(grads),
    jax.tree.leaves(changes),
    jax.tree.leaves(changes if updates is None else updates),
    strict=True,
  )
  rows = [
    [
      _sum(jnp.square(g), n),
      _sum(jnp.square(c), n),
      *([] if updates is None else [_sum(jnp.abs(u) < 1, n)]),
    ]
    for n, g, c, u in leaves
  ]
  totals = [jnp.concatenate(column) for column in zip(*rows)]
  sizes = [
    [g.size // max(n, 1)] * max(n, 1)
    for n, g in zip(counts, jax.tree.leaves(grads))
  ]
  size_N = np.array(sum(sizes, []), np.float32)
  member_PxN = _members(factors)
  size_P = (member_PxN * size_N).sum(-1)
  stats = {
    'parts': jnp.stack(
      [
        # Non-finite values only affect the parts that contain them.
        finish(jnp.where(member_PxN, total_N, 0).sum(-1), size_P)
        for finish, total_N in zip(_QUANTITIES.values(), totals)
      ]
    )
  }
  if updates is not None:
    stats['unclipped_fraction'] = totals[-1].sum() / size_N.sum()
  return stats


def named(factors: Any, stats: Mapping[str, Any]) -> dict[str, Any]:
  """Returns what is logged, with `parts`, if measured, taken apart.

  Returns:
    The other entries of `stats`, and each quantity of each part, such as
    `update_rms/hidden` for a role and `update_rms/layer/block_0` for a layer.
  """
  if 'parts' not in stats:
    return dict(stats)
  names = list(_parts(factors))
  return {k: v for k, v in stats.items() if k != 'parts'} | {
    f'{quantity}/{part}': value
    for quantity, value_P in zip(_QUANTITIES, stats['parts'])
    for part, value in zip(names, value_P, strict=True)
  }


def kept(stats: dict[str, Any], measure: bool) -> dict[str, Any]:
  """Returns the statistics of an update, whether or not it measured."""
  if measure:
    return stats
  return {k: v for k, v in stats.items() if k not in MEASURED}


def _parts(factors: Any) -> dict[str, Sequence[int]]:
  """Returns which arrays each part has; roles first, in the tree's order.

  A leaf of stacked layers counts as one array per layer: `block_all` gives
  those of `block_0`, `block_1`, ….
  """
  roles: dict[str, list[int]] = {}
  layers: dict[str, list[int]] = {}
  flat, _ = jax.tree_util.tree_flatten_with_path(factors)
  at = 0
  for path, f in flat:
    top = f'layer/{jax.tree_util.keystr(path[:1], simple=True)}'
    stacked = [f'{top.removesuffix("all")}{i}' for i in range(f.layers)]
    for name in stacked or [top]:
      roles.setdefault(f.kind, []).append(at)
      layers.setdefault(name, []).append(at)
      at += 1
  return {**roles, **layers}


def _members(factors: Any) -> np.ndarray:
  parts = _parts(factors)
  arrays = sum(max(f.layers, 1) for f in jax.tree.leaves(factors))
  member_PxN = np.zeros((len(parts), arrays), bool)
  for row, members in zip(member_PxN, parts.values()):
    row[list(members)] = True
  return member_PxN


def _sum(x: jax.Array, layers: int) -> jax.Array:
  """Returns an array's sum, or the sums of its stacked layers, as a vector."""
  own = tuple(range(1 if layers else 0, x.ndim))
  return jnp.sum(x, own, dtype=jnp.float32).reshape(max(layers, 1))

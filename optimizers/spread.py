"""Spreads whole matrices over the devices of a mesh.

An update that needs whole matrices, on a mesh that splits each of them: every
device receives its share of all matrices, whole, and sends results back.
"""

import collections
from collections.abc import Callable, Sequence
import functools
import math
from typing import Any

import jax
from jax import numpy as jnp
from jax.sharding import AbstractMesh, PartitionSpec


def each(
  fn: Callable[[Any], Any],
  items: Sequence[Any],
  specs: Sequence[Any] | None,
  like: Callable[[Any], Any] = lambda spec: spec,
) -> list[Any]:
  """Returns fn(item) for each item, computing it on one device only.

  Arrays of items that are alike are stacked, and each stack is spread over the
  devices: each device sends its shards once and its results once.

  Args:
    fn: of a tree of arrays, of matrices (…, m, n) with equal axes before the
      last two; treats each of these matrices alike.
    items: the trees.
    specs: likewise, how the mesh splits each array; None: computes in place.
    like: from an item's specs to its result's.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if specs is None or mesh.size <= 1:
    return [fn(item) for item in items]
  alike: dict[Any, list[int]] = {}
  for i, (item, spec) in enumerate(zip(items, specs, strict=True)):
    leaves, tree = jax.tree.flatten(item)
    shapes = tuple(x.shape for x in leaves)
    alike.setdefault((tree, shapes, *jax.tree.leaves(spec)), []).append(i)
  found = dict[int, Any]()
  for members in alike.values():
    spec, given = specs[members[0]], [items[i] for i in members]
    order = _order(jax.tree.leaves(spec), mesh)
    share = PartitionSpec(order)
    stacks = jax.tree.map(
      lambda spec, *xs, order=order: _dealt(xs, spec, order), spec, *given
    )
    results = jax.shard_map(
      fn, in_specs=share, out_specs=share, check_vma=False
    )(stacks)
    first = jax.tree.leaves(given)[0].shape[:-2]
    back = functools.partial(_collected, len(members), first, order)
    results = jax.tree.map(back, like(spec), results)
    for n, i in enumerate(members):
      found[i] = jax.tree.map(lambda x, n=n: x[n], results)
  return [found[i] for i in range(len(items))]


def exchanged(
  items: Sequence[Any],
  given: Callable[[Any], Any] = lambda item: item,
  results: Callable[[Any], Any] = lambda item: item,
) -> int:
  """Returns the bytes that a device exchanges in `each`.

  Counts operands and results: of an exchange along each mesh axis that splits
  an array, and, over the others, of a gather of the results.

  Args:
    items: trees of shapes with shardings, that `fn` depends on.
    given: from an item to the arrays that `fn` reads.
    results: from an item to arrays like its results.
  """
  counts: collections.Counter[Any] = collections.Counter()
  for item in items:
    found = []
    for tree in (given(item), results(item)):
      leaves = jax.tree.leaves(tree)
      found.append(tuple((x.shape, x.dtype, x.sharding) for x in leaves))
    counts[tuple(found)] += 1
  total = 0
  for (inward, outward), count in counts.items():
    mesh = inward[0][2].mesh
    stacked = count * math.prod(inward[0][0][:-2])
    of_device = -(-stacked // mesh.size)
    for is_result, arrays in enumerate((inward, outward)):
      for shape, dtype, sharding in arrays:
        own = of_device * math.prod(shape[-2:]) * dtype.itemsize
        rows, columns = _of_matrix(sharding.spec, len(shape))
        split = [mesh.shape[axis] for axis in (*rows, *columns)]
        idle = mesh.size // math.prod(split)
        total += 2 * own * sum(n > 1 for n in split)
        total += own * (idle + 1) * (is_result and idle > 1)
  return total


def _of_matrix(spec: PartitionSpec, ndim: int) -> tuple[tuple, tuple]:
  """Returns the mesh axes along rows and columns."""
  rows, columns = [_axes(x) for x in (*spec, *[None] * ndim)][ndim - 2 : ndim]
  return rows, columns


def _axes(entry: Any) -> tuple[str, ...]:
  return (entry,) if isinstance(entry, str) else entry or ()


def _order(
  specs: Sequence[PartitionSpec], mesh: AbstractMesh
) -> tuple[str, ...]:
  """Returns the mesh's axes in the order in which they take over a stack.

  First those that split no array: nothing is sent, only gathered at the end.
  """
  used = {axis for spec in specs for entry in spec for axis in _axes(entry)}
  return tuple(sorted(mesh.axis_names, key=lambda axis: axis in used))


def _stages(
  spec: PartitionSpec, ndim: int, order: Sequence[str]
) -> list[PartitionSpec]:
  """Returns layouts of a stack of matrices, from sharded to whole matrices.

  Each moves one axis of the mesh, by one exchange between devices.
  """
  rows, columns = _of_matrix(spec, ndim)
  stages = []
  for n in range(len(order) + 1):
    left = lambda axes, n=n: tuple(a for a in axes if a not in order[:n])
    stages.append(PartitionSpec(tuple(order[:n]), left(rows), left(columns)))
  return list(dict.fromkeys(stages))


def _dealt(
  arrays: Sequence[jax.Array], spec: PartitionSpec, order: Sequence[str]
) -> jax.Array:
  """Returns a stack of arrays, spread over the devices."""
  shape = arrays[0].shape
  stack = jnp.stack(arrays).reshape(-1, *shape[-2:])
  # Repeat the last one until all devices have equally many.
  extra = -stack.shape[0] % jax.sharding.get_abstract_mesh().size
  stack = jnp.pad(stack, ((0, extra), (0, 0), (0, 0)), 'edge')
  for stage in _stages(spec, len(shape), order):
    stack = jax.lax.with_sharding_constraint(stack, stage)
  return stack


def _collected(
  count: int,
  before: Sequence[int],
  order: Sequence[str],
  spec: PartitionSpec,
  stack: jax.Array,
) -> jax.Array:
  """Returns the arrays that were dealt, in a stack, each split as before."""
  for stage in reversed(_stages(spec, len(before) + 2, order)):
    stack = jax.lax.with_sharding_constraint(stack, stage)
  size = count * math.prod(before)
  return stack[:size].reshape(count, *before, *stack.shape[1:])

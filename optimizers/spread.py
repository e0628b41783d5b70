"""Spreads whole matrices over the devices of a mesh.

An update that needs whole matrices, on a mesh that splits each of them: every
device receives its share of all matrices, whole, and sends results back. It
does so over the axes that split them; copies of the model compute the same,
since sending between machines takes longer (docs/scaling.md). If nothing splits
them, all devices share the work.
"""

import collections
from collections.abc import Callable, Sequence
import functools
import itertools
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
  """Returns fn(item) for each item, computing it on one device of a copy.

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
  an array, and, over the others that share the work, of a gather of the
  results.

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
    order = _order([x.spec for *_, x in (*inward, *outward)], mesh)
    sharing = math.prod(mesh.shape[axis] for axis in order)
    stacked = count * math.prod(inward[0][0][:-2])
    of_device = -(-stacked // sharing)
    for is_result, arrays in enumerate((inward, outward)):
      for shape, dtype, sharding in arrays:
        own = of_device * math.prod(shape[-2:]) * dtype.itemsize
        stacks, *matrix = _split(sharding.spec, len(shape))
        split = [mesh.shape[axis] for axes in matrix for axis in axes]
        of_stacks = math.prod(mesh.shape[axis] for axis in stacks)
        idle = sharing // of_stacks // math.prod(split)
        total += 2 * own * sum(n > 1 for n in split)
        total += own * (idle + 1) * (is_result and idle > 1)
  return total


def _split(spec: PartitionSpec, ndim: int) -> tuple[tuple[str, ...], ...]:
  """Returns the mesh axes along stacked matrices, rows and columns."""
  *before, rows, columns = ([_axes(x) for x in spec] + ndim * [()])[:ndim]
  return tuple(itertools.chain(*before)), rows, columns


def _axes(entry: Any) -> tuple[str, ...]:
  return (entry,) if isinstance(entry, str) else entry or ()


def _order(
  specs: Sequence[PartitionSpec], mesh: AbstractMesh
) -> tuple[str, ...]:
  """Returns the mesh axes that share the work, as they take over a stack.

  Those that split an array; if there are none, all: then nothing is sent, only
  gathered at the end.
  """
  found = {axis for spec in specs for entry in spec for axis in _axes(entry)}
  parts = [axis for axis in mesh.axis_names if mesh.shape[axis] > 1]
  return tuple(axis for axis in parts if axis in found) or tuple(parts)


def _stages(
  spec: PartitionSpec, ndim: int, order: Sequence[str]
) -> list[PartitionSpec]:
  """Returns layouts of a stack of matrices, from sharded to whole matrices.

  Each moves one axis of the mesh, by one exchange between devices.
  """
  stacks, rows, columns = _split(spec, ndim)
  stages = []
  first = len(stacks) if stacks == order[: len(stacks)] else 0
  for n in range(first, len(order) + 1):
    left = lambda axes, n=n: tuple(a for a in axes if a not in order[:n])
    stages.append(PartitionSpec(tuple(order[:n]), left(rows), left(columns)))
  return list(dict.fromkeys(stages))


def _dealt(
  arrays: Sequence[jax.Array], spec: PartitionSpec, order: Sequence[str]
) -> jax.Array:
  """Returns a stack of arrays, spread over the devices."""
  shape = arrays[0].shape
  # Those of one layer are adjacent, so that layers stay where they are.
  stack = jnp.stack(arrays, -3).reshape(-1, *shape[-2:])
  mesh = jax.sharding.get_abstract_mesh()
  sharing = math.prod(mesh.shape[axis] for axis in order)
  # Repeat the last one until all devices have equally many.
  extra = -stack.shape[0] % sharing
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
  found = stack[:size].reshape(*before, count, *stack.shape[1:])
  return jnp.moveaxis(found, -3, 0)

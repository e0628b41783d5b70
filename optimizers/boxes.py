"""Parameters of some roles, and parameters that come in boxes.

Where an optimizer's state is laid out, parameters are boxes: an array and the
names of its axes, by which it is sharded. State that keeps the box is sharded
like its parameter.
"""

from collections.abc import Sequence
from typing import Any

import jax


class Split:
  """Takes trees like the parameters apart by the kinds of roles."""

  def __init__(self, kinds: Any, chosen: Sequence[str]):
    """Remembers which parameters are chosen.

    Args:
      kinds: a tree of the roles' kinds, like the parameters.
      chosen: kinds that go into the first part.
    """
    self._structure: Any = jax.tree.structure(kinds)
    leaves = jax.tree.leaves(kinds)
    self._first = [kind in chosen for kind in leaves]

  def parts(self, tree: Any) -> tuple[list[Any], list[Any]]:
    """Returns the chosen leaves and the others, boxes as they are."""
    pairs = list(zip(self._first, self._structure.flatten_up_to(tree)))
    return [x for first, x in pairs if first], [x for f, x in pairs if not f]

  def whole(self, first: Sequence[Any], rest: Sequence[Any]) -> Any:
    """Returns the tree of two parts."""
    parts = iter(first), iter(rest)
    return self._structure.unflatten(
      next(parts[0] if chosen else parts[1]) for chosen in self._first
    )


def array_in(parameter: Any) -> Any:
  """Returns the array, or its shape, in a parameter that may be a box."""
  (array,) = jax.tree.leaves(parameter)
  return array


def box_like(parameter: Any, array: Any, axes: Sequence[int | None]) -> Any:
  """Returns an array in a box if the parameter is in one.

  Args:
    parameter: box or array.
    array: to be boxed.
    axes: of each of its axes the parameter's axis it is sharded like.
  """
  if not hasattr(parameter, 'names'):
    return array
  names = [None if axis is None else parameter.names[axis] for axis in axes]
  return parameter.replace(value=array, names=tuple(names))

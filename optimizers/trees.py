"""Trees of an optimizer's state: averages, splits by role, sharded boxes.

When an optimizer's state is laid out, parameters are boxes: an array and the
names of its axes, by which it is sharded. State that keeps the box is sharded
like its parameter.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import numpy as jnp
import optax

Number = Any  # A number, a traced scalar, or a tree of either.


def zeros_like(params: Any) -> Any:
  """Returns zeros for every parameter."""
  return jax.tree.map(jnp.zeros_like, params)


def average(decay: Number, old: Any, new: Any) -> Any:
  """Returns decay·old + (1 - decay)·new, leaf by leaf."""
  return jax.tree.map(
    lambda x, y, b: b * x + (1 - b) * y, old, new, like(decay, old)
  )


def square(tree: Any) -> Any:
  """Returns the squares of all entries."""
  return jax.tree.map(lambda x: x * x, tree)


def like(value: Number, tree: Any) -> Any:
  """Returns `value` as a tree like `tree`; a single value fills every leaf."""
  structure: Any = jax.tree.structure
  if structure(value) == structure(tree):
    return value
  if len(leaves := jax.tree.leaves(value)) == 1:
    return jax.tree.map(lambda _: leaves[0], tree)
  raise ValueError('hyperparameter tree and parameter tree differ')


def cautious(
  transform: optax.GradientTransformation, layers: Any = 0
) -> optax.GradientTransformation:
  r"""Drops the entries of a direction that oppose the gradient.

  .. math::
    \phi_i = [u_i g_i > 0], \quad
    u_i \leftarrow u_i \phi_i \frac{n}{1 + \sum_j \phi_j}

  over the n entries of each parameter (Liang et al., arXiv 2411.16085,
  algorithm 1 with ξ = 1), so that a parameter still moves about as far.

  Args:
    transform: its updates are directions to subtract.
    layers: how many are stacked along each parameter's first axis, a number or
      a tree; 0: none.
  """

  def update(grads: Any, state: Any, params: Any = None):
    updates, state = transform.update(grads, state, params)

    def keep(u: jax.Array, g: jax.Array, layers: int) -> jax.Array:
      agrees = (u * g > 0).astype(u.dtype)
      own = tuple(range(1 if layers else 0, u.ndim))
      count = agrees.sum(own, keepdims=True)
      return u * agrees * (u.size // max(layers, 1) / (count + 1))

    return jax.tree.map(keep, updates, grads, like(layers, grads)), state

  return optax.GradientTransformation(transform.init, update)


def with_factors_on_eps(
  transform: optax.GradientTransformation, factors: Any
) -> optax.GradientTransformation:
  """Gives each parameter its own epsilon, f·ε; Optax has one for all.

  If the gradient's scale changes a direction through ε only, m / (√v + f·ε) for
  g equals m / (√v + ε) for g / f.

  Args:
    transform: gives such a direction.
    factors: f, a tree of numbers like the parameters.
  """

  def update(grads: Any, state: Any, params: Any = None):
    grads = jax.tree.map(lambda g, f: g if f == 1 else g / f, grads, factors)
    return transform.update(grads, state, params)

  return optax.GradientTransformation(transform.init, update)


def map_eps(
  make: Callable[[Any], optax.GradientTransformation],
) -> Callable[[Any], optax.GradientTransformation]:
  """Returns `make` for hyperparameters h, with each parameter's own epsilon."""
  return lambda h: with_factors_on_eps(make(h), h.eps_factors)


class Split:
  """Splits trees like the parameters by role."""

  def __init__(self, kinds: Any, chosen: Sequence[str]):
    """Remembers which parameters are chosen.

    Args:
      kinds: a tree of roles, like the parameters.
      chosen: roles that go into the first part.
    """
    self._structure: Any = jax.tree.structure(kinds)
    leaves = jax.tree.leaves(kinds)
    self._first = [kind in chosen for kind in leaves]

  def parts(self, tree: Any) -> tuple[list[Any], list[Any]]:
    """Returns the chosen leaves and the others; boxes stay whole."""
    pairs = list(zip(self._first, self._structure.flatten_up_to(tree)))
    return [x for first, x in pairs if first], [x for f, x in pairs if not f]

  def whole(self, first: Sequence[Any], rest: Sequence[Any]) -> Any:
    """Returns the tree that the two parts make up."""
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
    axes: for each axis of `array`, the parameter's axis it is sharded like.
  """
  if not hasattr(parameter, 'names'):
    return array
  names = [None if axis is None else parameter.names[axis] for axis in axes]
  return parameter.replace(value=array, names=tuple(names))

"""Moments kept in bfloat16: half the memory, and half the traffic."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import numpy as jnp

DTYPES = ('float32', 'bfloat16')


def names_in(path: tuple[Any, ...]) -> set[str]:
  """Returns the names of the fields on a path into a state."""
  return {key.name for key in path if isinstance(key, jax.tree_util.GetAttrKey)}


def widened(state: Any, fields: Sequence[str]) -> Any:
  """Returns a state whose moments are float32.

  Args:
    state: of an optimizer.
    fields: names of the fields that hold moments.
  """
  return _of_moments(state, fields, lambda x, i: x.astype(jnp.float32))


def narrowed(state: Any, fields: Sequence[str], step: Any) -> Any:
  """Returns a state whose moments are bfloat16, rounded up or down at random.

  The chance is such that the mean is exact. To the nearest, an average whose
  decay is above 1 - 2⁻⁹ would stand still: what is added in a step is less
  than half of bfloat16's last digit.

  Args:
    state: of an optimizer, moments in float32.
    fields: names of the fields that hold moments.
    step: from which the random numbers follow, with the place of the entry.
  """
  return _of_moments(state, fields, lambda x, i: _rounded(x, step, i))


def _of_moments(
  state: Any, fields: Sequence[str], fn: Callable[[Any, int], Any]
) -> Any:
  leaves, structure = jax.tree_util.tree_flatten_with_path(state)
  changed = [
    fn(x, i) if names_in(path) & set(fields) and x.ndim else x
    for i, (path, x) in enumerate(leaves)
  ]
  return jax.tree.unflatten(structure, changed)


def _rounded(x: jax.Array, step: Any, leaf: int) -> jax.Array:
  """Adds 16 random bits below the last digit that stays, and cuts them off."""
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
  place = jnp.zeros(x.shape, jnp.uint32)
  for axis in range(x.ndim):
    place = place * jnp.uint32(x.shape[axis]) + jax.lax.broadcasted_iota(
      jnp.uint32, x.shape, axis
    )
  seed = _mixed(jnp.asarray(step).astype(jnp.uint32) * 65_537 + leaf)
  noise = _mixed(place ^ seed) >> 16
  cut = (bits + noise) & jnp.uint32(0xFFFF0000)
  # What is not finite has no digits to round.
  cut = jnp.where(jnp.isfinite(x), cut, bits)
  return jax.lax.bitcast_convert_type(cut, jnp.float32).astype(jnp.bfloat16)


def _mixed(x: jax.Array) -> jax.Array:
  """Returns bits that look independent (Wellons' hash `lowbias32`)."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
  x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
  return x ^ (x >> 16)

"""Hyperparameters as arguments of the compiled step.

A sweep over any of them compiles once: they are traced scalars, or trees of
them where the parametrization gives each parameter its own.
"""

from typing import Any, NamedTuple

import jax

Number = Any  # A number, a traced scalar, or a tree of either.


class Hyperparameters(NamedTuple):
  """What an optimizer file's `transform` may use."""

  b1: Number
  b2: Number
  eps: Number
  rho: Number
  bias_correction: bool


def like(value: Number, tree: Any) -> Any:
  """Returns `value` as a tree like `tree`, a single one for every leaf."""
  structure: Any = jax.tree.structure
  if structure(value) == structure(tree):
    return value
  if len(leaves := jax.tree.leaves(value)) == 1:
    return jax.tree.map(lambda _: leaves[0], tree)
  raise ValueError('hyperparameter tree and parameter tree differ')

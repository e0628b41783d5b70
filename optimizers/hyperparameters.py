"""Hyperparameters as arguments of the compiled step.

A sweep over any of them compiles once: they are traced scalars, or trees of
them where the parametrization gives each parameter its own.
"""

from typing import Any, NamedTuple

import jax
import optax

Number = Any  # A number, a traced scalar, or a tree of either.


class Hyperparameters(NamedTuple):
  """What an optimizer file's `transform` may use.

  Attributes:
    b1: decay of the first moment, optimizer.betas[0].
    b2: decay of the second, optimizer.betas[1].
    b3: decay of a slow second momentum.
    alpha: weight of the slow momentum.
    momentum: decay of what a matrix method averages.
    eps: a tree: epsilon times each role's factor.
    rho: a tree: Sophia's rho times each role's factor.
    bias_correction: of Sophia's curvature; no number, so not traced.
    precondition_every: steps between new bases of a matrix method.
    rate: s_t·lr, the learning rate of this step without role factors.
    step: steps done before.
    steps: of the run.
    plain_eps: epsilon without factors.
    kinds: a tree of the roles' kinds ('embedding', 'hidden', …).
    rates: a tree of the roles' factors on the learning rate; numbers.
    eps_factors: a tree of the roles' factors on epsilon; numbers.
  """

  b1: Number
  b2: Number
  b3: Number
  alpha: Number
  momentum: Number
  eps: Number
  rho: Number
  bias_correction: bool
  precondition_every: Any
  rate: Any
  step: Any
  steps: Any
  plain_eps: Any
  kinds: Any
  rates: Any
  eps_factors: Any


def like(value: Number, tree: Any) -> Any:
  """Returns `value` as a tree like `tree`, a single one for every leaf."""
  structure: Any = jax.tree.structure
  if structure(value) == structure(tree):
    return value
  if len(leaves := jax.tree.leaves(value)) == 1:
    return jax.tree.map(lambda _: leaves[0], tree)
  raise ValueError('hyperparameter tree and parameter tree differ')


def with_factors_on_eps(
  transform: optax.GradientTransformation, factors: Any
) -> optax.GradientTransformation:
  """Gives each parameter its own epsilon, f·ε, where Optax has one for all.

  For a direction that the gradient's scale changes through ε alone,
  m / (√v + f·ε) of g is m / (√v + ε) of g / f.

  Args:
    transform: such a direction.
    factors: f, a tree of numbers like the parameters.
  """

  def update(grads: Any, state: Any, params: Any = None):
    grads = jax.tree.map(lambda g, f: g if f == 1 else g / f, grads, factors)
    return transform.update(grads, state, params)

  return optax.GradientTransformation(transform.init, update)

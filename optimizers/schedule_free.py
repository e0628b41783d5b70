"""Schedule-Free AdamW's direction and path (Defazio et al., 2405.15682).

Gradients are taken at y = (1 - b1)·z + b1·x, which are the parameters of the
training state; z is what the optimizer moves and x the average of all z, with
which the model is evaluated.
"""

from typing import Any, NamedTuple

import jax
from jax import numpy as jnp
import optax
from optax import contrib

from steepest.optimizers.hyperparameters import (
  Hyperparameters,
  with_factors_on_eps,
)

# Averaging takes the place of the schedule's decay: warm-up is all it takes.
SCHEDULE = 'constant'


class ScheduleFreeState(NamedTuple):
  """The second moment, and z with what the average needs."""

  second: Any
  path: contrib.ScheduleFreeState


def scale_by_schedule_free(b2: float, eps: float) -> Any:
  r"""AdamW without momentum: u = g / (√v̂ + ε), as Optax has it.

  Args:
    b2: decay of the second moment; like eps a number or traced scalar.
    eps: added to the denominator, outside the root.

  Returns:
    A transform whose update is u; decay and learning rate are the chain's,
    and `move` makes of the change what becomes of the parameters.
  """
  scale = optax.scale_by_rms(b2, eps, eps_in_sqrt=False, bias_correction=True)

  def init(params: Any) -> ScheduleFreeState:
    # With b1 = 1 the average is y, as it is before the first step.
    path = _averaging(0.0, 1.0).init(params)
    return ScheduleFreeState(scale.init(params), path)

  def update(grads: Any, state: ScheduleFreeState, params: Any = None):
    updates, second = scale.update(grads, state.second, params)
    return updates, state._replace(second=second)

  return optax.GradientTransformation(init, update)


def transform(hyper: Hyperparameters) -> optax.GradientTransformation:
  """The direction with the run's hyperparameters."""
  scale = scale_by_schedule_free(hyper.b2, hyper.plain_eps)
  return with_factors_on_eps(scale, hyper.eps_factors)


def move(
  state: ScheduleFreeState, params: Any, changes: Any, hyper: Hyperparameters
) -> tuple[Any, ScheduleFreeState]:
  """Returns the next y, and the state with the next z.

  The average weighs each z by the square of the highest rate so far.

  Args:
    state: with the z before.
    params: y.
    changes: to be subtracted from z.
    hyper: of the run.
  """
  negative = jax.tree.map(jnp.negative, changes)
  updates, path = _averaging(hyper.rate, hyper.b1).update(
    negative, state.path, params
  )
  path = path._replace(b1=jnp.asarray(hyper.b1, path.b1.dtype))
  return optax.apply_updates(params, updates), state._replace(path=path)


def evaluation_params(state: ScheduleFreeState, params: Any) -> Any:
  """Returns x, given y."""
  return contrib.schedule_free_eval_params(state.path, params)


def _averaging(rate: Any, b1: Any) -> optax.GradientTransformation:
  return contrib.schedule_free(optax.identity(), rate, b1)

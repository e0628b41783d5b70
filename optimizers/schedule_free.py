"""Schedule-Free AdamW (Defazio et al., arXiv 2405.15682), from Optax.

Gradients are taken at y = (1 - b1)·z + b1·x, the parameters in the training
state. The optimizer moves z; the model is evaluated at x, the average of all z.
"""

from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
from jax import numpy as jnp
import optax
from optax import contrib

from steepest.optimizers.alias import alias
from steepest.optimizers.optimizer import (
  Hyper,
  Optimizer,
  epsilon,
  lr,
  memory,
)
from steepest.optimizers.trees import map_eps


class ScheduleFreeState(NamedTuple):
  """The second moment, and z with what averaging needs."""

  second: Any
  path: contrib.ScheduleFreeState


def scale_by_schedule_free(b2: float, eps: float) -> Any:
  """AdamW without momentum, u = g / (√v̂ + ε); its state also holds z.

  Args:
    b2: decay of the second moment; like eps, a number or traced scalar.
    eps: added to the denominator, outside the root.
  """
  scale = optax.scale_by_rms(b2, eps, eps_in_sqrt=False, bias_correction=True)

  def init(params: Any) -> ScheduleFreeState:
    # With b1 = 1 the average is y, as before the first step.
    path = _averaging(0.0, 1.0).init(params)
    return ScheduleFreeState(scale.init(params), path)

  def update(grads: Any, state: ScheduleFreeState, params: Any = None):
    updates, second = scale.update(grads, state.second, params)
    return updates, state._replace(second=second)

  return optax.GradientTransformation(init, update)


def _path(
  state: ScheduleFreeState, params: Any, changes: Any, h: SimpleNamespace
) -> tuple[Any, ScheduleFreeState]:
  """Returns the next y, and the state with the next z.

  The average weights each z by the square of the highest learning rate so far.

  Args:
    state: with the previous z.
    params: y.
    changes: to subtract from z.
    h: the run's hyperparameters.
  """
  negative = jax.tree.map(jnp.negative, changes)
  updates, path = _averaging(h.learning_rate, h.b1).update(
    negative, state.path, params
  )
  path = path._replace(b1=jnp.asarray(h.b1, path.b1.dtype))
  return optax.apply_updates(params, updates), state._replace(path=path)


def _averaging(learning_rate: Any, b1: Any) -> optax.GradientTransformation:
  return contrib.schedule_free(optax.identity(), learning_rate, b1)


OPTIMIZER = Optimizer(
  name='schedule_free',
  label='Schedule-Free AdamW',
  reference='Defazio et al., arXiv 2405.15682, algorithm 1',
  transform=map_eps(lambda h: scale_by_schedule_free(h.b2, h.eps)),
  hyperparameters={
    'lr': lr(1.2e-3, range=(2e-3, 1.6e-2)),
    'b1': Hyper(
      0.9,
      range=(0.5, 0.99),
      scale='log1m',
      below=1.0,
      meaning='Weight of the average where gradients are.',
    ),
    'b2': memory(0.95),
    'eps': epsilon(1e-8),
  },
  path=_path,
  eval_params=lambda state, params: contrib.schedule_free_eval_params(
    state.path, params
  ),
  # Averaging replaces the schedule's decay; only warm-up is left.
  schedule='constant',
)
schedule_free = alias(OPTIMIZER)

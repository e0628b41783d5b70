"""Prodigy's direction (Mishchenko & Defazio, arXiv 2306.06101)."""

from typing import Any

import jax
from jax import numpy as jnp
import optax
from optax import contrib

from steepest.optimizers.hyperparameters import Hyperparameters

READ_ONLY = ('params0',)


def scale_by_prodigy(
  b1: float, b2: float, eps: float, rate: Any, rates: Any
) -> optax.GradientTransformation:
  r"""Adam's direction times an estimate d of the learning rate.

  d is the largest lower bound so far of the distance to the solution, from
  how gradients point back to the start; it begins at 1e-6. A role's factor r
  on the learning rate counts as one on the parameter, θ = r·φ: gradients of φ
  are r·g, and d measures how far φ has to go, which does not change with the
  width. The form that is safe under warm-up, from Optax.

  Args:
    b1: decay of the first moment; like b2, eps and rate a number or a traced
      scalar.
    b2: decay of the second moment.
    eps: added to the denominator, times d.
    rate: s_t·lr, by which the chain will multiply.
    rates: a tree of r.

  Returns:
    A transform whose update is u; decay and learning rate are the chain's.
  """
  prodigy = contrib.prodigy(
    rate, (b1, b2), eps=eps, weight_decay=0.0, safeguard_warmup=True
  )
  over = lambda r, x: jax.tree.map(lambda y: y if r == 1 else y / r, x)

  def init(params: Any) -> contrib.ProdigyState:
    state = prodigy.init(jax.tree.map(over, rates, params))
    # Not the buffers of the parameters, which a step consumes.
    return state._replace(params0=jax.tree.map(jnp.copy, state.params0))

  def update(grads: Any, state: contrib.ProdigyState, params: Any = None):
    grads = jax.tree.map(lambda r, g: r * g, rates, grads)
    params = jax.tree.map(over, rates, params)
    updates, state = prodigy.update(grads, state, params)
    inverse = jnp.where(rate > 0, -1 / jnp.where(rate > 0, rate, 1), 0)
    return jax.tree.map(lambda u: u * inverse, updates), state

  return optax.GradientTransformation(init, update)


def transform(hyper: Hyperparameters) -> optax.GradientTransformation:
  """The direction with the run's hyperparameters."""
  return scale_by_prodigy(
    hyper.b1, hyper.b2, hyper.plain_eps, hyper.rate, hyper.rates
  )


def statistics(state: contrib.ProdigyState) -> dict[str, jax.Array]:
  """Returns what is logged: d, in units of the learning rate."""
  return {'lr_estimate': state.estim_lr}

"""MARS-AdamW (Yuan et al., arXiv 2411.10438)."""

from typing import Any, NamedTuple

import jax
from jax import numpy as jnp
import optax

from steepest.optimizers.adamw import ScaleByAdamWState, scale_by_adamw
from steepest.optimizers.alias import alias
from steepest.optimizers.optimizer import (
  Hyper,
  Optimizer,
  epsilon,
  lr,
  memory,
  momentum,
)
from steepest.optimizers.trees import Number, zeros_like


class ScaleByMarsState(NamedTuple):
  """The last gradient, and the state of AdamW."""

  last: Any
  adamw: ScaleByAdamWState


def scale_by_mars(
  b1: float, b2: float, eps: Number, gamma: float
) -> optax.GradientTransformation:
  r"""Adam on gradients plus a multiple of their last change.

  .. math::
    c_t = g_t + \gamma \frac{b_1}{1 - b_1} (g_t - g_{t-1}), \quad
    c_t \leftarrow c_t / \max(1, \|c_t\|)

  with g₀ = 0. This is the approximate form: g_{t-1} comes from the last batch.
  As in the authors' code (AGI-Arena/MARS, mars.py), each matrix is clipped
  separately, and both moments use the clipped value. Axes before the last two
  are layers, each with its own norm.

  Args:
    b1: decay of the first moment; like b2 and gamma, a number or traced scalar.
    b2: decay of the second moment.
    eps: added to the denominator, outside the root; may be a tree.
    gamma: weight of the change.
  """
  adamw = scale_by_adamw(b1, b2, eps)

  def init(params: Any) -> ScaleByMarsState:
    return ScaleByMarsState(zeros_like(params), adamw.init(params))

  def update(grads: Any, state: ScaleByMarsState, params: Any = None):
    del params

    def corrected(g: jax.Array, last: jax.Array) -> jax.Array:
      c = g + gamma * (b1 / (1 - b1)) * (g - last)
      norm = jnp.linalg.norm(c, axis=(-2, -1), keepdims=True)
      return c / jnp.maximum(norm, 1)

    found = jax.tree.map(corrected, grads, state.last)
    updates, moments = adamw.update(found, state.adamw)
    return updates, ScaleByMarsState(grads, moments)

  return optax.GradientTransformation(init, update)


OPTIMIZER = Optimizer(
  name='mars',
  label='MARS',
  reference='Yuan et al., arXiv 2411.10438',
  transform=lambda h: scale_by_mars(h.b1, h.b2, h.eps, h.gamma),
  hyperparameters={
    # The authors use 3e-3 by default, 6e-3 for GPT-2 small.
    'lr': lr(3e-3, range=(1.5e-3, 1.2e-2)),
    'b1': momentum(0.95),
    'b2': memory(0.99),
    'eps': epsilon(1e-8, factor='eps'),
    'gamma': Hyper(
      0.025,
      range=(0.005, 0.1),
      meaning="Weight of the gradient's change, times b1 / (1 - b1).",
    ),
    # The authors' value for vectors; the chain exempts gains and biases.
    'auxiliary_weight_decay': Hyper(0.1, meaning='Of the rest.'),
  },
  # The authors give no lr_factors; the direction is Adam's, so these are too.
  moves=('embedding', 'hidden', 'readout'),
)
mars = alias(OPTIMIZER)

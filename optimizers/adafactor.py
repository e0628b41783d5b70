"""Adafactor's direction (Shazeer & Stern, arXiv 1804.04235)."""

from typing import Any

import jax
from jax import numpy as jnp
import optax

from steepest.optimizers.boxes import array_in
from steepest.optimizers.hyperparameters import (
  Hyperparameters,
  with_factors_on_eps,
)

# Both sides of a matrix are at least this where its second moment is factored.
_LEAST = 128
# Exponent c of the second moment's decay, 1 - t^-c.
_EXPONENT = 0.8


def scale_by_adafactor(
  b1: float, b2: float, eps: float
) -> optax.GradientTransformation:
  r"""Momentum over gradients scaled by a factored second moment.

  .. math::
    u_t = b_1 u_{t-1} + (1 - b_1) \mathrm{clip}_{RMS \le 1}(g_t / \sqrt{v_t})

  where v is an average of g² + ε with decay min(b2, 1 - t^{-0.8}); of matrices
  with two sides of 128 or more it keeps row and column means alone. Momentum
  and the bound b2 are those of Zhai et al. (arXiv 2106.04560); learning rates
  are not multiplied by the parameter's size. From Optax.

  Args:
    b1: decay of the momentum; like the others a number or traced scalar.
    b2: highest decay of the second moment.
    eps: added to squared gradients.

  Returns:
    A transform whose update is u; decay and learning rate are the chain's.
  """

  def decay(step: jax.Array, exponent: float) -> jax.Array:
    return jnp.minimum(b2, 1 - (step + 1.0) ** -exponent)

  scale = optax.scale_by_factored_rms(
    decay_rate=_EXPONENT,
    min_dim_size_to_factor=_LEAST,
    epsilon=eps,
    decay_rate_fn=decay,
  )
  clip = optax.clip_by_block_rms(1.0)
  average = optax.ema(b1, debias=False)

  def init(params: Any) -> Any:
    # Means of rows and columns are small: every device has them whole.
    arrays = [array_in(p) for p in _boxes(params)]
    return scale.init(arrays), average.init(params)

  def update(grads: Any, state: Any, params: Any = None):
    del params
    leaves, structure = jax.tree.leaves(grads), jax.tree.structure(grads)
    # Of parameters it wants the shapes alone.
    leaves, factors = scale.update(leaves, state[0], leaves)
    leaves, _ = clip.update(leaves, optax.EmptyState())
    clipped = jax.tree.unflatten(structure, leaves)
    updates, momentum = average.update(clipped, state[1])
    return updates, (factors, momentum)

  return optax.GradientTransformation(init, update)


def _boxes(params: Any) -> list[Any]:
  return jax.tree.leaves(params, is_leaf=lambda x: hasattr(x, 'names'))


def transform(hyper: Hyperparameters) -> optax.GradientTransformation:
  """The direction with the run's hyperparameters."""
  scale = scale_by_adafactor(hyper.b1, hyper.b2, hyper.plain_eps)
  return with_factors_on_eps(scale, hyper.eps_factors)


def method(kind: str, shape: tuple[int, ...]) -> str:
  """Returns how the second moment of a parameter is kept."""
  del kind
  factored = len(shape) > 1 and sorted(shape)[-2] >= _LEAST
  return 'factored' if factored else 'not factored'

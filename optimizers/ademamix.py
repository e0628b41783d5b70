"""AdEMAMix's direction (Pagliardini et al., arXiv 2409.03137)."""

from typing import Any

import jax
from jax import numpy as jnp
import optax

from steepest.optimizers.hyperparameters import (
  Hyperparameters,
  with_factors_on_eps,
)

# A longer run has other steps from the start.
DEPENDS_ON_STEPS = True


def scale_by_ademamix(
  b1: float, b2: float, b3: float, alpha: float, eps: float, steps: Any
) -> optax.GradientTransformation:
  r"""Adam with a second, slow momentum, as Optax has it.

  .. math::
    u_t = (\hat m_{1,t} + \alpha_t m_{2,t}) / (\sqrt{\hat v_t} + \epsilon)

  The weight rises in proportion to the steps, α_t = α·t/T, and the slow decay
  so that its logarithm's inverse moves evenly from b1's to b3's (section 3 of
  the paper), both over the T steps of the run.

  Args:
    b1: decay of the fast momentum; like the others a number or traced scalar.
    b2: decay of the second moment.
    b3: decay of the slow momentum at the end.
    alpha: weight of the slow momentum at the end.
    eps: added to the denominator, outside the root.
    steps: T.

  Returns:
    A transform whose update is u; decay and learning rate are the chain's.
  """

  def progress(count: jax.Array) -> jax.Array:
    return jnp.minimum((count + 1) / jnp.maximum(steps, 1), 1)

  def decay(count: jax.Array) -> jax.Array:
    t = progress(count)
    # Of b1 = 0 there is no logarithm.
    start, end = jnp.log(jnp.maximum(b1, 1e-8)), jnp.log(b3)
    return jnp.exp(start * end / ((1 - t) * end + t * start))

  return optax.contrib.scale_by_ademamix(
    b1, b2, decay, lambda count: alpha * progress(count), eps
  )


def transform(hyper: Hyperparameters) -> optax.GradientTransformation:
  """The direction with the run's hyperparameters."""
  scale = scale_by_ademamix(
    hyper.b1, hyper.b2, hyper.b3, hyper.alpha, hyper.plain_eps, hyper.steps
  )
  return with_factors_on_eps(scale, hyper.eps_factors)

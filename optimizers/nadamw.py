"""NAdamW's direction: AdamW with Nesterov momentum (Dozat 2016)."""

import optax

from steepest.optimizers.hyperparameters import (
  Hyperparameters,
  with_factors_on_eps,
)


def scale_by_nadamw(
  b1: float, b2: float, eps: float
) -> optax.GradientTransformation:
  r"""AdamW whose first moment looks a step ahead, as Optax has it.

  .. math::
    u_t = \left(\frac{b_1 m_t}{1 - b_1^{t+1}} +
      \frac{(1 - b_1) g_t}{1 - b_1^t}\right) / (\sqrt{\hat v_t} + \epsilon)

  Args:
    b1: decay of the first moment; like the others a number or traced scalar.
    b2: decay of the second moment.
    eps: added to the denominator, outside the root.

  Returns:
    A transform whose update is u; decay and learning rate are the chain's.
  """
  return optax.scale_by_adam(b1, b2, eps, nesterov=True)


def transform(hyper: Hyperparameters) -> optax.GradientTransformation:
  """The direction with the run's hyperparameters."""
  scale = scale_by_nadamw(hyper.b1, hyper.b2, hyper.plain_eps)
  return with_factors_on_eps(scale, hyper.eps_factors)

"""ADOPT's direction (Taniguchi et al., arXiv 2411.02853)."""

import optax

from steepest.optimizers.hyperparameters import (
  Hyperparameters,
  with_factors_on_eps,
)


def scale_by_adopt(
  b1: float, b2: float, eps: float
) -> optax.GradientTransformation:
  r"""Momentum over gradients scaled by the second moment before them.

  .. math::
    m_t = b_1 m_{t-1} + (1 - b_1) \mathrm{clip}\left(
      \frac{g_t}{\max(\sqrt{v_{t-1}}, \epsilon)}, \pm t^{1/4}\right), \quad
    u_t = m_t

  With t counted from 0, so the first gradient serves v alone. The clipped
  form that the authors recommend, from Optax.

  Args:
    b1: decay of the momentum; like the others a number or traced scalar.
    b2: decay of the second moment.
    eps: least denominator.

  Returns:
    A transform whose update is u; decay and learning rate are the chain's.
  """
  return optax.contrib.scale_by_adopt(b1, b2, eps)


def transform(hyper: Hyperparameters) -> optax.GradientTransformation:
  """The direction with the run's hyperparameters."""
  scale = scale_by_adopt(hyper.b1, hyper.b2, hyper.plain_eps)
  return with_factors_on_eps(scale, hyper.eps_factors)

"""Cautious AdamW's direction (Liang et al., arXiv 2411.16085)."""

import optax

from steepest.optimizers import adamw
from steepest.optimizers.cautious import cautious
from steepest.optimizers.hyperparameters import Hyperparameters, Number


def scale_by_cautious_adamw(
  b1: Number, b2: Number, eps: Number
) -> optax.GradientTransformation:
  """AdamW's direction where it agrees with the gradient's sign.

  Args:
    b1: decay of the first moment; like the others a number, a traced scalar
      or a tree of them.
    b2: decay of the second moment.
    eps: added to the denominator, outside the root.

  Returns:
    A transform whose update is u; decay and learning rate are the chain's.
  """
  return cautious(adamw.scale_by_adamw(b1, b2, eps))


def transform(hyper: Hyperparameters) -> optax.GradientTransformation:
  """The direction with the run's hyperparameters."""
  return scale_by_cautious_adamw(hyper.b1, hyper.b2, hyper.eps)

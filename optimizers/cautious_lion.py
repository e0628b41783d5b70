"""Cautious Lion's direction (Liang et al., arXiv 2411.16085)."""

import optax

from steepest.optimizers import lion
from steepest.optimizers.cautious import cautious
from steepest.optimizers.hyperparameters import Hyperparameters, Number


def scale_by_cautious_lion(
  b1: Number, b2: Number
) -> optax.GradientTransformation:
  """Lion's direction where it agrees with the gradient's sign.

  Args:
    b1: weight of the momentum in the direction; like b2 a number, a traced
      scalar or a tree of them.
    b2: decay of the momentum.

  Returns:
    A transform whose update is u; decay and learning rate are the chain's.
  """
  return cautious(lion.scale_by_lion(b1, b2))


def transform(hyper: Hyperparameters) -> optax.GradientTransformation:
  """The direction with the run's hyperparameters."""
  return scale_by_cautious_lion(hyper.b1, hyper.b2)

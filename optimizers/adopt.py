"""ADOPT (Taniguchi et al., arXiv 2411.02853), from Optax.

Divides gradients by the root of the previous second moment, then averages. The
authors' clip at ±t^(1/4), t from 0, is kept: the first gradient only sets v.
"""

from optax import contrib

from steepest.optimizers.alias import alias
from steepest.optimizers.optimizer import (
  Optimizer,
  epsilon,
  lr,
  memory,
  momentum,
)
from steepest.optimizers.trees import map_eps

OPTIMIZER = Optimizer(
  name='adopt',
  label='ADOPT',
  reference='Taniguchi et al., arXiv 2411.02853, algorithm 2',
  transform=map_eps(lambda h: contrib.scale_by_adopt(h.b1, h.b2, h.eps)),
  hyperparameters={
    'lr': lr(6e-4, range=(1e-3, 8e-3)),
    'b1': momentum(0.9),
    'b2': memory(
      # Our choice: the half-life of 0.9999 in 100,000 steps.
      0.9999,
      half_life=0.07,
      unit='runs',
      range=(0.005, 0.25),
    ),
    'eps': epsilon(1e-6, meaning='Least denominator.'),
  },
)
adopt = alias(OPTIMIZER)

"""NAdamW: AdamW with Nesterov momentum (Dozat 2016), from Optax."""

import optax

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
  name='nadamw',
  label='NAdamW',
  reference='Dozat 2016; optax.nadamw',
  transform=map_eps(
    lambda h: optax.scale_by_adam(h.b1, h.b2, h.eps, nesterov=True)
  ),
  hyperparameters={
    'lr': lr(6e-4, range=(1e-3, 8e-3)),
    'b1': momentum(0.9),
    'b2': memory(0.95),
    'eps': epsilon(1e-8),
  },
)
nadamw = alias(OPTIMIZER)

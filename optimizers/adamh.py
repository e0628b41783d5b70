"""AdamH: Adam on a sphere (Wen et al., arXiv 2606.16899, Hyperball)."""

from steepest.optimizers.adamw import scale_by_adamw
from steepest.optimizers.alias import alias
from steepest.optimizers.muonh import SHARED, hyperball, on_sphere, zeros
from steepest.optimizers.optimizer import (
  MUP,
  Optimizer,
  epsilon,
  memory,
  momentum,
)

OPTIMIZER = Optimizer(
  name='adamh',
  label='AdamH',
  reference='Wen et al., arXiv 2606.16899',
  # Adam's direction, rescaled; optimizers/muonh.py moves along the sphere.
  transform=lambda h: hyperball(scale_by_adamw(h.b1, h.b2, h.eps)),
  path=on_sphere,
  remark=zeros,
  hyperparameters={
    **SHARED,
    'b1': momentum(0.9),
    'b2': memory(0.95),
    'eps': epsilon(1e-8, factor='eps'),
  },
  # The authors find that learning rates transfer across widths. That requires
  # steps not aligned with their inputs; early in training they are aligned, and
  # the spectral norm is close to the fixed Frobenius norm: hence our 1/√m.
  lr_factors={**MUP, 'hidden': 'spectral'},
  moves=('hidden',),
)
adamh = alias(OPTIMIZER)

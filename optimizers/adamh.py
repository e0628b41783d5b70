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
  # Adam's direction and its norm; optimizers/muonh.py has the sphere.
  transform=lambda h: hyperball(scale_by_adamw(h.b1, h.b2, h.eps)),
  path=on_sphere,
  remark=zeros,
  hyperparameters={
    **SHARED,
    'b1': momentum(0.9),
    'b2': memory(0.95),
    'eps': epsilon(1e-8, factor='eps'),
  },
  # The authors find that rates carry over across widths. For that a step must
  # not align with its inputs; early in training it does, and its spectral norm
  # is then near the Frobenius norm that is held: hence 1/√m, derived here.
  lr_factors={**MUP, 'hidden': 'spectral'},
  moves=('hidden',),
)
adamh = alias(OPTIMIZER)

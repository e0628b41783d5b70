"""Lion with cautious updates (Liang et al., arXiv 2411.16085)."""

import dataclasses

from steepest.optimizers import lion
from steepest.optimizers.alias import alias

OPTIMIZER = dataclasses.replace(
  lion.OPTIMIZER,
  name='cautious_lion',
  label='Cautious Lion',
  reference='Liang et al., arXiv 2411.16085, algorithm 1',
  cautious_updates=True,
)
cautious_lion = alias(OPTIMIZER)

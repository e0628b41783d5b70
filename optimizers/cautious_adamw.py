"""AdamW with cautious updates (Liang et al., arXiv 2411.16085)."""

import dataclasses

from steepest.optimizers import adamw
from steepest.optimizers.alias import alias

OPTIMIZER = dataclasses.replace(
  adamw.OPTIMIZER,
  name='cautious_adamw',
  label='Cautious AdamW',
  reference='Liang et al., arXiv 2411.16085, algorithm 1',
  cautious_updates=True,
)
cautious_adamw = alias(OPTIMIZER)

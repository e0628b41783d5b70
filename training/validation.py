"""Validation losses, over all sources and of each."""

from typing import Any

import jax
import numpy as np

from steepest.training.program import Program


class Validation:
  """The validation sequences of a run, placed on the devices once."""

  def __init__(
    self, program: Program, batches: dict[str, list[dict[str, np.ndarray]]]
  ):
    """Places the sequences.

    Args:
      program: whose model is judged.
      batches: per source, as data/pipeline.py gives them.
    """
    self._program = program
    self._batches = {
      source: [program.put_batch(batch) for batch in of_source]
      for source, of_source in batches.items()
    }

  def losses(self, params: Any) -> dict[str, float]:
    """Returns eval/loss, the mean over sequences in nats, and each source's.

    Empty where there are no sequences.
    """
    losses: dict[str, float] = {}
    total, count = 0.0, 0
    for source, batches in self._batches.items():
      parts = jax.device_get(
        [self._program.eval_loss(params, batch) for batch in batches]
      )
      source_total = sum(float(loss) for loss, _ in parts)
      source_count = sum(int(rows) for _, rows in parts)
      losses[f'eval/loss/{source}'] = source_total / source_count
      total, count = total + source_total, count + source_count
    return {'eval/loss': total / count, **losses} if count else {}

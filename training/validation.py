"""Losses on sequences that no step trains on."""

from collections.abc import Mapping
import math
from typing import Any

import jax
import numpy as np

from steepest.training import mesh as mesh_lib
from steepest.training.state import Setup
from steepest.training.step import eval_loss


class Validation:
  """A run's validation sequences, placed on the devices once."""

  def __init__(
    self,
    setup: Setup,
    batches: dict[str, list[dict[str, np.ndarray]]],
    bytes_per_token: Mapping[str, float],
  ):
    """Places the sequences.

    Args:
      setup: the setup of the model to evaluate.
      batches: per source, as data/pipeline.py returns them.
      bytes_per_token: mean UTF-8 bytes per token by source, where ends of
        documents are tokens of no bytes; {} if the text is unknown.
    """
    self._setup = setup
    self._bytes = bytes_per_token
    self._batches = {
      source: [
        mesh_lib.put_batch(setup.mesh, batch, setup.batch_size)
        for batch in of_source
      ]
      for source, of_source in batches.items()
    }

  def losses(self, params: Any) -> dict[str, float]:
    """Returns eval/loss, the mean over sequences in nats, and each source's.

    Also eval/bits_per_byte, all bits over all bytes of the sequences, to
    compare models with different tokenizers, and each source's. Empty if there
    are no sequences.
    """
    losses: dict[str, float] = {}
    total, count, size = 0.0, 0, 0.0
    for source, batches in self._batches.items():
      sums = jax.device_get(
        [eval_loss(self._setup, params, batch) for batch in batches]
      )
      source_total = sum(float(loss) for loss, _ in sums)
      source_count = sum(int(rows) for _, rows in sums)
      losses[f'eval/loss/{source}'] = source_total / source_count
      total, count = total + source_total, count + source_count
      if source in self._bytes:
        # All sequences have the same length, which cancels.
        of_source = source_count * self._bytes[source]
        size += of_source
        bits = source_total / math.log(2) / of_source
        losses[f'eval/bits_per_byte/{source}'] = bits
    if self._batches.keys() <= self._bytes.keys() and size:
      losses['eval/bits_per_byte'] = total / math.log(2) / size
    return {'eval/loss': total / count, **losses} if count else {}

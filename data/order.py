"""Which window each row of a run reads: a function of the seed and the row.

n is a number of rows, T the context.
"""

from collections.abc import Mapping, Sequence
import hashlib
import math
from typing import Protocol

import grain.experimental
from ml_collections import ConfigDict
import numpy as np

from steepest.data import mixture


class Windows(Protocol):
  """Windows of one source and split: T + 1 tokens each, in order."""

  def __len__(self) -> int: ...

  def read(self, numbers: Sequence[int]) -> np.ndarray:
    """Returns some windows, unsigned integers[n, T + 1]."""


class Order:
  """The windows of a run in the order of training, over all processes.

  A source is shuffled as a whole and its first windows taken, so that a
  longer run of one epoch begins with the same batches.
  """

  def __init__(
    self,
    train: Mapping[str, Windows],
    weights: Mapping[str, int],
    config: ConfigDict,
    seed: int,
    rows: int,
  ):
    """Takes the windows of each source and plans some rows of them.

    Raises:
      ValueError: a source has too few windows.
    """
    self.names = tuple(weights)
    if not weights:
      raise ValueError(
        f'{config.source} holds no window of the context: shorten '
        'model.context or prepare more text'
      )
    self._windows = [train[name] for name in self.names]
    self._mixture = mixture.Mixture(list(weights.values()))
    self._numbers = []
    for name, needed in zip(self.names, self._mixture.counts(rows)):
      distinct = math.ceil(needed / config.epochs)
      held = len(train[name])
      if not held:
        raise ValueError(
          f'source {name!r} of {config.source} holds no window of the context: '
          'leave it out of data.mixture'
        )
      if distinct > held:
        raise ValueError(
          f'source {name!r} of {config.source} holds {held} windows, the run '
          f'needs {distinct}: raise data.epochs to '
          f'{math.ceil(needed / held)} or lower steps, batch_size or '
          'model.context'
        )
      stream_seed = _seed(seed, name) if config.shuffle else None
      self._numbers.append(Numbers(held, distinct, config.epochs, stream_seed))

  def read(self, rows: Sequence[int]) -> np.ndarray:
    """Returns the windows of some rows of the run, [n, T + 1]."""
    by_source: dict[int, list[tuple[int, int]]] = {}
    for at, row in enumerate(rows):
      source, i = self._mixture.locate(row)
      by_source.setdefault(source, []).append((at, self._numbers[source][i]))
    parts = [
      self._windows[source].read([number for _, number in held])
      for source, held in by_source.items()
    ]
    at_n = [at for held in by_source.values() for at, _ in held]
    together = np.concatenate(parts)
    windows = np.empty_like(together)
    windows[at_n] = together
    return windows


class Numbers:
  """`distinct` of the numbers below `held`, several times over.

  Each pass over them has an order of its own. The same as a grain.MapDataset
  of the numbers, shuffled, cut, shuffled again and repeated, without what that
  spends on each element.
  """

  def __init__(self, held: int, distinct: int, epochs: int, seed: int | None):
    """Takes the seed of the order; None: as they stand."""
    self._held, self._distinct = held, distinct
    self._epochs, self._seed = epochs, seed

  def __len__(self) -> int:
    return self._distinct * self._epochs

  def __getitem__(self, i: int) -> int:
    if not 0 <= i < len(self):
      raise IndexError(f'number {i} of {len(self)}')
    if self._seed is None:
      return i % self._distinct
    if self._epochs > 1:
      epoch, i = divmod(i, self._distinct)
      i = _shuffled(i, self._distinct, self._seed + 1 + epoch)
    return _shuffled(i, self._held, self._seed)


def _shuffled(i: int, count: int, seed: int) -> int:
  """Returns the i-th of `count` numbers in Grain's random order."""
  return grain.experimental.index_shuffle(
    i, max_index=count - 1, seed=seed % 2**32, rounds=4
  )


def _seed(seed: int, name: str) -> int:
  """Returns 32 bits that depend on the run's seed and the source's name."""
  digest = hashlib.sha256(f'{seed}:{name}'.encode()).digest()
  return int.from_bytes(digest[:4], 'little')

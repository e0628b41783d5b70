"""The window that each row of a run reads: a function of seed and row.

n is a number of rows, T the context.
"""

from collections.abc import Mapping, Sequence
import difflib
from fractions import Fraction
import hashlib
import math
from typing import Protocol

import grain.experimental
from ml_collections import ConfigDict
import numpy as np


class Windows(Protocol):
  """Windows of one source and split: T + 1 tokens each, in order."""

  def __len__(self) -> int: ...

  def read(self, numbers: Sequence[int]) -> np.ndarray:
    """Returns some windows, unsigned integers[n, T + 1]."""


class Order:
  """The windows of a run in training order, over all processes.

  Each source is shuffled as a whole and its first windows are taken, so that a
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
    """Plans the rows of a run.

    Args:
      train: the windows of each source.
      weights: the mixing proportions of sources.
      config: the `data` keys of experiments/base.py.
      seed: fixes the order.
      rows: of the whole run.

    Raises:
      ValueError: a source has too few windows.
    """
    self.names = tuple(weights)
    if not weights:
      raise ValueError(
        f'{config.source} is too short for one context window: shorten '
        'model.context or prepare more text'
      )
    self._windows = [train[name] for name in self.names]
    self._mixture = Mixture(list(weights.values()))
    self._shuffles = []
    for name, needed in zip(self.names, self._mixture.counts(rows)):
      distinct = math.ceil(needed / config.epochs)
      available = len(train[name])
      if not available:
        raise ValueError(
          f'source {name!r} of {config.source} is too short for one context '
          'window: leave it out of data.mixture'
        )
      if distinct > available:
        raise ValueError(
          f'source {name!r} of {config.source} holds {available} windows, the '
          f'run needs {distinct}: raise data.epochs to '
          f'{math.ceil(needed / available)} or lower steps, batch_size or '
          'model.context'
        )
      source_seed = _source_seed(seed, name) if config.shuffle else None
      self._shuffles.append(
        Shuffle(available, distinct, config.epochs, source_seed)
      )

  def read(self, rows: Sequence[int]) -> np.ndarray:
    """Returns the windows of n rows of the run, [n, T + 1]."""
    by_source: dict[int, list[tuple[int, int]]] = {}
    for i, row in enumerate(rows):
      source, number = self._mixture.locate(row)
      window = self._shuffles[source][number]
      by_source.setdefault(source, []).append((i, window))
    grouped = np.concatenate(
      [
        self._windows[source].read([window for _, window in group])
        for source, group in by_source.items()
      ]
    )
    at_n = [i for group in by_source.values() for i, _ in group]
    windows = np.empty_like(grouped)
    windows[at_n] = grouped
    return windows


class Shuffle:
  """`distinct` of the numbers below `available`, once per epoch.

  Every epoch has its own order. Equal to a grain.MapDataset of the numbers,
  shuffled, cut, shuffled again and repeated, without its cost per element.
  """

  def __init__(
    self, available: int, distinct: int, epochs: int, seed: int | None
  ):
    """Takes the seed of the order; None: ascending numbers."""
    self._available, self._distinct = available, distinct
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
    return _shuffled(i, self._available, self._seed)


def _shuffled(i: int, count: int, seed: int) -> int:
  """Returns the i-th of `count` numbers in Grain's random order."""
  return grain.experimental.index_shuffle(
    i, max_index=count - 1, seed=seed % 2**32, rounds=4
  )


def _source_seed(seed: int, name: str) -> int:
  """Returns 32 bits that depend on the run's seed and the source's name."""
  digest = hashlib.sha256(f'{seed}:{name}'.encode()).digest()
  return int.from_bytes(digest[:4], 'little')


class Mixture:
  """Interleaves endless sources in fixed proportions, without state.

  Row n belongs to the source whose quota grows from n to n + 1. With S sources,
  the counts of any prefix are within (S - 1) / 2 of `n · weight /
  sum(weights)`, as each of S - 1 roundings is off by at most half a row, and
  exact if all of these are whole numbers.
  """

  def __init__(self, weights: Sequence[int]):
    """Takes one positive integer for each source."""
    if not weights or min(weights) <= 0:
      raise ValueError(f'weights must be positive: {list(weights)}')
    self._weights = tuple(weights)
    self._total = sum(weights)

  def counts(self, n: int) -> list[int]:
    """Returns how many of the first n rows come from each source."""
    counts = []
    total = self._total
    for weight in self._weights:
      rest = _round_ratio(n * (total - weight), total)
      counts.append(n - rest)
      n, total = rest, total - weight
    return counts

  def locate(self, n: int) -> tuple[int, int]:
    """Returns the source of row n and the row's number within it."""
    low, high, total = n, n + 1, self._total
    for source, weight in enumerate(self._weights):
      low_rest = _round_ratio(low * (total - weight), total)
      high_rest = _round_ratio(high * (total - weight), total)
      if low_rest == high_rest:
        return source, low - low_rest
      low, high, total = low_rest, high_rest, total - weight
    raise AssertionError(f'row {n} belongs to no source')


def _round_ratio(numerator: int, denominator: int) -> int:
  return (2 * numerator + denominator) // (2 * denominator)


def parse_mixture(text: str, sizes: Mapping[str, int]) -> dict[str, int]:
  """Reads `data.mixture`.

  Args:
    text: 'NAME:WEIGHT,…', or '' for the proportions of `sizes`.
    sizes: tokens or windows of each source.

  Returns:
    Integer weights of the sources in the mixture, in the order of `sizes`.

  Raises:
    ValueError: a source is unknown, or a weight is not a positive number.
  """
  if not text:
    return {name: size for name, size in sizes.items() if size}
  weights: dict[str, Fraction] = {}
  for item in text.split(','):
    name, _, weight = item.strip().rpartition(':')
    if name not in sizes:
      near = difflib.get_close_matches(name, sizes, 1)
      hint = f'did you mean {near[0]!r}? ' if near else ''
      raise ValueError(
        f'data.mixture names the unknown source {name!r}: {hint}'
        f'the data hold {", ".join(sizes)}'
      )
    try:
      weights[name] = Fraction(weight)
    except (ValueError, ZeroDivisionError):
      weights[name] = Fraction(0)
    if weights[name] <= 0:
      raise ValueError(
        f'data.mixture gives {name!r} the weight {weight!r}: give a positive '
        'number, or leave the source out'
      )
  scale = math.lcm(*(w.denominator for w in weights.values()))
  return {n: int(weights[n] * scale) for n in sizes if n in weights}

"""The order of rows: complete, exact, and as cheap late as early."""

import collections
import sys

import grain
from hypothesis import example, given, settings, strategies as st
from ml_collections import ConfigDict
import numpy as np
import pytest

from steepest.data import order, pipeline

_CONTEXT = 4


class _Windows:
  """Windows that tell source and number, and count what is read."""

  def __init__(self, source: int, length: int):
    self._source, self._length = source, length
    self.read_numbers: list[int] = []

  def __len__(self) -> int:
    return self._length

  def read(self, numbers):
    self.read_numbers += numbers
    windows = np.zeros((len(numbers), _CONTEXT + 1), np.uint32)
    windows[:, 0] = self._source
    windows[:, 1] = numbers
    return windows


def _order(lengths, weights, epochs, seed, rows) -> order.Order:
  config = ConfigDict({'source': 'x', 'epochs': epochs, 'shuffle': True})
  train = {str(i): _Windows(i, n) for i, n in enumerate(lengths)}
  weights = {str(i): w for i, w in enumerate(weights)}
  return order.Order(train, weights, config, seed, rows)


@settings(max_examples=10, deadline=None)
@given(
  weights=st.lists(st.integers(1, 5), min_size=1, max_size=3),
  epochs=st.integers(1, 3),
  seed=st.integers(0, 2**31),
  periods=st.integers(1, 8),
)
def test_mixed_sources_are_exact_and_lose_nothing_between_passes(
  weights, epochs, seed, periods
):
  rows = periods * epochs * sum(weights)
  # More windows than are read.
  held = [weight * periods + 3 for weight in weights]
  ordered = _order(held, weights, epochs, seed, rows)
  read = ordered.read(range(rows))[:, :2].tolist()
  for source, weight in enumerate(weights):
    numbers = [n for s, n in read if s == source]
    # Exact over the whole, and in each pass every window once.
    assert len(numbers) == weight * periods * epochs
    distinct = weight * periods
    passes = [
      numbers[i : i + distinct] for i in range(0, len(numbers), distinct)
    ]
    assert {tuple(sorted(p)) for p in passes} == {tuple(sorted(passes[0]))}
    assert len(set(passes[0])) == distinct
    if distinct > 20 and epochs > 1:
      assert len(set(map(tuple, passes))) > 1
  # Over any stretch the counts are as near to the proportion as said.
  total = sum(weights)
  for source, weight in enumerate(weights):
    seen = np.cumsum([s == source for s, _ in read])
    ideal = np.arange(1, rows + 1) * weight / total
    assert np.abs(seen - ideal).max() <= (len(weights) - 1) / 2 + 1e-9


@settings(max_examples=20, deadline=None)
@given(
  held=st.integers(1, 60),
  cut=st.integers(0, 9),
  epochs=st.integers(1, 3),
  seed=st.integers(0, 2**32 - 1),
)
def test_numbers_are_those_of_a_grain_dataset(held, cut, epochs, seed):
  distinct = max(held - cut, 1)
  dataset = grain.MapDataset.source(range(held)).shuffle(seed=seed)[:distinct]
  if epochs > 1:
    dataset = grain.MapDataset.source(dataset)
    dataset = dataset.shuffle(seed=(seed + 1) % 2**32).repeat(epochs)
  numbers = order.Shuffle(held, distinct, epochs, seed)
  assert list(numbers) == [dataset[i] for i in range(distinct * epochs)]
  plain = order.Shuffle(held, distinct, epochs, None)
  assert list(plain) == list(range(distinct)) * epochs


@settings(max_examples=10, deadline=None)
@given(
  rows=st.lists(st.integers(0, 99), min_size=1, max_size=30),
  seed=st.integers(0, 2**31),
)
def test_rows_in_any_grouping_are_the_same(rows, seed):
  """However a batch is cut into shares or micro-batches."""
  ordered = _order([60, 60], [1, 2], 2, seed, 100)
  one_by_one = [ordered.read([row])[0] for row in rows]
  np.testing.assert_array_equal(ordered.read(rows), one_by_one)


def _calls(function) -> collections.Counter[str]:
  """Counts the Python functions that a call enters."""
  counts: collections.Counter[str] = collections.Counter()

  def enter(frame, event, argument):
    if event == 'call':
      counts[frame.f_code.co_name] += 1

  sys.setprofile(enter)
  try:
    function()
  finally:
    sys.setprofile(None)
  return counts


@pytest.mark.parametrize('weights', [[1], [3, 2, 2]])
def test_a_late_step_costs_as_much_as_the_first(weights):
  batch_size, steps = 16, 1_000_001
  rows = batch_size * steps
  windows = [_Windows(i, rows) for i in range(len(weights))]
  corpus = pipeline.Corpus(
    {str(i): w for i, w in enumerate(windows)}, {}, 1 << 31, None, '', {}
  )
  counts = {}
  # The first time imports what is used.
  for step in (0, 0, 1_000_000):
    for held in windows:
      held.read_numbers.clear()

    def open_there(step=step):
      config = ConfigDict({'source': 'x', 'epochs': 2, 'shuffle': True})
      ordered = order.Order(
        corpus.train, dict(zip(corpus.train, weights)), config, 0, rows
      )
      share = pipeline.Share(batch_size, range(batch_size))
      data = pipeline.Data(corpus, ordered, share, steps, 0, '')
      data.batch(step)

    counts[step] = sum(_calls(open_there).values())
    # Whoever starts there reads that step's rows alone.
    assert sum(len(w.read_numbers) for w in windows) == batch_size
  # Which sources the rows come from differs a little.
  assert counts[1_000_000] == pytest.approx(counts[0], rel=0.1)


_WEIGHTS = st.lists(st.integers(1, 10**6), min_size=1, max_size=8)


@example([1, 1455, 1455, 18, 18, 5615, 310887], 8909)
@given(_WEIGHTS, st.integers(0, 10**12))
def test_any_prefix_is_in_proportion(weights, n):
  counts = order.Mixture(weights).counts(n)
  assert sum(counts) == n
  for count, weight in zip(counts, weights):
    # |count - n·weight/total| ≤ (S - 1)/2, in whole numbers.
    off = abs(count * sum(weights) - n * weight)
    assert 2 * off <= (len(weights) - 1) * sum(weights)


@given(_WEIGHTS, st.integers(1, 1000))
def test_whole_periods_are_exact(weights, periods):
  n = periods * sum(weights)
  assert order.Mixture(weights).counts(n) == [periods * w for w in weights]


@given(_WEIGHTS, st.integers(0, 10**9))
def test_rows_number_each_source_without_gaps(weights, first):
  mixed = order.Mixture(weights)
  counts = mixed.counts(first)
  for row in range(first, first + 20):
    source, i = mixed.locate(row)
    assert i == counts[source]
    counts[source] += 1
  assert counts == mixed.counts(first + 20)


def test_weights_are_read_exactly():
  held = {'a': 10, 'b': 20, 'c:d': 0}
  assert order.parse_mixture('', held) == {'a': 10, 'b': 20}
  weights = order.parse_mixture('b:0.7,a:.1', held)
  assert weights == {'a': 1, 'b': 7}
  assert order.parse_mixture('c:d:1', held) == {'c:d': 1}


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('wikipedai:1', "did you mean 'wikipedia'"),
    ('wikipedia:0', 'positive number'),
    ('wikipedia:x', 'positive number'),
    ('wikipedia:nan', 'positive number'),
    ('wikipedia', 'unknown source'),
  ],
)
def test_bad_mixtures_are_refused(text, message):
  with pytest.raises(ValueError, match=message):
    order.parse_mixture(text, {'wikipedia': 5})

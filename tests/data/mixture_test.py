"""Proportions of a mixture against exact fractions."""

from hypothesis import example, given, strategies as st
import pytest

from steepest.data import mixture

_WEIGHTS = st.lists(st.integers(1, 10**6), min_size=1, max_size=8)


@example([1, 1455, 1455, 18, 18, 5615, 310887], 8909)
@given(_WEIGHTS, st.integers(0, 10**12))
def test_any_prefix_is_in_proportion(weights, n):
  counts = mixture.Mixture(weights).counts(n)
  assert sum(counts) == n
  for count, weight in zip(counts, weights):
    # |count - n·weight/total| ≤ (S - 1)/2, in whole numbers.
    off = abs(count * sum(weights) - n * weight)
    assert 2 * off <= (len(weights) - 1) * sum(weights)


@given(_WEIGHTS, st.integers(1, 1000))
def test_whole_periods_are_exact(weights, periods):
  n = periods * sum(weights)
  assert mixture.Mixture(weights).counts(n) == [periods * w for w in weights]


@given(_WEIGHTS, st.integers(0, 10**9))
def test_rows_number_each_source_without_gaps(weights, first):
  mixed = mixture.Mixture(weights)
  counts = mixed.counts(first)
  for row in range(first, first + 20):
    source, i = mixed.locate(row)
    assert i == counts[source]
    counts[source] += 1
  assert counts == mixed.counts(first + 20)


def test_weights_are_read_exactly():
  held = {'a': 10, 'b': 20, 'c:d': 0}
  assert mixture.parse('', held) == {'a': 10, 'b': 20}
  weights = mixture.parse('b:0.7,a:.1', held)
  assert weights == {'a': 1, 'b': 7}
  assert mixture.parse('c:d:1', held) == {'c:d': 1}


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
    mixture.parse(text, {'wikipedia': 5})

"""Differences against scipy and closed forms."""

import numpy as np
import pytest
from scipy import stats

from steepest.report import statistics

_RNG = np.random.default_rng(0)
_A, _B = _RNG.normal(size=(2, 4, 6))


def test_paired_is_scipys():
  found = statistics.paired(_A, _B)
  expected = stats.ttest_rel(_A, _B, axis=-1)
  low, high = expected.confidence_interval()
  np.testing.assert_allclose(found.p, expected.pvalue)
  np.testing.assert_allclose(found.interval(), [low, high])


def test_unpaired_is_welchs_t_with_the_freedom_of_one_side():
  """Cochran and Cox: of equally many seeds, t with n − 1."""
  found = statistics.unpaired(_A, _B)
  t = stats.ttest_ind(_A, _B, axis=-1, equal_var=False).statistic
  np.testing.assert_allclose(found.p, 2 * stats.t.sf(abs(t), 5), rtol=2e-3)
  critical = abs(found.interval()[0] - found.value) / found.stderr
  np.testing.assert_allclose(critical, stats.t.ppf(0.975, 5))


def test_two_sources_end_in_each_alone():
  """Without questions Student's t over seeds, without seeds over questions."""
  found = statistics.scored(_A, _B, 0.0, 1000)
  np.testing.assert_allclose(found.p, statistics.paired(_A, _B).p, rtol=2e-3)
  alike = statistics.scored(_A, _A - 0.02, 1e-4, 1000)
  np.testing.assert_allclose(alike.p, 2 * stats.t.sf(2, 999), rtol=2e-3)


def test_p_is_the_level_at_which_a_difference_is_critical():
  found = statistics.scored(_A, _B, 0.05, 500)
  for value, p, critical in zip(
    found.value, found.p, map(found.critical, found.p), strict=True
  ):
    i = int(np.flatnonzero(found.p == p)[0])
    assert critical[i] == pytest.approx(abs(value), rel=5e-3, abs=2e-4)


def test_question_variance_is_that_of_the_mean():
  right_SxQ = _RNG.integers(0, 2, size=(3, 200))
  other_SxQ = _RNG.integers(0, 2, size=(3, 200))
  mean_Q = (right_SxQ - other_SxQ).mean(0)
  assert statistics.question_variance(right_SxQ, other_SxQ) == pytest.approx(
    stats.sem(mean_Q) ** 2
  )


def test_one_seed_and_no_spread():
  assert np.isnan(statistics.paired([1.0], [2.0]).p)
  assert statistics.paired([1.0, 2, 3], [1.0, 2, 3]).p == 1
  assert statistics.paired([1.0, 2, 3], [2.0, 3, 4]).p == 0


def test_holm_is_the_published_rule():
  """Holm 1979: step down, levels α/3, α/2, α."""
  np.testing.assert_allclose(
    statistics.holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06]
  )
  np.testing.assert_allclose(
    statistics.holm([0.5, np.nan, 0.01]), [1.0, np.nan, 0.03]
  )


def test_the_best_is_tested_first():
  """Of three, its two comparisons; the third follows where it wins."""
  p = np.array([0.02, 0.04, 0.045])  # 0–1, 0–2, 1–2
  np.testing.assert_allclose(statistics.corrected(p, 0, 3), [0.04, 0.04, 0.045])
  # All three together where it does not.
  lost = np.array([0.02, 0.06, 0.045])
  np.testing.assert_allclose(
    statistics.corrected(lost, 0, 3), statistics.holm(lost)
  )


def test_ratio_is_geometric():
  mean, low, high = statistics.ratio([2.0, 8.0, 4.0])
  expected = stats.ttest_1samp(np.log([2.0, 8.0, 4.0]), 0)
  ends = expected.confidence_interval()
  assert mean == pytest.approx(4.0)
  assert [low, high] == pytest.approx(np.exp([ends.low, ends.high]))

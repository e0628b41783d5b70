"""Against scipy's tests and closed forms."""

import itertools
import math

from hypothesis import given, settings, strategies as st
import numpy as np
import pytest
from scipy import stats

from steepest.eval.comparing import statistics

_LOSS = st.floats(2, 9, allow_nan=False)


def _differ(values: list[float]) -> bool:
  return float(np.std(values)) > 1e-6


def test_spread_of_known_values():
  assert statistics.spread([1.0, 2.0, 4.0]) == statistics.Spread(
    pytest.approx(7 / 3), pytest.approx(math.sqrt(7 / 3)), 3
  )
  assert statistics.spread([5.0]).sd is None


@settings(deadline=None)
@given(st.lists(st.tuples(_LOSS, _LOSS), min_size=3, max_size=8))
def test_three_seeds_agree_with_the_paired_t_test(pairs):
  a, b = map(list, zip(*pairs))
  if not _differ([x - y for x, y in pairs]):
    return
  found = statistics.seed_difference({'a': a, 'b': b, 'c': a}, 'a', 'b')
  expected = stats.ttest_rel(a, b)
  assert found.rule == 'paired'
  interval = expected.confidence_interval(0.95)
  assert found.limit == pytest.approx((interval.high - interval.low) / 2)
  if abs(expected.pvalue - 0.05) > 1e-9:
    assert found.exceeds == (expected.pvalue < 0.05)


@settings(deadline=None)
@given(st.tuples(_LOSS, _LOSS), st.tuples(_LOSS, _LOSS))
def test_two_seeds_agree_with_the_pooled_t_test(a, b):
  if not _differ(list(a)) or not _differ(list(b)):
    return
  found = statistics.seed_difference({'a': a, 'b': b}, 'a', 'b')
  expected = stats.ttest_ind(a, b, equal_var=True)
  assert found.rule == 'pooled'
  if abs(expected.pvalue - 0.05) > 1e-9:
    assert found.exceeds == (expected.pvalue < 0.05)


def test_pooling_takes_every_optimizer():
  groups = {'a': [1.0, 1.2], 'b': [2.0, 2.4], 'c': [3.0, 3.1]}
  sd, freedom = statistics.pooled_sd(list(groups.values()))
  # One-way analysis of variance: F = between / within mean square.
  means = [np.mean(g) for g in groups.values()]
  f = stats.f_oneway(*groups.values()).statistic
  assert freedom == 3
  assert sd == pytest.approx(math.sqrt(2 * np.var(means, ddof=1) / f))


def test_one_seed_claims_nothing():
  found = statistics.seed_difference({'a': [1.0], 'b': [9.0]}, 'a', 'b')
  assert (found.value, found.limit, found.exceeds) == (-8.0, None, None)


def test_equal_seeds_leave_no_spread():
  found = statistics.seed_difference(
    {'a': [1.0, 1.0], 'b': [2.0, 2.0]}, 'a', 'b'
  )
  assert found.limit == 0 and found.exceeds
  same = statistics.seed_difference({'a': [1.0] * 3, 'b': [1.0] * 3}, 'a', 'b')
  assert not same.exceeds


def test_repeated_seeds_do_not_shrink_the_question_error():
  p, n = 0.4, 200
  binomial = math.sqrt(p * (1 - p) / (n - 1))
  for seeds in (1, 2, 5):
    error = statistics.accuracy_error([binomial] * seeds, [p] * seeds)
    assert error == pytest.approx(binomial)


def test_seeds_that_vary_widen_the_error():
  error = statistics.accuracy_error([0.03, 0.04], [0.5, 0.6])
  assert error == pytest.approx(
    math.sqrt((0.03**2 + 0.04**2) / 2 + 0.1**2 / 2 / 2)
  )


def test_paired_questions_agree_with_the_paired_t_test():
  rng = np.random.default_rng(0)
  a_Q, b_Q = rng.integers(0, 2, (2, 300))
  found = statistics.paired_accuracy_difference(a_Q[None], b_Q[None])
  expected = stats.ttest_rel(a_Q, b_Q)
  assert found.value == pytest.approx(a_Q.mean() - b_Q.mean())
  assert found.value / found.error == pytest.approx(expected.statistic)
  assert found.limit == pytest.approx(2 * found.error)


def test_shared_questions_tell_more_than_unpaired_ones():
  rng = np.random.default_rng(1)
  hard_Q = rng.uniform(size=400)
  a_SxQ = np.stack([hard_Q < 0.5, hard_Q < 0.5])
  b_SxQ = np.stack([hard_Q < 0.45, hard_Q < 0.45])
  paired = statistics.paired_accuracy_difference(a_SxQ, b_SxQ)
  error = math.sqrt(0.25 / 399)
  unpaired = statistics.accuracy_difference((0.5, error), (0.45, error))
  assert paired.exceeds and not unpaired.exceeds


def test_paired_error_covers_what_it_claims():
  # Seeds and questions drawn anew: |difference| exceeds in about 5 %.
  rng = np.random.default_rng(2)
  exceeding = 0
  for _ in range(400):
    hard_Q = rng.uniform(size=200)
    lift_2xS = rng.normal(0, 0.02, (2, 3))
    a_SxQ, b_SxQ = (
      rng.uniform(size=(3, 200)) < 0.2 + 0.6 * hard_Q + lift_S[:, None]
      for lift_S in lift_2xS
    )
    exceeding += bool(
      statistics.paired_accuracy_difference(a_SxQ, b_SxQ).exceeds
    )
  assert exceeding < 0.09 * 400


@settings(deadline=None)
@given(st.lists(st.tuples(_LOSS, _LOSS), min_size=3, max_size=8))
def test_intervals_and_p_values_are_scipys(pairs):
  a, b = map(list, zip(*pairs))
  if not _differ([x - y for x, y in pairs]):
    return
  expected = stats.ttest_rel(a, b)
  interval = expected.confidence_interval(0.95)
  found = statistics.seed_difference({'a': a, 'b': b}, 'a', 'b')
  changes = {'x': [x - y for x, y in pairs], 'y': [0.0] * len(pairs)}
  for one in (found, statistics.mean_difference(changes, 'x')):
    assert one.p == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-12)
    assert one.low == pytest.approx(interval.low, abs=1e-9)
    assert one.high == pytest.approx(interval.high, abs=1e-9)
  back = found.reversed()
  assert (back.value, back.low, back.high) == (
    -found.value,
    -found.high,
    -found.low,
  )


def test_two_differences_are_pooled_over_all_optimizers():
  changes = {'a': [0.1, 0.3], 'b': [0.5, 0.9]}
  found = statistics.mean_difference(changes, 'a')
  sd = math.sqrt((2 * 0.1**2 + 2 * 0.2**2) / 2)
  assert found.error == pytest.approx(sd / math.sqrt(2))
  assert found.freedom == 2
  assert statistics.mean_difference({'a': [0.1]}, 'a').exceeds is None


def test_ratios_are_geometric_means():
  ratios = [1.1, 1.3, 0.9, 1.2]
  found = statistics.ratio({'a': ratios}, 'a')
  expected = stats.ttest_1samp(np.log(ratios), 0.0)
  assert found.value == pytest.approx(stats.gmean(ratios))
  assert found.p == pytest.approx(expected.pvalue)
  interval = expected.confidence_interval(0.95)
  assert found.low == pytest.approx(math.exp(interval.low))
  assert found.high == pytest.approx(math.exp(interval.high))
  assert statistics.ratio({'a': [1.5]}, 'a').low is None


def _closed_testing(ps, level):
  """Returns which hypotheses are rejected, by all their intersections.

  A hypothesis is rejected if every set with it is, by Bonferroni's test.
  """
  n = len(ps)
  sets = [[i for i in range(n) if mask >> i & 1] for mask in range(1, 2**n)]
  return [
    all(min(ps[j] for j in s) <= level / len(s) for s in sets if i in s)
    for i in range(n)
  ]


@settings(deadline=None)
@given(st.lists(st.floats(0.05, 6.0), min_size=1, max_size=6), st.booleans())
def test_corrected_limits_are_those_of_closed_testing(values, normal):
  freedom = None if normal else 4
  level = 2 * stats.norm.sf(2) if normal else 0.05
  raw = {
    i: statistics.difference(v, 1.0, freedom, 'paired')
    for i, v in enumerate(values)
  }
  corrected = statistics.correct(raw)
  ps = [raw[i].p for i in raw]
  if any(abs(p - level / k) < 1e-9 for p in ps for k in range(1, 7)):
    return
  expected = _closed_testing(ps, level)
  assert [corrected[i].exceeds for i in raw] == expected
  assert [corrected[i].p_holm < level for i in raw] == expected
  assert all(corrected[i].p == raw[i].p for i in raw)


@settings(deadline=None)
@given(
  st.floats(-5, 5), st.floats(0.1, 10), st.floats(-3, 3), st.floats(0.2, 2)
)
def test_parabola_is_recovered(x0, a, y0, step):
  points = [
    (x, y0 + a * (x - x0) ** 2) for x in (x0 - 1.3 * step, x0 + 0.1, x0 + 2.0)
  ]
  x, y = statistics.parabola_minimum(points)
  assert x == pytest.approx(x0, abs=1e-6)
  assert y == pytest.approx(y0, abs=1e-6)


def test_a_line_has_no_minimum():
  assert statistics.parabola_minimum([(0, 1), (1, 2), (2, 3)]) is None
  assert statistics.parabola_minimum([(0, 1), (1, 5), (2, 1)]) is None


@pytest.mark.parametrize('seeds', [2, 3, 5])
def test_of_equal_optimizers_one_in_twenty_groups_shows_a_difference(seeds):
  # Four alike, moved together by their seeds: how often any two differ.
  rng = np.random.default_rng(seeds)
  times, shown = 600, 0
  for _ in range(times):
    losses = rng.normal(3, 0.01, (4, seeds)) + rng.normal(0, 0.003, seeds)
    groups = dict(zip('abcd', losses.tolist(), strict=True))
    found = statistics.correct(
      {
        pair: statistics.seed_difference(groups, *pair)
        for pair in itertools.combinations('abcd', 2)
      }
    )
    shown += any(one.exceeds for one in found.values())
  # Holm holds the rate below 5 %; three standard errors above that.
  assert shown / times < 0.05 + 3 * math.sqrt(0.05 * 0.95 / times)

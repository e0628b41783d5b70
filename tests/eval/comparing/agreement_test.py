"""Rank correlations against permutations and counts by hand."""

import itertools

from hypothesis import given, settings, strategies as st
import pytest

from steepest.eval.comparing import agreement


def _score(losses, scores):
  return sum(
    (a < b) == (c > d)
    for (a, c), (b, d) in itertools.combinations(zip(losses, scores), 2)
  )


@settings(deadline=None)
@given(st.permutations(range(5)))
def test_exact_p_is_the_share_of_permutations(order):
  losses = [3.0 + 0.1 * i for i in range(5)]
  found = agreement.kendall('x', losses, list(order), True)
  observed = abs(2 * _score(losses, order) - 10)
  extreme = sum(
    abs(2 * _score(losses, other) - 10) >= observed
    for other in itertools.permutations(range(5))
  )
  assert found.p == pytest.approx(extreme / 120)
  assert found.concordant == _score(losses, order)
  assert found.tau == pytest.approx((2 * found.concordant - 10) / 10)


def test_three_cells_cannot_show_anything():
  found = agreement.kendall('x', [3.0, 3.1, 3.2], [0.5, 0.4, 0.3], True)
  assert (found.tau, found.concordant, found.n) == (1.0, 3, 3)
  assert found.p == found.smallest_p == pytest.approx(1 / 3)


def test_where_less_is_better_the_sign_turns():
  found = agreement.kendall('x/perplexity', [3.0, 3.1], [20.0, 30.0], False)
  assert found.tau == 1.0


def test_equal_values_have_no_rank():
  assert agreement.kendall('x', [3.0, 3.0], [0.1, 0.2], True).tau is None
  assert agreement.kendall('x', [3.0], [0.1], True).tau is None

"""Planted curves of loss over tokens come back; speed-ups through them too."""

import math

from hypothesis import given, settings, strategies as st
import numpy as np
import pytest
from scipy import optimize

from steepest.eval.comparing import comparison, scaling_fit

_FLOOR = st.floats(1.5, 3.5)
_SCALE = st.floats(0.2, 3.0)
_ALPHA = st.floats(0.15, 1.2)
_BUDGETS = (1e9, 2e9, 4e9, 8e9)


def _points(floor, scale, alpha, budgets=_BUDGETS, noise=0.0, seeds=1, seed=0):
  rng = np.random.default_rng(seed)
  return [
    (d, floor + scale * (d / 1e9) ** -alpha + noise * rng.normal())
    for d in budgets
    for _ in range(seeds)
  ]


@settings(deadline=None, max_examples=50)
@given(_FLOOR, _SCALE, _ALPHA)
def test_planted_curves_are_recovered(floor, scale, alpha):
  for budgets in (_BUDGETS[:3], _BUDGETS):
    found = scaling_fit.fit(_points(floor, scale, alpha, budgets))
    assert found.alpha == pytest.approx(alpha, rel=1e-3)
    assert found.floor == pytest.approx(floor, rel=1e-3, abs=1e-3)
    assert found.coefficient == pytest.approx(
      scale * 1e9**alpha, rel=0.05 * alpha
    )
    assert found.residual < 1e-6


def test_noisy_curves_are_those_of_scipys_least_squares():
  points = _points(2.5, 1.0, 0.4, noise=0.003, seeds=3)
  found = scaling_fit.fit(points)
  x, y = map(np.array, zip(*points))
  curve = lambda d, e, a, alpha: e + a * (d / found.tokens) ** -alpha
  expected, covariance = optimize.curve_fit(curve, x, y, p0=(2.5, 0.5, 0.4))
  assert (found.floor, found.scale, found.alpha) == pytest.approx(
    tuple(expected), rel=1e-4
  )
  np.testing.assert_allclose(found.covariance_3x3, covariance, rtol=1e-2)
  assert found.loss(2e9) == pytest.approx(curve(2e9, *expected))
  assert found.tokens_for(found.loss(3e9)) == pytest.approx(3e9)


def test_a_planted_speedup_is_read_off_the_curve():
  baseline = dict.fromkeys(_BUDGETS)
  for d, loss in _points(2.5, 1.0, 0.4):
    baseline[d] = [loss]
  for factor in (0.6, 1.0, 1.7):
    other = {d: [2.5 + (factor * d / 1e9) ** -0.4] for d in _BUDGETS}
    found = scaling_fit.scaling(
      'gpt2', {}, 'adamw', {'adamw': baseline, 'x': other}
    )
    assert [one.speedup for one in found.speedups] == pytest.approx(
      [factor] * 4, rel=1e-3
    )
    last = found.speedups[-1]
    assert last.extrapolated == (factor > 1.01)


def test_the_interval_covers_the_planted_speedup():
  rng = np.random.default_rng(0)
  covered, times = 0, 200
  for _ in range(times):
    points = [
      (d, 2.5 + (d / 1e9) ** -0.4 + 0.002 * rng.normal())
      for d in _BUDGETS
      for _ in range(3)
    ]
    losses = 2.5 + (1.3 * 2) ** -0.4 + 0.002 * rng.normal(size=3)
    found = scaling_fit.speedup(scaling_fit.fit(points), 'x', 2e9, losses)
    covered += found.low <= 1.3 <= found.high
  assert 0.9 <= covered / times <= 0.99


@pytest.mark.parametrize(
  ('points', 'reason'),
  [
    ([], 'there are 0'),
    ([(1e9, 3.0), (1e9, 3.1), (2e9, 2.9)], 'there are 2'),
    ([(1e9, 3.0), (2e9, 3.4), (4e9, 3.6)], 'do not fall'),
    ([(1e9, 3.0), (2e9, 2.9), (4e9, 2.7)], 'no exponent'),
  ],
)
def test_what_cannot_be_fitted_says_why(points, reason):
  with pytest.raises(ValueError, match=reason):
    scaling_fit.fit(points)


def test_a_loss_below_the_floor_has_no_speedup():
  curve = scaling_fit.fit(_points(2.5, 1.0, 0.4))
  found = scaling_fit.speedup(curve, 'x', 1e9, [2.4])
  assert found.speedup is None and 'floor' in found.reason


def test_a_study_with_token_budgets(study_runs, tmp_path):
  study_runs.write_axis_study(tmp_path, models=('gpt2',), rows=10)
  result = comparison.compare(comparison.load_runs([tmp_path]))
  once, four = result.scalings
  assert (once.axes, four.axes) == ({'epochs': 1}, {'epochs': 4})
  assert once.fit.alpha == pytest.approx(study_runs.ALPHA, abs=0.05)
  assert once.fit.floor == pytest.approx(study_runs.FLOOR, abs=0.03)
  assert len(once.fit.budgets) == 3 and once.fit.freedom == 6
  assert len(once.speedups) == 6
  for one in once.speedups:
    planted = study_runs.SPEEDUPS[one.optimizer]
    assert one.low < one.speedup < one.high
    assert one.speedup == pytest.approx(planted, rel=0.03)
  assert four.fit is None and 'there are 1' in four.reason
  assert math.isclose(once.fit.losses[0], 3.5, abs_tol=0.01)

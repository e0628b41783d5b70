"""Fits of loss over log lr against curves that are known."""

import math

from hypothesis import assume, given, strategies as st
import numpy as np
import pytest

from steepest.eval.comparing import optimum, statistics

_LRS = tuple(1e-3 * 2.0**i for i in range(6))


@given(st.floats(2.1e-3, 1.5e-2), st.floats(0.01, 10), st.floats(-5, 5))
def test_a_parabola_is_found_again(best, curvature, lowest):
  loss = lambda lr: lowest + curvature * math.log(lr / best) ** 2
  fit = optimum.fit([(lr, loss(lr)) for lr in _LRS])
  assert fit.lr == pytest.approx(best, rel=1e-6)
  assert fit.loss == pytest.approx(lowest, abs=1e-7 * curvature + 1e-9)
  assert fit.residual < 1e-8 * (curvature + abs(lowest))
  assert fit.points in (4, 5)


def test_three_points_are_met():
  points = [(1e-3, 3.0), (2e-3, 2.5), (4e-3, 2.9)]
  fit = optimum.fit(points)
  x, y = statistics.parabola_minimum([(math.log(a), b) for a, b in points])
  assert (fit.lr, fit.loss) == pytest.approx((math.exp(x), y))
  assert (fit.residual, fit.points) == (0.0, 3)


@given(st.integers(0, 1000))
def test_noisy_points_are_fitted_by_least_squares(seed):
  """Against numpy's own solver on the normal equations."""
  rng = np.random.default_rng(seed)
  points = [(lr, math.log(lr / 5e-3) ** 2 + rng.normal(0, 0.05)) for lr in _LRS]
  fit = optimum.fit(points)
  best = min(points, key=lambda point: point[1])[0]
  near = [p for p in points if 1 / 4.01 < p[0] / best < 4.01]
  x = np.log([lr for lr, _ in near])
  y = np.array([loss for _, loss in near])
  design = np.stack([x**0, x, x**2], 1)
  c, b, a = np.linalg.lstsq(design, y, rcond=None)[0]
  assume(a > 0 and x.min() < -b / (2 * a) < x.max())
  assert fit.lr == pytest.approx(math.exp(-b / (2 * a)), rel=1e-6)
  rms = np.sqrt(np.mean((design @ [c, b, a] - y) ** 2))
  assert fit.residual == pytest.approx(rms, rel=1e-5)
  assert fit.points == len(near)


def test_the_far_ends_of_the_curve_do_not_count():
  loss = lambda lr: math.log(lr / 4e-3) ** 2
  points = [(lr, loss(lr)) for lr in _LRS]
  bent = [*points, (1e-1, 50.0), (1.0, None)]
  assert optimum.fit(bent) == optimum.fit(points)


@pytest.mark.parametrize(
  'points',
  [
    [],
    [(1e-3, None), (2e-3, math.inf)],
    [(1e-3, 1.0), (2e-3, 2.0), (4e-3, 3.0)],
    [(1e-3, 2.0), (2e-3, 1.0)],
    [(1e-3, 2.0), (2e-3, 1.0), (4e-3, None), (8e-3, 3.0)],
  ],
)
def test_no_fit_without_finished_trials_on_both_sides(points):
  assert optimum.fit(points) is None

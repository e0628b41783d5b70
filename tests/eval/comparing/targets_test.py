"""Tokens, operations and time to a loss, on curves that are known."""

import json

from hypothesis import given, settings, strategies as st
import numpy as np
import pytest

from steepest.eval.comparing import comparison, targets


@settings(deadline=None)
@given(st.lists(st.floats(0, 9, allow_nan=False), min_size=1, max_size=12))
def test_smoothing_is_the_closest_falling_curve(losses):
  found_P = targets.smoothed(np.array(losses))
  # The minimax formula: min over starts of max over ends of the means.
  n = len(losses)
  for i in range(n):
    expected = min(
      max(np.mean(losses[a : b + 1]) for b in range(i, n)) for a in range(i + 1)
    )
    assert found_P[i] == pytest.approx(expected, abs=1e-9)


@settings(deadline=None)
@given(st.floats(0.05, 0.9), st.integers(30, 300))
def test_crossing_of_an_analytic_curve(share, points):
  x_P = np.linspace(1.0, 100.0, points)
  loss = lambda x: 3 + 2 / np.sqrt(x)
  target = loss(1 + 99 * share)
  found = targets.crossing(x_P, loss(x_P), target)
  # A chord of a convex curve lies above it, by an eighth of step² · curvature.
  assert found >= 1 + 99 * share - 1e-9
  assert found - (1 + 99 * share) <= 99 / (points - 1)


def test_edges_of_a_curve():
  x_P, losses_P = np.array([1.0, 2.0, 3.0]), np.array([5.0, 4.0, 4.0])
  assert targets.crossing(x_P, losses_P, 6.0) == 1.0
  assert targets.crossing(x_P, losses_P, 4.5) == 1.5
  assert targets.crossing(x_P, losses_P, 4.0) == 2.0
  assert targets.crossing(x_P, losses_P, 3.9) is None


_SPEED = {'adamw': 1000.0, 'lion': 1250.0, 'sophia': 800.0}
_PACE = {'adamw': 1.0, 'lion': 0.7, 'sophia': 1.6}


@pytest.fixture
def race(study_runs, tmp_path):
  """Writes runs whose validation loss is 3 + 2 / sqrt(pace · step)."""
  for optimizer, pace in _PACE.items():
    for seed in range(3):
      path = tmp_path / f'{optimizer}-{seed}'
      settings_ = study_runs.config('gpt2', optimizer, seed, 'final')
      study_runs.write_run(path, settings_, 3.0, _SPEED[optimizer])
      per_step = settings_['batch_size'] * study_runs.CONTEXT
      steps = range(2, 401, 2)
      losses = [3 + 2 / float(pace * s) ** 0.5 + 0.01 * seed for s in steps]
      rows = [
        {
          'step': step - 1,
          'tokens': step * per_step,
          'seconds': step * per_step / _SPEED[optimizer],
          'train/loss': 8.0,
          'eval/loss': loss,
        }
        for step, loss in zip(steps, losses)
      ]
      text = ''.join(json.dumps(row) + '\n' for row in rows)
      (path / 'metrics.jsonl').write_text(text)
      summary = json.loads((path / 'summary.json').read_text())
      summary['eval_loss'] = losses[-1]
      (path / 'summary.json').write_text(json.dumps(summary))
  (group,) = comparison.compare(comparison.load_runs([tmp_path])).groups
  return {one.optimizer: one for one in group.targets}


def test_a_faster_curve_reaches_the_target_that_much_earlier(race):
  sophia = race['sophia']
  assert sophia.baseline == 'adamw' and not sophia.reason
  assert sophia.speedups['tokens'].value == pytest.approx(1.6, rel=1e-4)
  # Every 10th step an extra pass of 0.98 of a step's operations.
  assert sophia.speedups['flops'].value == pytest.approx(1.6 / 1.098, rel=1e-4)
  assert sophia.speedups['seconds'].value == pytest.approx(1.6 * 0.8, rel=1e-4)
  assert [one.seed for one in sophia.reaches] == [0, 1, 2]
  assert sophia.decayed
  assert sophia.reaches[1].target == pytest.approx(3 + 2 / 20 + 0.01)
  assert not sophia.with_tuning


def test_a_slower_curve_does_not_reach_it_and_says_by_how_much(race):
  lion = race['lion']
  assert 'adamw' not in race
  assert not lion.speedups and lion.reason.startswith('3 of 3 seeds')
  assert {one.status for one in lion.reaches} == {'not reached'}
  gap = 2 / np.sqrt(0.7 * 400) - 2 / np.sqrt(400)
  assert lion.reaches[0].gap == pytest.approx(gap)
  assert lion.reaches[0].tokens is None


def test_the_search_is_added_on_both_sides(study_dir):
  result = comparison.compare(comparison.load_runs([study_dir]))
  group = result.groups[0]
  cost = {c.optimizer: c for c in group.costs}
  (sophia,) = (t for t in group.targets if t.optimizer == 'sophia')
  needed = np.mean([one.tokens for one in sophia.reaches])
  expected = (cost['adamw'].run.tokens + cost['adamw'].tuning.tokens) / (
    needed + cost['sophia'].tuning.tokens
  )
  assert sophia.with_tuning['tokens'] == pytest.approx(expected)

"""Intervals and coarse grids against simulation, scipy and planted runs."""

import json
import math

from hypothesis import given, settings, strategies as st
import numpy as np
import pytest
from scipy import stats

from steepest.eval.comparing.tuning import Point
from steepest.tuning import certainty
from steepest.tuning.certainty import Spread


@given(st.integers(3, 20), st.floats(1e-4, 1.0))
def test_half_width_is_scipys_paired_interval(seeds, scale):
  rng = np.random.default_rng(seeds)
  a, b = rng.normal(size=(2, seeds)) * scale
  interval = stats.ttest_rel(a, b).confidence_interval(0.95)
  sd = float(np.std(a - b, ddof=1))
  width = certainty.half_width(Spread(sd, None, ''), seeds, 3)
  assert width == pytest.approx((interval.high - interval.low) / 2)


def test_independent_seeds_give_the_textbook_formula():
  """t · sd · √(2/n), sd within an optimizer's seeds."""
  sd, n = 0.3, 5
  width = certainty.half_width(Spread(sd * math.sqrt(2), None, ''), n, 3)
  assert width == pytest.approx(
    stats.t.ppf(0.975, n - 1) * sd * math.sqrt(2 / n)
  )
  assert certainty.half_width(Spread(1, None, ''), 1, 3) is None
  # Two seeds: pooled over three optimizers.
  two = certainty.half_width(Spread(1, None, ''), 2, 3)
  assert two == pytest.approx(stats.t.ppf(0.975, 3) / math.sqrt(2))


@given(st.floats(1.3, 4.0), st.floats(0.05, 2.0))
@settings(max_examples=20, deadline=None)
def test_a_coarse_grid_misses_on_average(ratio, bend):
  best = np.random.default_rng(0).uniform(-0.5, 0.5, 20_000) * math.log(ratio)
  simulated = float(np.mean(bend * best**2))
  spread = Spread(1.0, bend, '')
  assert certainty.missed(spread, ratio) == pytest.approx(simulated, rel=0.02)
  assert certainty.missed(spread, ratio**2) == pytest.approx(
    4 * certainty.missed(spread, ratio)
  )
  assert certainty.missed(Spread(1.0, None, ''), ratio) is None


def _points(best, bend, lrs):
  return [
    Point(lr, 3 + bend * math.log(lr / best) ** 2, 1, None, None) for lr in lrs
  ]


def test_the_curvature_of_a_parabola_is_found():
  lrs = [1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2]
  found = certainty.curvature(_points(3e-3, 0.7, lrs))
  assert found == pytest.approx(0.7)
  assert certainty.curvature(_points(3e-2, 0.7, lrs)) is None
  assert certainty.curvature([]) is None


def _write(directory, config, losses):
  directory.mkdir(parents=True)
  (directory / 'config.json').write_text(json.dumps(config))
  (directory / 'metrics.jsonl').write_text('')
  summary = {
    'status': 'finished',
    'steps': config['steps'],
    'tokens': 10,
    'seconds': 1.0,
    'data_fingerprint': 'f',
    'tokens_per_second': 10.0,
    'parameters': 5,
    'flops': 1.0,
    'curvature_passes': 0,
    'train_loss': losses,
    'eval_loss': losses,
  }
  (directory / 'summary.json').write_text(json.dumps(summary))


def test_planted_runs_are_measured(tmp_path):
  from steepest.experiments import base

  rng = np.random.default_rng(0)
  planted = {}
  for name in ('adamw', 'lion'):
    for seed in range(3):
      config = base.get_config()
      base.set_optimizer(config, name)
      config.seed = seed
      planted[name, seed] = float(3 + rng.normal() / 10)
      directory = tmp_path / 'finals' / f'gpt2-{name}' / f'seed={seed}'
      values = json.loads(config.to_json())
      _write(directory, values, planted[name, seed])
    for lr in (1e-3, 2e-3, 4e-3):
      values['optimizer']['lr'] = lr
      loss = 3 + 0.4 * math.log(lr / 2e-3) ** 2
      directory = tmp_path / 'trials' / f'gpt2-{name}' / f'lr={lr:g}'
      _write(directory, {**values, 'stage': 'tune'}, loss)
  found = certainty.measured([tmp_path])
  differences = [planted['adamw', s] - planted['lion', s] for s in range(3)]
  assert found.sd == pytest.approx(np.std(differences, ddof=1))
  assert found.curvature == pytest.approx(0.4)
  assert '1 pairs of optimizers and 2 searches' in found.source


def test_too_few_seeds_take_one_line(tmp_path):
  from steepest.experiments import base

  values = json.loads(base.get_config().to_json())
  _write(tmp_path / 'finals' / 'gpt2-adamw' / 'seed=0', values, 3.0)
  with pytest.raises(ValueError, match='no two optimizers have final runs'):
    certainty.measured([tmp_path])

"""Learning-rate searches against curves whose optimum is known."""

import json
import math

import pytest

from steepest.eval import comparison
from steepest.eval import tuning


@pytest.fixture
def search(study_runs, tmp_path):
  """Writes trials with the loss 3 + (log2(lr / optimum))² / 100."""

  def write(lrs, optimum, diverging=(), **kwargs):
    for lr in lrs:
      settings = study_runs.config(
        'gpt2', 'lion', 0, 'tune', optimizer__lr=lr, **kwargs
      )
      status = 'diverged' if lr in diverging else 'finished'
      study_runs.write_run(
        tmp_path / 'trials' / 'gpt2-lion' / f'lr={lr}',
        settings,
        3 + math.log2(lr / optimum) ** 2 / 100,
        status=status,
        stop=90 if status == 'diverged' else None,
        rows=20,
      )
    (curve,) = tuning.curves(comparison.load_runs([tmp_path]), [])
    return curve

  return write


def test_optimum_inside_the_grid_is_fitted(search):
  curve = search((1e-4, 2e-4, 4e-4, 8e-4), 2.5e-4)
  assert curve.best == 2e-4
  assert curve.inside
  assert curve.fitted == pytest.approx(2.5e-4, rel=1e-6)
  assert curve.criterion == 'eval_loss'
  assert curve.trials == 4
  assert curve.chosen is None


@pytest.mark.parametrize('optimum', [1e-5, 1e-1])
def test_optimum_at_the_edge_is_told(search, optimum):
  curve = search((1e-4, 2e-4, 4e-4), optimum)
  assert curve.inside is False
  assert curve.fitted is None


def test_a_diverged_trial_bounds_the_grid(search):
  curve = search((1e-4, 2e-4, 4e-4), 2e-4, diverging=(4e-4,))
  assert curve.best == 2e-4
  assert curve.inside
  assert curve.fitted is None
  assert curve.points[-1].diverged_at == 90
  assert curve.points[-1].loss is None


def test_extension_is_read_from_the_study(search, tmp_path):
  study = {'study': {'lrs_lion': [1e-4, 2e-4]}}
  (tmp_path / 'config.json').write_text(json.dumps(study))
  assert search((1e-4, 2e-4, 4e-4), 2e-4).extended == (4e-4,)


def test_extension_is_unknown_without_a_study(search):
  assert search((1e-4, 2e-4), 2e-4).extended is None


def test_losses_are_those_of_the_summaries(search, tmp_path):
  curve = search((1e-4, 2e-4), 2e-4)
  for point in curve.points:
    path = tmp_path / 'trials' / 'gpt2-lion' / f'lr={point.lr}'
    summary = json.loads((path / 'summary.json').read_text())
    assert point.loss == summary['eval_loss']


def test_budgets_and_transfer(study_dir):
  result = comparison.compare(comparison.load_runs([study_dir]))
  assert tuning.budgets(result.curves)['gpt2'] == {
    'adamw': (4, 4 * 200 * 16 * 64),
    'lion': (4, 4 * 200 * 16 * 64),
    'sophia': (5, 5 * 200 * 16 * 64),
  }
  for curve in result.curves:
    assert (curve.width, curve.target_width) == (128, 256)
    assert curve.chosen == curve.best

"""Learning-rate searches against curves whose optimum is known."""

import json
import math

import pytest

from steepest.eval.comparing import comparison, tuning
from steepest.eval.plots import tuning as tuning_plots
from steepest.eval.report import details


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


def _random_study(study_runs, root, pruned_at=50):
  """Writes six trials of two hyperparameters; the best at 2e-3, b2 0.99."""
  study = {'study': {'search': 'random', 'lrs_lion': [1e-3, 4e-3]}}
  (root / 'config.json').write_text(json.dumps(study))
  for i, (lr, b2, loss, status) in enumerate(
    (
      (1e-3, 0.99, 3.2, 'finished'),
      (2e-3, 0.99, 3.0, 'finished'),
      (2.1e-3, 0.95, 3.3, 'finished'),
      (4e-3, 0.99, 3.2, 'finished'),
      (3e-3, 0.9, 3.5, 'pruned'),
      (5e-3, 0.9, 3.9, 'diverged'),
    )
  ):
    settings = study_runs.config(
      'gpt2',
      'lion',
      0,
      'tune',
      optimizer__lr=lr,
      optimizer__betas=[0.9, b2],
    )
    stop = {'finished': None, 'pruned': pruned_at, 'diverged': 90}[status]
    study_runs.write_run(
      root / 'trials' / 'gpt2-lion' / f'trial={i:03d}',
      settings,
      loss,
      status=status,
      stop=stop,
      rows=20,
    )


def test_searches_of_several_hyperparameters(study_runs, tmp_path):
  _random_study(study_runs, tmp_path)
  (curve,) = tuning.curves(comparison.load_runs([tmp_path]), [])
  assert (curve.search, curve.searched) == ('random', ('optimizer.betas',))
  assert curve.best == 2e-3
  assert curve.values == {'optimizer.betas': [0.9, 0.99]}
  # The trials that share the best one's betas lie on a parabola in log lr.
  assert curve.fit.lr == pytest.approx(2e-3)
  assert curve.fit.points == 3
  assert curve.extended == (5e-3,)


def test_pruned_trials_count_as_far_as_they_came(study_runs, tmp_path):
  _random_study(study_runs, tmp_path, pruned_at=50)
  (curve,) = tuning.curves(comparison.load_runs([tmp_path]), [])
  assert (curve.trials, curve.pruned) == (6, 1)
  per_step = 16 * study_runs.CONTEXT
  assert curve.spent == (5 * 400 + 50) * per_step
  assert tuning.budgets([curve]) == {'gpt2': {'lion': (6, curve.spent)}}
  (point,) = [p for p in curve.points if p.pruned_at is not None]
  assert (point.lr, point.loss, point.pruned_at) == (3e-3, None, 50)


def test_the_report_shows_the_search(study_runs, tmp_path):
  _random_study(study_runs, tmp_path)
  result = comparison.compare(comparison.load_runs([tmp_path]))
  table = details.tuned(result)
  for text in (
    'random',
    'lr, betas',
    '6 (1 pruned)',
    '3 points, residual 0',
    '1 lower, 4 higher',
  ):
    assert text in table.replace(' (1 diverged)', ''), text
  figure = tuning_plots.lr_figure(result)
  kinds = {trace['meta']['kind'] for trace in figure['data']}
  assert kinds == {'pruned', 'diverged', 'fit', 'line', 'chosen'}


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

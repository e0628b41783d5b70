"""Groups along axes, and what an axis changes, against what was planted."""

import json

import numpy as np
import pytest
from scipy import stats

from steepest.eval.comparing import comparison, groups


@pytest.fixture(scope='module')
def axis_dir(study_runs, tmp_path_factory):
  root = tmp_path_factory.mktemp('axes')
  study_runs.write_axis_study(root, models=('gpt2',), rows=10)
  return root


@pytest.fixture(scope='module')
def result(axis_dir):
  return comparison.compare(comparison.load_runs([axis_dir]))


def _losses(root, cell):
  return [
    json.loads((root / 'finals' / cell / f'seed={s}/summary.json').read_text())[
      'eval_loss'
    ]
    for s in range(3)
  ]


def test_groups_are_the_values_of_the_axes(result):
  assert [(a.name, a.own, a.values) for a in result.axes] == [
    ('epochs', 1, (1, 4)),
    ('tokens', 409600, (409600, 819200, 1638400)),
  ]
  assert [(g.axes['epochs'], g.axes['tokens']) for g in result.groups] == [
    (1, 409600),
    (1, 819200),
    (1, 1638400),
    (4, 409600),
  ]
  for group in result.groups:
    assert [c.optimizer for c in group.cells] == ['adamw', 'lion', 'sophia']
    assert not group.selection.left_out
  assert result.groups[3].axes_label == 'epochs 4, tokens 409,600'


def test_effects_are_paired_differences(result, axis_dir):
  found = {(e.axis, e.value, e.optimizer): e for e in result.effects}
  assert len(found) == 3 * 3
  for (axis, value, name), effect in found.items():
    suffix = '-epochs=4' if axis == 'epochs' else f'-tokens={value // 409600}'
    there = _losses(axis_dir, f'gpt2-{name}{suffix}')
    here = _losses(axis_dir, f'gpt2-{name}')
    expected = stats.ttest_rel(there, here)
    assert not effect.reason and effect.seeds == (0, 1, 2)
    assert effect.loss.value == pytest.approx(np.mean(there) - np.mean(here))
    assert effect.loss.p == pytest.approx(expected.pvalue)
    assert effect.loss.p_holm >= effect.loss.p
    # The same answers were written on both sides.
    assert effect.accuracy.value == 0 and effect.accuracy.rule.endswith(
      ' paired'
    )


def test_interactions_are_differences_of_differences(
  result, axis_dir, study_runs
):
  (found,) = (
    i
    for i in result.interactions
    if (i.axis, i.first, i.second) == ('epochs', 'adamw', 'sophia')
  )
  cells = [
    np.array(_losses(axis_dir, f'gpt2-{name}{suffix}'))
    for name in ('adamw', 'sophia')
    for suffix in ('-epochs=4', '')
  ]
  values = (cells[0] - cells[1]) - (cells[2] - cells[3])
  assert found.change.value == pytest.approx(values.mean())
  assert found.change.p == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
  assert found.change.value == pytest.approx(
    study_runs.EPOCHS_ADD['adamw'] - study_runs.EPOCHS_ADD['sophia'], abs=2e-3
  )
  assert found.order == 'kept'
  assert found.at_reference.value == pytest.approx((cells[1] - cells[3]).mean())


def _write(study_runs, root, losses, axis='axis_epochs', key='data__epochs'):
  """Writes runs of (optimizer, value) -> losses of the seeds."""
  plan = study_runs.config('gpt2', 'adamw', 0, 'final')
  plan['study'] = {axis: [4]}
  (root / 'config.json').write_text(json.dumps(plan))
  for (name, value), of in losses.items():
    for seed, loss in enumerate(of):
      settings = study_runs.config('gpt2', name, seed, 'final', **{key: value})
      path = root / 'finals' / f'{name}-{value}' / f'seed={seed}'
      study_runs.write_run(path, settings, loss, rows=10)
  return comparison.compare(comparison.load_runs([root]))


def test_a_ranking_that_turns_around_is_told(study_runs, tmp_path):
  noise = np.array([0.0, 0.001, -0.001])
  result = _write(
    study_runs,
    tmp_path,
    {
      ('adamw', 1): 3.40 + noise,
      ('lion', 1): 3.45 - noise,
      ('adamw', 4): 3.50 + noise,
      ('lion', 4): 3.45 + 2 * noise,
    },
  )
  (found,) = result.interactions
  assert found.order == 'swapped'
  assert found.change.exceeds and found.change.value == pytest.approx(0.1)


def test_two_seeds_are_pooled_over_optimizers(study_runs, tmp_path):
  losses = {
    (name, value): [3.4 + 0.1 * i + 0.01 * value, 3.4 + 0.013 * value * i]
    for i, name in enumerate(('adamw', 'lion', 'sophia'))
    for value in (1, 4)
  }
  result = _write(study_runs, tmp_path, losses)
  changes = {
    name: np.subtract(losses[name, 4], losses[name, 1])
    for name in ('adamw', 'lion', 'sophia')
  }
  sd = np.sqrt(np.mean([np.var(c, ddof=1) for c in changes.values()]))
  for effect in result.effects:
    assert effect.loss.error == pytest.approx(sd / np.sqrt(2))
    assert effect.loss.freedom == 3
  for one in result.interactions:
    assert one.change.error == pytest.approx(sd)
    assert one.change.freedom == 3


def test_a_change_within_the_spread_is_not_resolved(study_runs, tmp_path):
  rng = np.random.default_rng(0)
  result = _write(
    study_runs,
    tmp_path,
    {
      (name, value): 3.4 + 0.1 * rng.normal(size=3)
      for name in ('adamw', 'lion')
      for value in (1, 4)
    },
  )
  (found,) = result.interactions
  assert found.order == 'not resolved' and not found.change.exceeds


def test_what_no_study_declares_is_no_axis(study_runs, tmp_path):
  result = _write(
    study_runs,
    tmp_path,
    {('adamw', 1): [3.4], ('lion', 1): [3.5], ('lion', 4): [3.5]},
    axis='axis_batch_size',
  )
  (group,) = result.groups
  assert not result.axes and group.axes == {} and group.axes_label == ''
  (left_out,) = group.selection.left_out
  assert 'data.epochs is 4, not 1' in left_out.reasons


def test_groups_that_differ_otherwise_have_no_effect(study_runs, tmp_path):
  losses = {
    (name, value): [3.4, 3.5] for name in ('adamw', 'lion') for value in (1, 4)
  }
  _write(study_runs, tmp_path, losses)
  for path in tmp_path.glob('finals/*-4/*/config.json'):
    config = json.loads(path.read_text())
    config['schedule']['final_fraction'] = 0.0
    path.write_text(json.dumps(config))
  result = comparison.compare(comparison.load_runs([tmp_path]))
  assert not result.interactions and len(result.effects) == 2
  for effect in result.effects:
    assert effect.loss is None
    assert effect.reason == 'schedule.final_fraction is 0.0, not 0.1'


def test_batch_size_takes_steps_and_warm_up_with_it(study_runs, tmp_path):
  losses = {(n, v): [3.4, 3.5] for n in ('adamw', 'lion') for v in (16, 4)}
  _write(study_runs, tmp_path, losses, 'axis_batch_size', 'batch_size')
  for path in tmp_path.glob('finals/*-4/*/config.json'):
    config = json.loads(path.read_text())
    config['steps'] *= 4
    config['schedule']['warmup_steps'] *= 4
    path.write_text(json.dumps(config))
  for path in tmp_path.glob('finals/*-4/*/summary.json'):
    summary = json.loads(path.read_text())
    summary['steps'] *= 4
    path.write_text(json.dumps(summary))
  result = comparison.compare(comparison.load_runs([tmp_path]))
  assert [a.name for a in result.axes] == ['batch_size']
  assert len(result.effects) == 2
  assert all(e.loss is not None for e in result.effects)


def test_trials_belong_to_the_axes_that_were_searched_anew(
  study_runs, tmp_path
):
  plan = study_runs.config('gpt2', 'adamw', 0, 'final')
  study = {
    'axis_epochs': [4],
    'axis_tokens': [2.0],
    'retune': 'epochs',
    'target_steps': 400,
    'lrs_adamw': [1e-3, 2e-3],
  }
  (tmp_path / 'config.json').write_text(json.dumps(plan | {'study': study}))
  for epochs, best in ((1, 1e-3), (4, 2e-3)):
    for lr in (1e-3, 2e-3):
      settings = study_runs.config(
        'gpt2', 'adamw', 0, 'tune', optimizer__lr=lr, data__epochs=epochs
      )
      path = tmp_path / 'trials' / f'{epochs}' / f'{lr}'
      study_runs.write_run(path, settings, 3.4 + abs(lr - best), rows=10)
    for steps in (400, 800):
      settings = study_runs.config(
        'gpt2',
        'adamw',
        0,
        'final',
        optimizer__lr=best,
        data__epochs=epochs,
        steps=steps,
      )
      path = tmp_path / 'finals' / f'{epochs}-{steps}' / 'seed=0'
      study_runs.write_run(path, settings, 3.3, rows=10)
  result = comparison.compare(comparison.load_runs([tmp_path]))
  assert [(c.axes, c.best, c.chosen, c.trials) for c in result.curves] == [
    ('epochs 1', 1e-3, 1e-3, 2),
    ('epochs 4', 2e-3, 2e-3, 2),
  ]
  for group in result.groups:
    (budget,) = group.budgets
    assert (budget.trials, budget.tried[0].chosen) == (
      2,
      {1: 1e-3, 4: 2e-3}[group.axes['epochs']],
    )


def test_labels():
  assert groups.label({}) == ''
  assert groups.label({'batch_size': 32, 'schedule': 'wsd'}) == (
    'batch size 32, schedule wsd'
  )


def test_scores_along_an_axis_are_paired_by_question(study_runs, tmp_path):
  rng = np.random.default_rng(3)
  losses = {('adamw', 1): [3.4] * 3, ('adamw', 4): [3.3] * 3}
  _write(study_runs, tmp_path, losses)
  answers = {}
  for value, rate in ((1, 0.5), (4, 0.7)):
    for seed in range(3):
      right = [int(x) for x in rng.uniform(size=200) < rate]
      answers[value, seed] = right
      path = tmp_path / 'finals' / f'adamw-{value}' / f'seed={seed}'
      study_runs.write_scores(path, {'boolq/acc': right})
  result = comparison.compare(comparison.load_runs([tmp_path]))
  (effect,) = result.effects
  a, b = (
    np.array([answers[value, s] for s in range(3)], float) for value in (4, 1)
  )
  squared = np.var((a - b).mean(axis=0), ddof=1) / 200
  squared += np.var((a - b).mean(axis=1), ddof=1) / 3
  assert effect.accuracy.value == pytest.approx((a - b).mean())
  assert effect.accuracy.error == pytest.approx(np.sqrt(squared))
  assert effect.accuracy.exceeds

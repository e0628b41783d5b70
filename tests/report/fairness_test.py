"""Searches of unequal effort and runs that are unlike: refused, in words."""

import json

import pytest

from steepest.report import results, selection, tables, verdicts

_LOSSES = {
  'adamw': [3.40, 3.41, 3.42, 3.41],
  'lion': [3.50, 3.51, 3.52, 3.505],
}


def _refused(found, text):
  for column in ('eval_loss', 'train_loss'):
    assert found.winner('gpt2', column) == ''
    assert found.reason('gpt2', column).startswith('not ranked')
    assert text in found.reason('gpt2', column)
  assert found.fairness['text'].str.contains(text).any()
  (answer,) = results.answers(found)
  assert not answer.fair and text in answer.fairness
  assert 'ends with' not in answer.text


def _replanned(tmp_path, **changed):
  """Returns a study that had been planned otherwise, read again."""
  path = tmp_path / 'study' / 'config.json'
  plan = json.loads(path.read_text())
  plan['study'] |= changed
  path.write_text(json.dumps(plan))
  return verdicts.compare(tables.read([path.parent]))


def test_equal_effort_is_ranked(plant):
  found = plant(_LOSSES)
  assert found.winner('gpt2', 'eval_loss') == 'adamw'
  assert not found.fairness['refuses'].any()
  (answer,) = results.answers(found)
  assert answer.fair and '4 trials' in answer.fairness
  # AdamW's and Lion's defaults: said, since neither was searched.
  assert 'Memories were set by hand' in answer.fairness


@pytest.mark.parametrize(
  ('study', 'text'),
  [
    ({'rates': {'adamw': ()}}, 'no search'),
    ({'rates': {'adamw': (), 'lion': ()}}, 'no search'),
    ({'rates': {'adamw': (1e-3, 1.1e-3, 1.15e-3, 1.2e-3)}}, 'span'),
    ({'rates': {'adamw': (2e-3, 1e-3, 4e-3, 8e-3)}}, 'lowest or highest'),
    ({'rates': {'lion': (1e-3, 2e-3, 8e-3)}}, '3 trials'),
    ({'final': {'adamw': {'optimizer__lr': 2e-3 / 40}}}, 'final runs have'),
    (
      {'tried': {'lion': lambda i: {'optimizer__betas': [0.9, 0.9 + i / 100]}}},
      'no search of memories',
    ),
    (
      {
        'tried': {
          'lion': lambda i: {'optimizer__weight_decay': [0.0, 0.1, 0.2, 0.3][i]}
        }
      },
      'no search of weight decay',
    ),
    (
      {'tried': {'lion': lambda i: {'optimizer__rho': 0.01 * (i + 1)}}},
      'no search of memories and weight decay',
    ),
    ({'tried': {'lion': lambda i: {'steps': 200}}}, 'not equal'),
  ],
)
def test_unequal_effort_is_not_ranked(plant, study, text):
  _refused(plant(_LOSSES, **study), text)


def test_who_insists_gets_a_ranking_with_a_warning(plant):
  found = plant(_LOSSES, rates={'adamw': ()}, insist=True)
  assert found.winner('gpt2', 'eval_loss') == 'adamw'
  first = results.sections(found)[0].blocks[0]
  assert 'no claim below is fair' in first.text


def test_rates_added_at_an_edge_are_no_unequal_effort(plant, tmp_path):
  rates = {'adamw': (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)}
  plant(_LOSSES, rates=rates)
  found = _replanned(tmp_path, lrs_adamw=rates['adamw'][:4])
  tuned = found.tuning.set_index('optimizer')
  assert tuned.loc['adamw', 'trials'] == 5
  assert tuned.loc['adamw', 'planned'] == tuned.loc['lion', 'planned'] == 4
  assert found.winner('gpt2', 'eval_loss') == 'adamw'


def test_more_trials_for_more_hyperparameters_are_fair_by_the_rule(
  plant, tmp_path
):
  own = {
    'adamw': lambda i: {'optimizer__b1_half_life': 1e3 * 1.1 ** (i * 5 % 16)},
    'lion': lambda i: {
      'optimizer__b1_half_life': 1e3 * 1.1 ** (i * 9 % 20),
      'optimizer__b2_half_life': 1e4 * 1.1**i,
    },
  }
  rates = {
    name: [1e-3, *(2e-3 * 1.13**i for i in range(trials - 1))]
    for name, trials in (('adamw', 16), ('lion', 20))
  }
  refused = plant(_LOSSES, rates=rates, tried=own)
  assert refused.winner('gpt2', 'eval_loss') == ''
  found = _replanned(tmp_path, search='sobol', trials=0, trial_seeds=1)
  assert found.winner('gpt2', 'eval_loss') == 'adamw'
  assert found.tuning['due'].tolist() == [8 + 4 * 2, 8 + 4 * 3]
  # The second trial is best, whose b2 is near the lowest, and b1 is not.
  said = found.fairness[~found.fairness['refuses']]
  assert said[['optimizer', 'text']].to_numpy().tolist() == [
    ['lion', 'its best half-life of β₂ is at the edge of the range tried']
  ]


def test_an_optimizer_whose_file_has_no_decay_is_ranked_with_a_remark(
  plant, tmp_path
):
  decay = lambda i: {'optimizer__decay_timescale': 0.1 * 2 ** (i * 3 % 4)}
  plant(_LOSSES, tried={'lion': decay})
  found = _replanned(tmp_path, search='sobol', trials=4, space='all')
  assert found.winner('gpt2', 'eval_loss') == 'adamw'
  said = found.fairness.set_index('subject').loc['hyperparameters']
  assert said['optimizer'] == 'adamw' and not said['refuses']
  assert said['text'].startswith('no search of weight decay, while ')


@pytest.mark.parametrize(
  ('changes', 'text'),
  [
    ({'optimizer__clip_norm': 0.5}, 'optimizer.clip norm is 0.5, not 1.0'),
    ({'schedule__kind': 'linear'}, 'schedule.kind is linear, not cosine'),
    ({'dtype__compute': 'float32'}, 'dtype.compute is float32'),
    ({'batch_size': 8}, 'batch size is 8, not 16'),
    ({'model__num_layers': 5}, 'model.num layers is 5, not 4'),
  ],
)
def test_unlike_runs_are_left_out(plant, changes, text):
  losses = {**_LOSSES, 'sophia': [3.6, 3.61, 3.62, 3.63]}
  found = plant(losses, final={'lion': changes})
  assert set(found.compared['optimizer']) == {'adamw', 'sophia'}
  assert len(found.left_out) == 4
  assert found.left_out['reason'].str.contains(text, regex=False).all()


def test_other_data_and_initial_weights_are_left_out(plant, tmp_path):
  losses = {**_LOSSES, 'sophia': [3.6, 3.61, 3.62, 3.63]}
  plant(losses)
  root = tmp_path / 'study/finals'
  path = root / 'gpt2-lion/seed=0/summary.json'
  path.write_text(path.read_text().replace('f00d' * 16, 'beef' * 16))
  path = root / 'gpt2-lion/seed=1/metrics.jsonl'
  first, *rest = path.read_text().splitlines()
  row = json.loads(first)
  row['train/loss'] *= 1.01
  path.write_text('\n'.join([json.dumps(row), *rest]) + '\n')
  found, left_out = selection.select(tables.read([tmp_path / 'study']))
  reasons = left_out.set_index('run')['reason']
  assert 'data fingerprint' in reasons['finals/gpt2-lion/seed=0']
  assert 'other initial weights' in reasons['finals/gpt2-lion/seed=1']
  assert len(found) == 10


def test_runs_that_repeat_a_seed_or_differ_in_setting_are_left_out(
  plant, tmp_path, study_runs
):
  plant(_LOSSES)
  root = tmp_path / 'study/finals/gpt2-lion'
  for name, lr in (('again', 2e-3), ('other', 4e-3)):
    config = study_runs.config('gpt2', 'lion', 0, 'final', optimizer__lr=lr)
    study_runs.write_run(root / name, config, 3.2, rows=20)
  _, left_out = selection.select(tables.read([tmp_path / 'study']))
  reasons = left_out.set_index('run')['reason']
  assert sorted(reasons) == sorted(
    [
      'optimizer.lr is 0.004, not 0.002 as in the other runs of its optimizer',
      'repeats seed 0',
    ]
  )

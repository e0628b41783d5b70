"""Cells and verdicts against the files that the runs left."""

import json
import pathlib

import numpy as np
import pytest

from steepest.eval.comparing import comparison


@pytest.fixture(scope='module')
def result(study_dir):
  return comparison.compare(comparison.load_runs([study_dir]))


@pytest.fixture
def duel(study_runs, tmp_path):
  """Writes AdamW and Lion on GPT-2 with given losses and answers."""

  def write(losses, answers=None, predictions=True, speeds=None, limits=None):
    for optimizer, of_seeds in losses.items():
      for seed, loss in enumerate(of_seeds):
        path = tmp_path / f'{optimizer}-{seed}'
        settings = study_runs.config('gpt2', optimizer, seed, 'final')
        speed = speeds[optimizer] if speeds else 1e4
        study_runs.write_run(path, settings, loss, speed, rows=20)
        if answers:
          limit = limits[optimizer] if limits else 500
          study_runs.write_scores(
            path, {'arc_easy/acc': answers[optimizer]}, limit, predictions
          )
    (group,) = comparison.compare(comparison.load_runs([tmp_path])).groups
    return group

  return write


def test_cells_hold_the_means_of_the_summaries(result, study_dir):
  assert len(result.cells) == 6
  for cell in result.cells:
    root = study_dir / 'finals' / f'{cell.architecture}-{cell.optimizer}'
    summaries = [
      json.loads((root / f'seed={s}' / 'summary.json').read_text())
      for s in (0, 1)
    ]
    for column in comparison.COLUMNS:
      values = [summary[column.key] for summary in summaries]
      assert cell.spreads[column.key].mean == pytest.approx(np.mean(values))
      assert cell.spreads[column.key].sd == pytest.approx(
        np.std(values, ddof=1)
      )
      assert cell.per_seed[column.key] == tuple(values)


def test_columns_come_in_order(result):
  assert [column.key for column in result.columns] == [
    'train_loss',
    'eval_loss',
    'tokens_per_second',
    'seconds',
    'flops',
    'parameters',
    'arc_easy/acc',
    'arc_easy/acc_norm',
    'arc_challenge/acc',
    'arc_challenge/acc_norm',
    'hellaswag/acc',
    'hellaswag/acc_norm',
    'mmlu/acc',
  ]


def test_clear_winner_and_tie(duel):
  group = duel({'adamw': (3.4, 3.402), 'lion': (3.5, 3.502)})
  verdict = group.verdict('eval_loss')
  assert (verdict.best, verdict.conclusion) == ('adamw', 'wins')
  assert verdict.differences['lion'].value == pytest.approx(-0.1)
  # Equal counts are no contest.
  assert group.verdict('flops').conclusion == 'equal'


def test_difference_within_the_spread(duel):
  group = duel({'adamw': (3.40, 3.50), 'lion': (3.42, 3.51)})
  assert group.verdict('eval_loss').conclusion == 'tie'


def test_pairing_finds_what_is_common_to_seeds(duel):
  losses = np.array([3.3, 3.4, 3.5])
  group = duel({'adamw': losses, 'lion': losses + [0.01, 0.011, 0.012]})
  assert group.verdict('eval_loss').conclusion == 'wins'


def test_one_seed_names_no_winner(duel):
  group = duel({'adamw': (3.0,), 'lion': (4.0,)})
  assert group.verdict('eval_loss').conclusion == 'unknown'


def test_curvature_passes_count(result):
  for group in result.groups:
    verdict = group.verdict('flops')
    assert verdict.leaders == ['adamw', 'lion']
    assert verdict.conclusion == 'wins'
    assert verdict.differences['sophia'].value < 0


def test_accuracies_at_chance_show_no_difference(duel):
  at_chance = [1, 0, 0, 0] * 50
  below = [1, 0, 0, 0, 0] * 40
  group = duel(
    {'adamw': (3.4,), 'lion': (3.5,)}, {'adamw': at_chance, 'lion': below}
  )
  assert group.verdict('arc_easy/acc').conclusion == 'chance'


def test_questions_are_paired_where_predictions_are_at_hand(duel):
  good = [1, 1, 1, 0] * 50
  worse = [1, 1, 1, 0] * 45 + [0, 0, 1, 0] * 5
  losses = {'adamw': (3.4,), 'lion': (3.5,)}
  verdict = duel(losses, {'adamw': good, 'lion': worse}).verdict('arc_easy/acc')
  assert verdict.differences['lion'].rule == 'questions, paired'
  assert verdict.differences['lion'].value == pytest.approx(10 / 200)
  assert verdict.conclusion == 'wins'


def test_questions_are_unpaired_without_predictions(duel):
  good = [1, 1, 1, 0] * 50
  worse = [1, 1, 1, 0] * 45 + [0, 0, 1, 0] * 5
  losses = {'adamw': (3.4,), 'lion': (3.5,)}
  group = duel(losses, {'adamw': good, 'lion': worse}, predictions=False)
  verdict = group.verdict('arc_easy/acc')
  assert verdict.differences['lion'].rule == 'questions, unpaired'
  assert verdict.conclusion == 'tie'


def test_unlike_questions_are_not_compared(duel):
  group = duel(
    {'adamw': (3.4,), 'lion': (3.5,)},
    {'adamw': [1, 1, 0, 1] * 50, 'lion': [1, 0, 1, 0] * 40},
  )
  assert group.verdict('arc_easy/acc').conclusion == 'incomparable'
  assert any('160 questions' in line for line in group.warnings)


def test_unlike_machines_leave_times_uncompared(duel, tmp_path):
  duel({'adamw': (3.4, 3.41), 'lion': (3.5, 3.51)})
  for path in tmp_path.glob('lion-*/env.json'):
    env = json.loads(path.read_text()) | {'device_kind': 'NVIDIA H100'}
    path.write_text(json.dumps(env))
  (group,) = comparison.compare(comparison.load_runs([tmp_path])).groups
  assert group.verdict('seconds').conclusion == 'incomparable'
  assert 'H100' in group.verdict('seconds').reason
  assert group.verdict('eval_loss').conclusion == 'wins'


def test_groups_hide_their_subjects(study_runs, tmp_path):
  settings = study_runs.config('gpt2', 'adamw', 0, 'final')
  study_runs.write_run(tmp_path / 'a', settings, 3.4, rows=20)
  right = {
    f'{task}/acc': [1, 0] * 5
    for task in ('mmlu', 'mmlu_stem', 'mmlu_anatomy', 'arc_easy')
  }
  study_runs.write_scores(tmp_path / 'a', right)
  result = comparison.compare(comparison.load_runs([tmp_path]))
  scored = [c.key for c in result.columns if c.kind == 'benchmark']
  assert scored == ['arc_easy/acc', 'mmlu/acc']


def test_runs_are_found_once_and_named_without_the_machine(study_dir):
  finals = study_dir / 'finals'
  runs = comparison.load_runs([study_dir, finals, finals / 'gpt2-lion'])
  assert len(runs) == 12 + 26
  assert {run.name.split('/')[0] for run in runs} == {'finals', 'trials'}


def test_a_line_being_written_is_left_for_later(study_runs, tmp_path):
  settings = study_runs.config('gpt2', 'adamw', 0, 'final')
  path = tmp_path / 'run'
  study_runs.write_run(path, settings, 3.4, status='unfinished', rows=20)
  metrics = path / 'metrics.jsonl'
  rows = len(metrics.read_text().splitlines())
  with metrics.open('a') as file:
    file.write('{"step": 400, "tok')
  (run,) = comparison.load_runs([tmp_path])
  assert len(run.rows) == rows
  metrics.write_text('{"step"\n' + metrics.read_text())
  with pytest.raises(ValueError, match='metrics.jsonl:1: not valid JSON'):
    comparison.load_runs([tmp_path])


def test_errors_say_what_where_and_what_to_do(study_runs, tmp_path):
  with pytest.raises(FileNotFoundError, match='no such directory'):
    comparison.load_runs([tmp_path / 'nowhere'])
  with pytest.raises(FileNotFoundError, match='no run in it'):
    comparison.load_runs([tmp_path])
  settings = study_runs.config('gpt2', 'adamw', 0, 'final')
  study_runs.write_run(tmp_path / 'run', settings, 3.4, rows=20)
  config = pathlib.Path(tmp_path / 'run' / 'config.json')
  text = config.read_text()
  config.write_text(text[:40])
  with pytest.raises(ValueError, match='config.json: not valid JSON'):
    comparison.load_runs([tmp_path])
  config.write_text('{"seed": 0}')
  with pytest.raises(ValueError, match='lacks stage'):
    comparison.load_runs([tmp_path])
  config.write_text(text.replace('"final"', '"other"'))
  with pytest.raises(ValueError, match='stage is'):
    comparison.compare(comparison.load_runs([tmp_path]))

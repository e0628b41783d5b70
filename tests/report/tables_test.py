"""Run directories and the tables of a report, read into frames."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from steepest.report import report, runs, tables, verdicts
from steepest.training import config as config_lib


@pytest.fixture(scope='module')
def study(study_runs, tmp_path_factory):
  root = tmp_path_factory.mktemp('study')
  study_runs.write_study(root, models=('gpt2',))
  return root


@pytest.fixture
def run_dir(study_runs, tmp_path):
  config = study_runs.config('gpt2', 'adamw', 0, 'final', steps=3000)
  study_runs.write_run(tmp_path / 'run', config, 3.0, rows=3000)
  return tmp_path / 'run'


@pytest.fixture
def known():
  return runs.Known(**config_lib.known())


def _rows(run_dir):
  return [json.loads(x) for x in (run_dir / 'metrics.jsonl').open()]


@pytest.mark.parametrize('nested', ['[', '{"a": '])
def test_deep_rows_are_named(run_dir, known, nested):
  """Arrow's own reader ends the process on these."""
  close = {'[': ']', '{"a": ': '}'}[nested]
  deep = nested * 50_000 + '1' + close * 50_000
  with (run_dir / 'metrics.jsonl').open('a') as rows:
    rows.write(f'{{"step": 3000, "lr": {deep}}}\n{{"step": 3001}}\n')
  with pytest.raises(
    ValueError, match='metrics.jsonl.*nest|metrics.jsonl.*deep'
  ):
    tables.read([run_dir], known)


@pytest.mark.parametrize('row', ['null', '{"step": 3000} null', '3', ' {}'])
def test_rows_that_are_no_objects_are_named(run_dir, known, row):
  """Arrow's own reader ends the process on the first."""
  with (run_dir / 'metrics.jsonl').open('a') as rows:
    rows.write(f'{row}\n{{"step": 3001}}\n')
  with pytest.raises(ValueError, match=r'metrics\.jsonl'):
    tables.read([run_dir], known)


def test_names_that_are_no_unicode_are_named(run_dir, known):
  with (run_dir / 'metrics.jsonl').open('ab') as rows:
    rows.write(b'{"step": 3000, "l\xfer": 1.0}\n{"step": 3001}\n')
  with pytest.raises(ValueError, match=r'metrics\.jsonl, line \d+: .*utf-8'):
    tables.read([run_dir], known)


def test_a_run_is_a_row(study):
  found = tables.read([study])
  runs = found.runs.set_index('run')
  run = runs.loc['finals/gpt2-sophia/seed=1']
  path = study / 'finals/gpt2-sophia/seed=1'
  summary = json.loads((path / 'summary.json').read_text())
  config = json.loads((path / 'config.json').read_text())
  for key in ('eval_loss', 'train_loss', 'tokens', 'flops', 'curvature_passes'):
    assert run[key] == summary[key]
  assert run['group'] == 'gpt2' and run['status'] == 'finished'
  assert run['first_loss'] == _rows(path)[0]['train/loss']
  assert tables.config(run, 'optimizer.betas') == config['optimizer']['betas']
  assert tables.hyperparameters(run)['b2'] == config['optimizer']['betas'][1]
  # A horizon stands for what it decides; shares of the run in its tokens.
  share = {**run, 'config.optimizer.b2_half_life': 0.25}
  held = tables.hyperparameters(share)
  assert held['b2_half_life'] == run['planned_tokens'] / 4 and 'b2' not in held
  # What the auxiliary AdamW takes over is not free either. No value is no JSON.
  changed = {'weight_decay': 0.25, 'auxiliary_weight_decay': 0.25}
  changed |= {'auxiliary_lr': 0.5, 'memory_save_mode': ''}
  changed = {f'config.optimizer.{key}': x for key, x in changed.items()}
  held = tables.hyperparameters({**run, **changed})
  assert held['auxiliary_lr'] == 0.5 and 'memory_save_mode' not in held
  assert 'auxiliary_weight_decay' not in held and held['weight_decay'] == 0.25
  # Trials served the final runs of the same cell.
  assert run['cell'] == runs.loc['trials/gpt2-sophia/lr=0.0008', 'cell']
  diverged = runs.loc['trials/gpt2-sophia/lr=0.0032']
  assert diverged['status'] == 'diverged' and diverged['loss'] == np.inf


def test_a_run_that_has_just_begun_leaves_numbers_numbers(study, tmp_path):
  begun = tmp_path / 'begun'
  shutil.copytree(study / 'finals/gpt2-sophia/seed=1', begun)
  (begun / 'summary.json').unlink()
  (begun / 'metrics.jsonl').write_text('')
  found = tables.read([study, begun])
  assert (found.runs['status'] == 'unfinished').sum() == 1
  assert found.points['tokens'].dtype.kind == 'f'


def test_scores_and_answers(study):
  found = tables.read([study])
  path = study / 'finals/gpt2-lion/seed=0/eval/results.json'
  metrics = json.loads(path.read_text())['metrics']['arc_easy']
  of = found.scores[found.scores['run'] == 'finals/gpt2-lion/seed=0']
  row = of.set_index(['task', 'metric']).loc[('arc_easy', 'acc')]
  assert row['value'] == metrics['acc'] and row['n'] == metrics['n']
  a = found.answers
  a = a[(a['run'] == 'finals/gpt2-lion/seed=0') & (a['task'] == 'arc_easy')]
  assert a[a['metric'] == 'acc']['right'].mean() == pytest.approx(
    metrics['acc']
  )


def test_long_curves_are_thinned_to_means_and_evaluations_kept(run_dir):
  rows = _rows(run_dir)
  points = tables.read([run_dir]).points
  assert len(points) < 800
  kept = points[points['eval/loss'].notna()]
  logged = [r for r in rows if 'eval/loss' in r]
  assert list(kept['eval/loss']) == [r['eval/loss'] for r in logged]
  assert list(kept['step']) == [r['step'] for r in logged]
  first, second = points.iloc[0], points.iloc[1]
  assert first['train/loss'] == rows[0]['train/loss']
  between = [r for r in rows if 0 < r['step'] <= second['step']]
  assert second['train/loss'] == pytest.approx(
    np.mean([r['train/loss'] for r in between])
  )
  assert points['step'].iloc[-1] == rows[-1]['step']


def test_a_half_written_last_line_is_none(run_dir):
  before = tables.read([run_dir]).points
  with (run_dir / 'metrics.jsonl').open('a') as out:
    out.write('{"step": 300')
  pd.testing.assert_frame_equal(tables.read([run_dir]).points, before)


@pytest.mark.parametrize(
  ('file', 'content', 'message'),
  [
    ('config.json', '{', 'not valid JSON'),
    ('config.json', '[]', 'holds no JSON object'),
    ('config.json', '{"seed": 1}', 'lacks stage'),
    ('metrics.jsonl', '{\n{"step": 0}\n', 'line 1: not valid JSON'),
    ('metrics.jsonl', '3\n', 'not a JSON object'),
    ('summary.json', '{"status": "finished"}', 'lacks steps'),
    ('env.json', 'x', 'not valid JSON'),
  ],
)
def test_damaged_files_are_named(run_dir, file, content, message):
  (run_dir / file).write_text(content)
  with pytest.raises(ValueError, match=message) as error:
    tables.read([run_dir])
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  ('file', 'path', 'value'),
  [
    ('config.json', ('optimizer', 'betas', 1), 10**400),
    ('config.json', ('model', 'num_layers'), 'x'),
    ('config.json', ('steps',), -1),
    ('config.json', ('model', 'norm_eps'), 'x'),
    ('config.json', ('seed',), ['[' * 100_000]),
    ('summary.json', ('status',), 5),
    ('summary.json', ('eval_loss_by_source',), {'web': 'low'}),
    ('env.json', ('device_kind',), {}),
    ('metrics.jsonl', ('lr',), True),
    ('metrics.jsonl', ('step',), 1e308),
    ('eval/predictions.jsonl', ('doc_id',), [[1]]),
    ('eval/results.json', ('metrics', 'mmlu', 'acc'), '\ud800'),
    ('../config.json', ('study', 'lrs_lion'), [1e-3, 'x']),
    ('../timing.json', ('groups', 0, 'repeats', 1), None),
    ('../timing.json', ('device',), []),
  ],
)
def test_values_of_other_kinds_are_named(
  study_runs, run_dir, known, file, path, value
):
  study_runs.write_scores(run_dir, {'mmlu/acc': [0, 1, 1]})
  plan = {'study': {'lrs_lion': [1e-3, 2e-3]}}
  (run_dir.parent / 'config.json').write_text(json.dumps(plan))
  repeat = {'optimizer': 'lion', 'seconds_per_step': [0.1, 0.2]}
  groups = [{'group': {'architecture': 'gpt2'}, 'repeats': [repeat] * 2}]
  timing = {'device': 'cpu', 'commit': 'abc', 'groups': groups}
  (run_dir.parent / 'timing.json').write_text(json.dumps(timing))
  tables.read([run_dir.parent], known)
  first, *others = (run_dir / file).read_text().splitlines()
  content = json.loads(first)
  *parents, last = path
  place = content
  for key in parents:
    place = place[key]
  place[last] = value
  changed = json.dumps(content).replace('"[[', '[[')
  (run_dir / file).write_text('\n'.join([changed, *others]))
  with pytest.raises(ValueError, match=file.removeprefix('../')) as error:
    tables.read([run_dir.parent], known)
  assert len(str(error.value)) < 500 and '\n' not in str(error.value)


def test_what_is_not_there_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match='no such directory'):
    tables.read([tmp_path / 'none'])
  with pytest.raises(FileNotFoundError, match='no run in it'):
    tables.read([tmp_path])


@pytest.mark.parametrize('suffix', ['parquet', 'csv'])
def test_written_tables_are_read_again(study, tmp_path, suffix):
  found = tables.read([study])
  tables.write(found, tmp_path / 'tables', suffix)
  again = tables.read([tmp_path])
  pd.testing.assert_frame_equal(
    verdicts.compare(again).verdicts, verdicts.compare(found).verdicts
  )
  # CSV has no word for an empty text.
  for name in tables.NAMES if suffix == 'parquet' else ():
    frame = getattr(found, name)
    if len(frame):
      pd.testing.assert_frame_equal(
        getattr(again, name), frame, check_dtype=False
      )
  # Runs that are there in both forms count once.
  both = tables.read([study, tmp_path])
  for name in ('runs', 'points', 'scores'):
    assert list(getattr(both, name)['run']) == list(getattr(found, name)['run'])


def test_keys_that_older_runs_lack_have_the_default(run_dir):
  config = json.loads((run_dir / 'config.json').read_text())
  del config['optimizer']['clip_norm']
  config['data']['old'] = 1
  (run_dir / 'config.json').write_text(json.dumps(config))
  defaults = {'optimizer': {'clip_norm': 1.0}, 'dtype.moments': 'float32'}
  known = runs.Known(defaults, ['data.old'])
  run = tables.read([run_dir], known).runs.iloc[0]
  assert run['config.optimizer.clip_norm'] == 1.0
  assert run['config.dtype.moments'] == 'float32'
  assert 'config.data.old' not in run


def test_runs_are_grouped_by_the_axes_that_a_study_declares(
  study_runs, tmp_path
):
  study_runs.write_axis_study(tmp_path, models=('gpt2',), seeds=1, rows=5)
  found = tables.read([tmp_path])
  assert [(axis.name, axis.own) for axis in found.axes] == [
    ('epochs', 1),
    ('tokens', 400 * 16 * study_runs.CONTEXT),
  ]
  assert found.runs['group'].nunique() == 4
  assert 'gpt2, epochs 4, tokens 409,600' in set(found.runs['group'])
  # One search serves all of them, as none is searched anew.
  assert found.runs['cell'].nunique() == 3


def test_an_optimizer_outside_is_called_what_its_file_says(run_dir, tmp_path):
  path, env = run_dir / 'config.json', run_dir / 'env.json'
  config = json.loads(path.read_text())
  for name, shown in (('/a b/mine.py', 'mine'), ('mine.python', 'mine.python')):
    config['optimizer']['name'] = name
    path.write_text(json.dumps(config))
    assert tables.read([run_dir]).runs['optimizer'].tolist() == [shown]
  config['optimizer']['name'] = '/a b/mine.py'
  path.write_text(json.dumps(config))
  said = {'name': 'own', 'label': '<i>Own', 'has_mup_rule': False}
  env.write_text(json.dumps(json.loads(env.read_text()) | {'optimizer': said}))
  found = tables.read([run_dir])
  tables.write(found, tmp_path / 'tables', 'csv')
  # Labels stand in the tables too.
  for tables_ in (found, tables.read([tmp_path / 'tables'])):
    assert tables_.runs['optimizer'].tolist() == ['own']
    report.write(verdicts.compare(tables_), tmp_path / 'report', [])
    for file in ('report.md', 'report.html'):
      text = (tmp_path / 'report' / file).read_text('utf-8')
      assert text.count('No µP rule is known for &lt;i&gt;Own: ') == 1
      assert '<i>Own' not in text

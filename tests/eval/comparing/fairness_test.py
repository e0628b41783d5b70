"""What is left out of a comparison, and what is said about it."""

import json

import pytest

from steepest.eval.comparing import comparison, fairness


@pytest.fixture
def write(study_runs, tmp_path):
  """Writes a final GPT-2 run; returns its directory."""

  def write_run(name, optimizer='adamw', seed=0, changes=None, **kwargs):
    settings = study_runs.config(
      'gpt2', optimizer, seed, 'final', **(changes or {})
    )
    kwargs = {'rows': 20} | kwargs
    study_runs.write_run(tmp_path / name, settings, 3.4, **kwargs)
    return tmp_path / name

  return write_run


@pytest.fixture
def select(tmp_path):
  return lambda: fairness.select(comparison.load_runs([tmp_path]))


def _names(runs):
  return [run.name.rpartition('/')[2] for run in runs]


@pytest.mark.parametrize(
  'changes',
  [
    {'batch_size': 32},
    {'steps': 300},
    {'schedule__kind': 'linear'},
    {'schedule__warmup_steps': 5},
    {'optimizer__clip_norm': 0.0},
    {'optimizer__decay_mode': 'times_lr'},
    {'dtype__compute': 'float32'},
    {'parametrization__kind': 'sp'},
    {'model__width': 512},
    {'model__context': 128},
    {'data__shuffle': False},
    {'data__epochs': 4},
    {'eval_sequences': 8},
  ],
)
def test_a_run_that_differs_is_left_out_by_name(write, select, changes):
  write('a')
  write('b', 'lion')
  write('odd', 'sophia', changes=changes)
  selection = select()
  assert set(selection.cells) == {'adamw', 'lion'}
  (entry,) = selection.left_out
  key = next(iter(changes)).replace('__', '.')
  assert _names([entry.run]) == ['odd']
  assert any(reason.startswith(f'{key} is ') for reason in entry.reasons)


def test_other_data_are_found_by_their_fingerprint(write, select):
  write('a')
  write('b', 'lion')
  write('odd', 'sophia', fingerprint='beef')
  (entry,) = select().left_out
  assert 'data fingerprint is "beef"' in entry.reasons[0]


@pytest.mark.parametrize(
  'changes',
  [
    {'microbatches': 4},
    {'mesh__data': 8},
    {'data__source': 'shards:elsewhere'},
    {'optimizer__rho': 0.01},
    {'optimizer__weight_decay': 0.0},
    {'optimizer__hessian_every': 5},
    {'optimizer__hessian_subset': 2},
    {'checkpoint_every': 7},
  ],
)
def test_what_may_differ_may_differ(write, select, changes):
  write('a')
  write('b', 'sophia', changes=changes)
  selection = select()
  assert set(selection.cells) == {'adamw', 'sophia'}
  assert not selection.left_out


def test_only_shared_seeds_are_compared(write, select):
  for seed in (0, 1, 2):
    write(f'a{seed}', 'adamw', seed)
  for seed in (1, 2, 3):
    write(f'l{seed}', 'lion', seed)
  selection = select()
  assert selection.seeds == (1, 2)
  assert [run.seed for run in selection.cells['lion']] == [1, 2]
  assert _names([e.run for e in selection.left_out]) == ['a0', 'l3']
  assert selection.left_out[0].reasons == ('seed 0: not finished for lion',)


def test_a_cell_without_a_shared_seed_drops_out(write, select):
  for seed in (0, 1):
    write(f'a{seed}', 'adamw', seed)
    write(f'l{seed}', 'lion', seed)
  write('s7', 'sophia', 7)
  selection = select()
  assert set(selection.cells) == {'adamw', 'lion'}
  assert selection.seeds == (0, 1)
  assert _names([e.run for e in selection.left_out]) == ['s7']


def test_a_cell_keeps_one_setting_and_no_repetition(write, select):
  for seed in (0, 1):
    write(f'a{seed}', 'adamw', seed)
    write(f'l{seed}', 'lion', seed)
  write('other-lr', 'lion', 0, changes={'optimizer__lr': 0.5})
  write('twin', 'adamw', 0)
  left_out = {e.run.name: e.reasons for e in select().left_out}
  assert left_out['twin'] == ('repeats a0',)
  assert left_out['other-lr'][0].startswith('optimizer.lr is 0.5')


def test_diverged_and_unfinished_runs_are_listed_apart(write, select):
  write('a')
  write('b', 'lion', status='diverged', stop=120)
  write('c', 'sophia', status='unfinished', stop=60)
  selection = select()
  assert set(selection.cells) == {'adamw'}
  assert _names(selection.diverged) == ['b']
  assert _names(selection.unfinished) == ['c']
  assert not selection.left_out


def test_nothing_ended_yet(write, select):
  write('c', status='unfinished', stop=60)
  selection = select()
  assert not selection.cells and selection.seeds == ()


def test_architectures_do_not_mix(study_runs, tmp_path):
  for model in ('gpt2', 'llama'):
    settings = study_runs.config(model, 'adamw', 0, 'final')
    study_runs.write_run(tmp_path / model, settings, 3.4, rows=20)
  with pytest.raises(ValueError, match='one architecture'):
    fairness.select(comparison.load_runs([tmp_path]))


def test_a_warm_up_that_was_tuned_may_differ(write, select, tmp_path):
  write('a')
  write('b', 'lion', changes={'schedule__warmup_steps': 5})
  assert set(select().cells) != {'adamw', 'lion'}
  study = {'study': {'space_warmup_steps': [5, 50]}}
  (tmp_path / 'config.json').write_text(json.dumps(study))
  assert set(select().cells) == {'adamw', 'lion'}


def _start_at(path, loss):
  """Changes the loss that is logged before the first update."""
  lines = (path / 'metrics.jsonl').read_text().splitlines()
  first = json.loads(lines[0]) | {'train/loss': loss}
  text = '\n'.join([json.dumps(first), *lines[1:], ''])
  (path / 'metrics.jsonl').write_text(text)


def test_other_initial_weights_are_left_out(write, select):
  for seed in (0, 1):
    write(f'a{seed}', 'adamw', seed)
    write(f'l{seed}', 'lion', seed)
    path = write(f's{seed}', 'sophia', seed)
  _start_at(path, 8.9)
  selection = select()
  assert set(selection.cells) == {'adamw', 'lion', 'sophia'}
  assert selection.seeds == (0,)
  reasons = {_names([e.run])[0]: e.reasons for e in selection.left_out}
  assert 'its loss before the first update is 8.9, not 8.8' in reasons['s1'][0]
  assert reasons['a1'] == ('seed 1: not finished for sophia',)


def test_rounding_is_not_another_start(write, select):
  write('a')
  _start_at(write('b', 'lion'), 8.8 * (1 + 5e-4))
  # The fixture computes in bfloat16.
  assert set(select().cells) == {'adamw', 'lion'}


def test_a_run_without_its_first_row_is_taken_at_its_word(write, select):
  write('a')
  path = write('b', 'lion')
  lines = (path / 'metrics.jsonl').read_text().splitlines(keepends=True)
  (path / 'metrics.jsonl').write_text(''.join(lines[1:]))
  assert set(select().cells) == {'adamw', 'lion'}


def test_runs_older_than_a_key_have_its_default(write, tmp_path):
  write('a')
  path = write('b', 'lion') / 'config.json'
  config = json.loads(path.read_text())
  del config['dtype']['params'], config['data']['mixture']
  path.write_text(json.dumps(config))
  selection = fairness.select(comparison.load_runs([tmp_path]))
  assert len(selection.cells) == 1
  defaults = {'dtype': {'params': 'float32'}, 'data': {'mixture': ''}}
  runs = comparison.load_runs([tmp_path], defaults)
  assert set(fairness.select(runs).cells) == {'adamw', 'lion'}


def test_times_of_a_busy_machine_are_told(write, tmp_path):
  paths = [write('a', rows=100), write('b', 'lion', rows=100)]
  (group,) = comparison.compare(comparison.load_runs([tmp_path])).groups
  assert not any('idle' in line for line in group.warnings)
  rows = [
    json.loads(line)
    for line in (paths[1] / 'metrics.jsonl').read_text().splitlines()
  ]
  # Half as fast in the second half.
  middle = rows[len(rows) // 2]['seconds']
  for row in rows:
    row['seconds'] += max(0.0, row['seconds'] - middle)
  text = ''.join(json.dumps(row) + '\n' for row in rows)
  (paths[1] / 'metrics.jsonl').write_text(text)
  runs = comparison.load_runs([tmp_path])
  variations = [fairness.speed_variation(run) for run in runs]
  assert variations == pytest.approx([1.0, 2.0], abs=1e-6)
  (group,) = comparison.compare(runs).groups
  (line,) = group.warnings
  assert '1 of 2 runs were up to 2.0 times as slow' in line

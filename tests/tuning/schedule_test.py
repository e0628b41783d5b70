"""Schedules of several processes, with runs that are only pretended."""

import json
import math
import pathlib

from hypothesis import given, settings, strategies as st
import pytest

from steepest.experiments import base
from steepest.tuning import cells, locks, schedule


def _config(**study):
  config = base.get_study_config()
  config.steps, config.log_every = 40, 1
  config.study.update(
    models='gpt2,llama', optimizers='adamw,sophia', target_steps=60
  )
  config.study.lrs_adamw = config.study.lrs_sophia = (1e-3, 2e-3, 4e-3, 8e-3)
  config.study.update(study)
  return config


def _loss(run):
  o = run['optimizer']
  loss = math.log(o['lr'] / 3e-3) ** 2 + math.log(o['rho'] / 0.05) ** 2 / 10
  return 3.0 + loss


class _Process:
  """A process of a study; `train` writes what a worker would."""

  def __init__(self, config, workdir, name, done):
    self.locks = locks.Locks(
      workdir, 1e6, owner={**locks.describe_owner(), 'machine': name}
    )
    self.best = {}
    todo = cells.cells(config)
    self.failed = {}
    self.schedule = schedule.Schedule(
      config,
      workdir,
      todo,
      self.locks,
      self.best.__setitem__,
      self.failed.__setitem__,
    )
    self.busy = {}
    self._done = done
    self._config = config

  def begin(self, worker):
    task = self.schedule.take(worker)
    if task is not None:
      self.busy[worker] = task
    return task

  def finish(self, worker):
    task = self.busy.pop(worker)
    job = task.job
    self._train(job['config'], pathlib.Path(job['directory']), job['watch'])
    self.schedule.ended(worker, None)

  def _train(self, config, directory, watch):
    self._done.append(directory)
    final = _loss(config)
    steps, status = config['steps'], 'finished'
    limits = dict(watch['limits']) if watch else {}
    rows = []
    for step in range(steps):
      rows.append({'step': step, 'train/loss': final + 5 / (step + 1)})
      if step + 1 in limits and final + 5 / step > limits[step + 1]:
        steps, status = step + 1, 'pruned'
        break
    (directory / 'config.json').write_text(json.dumps(config))
    text = ''.join(json.dumps(row) + '\n' for row in rows)
    (directory / 'metrics.jsonl').write_text(text)
    summary = {
      'status': status,
      'steps': steps,
      'train_loss': final,
      'eval_loss': None if status == 'pruned' else final,
    }
    (directory / 'summary.json').write_text(json.dumps(summary))


def _finish(processes, workers=2):
  """Lets processes work in turn until nothing is left."""
  for _ in range(2000):
    for process in processes:
      for worker in range(workers):
        if worker in process.busy:
          process.finish(worker)
        else:
          process.begin(worker)
    if all(process.schedule.over for process in processes):
      return
  raise AssertionError('the study does not end')


def _names(done, workdir):
  return sorted(str(directory.relative_to(workdir)) for directory in done)


@pytest.mark.parametrize(
  'study',
  [
    {},
    {'axis_epochs': (1, 4), 'axis_tokens': (2,), 'retune': 'tokens'},
    {'axis_schedule': 'wsd', 'axis_tokens': (2, 4), 'axes_mode': 'product'},
    {'search': 'random', 'trials': 8, 'space_rho': (0.01, 0.2)},
    {
      'search': 'random',
      'trials': 12,
      'pruning': 'median',
      'pruning_trials': 3,
    },
  ],
)
def test_two_processes_do_what_one_does_once(study, tmp_path):
  config = _config(**study)
  alone: list[pathlib.Path] = []
  _finish([_Process(config, tmp_path / 'one', 'a', alone)])
  together: list[pathlib.Path] = []
  processes = [
    _Process(config, tmp_path / 'two', name, together) for name in 'ab'
  ]
  _finish(processes)
  assert _names(together, tmp_path / 'two') == _names(alone, tmp_path / 'one')
  assert len(set(together)) == len(together)
  one, two = (
    {
      path.relative_to(root): json.loads(path.read_text())
      for path in root.rglob('summary.json')
    }
    for root in (tmp_path / 'one', tmp_path / 'two')
  )
  assert one == two
  finals = [p for p in one if p.parts[0] == 'finals']
  assert len(finals) == len(cells.cells(config)) * 2
  if 'pruning' in study:
    assert any(summary['status'] == 'pruned' for summary in one.values())
  # Every lock was given back.
  assert not list((tmp_path / 'two').rglob('.lock-*'))


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), max_size=60))
@settings(max_examples=10, deadline=None)
def test_in_any_order_no_run_is_done_twice(tmp_path_factory, moves):
  workdir = tmp_path_factory.mktemp('study')
  done: list[pathlib.Path] = []
  config = _config(models='gpt2')
  processes = [_Process(config, workdir, name, done) for name in 'ab']
  for process, worker in moves:
    if worker in processes[process].busy:
      processes[process].finish(worker)
    else:
      processes[process].begin(worker)
    busy = [task.directory for p in processes for task in p.busy.values()]
    assert len(set(busy)) == len(busy)
  _finish(processes)
  assert len(set(done)) == len(done)


def test_a_killed_process_leaves_its_runs_to_the_next(tmp_path):
  config = _config()
  done: list[pathlib.Path] = []
  first = _Process(config, tmp_path, 'a', done)
  for _ in range(3):
    first.begin(0)
    first.finish(0)
  first.begin(0)
  open_run = first.busy[0].directory
  # It dies: on another machine its lock would have to expire first.
  (lock,) = open_run.glob('.lock-*')
  owner = json.loads(lock.read_text())
  lock.write_text(json.dumps({**owner, 'machine': 'b', 'process': 2**22 + 1}))
  _finish([_Process(config, tmp_path, 'b', done)])
  assert open_run in done
  assert len(set(done)) == len(done)


def test_workers_stay_with_what_they_compiled(tmp_path):
  process = _Process(_config(), tmp_path, 'a', [])
  stages = []
  while not process.schedule.over:
    task = process.begin(0)
    if task is not None:
      stages.append(task.stage)
      process.finish(0)
  changes = sum(a != b for a, b in zip(stages, stages[1:]))
  assert changes == 2 * 4 - 1


def test_an_axis_that_is_added_does_nothing_again(tmp_path):
  done: list[pathlib.Path] = []
  _finish([_Process(_config(), tmp_path, 'a', done)])
  before = _names(done, tmp_path)
  more = _config(axis_epochs=(1, 4), axis_batch_size=(256,))
  process = _Process(more, tmp_path, 'a', done)
  _finish([process])
  new = [n for n in _names(done, tmp_path) if n not in before]
  assert len(done) == len(before) + len(new)
  assert new == sorted(
    f'finals/{model}-{optimizer}-{value}/seed={seed}'
    for model in ('gpt2', 'llama')
    for optimizer in ('adamw', 'sophia')
    for value in ('epochs=4', 'batch_size=256')
    for seed in (0, 1)
  )
  # They have the rates of the searches that there were.
  best = {str(cell): values['lr'] for cell, values in process.best.items()}
  for name in new:
    run = json.loads((tmp_path / name / 'config.json').read_text())
    assert run['optimizer']['lr'] == best['-'.join(name[7:].split('-')[:2])]


def test_a_search_that_fails_takes_the_cells_that_it_serves(tmp_path):
  config = _config(
    axis_epochs=(4,), axis_schedule='wsd', retune='schedule', models='gpt2'
  )
  process = _Process(config, tmp_path, 'a', [])
  task = process.begin(0)
  process.busy.clear()
  process.schedule.ended(0, 'out of memory')
  _finish([process])
  assert task.stage.cell == cells.Cell('gpt2', 'adamw')
  assert [str(cell) for cell in process.schedule.failures] == [
    'gpt2-adamw',
    'gpt2-adamw-epochs=4',
  ]


def test_idle_workers_join_in(tmp_path):
  config = _config(models='gpt2', optimizers='adamw')
  process = _Process(config, tmp_path, 'a', [])
  tasks = [process.begin(worker) for worker in range(5)]
  assert len({task.directory for task in tasks[:4]}) == 4
  assert tasks[4] is None
  todo = cells.cells(config)
  assert schedule.breadth(config, todo) == 4
  assert schedule.breadth(_config(), cells.cells(_config())) == 16
  with config.unlocked():
    config.study.pruning = 'median'
  assert schedule.breadth(config, todo) == config.study.seeds


def test_pruned_searches_go_one_after_another(tmp_path):
  config = _config(models='gpt2', optimizers='adamw', pruning='median')
  process = _Process(config, tmp_path, 'a', [])
  assert process.begin(0) is not None
  assert process.begin(1) is None


def test_a_cell_that_fails_leaves_the_others(tmp_path):
  process = _Process(_config(max_extensions=0), tmp_path, 'a', [])
  broken = process.begin(0).stage.cell
  process.busy.clear()
  process.schedule.ended(0, 'out of memory')
  _finish([process])
  assert process.schedule.failures == {broken: 'out of memory'}
  assert process.failed == process.schedule.failures
  assert len(process.best) == 3

"""What comes next in a study, with runs that are only pretended."""

import collections
import json
import math
import os
import random

from hypothesis import given, settings, strategies as st
import pytest

from steepest.experiments import base
from steepest.training import config as config_lib
from steepest.tuning import (
  cells,
  pruning,
  search,
  study as studies,
)

_LRS = (1e-3, 2e-3, 4e-3, 8e-3)


@pytest.fixture(scope='module', autouse=True)
def _no_disk():
  """Machines fail in no test of these: what is written need not be synced."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(os, 'fsync', lambda file: None)
    yield


def _config(**study):
  config = base.get_study_config()
  config.steps, config.log_every = 40, 1
  config.study.update(
    models='gpt2,llama',
    optimizers='adamw,sophia',
    target_steps=60,
    search='grid',
    space='lr',
  )
  config.study.lrs_adamw = config.study.lrs_sophia = _LRS
  config.study.update(study)
  return config


def _loss(config, step):
  o = config['optimizer']
  # Sophia's alone.
  rho = o['rho'] if 'rho' in o else 0.05
  loss = math.log(o['lr'] / 3e-3) ** 2 + math.log(rho / 0.05) ** 2 / 10
  return 3.0 + loss + config['seed'] / 100 + 5 / (step + 1)


class _Slots:
  """Slots of a study; a run that ends leaves what a worker would."""

  def __init__(self, config, workdir):
    self.study = studies.Study(config, workdir)
    self.busy = {}
    self.done = []

  def begin(self, slot):
    if (run := self.study.take(slot)) is not None:
      assert run.directory not in {r.directory for r in self.busy.values()}
      self.busy[slot] = run
    return run

  def end(self, slot, error=None):
    run = self.busy.pop(slot)
    loss = None if error else self._train(run, self.study.job(run))
    self.study.end(slot, loss, error)

  def _train(self, run, job):
    self.done.append(str(run.directory.relative_to(self.study.workdir)))
    config, finished = job['config'], job['finished']
    pruner = pruning.MedianPruner(finished or [], config['steps'], 1)
    status, rows = 'finished', []
    for step in range(config['steps']):
      rows.append({'step': step, 'train/loss': _loss(config, step)})
      if pruner.ends(rows[-1]):
        status = 'pruned'
        break
    run.directory.mkdir(parents=True, exist_ok=True)
    resolved = config_lib.as_json(config_lib.resolve(run.config))
    (run.directory / 'config.json').write_text(json.dumps(resolved))
    text = ''.join(json.dumps(row) + '\n' for row in rows)
    (run.directory / 'metrics.jsonl').write_text(text)
    loss = rows[-1]['train/loss'] if status == 'finished' else None
    summary = {'status': status, 'steps': len(rows)}
    summary |= {'train_loss': loss, 'eval_loss': loss}
    (run.directory / 'summary.json').write_text(json.dumps(summary))
    return loss

  def finish(self, slots=1, order=None):
    """Works on until nothing is left; `order` draws who ends next."""
    while not self.study.over:
      for slot in range(slots):
        if slot not in self.busy:
          self.begin(slot)
      if self.busy:
        busy = sorted(self.busy)
        self.end(order.choice(busy) if order else busy[0])


def _left(workdir):
  """Returns what every run of a study left: values, status and loss."""
  found = {}
  for path in workdir.rglob('summary.json'):
    summary = json.loads(path.read_text())
    config = json.loads(path.with_name('config.json').read_text())
    name = str(path.parent.relative_to(workdir))
    found[name] = config['optimizer'], summary
  return found


_STUDIES = [
  {},
  {'axis_epochs': (1, 4), 'axis_tokens': (2,), 'retune': 'tokens'},
  {'pruning': 'median', 'search': 'sobol', 'parallel_trials': 2, 'trials': 12},
  {'search': 'tpe', 'trials': 6, 'space_rho': (0.01, 0.1), 'trial_seeds': 2},
]


@pytest.mark.parametrize('study', _STUDIES)
def test_any_number_of_slots_makes_the_same_study(study, tmp_path):
  config = _config(models='gpt2', **study)
  one = _Slots(config, tmp_path / 'one')
  one.finish()
  wanted = _left(tmp_path / 'one')
  assert sorted(one.done) == sorted(wanted)
  assert len([name for name in wanted if name.startswith('finals')]) == (
    2 * config.study.seeds * (3 if 'axis_epochs' in study else 1)
  )
  if 'pruning' in study:
    assert 'pruned' in {summary['status'] for _, summary in wanted.values()}
  for slots in (2, 5):
    many = _Slots(config, tmp_path / str(slots))
    many.finish(slots, random.Random(slots))
    assert _left(tmp_path / str(slots)) == wanted


@given(st.lists(st.integers(0, 3), max_size=40), st.sampled_from(_STUDIES))
@settings(max_examples=4, deadline=None)
def test_a_study_that_is_killed_goes_on(tmp_path_factory, moves, study):
  workdir = tmp_path_factory.mktemp('study')
  config = _config(models='gpt2', optimizers='sophia', **study)
  done = []
  for move in moves:
    if move == 3 or not done:
      # Whatever was under way is lost.
      done.append(_Slots(config, workdir))
    elif move in done[-1].busy:
      done[-1].end(move)
    else:
      done[-1].begin(move)
  last = _Slots(config, workdir)
  last.finish(2)
  names = [name for slots in [*done, last] for name in slots.done]
  assert len(names) == len(set(names))
  alone = tmp_path_factory.mktemp('alone')
  _Slots(config, alone).finish()
  assert _left(workdir) == _left(alone)


def test_a_failed_search_takes_the_cells_that_it_serves(tmp_path):
  config = _config(
    axis_epochs=(4,), axis_schedule=('wsd',), retune='schedule', models='gpt2'
  )
  slots = _Slots(config, tmp_path)
  assert str(slots.begin(0).stage.cell) == 'gpt2-adamw'
  slots.end(0, 'out of memory')
  slots.finish()
  assert {str(c): e for c, e in slots.study.failures.items()} == {
    'gpt2-adamw': 'out of memory',
    'gpt2-adamw-epochs=4': 'out of memory',
  }
  assert len([name for name in slots.done if 'finals' in name]) == 4 * 2


def test_idle_slots_join_in_and_others_stay_with_their_program(tmp_path):
  slots = _Slots(_config(models='gpt2'), tmp_path)
  assert slots.study.breadth() == 8
  began = [slots.begin(slot) for slot in range(9)]
  assert began[8] is None
  # One search each, then both together.
  assert len({run.stage for run in began[:2]}) == 2
  # Two slots finish the searches; each then trains what it has compiled.
  for slot in range(2, 8):
    slots.end(slot)
  for slot in (1, 0):
    slots.end(slot)
    assert slots.begin(slot).stage.cell == began[slot].stage.cell
  config = _config(models='gpt2', pruning='median', parallel_trials=3)
  assert _Slots(config, tmp_path / 'pruned').study.breadth() == 6


def test_trials_and_targets_of_other_meshes_take_turns(tmp_path):
  config = _config(models='gpt2')
  assert studies.phases(config, 1) == [(studies.KINDS, 1)]
  # Targets fill a machine, trials do not.
  apart = [(('trials',), 1), (('targets',), 8)]
  assert studies.phases(config, 8) == apart
  config.study.target = {'mesh': {'data': 1, 'fsdp': 2}}
  config.study.trial_mesh.tensor = 2
  assert studies.phases(config, 8) == [(studies.KINDS, 2)]
  slots = _Slots(config, tmp_path)
  assert slots.study.breadth(('trials',)) == 8
  assert slots.study.breadth(('targets',)) == 4
  while (run := slots.study.take(0, ('trials',))) is not None:
    assert run.config.mesh.tensor == 2
    slots.busy[0] = run
    slots.end(0)
  assert not [name for name in slots.done if 'finals' in name]
  run = slots.study.take(0, ('targets',))
  assert run.stage.kind == 'targets' and run.config.mesh.fsdp == 2


def test_best_rates_at_an_edge_are_named(tmp_path):
  slots = _Slots(
    _config(optimizers='adamw', lrs_adamw=(1e-5, 2e-5, 4e-5, 8e-5)), tmp_path
  )
  slots.finish()
  assert set(slots.study.failures) == set(slots.study.cells)
  for said in slots.study.failures.values():
    assert 'still at the edge after 4 extensions' in said


def test_what_was_begun_otherwise_is_refused(tmp_path):
  _Slots(_config(), tmp_path).finish()
  # All there is is kept where more is asked for.
  more = _Slots(_config(seeds=3, axis_epochs=(4,)), tmp_path)
  more.finish()
  assert len(more.done) == 4 + 4 * 3
  with pytest.raises(ValueError, match='started with study.search=grid'):
    studies.Study(_config(search='tpe'), tmp_path)


def test_searches_of_an_earlier_version_are_refused_until_they_are_over(
  tmp_path,
):
  config = _config()
  old = cells.trials_dir(tmp_path, cells.Cell('gpt2', 'adamw')) / 'lr=0.001'
  old.mkdir(parents=True)
  with pytest.raises(ValueError, match='of an earlier version') as error:
    studies.Study(config, tmp_path)
  assert '\n' not in str(error.value)
  assert not (tmp_path / search.JOURNAL).exists()
  for cell in cells.cells(config):
    for seed in range(config.study.seeds):
      target = cells.target_dir(tmp_path, cell, seed)
      target.mkdir(parents=True)
      (target / 'summary.json').write_text('{"status": "finished"}')
  assert studies.Study(config, tmp_path).over


@pytest.mark.parametrize('slots', [1, 3])
def test_cells_take_turns_where_the_time_may_end(slots, tmp_path):
  config = _config(
    models='gpt2',
    optimizers='adamw,lion,sophia',
    search='sobol',
    trials=8,
    axis_epochs=(4,),
    seeds=3,
    lrs_lion=_LRS,
  )
  wanted = _Slots(config, tmp_path / 'wanted')
  wanted.finish()
  found = _Slots(config, tmp_path / 'found')
  trials, targets = collections.Counter(), collections.Counter()
  order = random.Random(slots)
  while not found.study.over:
    for slot in set(range(slots)) - set(found.busy):
      if (
        run := found.study.take(slot, fits=lambda run, compiled: True)
      ) is None:
        continue
      found.busy[slot] = run
      cell, kind = run.stage
      if kind == 'trials':
        trials[cell.optimizer] += 1
        # Whenever the time ends, none is further by more than a quarter.
        counts = [trials[name] for name in ('adamw', 'lion', 'sophia')]
        assert max(counts) - min(counts) <= 2 or min(counts) >= 8
        continue
      targets[cell.point, cell.optimizer] += 1
      counts = [
        [targets[point, name] for name in ('adamw', 'lion', 'sophia')]
        for point in cells.points(config)
      ]
      # Searches come first, and the study's own point before another. Of
      # several slots some have nothing else to do while a search ends.
      if slots == 1:
        assert all(max(of) - min(of) <= 1 for of in counts)
        assert len(trials) == 3 and set(trials.values()) == {8}
        assert not cell.point or counts[0] == [3, 3, 3]
    if found.busy:
      found.end(order.choice(sorted(found.busy)))
  assert _left(tmp_path / 'found') == _left(tmp_path / 'wanted')


def test_what_does_not_fit_is_not_begun_and_comes_later(tmp_path):
  slots = _Slots(_config(models='gpt2'), tmp_path)
  short = lambda run, compiled: run.stage.cell.optimizer == 'sophia'
  done = []
  while (run := slots.study.take(0, fits=short)) is not None:
    slots.busy[0] = run
    slots.end(0)
    done.append(run)
  assert {run.stage.cell.optimizer for run in done} == {'sophia'}
  assert len(slots.study.left()) == 4 + 2
  # A run that was stopped has not ended.
  run = slots.study.take(0)
  slots.study.end(0, None, None, stopped=True)
  assert slots.study.take(0).directory == run.directory

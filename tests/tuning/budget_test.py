"""What fits into the minutes of a study."""

import json
import math
import time
import types

import pytest

from steepest.experiments import base
from steepest.training import chips
from steepest.tuning import (
  budget as budgets,
  cells,
  engine,
  stages,
  study as studies,
)

_LRS = (1e-3, 2e-3, 4e-3, 8e-3)


def _config(**study):
  config = base.get_study_config()
  config.steps, config.log_every = 40, 1
  config.study.update(
    models='gpt2',
    optimizers='adamw,sophia',
    target_steps=60,
    search='grid',
    space='lr',
    lrs_adamw=_LRS,
    lrs_sophia=_LRS,
    seeds=1,
  )
  config.study.update(study)
  return config


def test_what_is_left_takes_as_long_as_its_like_did(tmp_path):
  config = _config()
  study = studies.Study(config, tmp_path)
  runs = study.planned()
  assert len(runs) == 2 * 4 + 2
  with engine.InProcess() as slots:
    # Nothing can be read, so nothing can be timed.
    assert (
      budgets.Budget().estimate(study, slots, studies.KINDS) == '10 runs to do'
    )
  adamw, sophia = (
    [r for r in runs if str(r.stage.cell) == f'gpt2-{name}' and r.number]
    for name in ('adamw', 'sophia')
  )

  def finish(run, **seconds):
    run.directory.mkdir(parents=True)
    summary = {'status': 'finished', **seconds}
    (run.directory / 'summary.json').write_text(json.dumps(summary))

  for run in adamw:
    finish(run, seconds=9e4, eval_seconds=9e3, compile_seconds=1e3)
  ended = {run.directory for run in adamw}
  weights = [
    budgets.weight(run.config) for run in runs if run.directory not in ended
  ]
  pace = 9.9e4 / budgets.weight(adamw[0].config)
  # Trials and targets of both are compiled.
  hours = (pace * math.fsum(weights) + 4e3) / 3600
  with engine.local([engine.Place()] * 2) as slots:
    assert budgets.Budget().estimate(study, slots, studies.KINDS) == (
      f'about {hours / 2:.1f} hours on 2 workers for 7 runs, as 3 finished '
      'runs took'
    )
  # What is nearest to a run counts: its model and optimizer first.
  for run in sophia:
    finish(run, seconds=9.9e4)
  left = [run for run in runs if not cells.has_ended(run.directory)]
  paces = [9.9e4 / budgets.weight(of[0].config) for of in (adamw, sophia)]
  # No target has ended: they take as long as all that has.
  of_targets = [math.fsum(paces) / 2] * 2
  seconds = math.fsum(
    pace * budgets.weight(run.config)
    for pace, run in zip([*paces, *of_targets], left, strict=True)
  )
  seconds += 4e3
  with engine.InProcess() as slots:
    said = budgets.Budget().estimate(study, slots, studies.KINDS)
  assert said.startswith(f'about {seconds / 3600:.1f} hours on 1 worker for 4')


def test_runs_are_weighed_by_what_they_compute():
  config = base.get_study_config()
  config.optimizer.name = 'adamw'
  adamw = budgets.weight(config)
  config.optimizer.name = 'sophia'
  # A curvature estimate is another pass forward and back, every ten steps.
  assert budgets.weight(config) == pytest.approx(1.1 * adamw)
  config.optimizer.hessian_subset = 2
  assert budgets.weight(config) == pytest.approx(1.05 * adamw)
  config.steps *= 2
  assert budgets.weight(config) == pytest.approx(2.1 * adamw)


def test_runs_fit_as_a_simulation_of_their_places_says():
  item = lambda seconds, width=1, stage='', needs=None: budgets.Item(
    seconds, width, stage, needs
  )
  # Two places: 3 and 2 side by side, then 2 after the shorter one.
  assert budgets.fitting([item(3), item(2), item(2)], 2, 4) == [True] * 3
  assert budgets.fitting([item(3), item(2), item(2)], 2, 3.9) == [
    *(True, True, False)
  ]
  # One that takes both waits for both; a short one may still fit behind.
  wide = [item(1), item(3, width=2), item(2), item(3)]
  assert budgets.fitting(wide, 2, 5) == [True, True, False, False]
  assert budgets.fitting([*wide, item(1)], 2, 5)[-1]
  # A target whose search has not ended is not done, however short.
  last = [item(9, stage='search'), item(1, needs='search'), item(1)]
  assert budgets.fitting(last, 1, 5) == [False, False, True]


class _Timed:
  """An engine whose worker is on a machine that takes a second a step."""

  def __init__(self, compile_seconds=0, **machine):
    self.slots = range(1)
    times = {'seconds': 10.0, 'steps': 10, 'compile_seconds': compile_seconds}
    self._found = times, machine

  def submit(self, slot, function, job):
    del slot, function, job
    return types.SimpleNamespace(result=lambda: self._found)


def test_minutes_say_what_will_be_done_and_what_not(tmp_path, monkeypatch):
  now = 1e9
  monkeypatch.setattr(time, 'time', lambda: now)
  study = studies.Study(_config(optimizers='adamw,lion'), tmp_path)
  budget = budgets.Budget(6)
  here = _Timed(device_kind='h200')
  # Trials of 40 s take turns, targets of 60 s find no time.
  assert budget.estimate(study, here, studies.KINDS).splitlines() == [
    '6 minutes on 1 worker are enough for 8 of 10 runs, by some timed steps, '
    'validation and benchmarks not counted',
    'no time for targets of gpt2-adamw 1 of 1, gpt2-lion 1 of 1',
  ]
  budget = budgets.Budget(4)
  said = budget.estimate(study, here, studies.KINDS).splitlines()
  assert said[1] == 'no time for trials of gpt2-adamw 1 of 4, gpt2-lion 1 of 4'
  # A run that took twice as long corrects it.
  runs = study.planned()
  runs[0].directory.mkdir(parents=True)
  summary = {'status': 'finished', 'seconds': 70, 'eval_seconds': 10}
  (runs[0].directory / 'summary.json').write_text(json.dumps(summary))
  budget.add(runs[0])
  assert budget.change(study, here, studies.KINDS) == (
    'the time is enough for 4 of 10 runs now'
  )
  assert budget.change(study, here, studies.KINDS) == ''
  assert budget.fits(runs[1], True)
  now += 161
  assert not budget.fits(runs[1], True)
  # A target saves on its way: it begins if it gets to a checkpoint.
  target = runs[-1]
  target.config.checkpoint_every = 6
  assert budget.fits(target, True)
  now += 80
  assert not budget.fits(target, True)


def test_what_is_compiled_counts_once_a_turn(tmp_path):
  study = studies.Study(_config(), tmp_path)
  here = _Timed(compile_seconds=100.0)
  # Eight turns of a trial, 40 s each, and two targets of 60 s.
  whole = 8 * 140 + 2 * 160
  for minutes, count in ((whole / 60 + 1, 10), (whole / 60 - 1, 9)):
    budget = budgets.Budget(minutes)
    said = budget.estimate(study, here, studies.KINDS)
    assert f'enough for {count} of 10 runs' in said
  budget = budgets.Budget(2)
  budget.estimate(study, here, studies.KINDS)
  run = study.planned()[0]
  assert budget.fits(run, True) and not budget.fits(run, False)


def test_runs_of_another_machine_say_nothing_of_this_one(tmp_path):
  study = studies.Study(_config(), tmp_path)
  run = study.planned()[0]
  run.directory.mkdir(parents=True)
  summary = {'status': 'finished', 'seconds': 1e6}
  (run.directory / 'summary.json').write_text(json.dumps(summary))
  env = {'system': 'Linux', 'device_kind': 'cpu', 'cpu_cores': 1}
  (run.directory / 'env.json').write_text(json.dumps(env))
  said = {
    kind: budgets.Budget(60).estimate(
      study, _Timed(**(env | {'device_kind': kind})), studies.KINDS
    )
    for kind in ('cpu', 'h200')
  }
  assert 'enough for 0 of 9 runs, as 1 finished run took' in said['cpu']
  assert 'enough for 9 of 9 runs, by some timed steps' in said['h200']


def test_the_plan_of_other_chips_says_what_fits():
  config = _config(vocab_size=1024)
  config.model.update(width=64, num_layers=1, num_heads=1, context=64)
  config.batch_size = 4
  found = stages.of_study(config, chips.find('h100'), 1)
  hours = math.fsum(stage.hours for stage in found)
  whole = budgets.within(found, 1, 61 * hours)
  assert whole.endswith('are enough for 10 of 10 runs')
  assert '\n' not in whole
  trials = math.fsum(stage.hours for stage in found if stage.kind == 'tune')
  said = budgets.within(found, 1, 60.001 * trials).splitlines()
  assert said[0].endswith('enough for 8 of 10 runs')
  assert said[1:] == [
    'no time for targets of gpt2-adamw 1 of 1, gpt2-sophia 1 of 1'
  ]

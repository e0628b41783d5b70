"""Hours of a study: from what its runs took, and what is shared."""

import json
import math

import pytest

from steepest.experiments import base
from steepest.tuning import estimate, study


def _plan(workdir, subset=1, **keys):
  config = base.get_study_config()
  config.schedule.kind = 'wsd'
  config.optimizer.hessian_subset = subset
  config.study.update(
    models='gpt2', optimizers='adamw,sophia', target_steps=1000, seeds=1
  )
  config.study.update(keys)
  return study.Plan(config, workdir)


def _finish(planned, name, seconds, **values):
  directory = planned.workdir / name
  directory.mkdir(parents=True)
  summary = {'status': 'finished', 'seconds': seconds, **values}
  (directory / 'summary.json').write_text(json.dumps(summary))


def test_what_is_left_takes_what_was_measured(tmp_path):
  planned = _plan(tmp_path)
  trials = [n for n in planned.runs if n.startswith('trials/gpt2-adamw')]
  assert len(planned.runs) == 2 * 4 + 2
  for name in trials:
    _finish(planned, name, 9e4, eval_seconds=9e3, compile_seconds=1e3)
  pace = 1e5 / planned.runs[trials[0]].weight
  left = [r for n, r in planned.runs.items() if n not in trials]
  wanted = pace * math.fsum(run.weight for run in left)
  paces = estimate.finished_paces(planned)
  assert estimate.seconds_left(left, paces) == pytest.approx(wanted)
  said = estimate.describe(planned, 2, lambda config: 1 / 0)
  hours = f'{wanted / 7200:.1f} hours'
  assert (
    said == f'about {hours} on 2 workers for 6 runs, as 4 finished runs took'
  )
  # What is nearest to a run counts: its model and optimizer first.
  sophia = next(n for n in planned.runs if n.startswith('trials/gpt2-sophia'))
  _finish(planned, sophia, 700.0)
  paces = estimate.finished_paces(planned)
  run = planned.runs[sophia]
  assert estimate.seconds_left([run], paces) == pytest.approx(700)


def test_without_finished_runs_some_steps_are_timed(tmp_path):
  planned = _plan(tmp_path, optimizers='adamw')
  steps = []

  def timed(config):
    steps.append(config.steps)
    return 0.36

  said = estimate.describe(planned, 1, timed)
  trial, *_, target = planned.runs.values()
  seconds = 0.36 * trial.config.steps
  seconds *= 4 + target.weight / trial.weight
  assert said.startswith(f'about {seconds / 3600:.1f} hours on 1 worker for 5')
  assert steps == [trial.config.steps]
  assert 'timed' in said
  none = estimate.describe(planned, 1, lambda config: None)
  assert none == '5 runs to do'


def test_curvature_costs_its_share(tmp_path):
  planned = _plan(tmp_path)
  a, s = (
    planned.runs[f'finals/gpt2-{o}/seed=0'].weight for o in ('adamw', 'sophia')
  )
  # One gradient more in ten steps.
  assert s == pytest.approx(1.1 * a)
  planned = _plan(tmp_path, subset=2)
  run = planned.runs['finals/gpt2-sophia/seed=0']
  assert run.weight == pytest.approx(1.05 * a)

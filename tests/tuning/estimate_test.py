"""Hours of a study: from what its runs took, and what is shared."""

import json
import math

from hypothesis import given, strategies as st
import pytest

from steepest.experiments import base
from steepest.tuning import estimate, plan


def _plan(workdir, subset=1, **study):
  config = base.get_study_config()
  config.schedule.kind = 'wsd'
  config.optimizer.hessian_subset = subset
  config.study.update(
    models='gpt2', optimizers='adamw,sophia', target_steps=1000, seeds=1
  )
  config.study.update(study)
  return plan.Plan(config, workdir)


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


@given(
  st.lists(st.sampled_from([2, 3, 4, 8]), unique=True, min_size=1),
  st.sampled_from([0.1, 0.2, 0.5]),
)
def test_shared_steps_are_counted_once(tmp_path_factory, tokens, decay):
  config = base.get_study_config()
  config.schedule.update(kind='wsd', decay_fraction=decay)
  config.study.update(
    models='gpt2', optimizers='lion', target_steps=1000, seeds=1
  )
  config.study.axis_tokens = tuple(tokens)
  planned = plan.Plan(config, tmp_path_factory.getbasetemp())
  finals = [r for r in planned.runs.values() if r.key[0] == 'targets']
  alone = math.fsum(run.alone for run in finals)
  spent = math.fsum(run.weight for run in finals)
  # The longest whole, and of each other one its decay.
  multiples = [1, *tokens]
  wanted = max(multiples) + decay * (sum(multiples) - max(multiples))
  assert spent / alone == pytest.approx(wanted / sum(multiples), rel=1e-3)


def test_both_counts_are_said(tmp_path):
  planned = _plan(tmp_path, optimizers='lion', axis_tokens=(2,))
  assert estimate.sharing(planned) is None
  names = [n for n in planned.runs if n.startswith('finals')]
  _finish(planned, names[1], 7200.0, tokens=2000)
  assert estimate.sharing(planned) is None
  spent = {'tokens': 200, 'seconds': 360.0}
  _finish(planned, names[0], 3600.0, tokens=1000, spent=spent)
  assert estimate.sharing(planned) == (
    'targets, each as if alone: 3,000 tokens, 3.0 hours; as computed, with '
    'shared steps once: 2,200 tokens, 2.1 hours'
  )

"""How long a study takes, before it starts.

From what its finished runs took; before there is one, from some steps of a run
that are timed.
"""

from collections.abc import Callable, Iterable
import json
import math
import statistics

from ml_collections import ConfigDict

from steepest.tuning.pool import Pool
from steepest.tuning.study import Plan, Planned

# Kind, model and optimizer → seconds per unit of weight of some runs.
Paces = dict[tuple[str, str, str], list[float]]

# Steps that are timed.
_STEPS = 10
_TIMES = (
  'seconds',
  'data_wait_seconds',
  'compile_seconds',
  'eval_seconds',
  'checkpoint_seconds',
)


def describe(
  plan: Plan, workers: int, timed: Callable[[ConfigDict], float | None]
) -> str:
  """Says how long the runs that are left take, and where that is from.

  Args:
    plan: of the study.
    workers: that share the runs.
    timed: (configuration) → seconds a step, None where it cannot be timed.
  """
  left = {n: r for n, r in plan.runs.items() if not plan.finished(n)}
  paces = finished_paces(plan)
  source = f'as {sum(map(len, paces.values()))} finished runs took'
  if not paces:
    first = next(iter(left.values()))
    seconds = timed(first.config)
    if seconds is None:
      return f'{len(left)} runs to do'
    paces = {first.key: [seconds * first.config.steps / first.weight]}
    source = f'by {_STEPS} timed steps, validation and benchmarks not counted'
  total = seconds_left(left.values(), paces)
  return (
    f'about {_duration(total / workers)} on {_count(workers, "worker")} for '
    f'{_count(len(left), "run")}, {source}'
  )


def finished_paces(plan: Plan) -> Paces:
  """Returns key → seconds per unit of weight of each finished run."""
  paces: Paces = {}
  for name, run in plan.runs.items():
    path = plan.workdir / name / 'summary.json'
    if not path.exists():
      continue
    summary = json.loads(path.read_text('utf-8'))
    if summary['status'] == 'finished':
      seconds = math.fsum(summary[key] for key in _TIMES if key in summary)
      paces.setdefault(run.key, []).append(seconds / run.weight)
  return paces


def seconds_left(left: Iterable[Planned], paces: Paces) -> float:
  """Returns the seconds of one worker for some runs.

  A run takes as long as those of its kind, model and optimizer; where there are
  none, as those of its kind and model, of its kind, or as any.

  Args:
    left: planned runs.
    paces: see `finished_paces`; not empty.
  """
  return math.fsum(run.weight * _pace(run, paces) for run in left)


def _pace(run: Planned, paces: Paces) -> float:
  kind, model, _ = run.key
  for known in (
    [values for key, values in paces.items() if key == run.key],
    [values for key, values in paces.items() if key[:2] == (kind, model)],
    [values for key, values in paces.items() if key[0] == kind],
    list(paces.values()),
  ):
    if known:
      return statistics.fmean(statistics.median(values) for values in known)
  raise ValueError('seconds_left: no pace is known')


def time_steps(pool: Pool, config: ConfigDict) -> float | None:
  """Returns the seconds that a step of a run takes on the first worker.

  What is compiled there serves that run later.
  """
  run = ConfigDict(config.to_dict())
  run.update(
    steps=min(_STEPS, run.steps),
    eval_every=0,
    eval_sequences=0,
    eval_tasks='',
    checkpoint_every=0,
  )
  pool.start(0, {'kind': 'time', 'config': json.loads(run.to_json())})
  seconds = None
  for message in pool.messages():
    if message['kind'] == 'timed':
      seconds = float(message['seconds'])
    elif message['kind'] in ('done', 'failed'):
      break
  return seconds


def _count(number: int, noun: str) -> str:
  return f'{number} {noun}' if number == 1 else f'{number} {noun}s'


def _duration(seconds: float) -> str:
  if seconds < 5400:
    return _count(max(1, round(seconds / 60)), 'minute')
  return f'{seconds / 3600:.1f} hours'

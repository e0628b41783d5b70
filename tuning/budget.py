"""How long a study's runs take, and which of them fit into its time budget.

Estimates come from earlier runs on this machine or, before any has ended, from
a few timed steps. Under a budget, searches come before targets and all cells
take turns, so that time runs out with every optimizer equally far.
"""

import collections
from collections.abc import Collection, Mapping, Sequence
import contextlib
import json
import math
import pathlib
import statistics
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from ml_collections import ConfigDict

from steepest.optimizers.optimizer import find
from steepest.training import config as config_lib, flops
from steepest.tuning import cells, worker
from steepest.tuning.engine import Engine, JobFailedError

if TYPE_CHECKING:
  from steepest.tuning.stages import Stage
  from steepest.tuning.study import Run, Study

_TIMES = (
  'seconds',
  'data_wait_seconds',
  'eval_seconds',
  'checkpoint_seconds',
)
# Fewer compile seconds mean that the slot reused its program.
_COMPILED = 1.0
# Keys of env.json that tell whether another run would take as long there.
_MACHINE = ('system', 'platform', 'device_kind', 'cpu_cores')
# Turns into which a search's trials are split: more turns share the time more
# evenly, but each compiles anew.
_PARTS = 4

_Kind = tuple[str, str, str]


class Item(NamedTuple):
  """A run to schedule.

  Attributes:
    seconds: its duration.
    width: places that it takes.
    stage: that it belongs to.
    needs: stage that must be done before it; None: none.
  """

  seconds: float
  width: int
  stage: Any
  needs: Any


def fitting(items: Sequence[Item], places: int, seconds: float) -> list[bool]:
  """Returns which runs end in time if each starts once places are free."""
  free, late, found = [0.0] * places, set(), []
  for item in items:
    free.sort()
    end = free[item.width - 1] + item.seconds
    fits = item.needs not in late and end <= seconds
    if fits:
      free[: item.width] = [end] * item.width
    else:
      late.add(item.stage)
    found.append(fits)
  return found


def turn(kind: str, number: int, count: int) -> int:
  """Returns the turn in which a run is done, among those of other cells.

  Args:
    kind: 'trials' or 'targets'.
    number: of the trial, or the target's seed.
    count: trials of the search.
  """
  return number * _PARTS // count if kind == 'trials' else number


def missing(items: Sequence[Item], fits: Sequence[bool]) -> list[str]:
  """Returns a line for trials and one for targets that do not fit, if any.

  Args:
    items: each with a (cell, kind) as its stage.
    fits: from `fitting`.
  """
  whole = collections.Counter(item.stage for item in items)
  late = whole - collections.Counter(
    item.stage for item, fit in zip(items, fits) if fit
  )
  lines = []
  for kind in dict.fromkeys(kind for _, kind in late):
    of = (stage for stage in late if stage[1] == kind)
    named = (f'{at[0]} {late[at]} of {whole[at]}' for at in of)
    lines.append(f'no time for {kind} of {", ".join(named)}')
  return lines


def within(found: Sequence['Stage'], devices: int, minutes: float) -> str:
  """Says which part of a planned study fits into some minutes.

  Args:
    found: from tuning/stages.py.
    devices: available chips.
    minutes: for which they are available; compilation, validation and
      benchmarks are not counted.
  """
  points = list(dict.fromkeys(stage.cell.point for stage in found))
  kinds = {'tune': 'trials', 'train': 'targets'}
  turns = [
    (
      stage.kind == 'train',
      points.index(stage.cell.point),
      turn(kinds[stage.kind], number, stage.runs),
      index,
    )
    for index, stage in enumerate(found)
    for number in range(stage.runs)
  ]
  items = [
    Item(
      3600 * stage.plan.hours(stage.steps),
      stage.plan.devices,
      (stage.cell, kinds[stage.kind]),
      stage.search and (stage.search, 'trials'),
    )
    for *_, index in sorted(turns)
    for stage in [found[index]]
  ]
  fits = fitting(items, devices, 60 * minutes)
  said = f'{minutes:g} minutes are enough for {sum(fits)} of {len(fits)} runs'
  return '\n'.join([said, *missing(items, fits)])


class Budget:
  """The time that a study has.

  Attributes:
    deadline: its end as time.time(); None: no limit.
    ended: whether somebody asked to stop.
  """

  def __init__(self, minutes: float | None = None):
    """Starts the clock."""
    self.deadline = None if minutes is None else time.time() + 60 * minutes
    self.ended = False
    self._known: dict[_Kind, list[float]] = {}
    self._timed: dict[_Kind, list[float]] = {}
    self._compilations: list[float] = []
    self._said = -1
    # A cache: building a configuration takes milliseconds.
    self._weights: dict[pathlib.Path, float] = {}

  @property
  def left(self) -> float:
    """Seconds left."""
    return math.inf if self.deadline is None else self.deadline - time.time()

  def end(self) -> None:
    """Lets no more runs begin: somebody asked to stop."""
    self.ended, self.deadline = True, -math.inf

  def add(self, run: 'Run') -> None:
    """Records how long a run took."""
    summary = cells.outcome(run.directory)
    times = (summary[key] for key in _TIMES if key in summary)
    self._note(self._known, run, summary, math.fsum(times))

  def _note(
    self,
    paces: dict[_Kind, list[float]],
    run: 'Run',
    summary: Mapping[str, Any],
    seconds: float,
  ) -> None:
    paces.setdefault(_kind(run), []).append(seconds / self._weight(run))
    if 'compile_seconds' in summary and summary['compile_seconds'] > _COMPILED:
      self._compilations.append(summary['compile_seconds'])

  def seconds(self, run: 'Run') -> float:
    """Returns a run's seconds, estimated from similar runs; 0 without any.

    Takes runs of the same kind, model and optimizer or, if there are none, of
    the same kind and model, the same kind, or any. Excludes compilation.
    """
    known, timed = self._known, self._timed
    nearest = (known, 3), (known, 2), (known, 1), (timed, 1), (timed | known, 0)
    for paces, count in nearest:
      like = [v for k, v in paces.items() if k[:count] == _kind(run)[:count]]
      if like:
        return self._weight(run) * statistics.fmean(
          map(statistics.median, like)
        )
    return 0.0

  def fits(self, run: 'Run', compiled: bool) -> bool:
    """Returns whether a run may begin: it ends, or checkpoints, in time."""
    every, seconds = run.config.checkpoint_every, self.seconds(run)
    if every:
      seconds *= min(1.0, every / run.config.steps)
    if not compiled:
      seconds += self._compilation
    return self.left > 0 and seconds <= self.left

  @property
  def _compilation(self) -> float:
    """Seconds of a compilation."""
    return statistics.median(self._compilations or [0.0])

  def _costs(self, study: 'Study', left: Sequence['Run']) -> list[float]:
    """Returns seconds of runs; the first of each program includes compiling."""
    costs, known = [], set()
    for run in left:
      # If cells take turns, each turn compiles.
      key = run.stage, self.deadline is not None and study.turn(run)
      costs.append(self.seconds(run) + self._compilation * (key not in known))
      known.add(key)
    return costs

  def estimate(
    self, study: 'Study', engine: Engine, kinds: Collection[str]
  ) -> str:
    """Says how long the runs left will take, and how that is known.

    With a time budget, also says what will and will not fit into it.
    """
    left = study.left(kinds)
    source = self._learn(study, left, engine, kinds) if left else ''
    slots, runs = len(engine.slots), _count(len(left), 'run')
    if not source:
      # No run is left, or the run itself will report what is wrong.
      return f'{runs} to do' if left else ''
    workers = f'on {_count(slots, "worker")}'
    if self.deadline is None:
      total = math.fsum(self._costs(study, left))
      return f'about {_duration(total / slots)} {workers} for {runs}, {source}'
    items, fits = self._forecast(study, engine, kinds)
    minutes = f'{max(0.0, self.left) / 60:.3g} minutes {workers}'
    said = f'{minutes} are enough for {sum(fits)} of {runs}, {source}'
    return '\n'.join([said, *missing(items, fits)])

  def change(
    self, study: 'Study', engine: Engine, kinds: Collection[str]
  ) -> str:
    """Says how many runs will be done; '' if unchanged."""
    before = self._said
    _, fits = self._forecast(study, engine, kinds)
    if self._said == before or not fits:
      return ''
    whole = len(study.planned(kinds))
    return f'the time is enough for {self._said} of {whole} runs now'

  def _forecast(
    self, study: 'Study', engine: Engine, kinds: Collection[str]
  ) -> tuple[list[Item], list[bool]]:
    """Returns the runs left, in order of turns, and which will be done."""
    left = study.left(kinds)
    items = [
      Item(cost, 1, run.stage, study.needs(run))
      for run, cost in zip(left, self._costs(study, left))
    ]
    fits = fitting(items, max(1, len(engine.slots)), self.left)
    self._said = len(study.planned(kinds)) - len(left) + sum(fits)
    return items, fits

  def _weight(self, run: 'Run') -> float:
    if run.directory not in self._weights:
      self._weights[run.directory] = weight(run.config)
    return self._weights[run.directory]

  def _learn(
    self,
    study: 'Study',
    left: Sequence['Run'],
    engine: Engine,
    kinds: Collection[str],
  ) -> str:
    """Learns how long runs take; returns the source, '' if there is none."""
    ended = [
      run
      for run in study.planned(kinds)
      if cells.ending(run.directory) == 'finished'
    ]
    here = None
    first = {run.stage.kind: run for run in reversed(left)}
    timed = [first[kind] for kind in kinds if kind in first]
    if self.deadline is None:
      # Under a budget it matters that runs may be from another machine.
      timed = [] if ended else [left[0]]
    self._known = {}
    for run in timed:
      job = study.job(run)
      with contextlib.suppress(JobFailedError):
        summary, here = engine.submit(
          engine.slots[0], worker.time_steps, job
        ).result()
        whole = summary['seconds'] / summary['steps'] * run.config.steps
        self._note(self._timed, run, summary, whole)
    for run in ended:
      path = run.directory / 'env.json'
      env = json.loads(path.read_text('utf-8')) if path.exists() else {}
      if here is None or _machine(env) == _machine(here):
        self.add(run)
    if count := sum(map(len, self._known.values())):
      return f'as {_count(count, "finished run")} took'
    timed_ones = 'by some timed steps, validation and benchmarks not counted'
    return timed_ones if self._timed else ''


def weight(config: ConfigDict) -> float:
  """Returns a run's computation, in arbitrary units.

  Tokens × parameters of its blocks and readout, plus the cost of curvature.
  """
  width, layers = config.model.width, config.model.num_layers
  # 12 · width² per block, and a readout of a few thousand entries.
  size = 12 * layers * width**2 + 2048 * width
  found = float(config.steps * config.batch_size * config.model.context * size)
  o = config_lib.resolve(config).optimizer
  if find(o.name).curvature is not None:
    cost = flops.of_estimate(o.hessian_estimator, o.hessian_subset)
    found *= 1 + cost / o.hessian_every
  return found


def _kind(run: 'Run') -> _Kind:
  return run.stage.kind, run.stage.cell.model, run.stage.cell.optimizer


def _machine(env: Mapping[str, Any]) -> list[Any]:
  return [env[key] if key in env else None for key in _MACHINE]


def _count(number: int, noun: str) -> str:
  return f'{number} {noun}' if number == 1 else f'{number} {noun}s'


def _duration(seconds: float) -> str:
  if seconds < 5400:
    return _count(max(1, round(seconds / 60)), 'minute')
  return f'{seconds / 3600:.1f} hours'

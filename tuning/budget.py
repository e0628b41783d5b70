"""How long the runs of a study take, and which of them fit into its minutes.

Known is what runs on this machine took, before one has ended some timed steps.
With minutes, searches come before targets and all cells take turns, so that the
time ends with every optimizer as far as the others.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
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
  from steepest.tuning.plan import Stage
  from steepest.tuning.study import Run, Study

_TIMES = (
  'seconds',
  'data_wait_seconds',
  'eval_seconds',
  'checkpoint_seconds',
)
# A slot that goes on with its program compiles nothing and takes less.
_COMPILED = 1.0
# What of env.json tells whether another run would take as long there.
_MACHINE = ('system', 'platform', 'device_kind', 'cpu_cores')
# In how many parts the trials of a search take turns with those of others: each
# change compiles anew.
_PARTS = 4

_Kind = tuple[str, str, str]


class Item(NamedTuple):
  """A run that may be done.

  Attributes:
    seconds: that it takes.
    width: places that it takes.
    stage: that it belongs to.
    needs: stage that has to be done before it; None: none.
  """

  seconds: float
  width: int
  stage: Any
  needs: Any


def fitting(items: Sequence[Item], places: int, seconds: float) -> list[bool]:
  """Returns which runs end in time, each begun as soon as there are places."""
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
  """Returns when a run has its turn among those of other cells.

  Args:
    kind: 'trials' or 'targets'.
    number: of the trial, or the target's seed.
    count: trials of the search.
  """
  return number * _PARTS // count if kind == 'trials' else number


def missing(
  stages: Sequence[tuple[str, object]], fits: Sequence[bool]
) -> list[str]:
  """Returns a line for trials and one for targets that do not fit, if any.

  Args:
    stages: kind and cell of each run.
    fits: as from `fitting`.
  """
  lines = []
  for kind in dict.fromkeys(kind for kind, _ in stages):
    counts: dict[object, list[bool]] = {}
    for (of, cell), fit in zip(stages, fits, strict=True):
      if of == kind:
        counts.setdefault(cell, []).append(fit)
    named = [
      f'{cell} {held.count(False)} of {len(held)}'
      for cell, held in counts.items()
      if not all(held)
    ]
    if named:
      lines.append(f'no time for {kind} of {", ".join(named)}')
  return lines


def within(found: Sequence['Stage'], devices: int, minutes: float) -> str:
  """Says what of a planned study will be done in some minutes, and what not.

  Args:
    found: stages of tuning/plan.py.
    devices: chips that there are.
    minutes: that they are had for; compilation, validation and benchmarks take
      some of them and are not counted.
  """
  points = list(dict.fromkeys(stage.cell.point for stage in found))
  runs = [(stage, number) for stage in found for number in range(stage.runs)]
  kinds = {'tune': 'trials', 'train': 'targets'}

  def key(run: tuple['Stage', int]) -> tuple[bool, int, int]:
    stage, number = run
    at = turn(kinds[stage.kind], number, stage.runs)
    return stage.kind == 'train', points.index(stage.cell.point), at

  runs.sort(key=key)
  items = [
    Item(
      3600 * stage.plan.hours(stage.steps),
      stage.plan.devices,
      (kinds[stage.kind], stage.cell),
      stage.search and ('trials', stage.search),
    )
    for stage, _ in runs
  ]
  fits = fitting(items, devices, 60 * minutes)
  lines = missing([item.stage for item in items], fits)
  said = f'{minutes:g} minutes are enough for {sum(fits)} of {len(runs)} runs'
  return '\n'.join([said, *lines])


class Budget:
  """The time that a study has.

  Attributes:
    deadline: its end as time.time() tells it; None: it has none.
  """

  def __init__(self, minutes: float | None = None):
    """Begins now."""
    self.deadline = None if minutes is None else time.time() + 60 * minutes
    self._known: dict[_Kind, list[float]] = {}
    self._timed: dict[_Kind, list[float]] = {}
    self._compilations: list[float] = []
    self._said = -1
    # Made once: a configuration takes milliseconds.
    self._weights: dict[pathlib.Path, float] = {}

  @property
  def left(self) -> float:
    """Seconds that are left."""
    return math.inf if self.deadline is None else self.deadline - time.time()

  def end(self) -> None:
    """Lets nothing more begin: somebody asked to stop."""
    self.deadline = -math.inf

  @property
  def ended(self) -> bool:
    """Whether `end` was called."""
    return self.deadline == -math.inf

  def add(self, run: 'Run') -> None:
    """Notes how long a run took."""
    summary = cells.outcome(run.directory)
    times = (summary[key] for key in _TIMES if key in summary)
    pace = math.fsum(times) / self._weight(run)
    self._known.setdefault(_kind(run), []).append(pace)
    self._note_compilation(summary)

  def _note_compilation(self, summary: Mapping[str, Any]) -> None:
    if 'compile_seconds' in summary:
      if summary['compile_seconds'] > _COMPILED:
        self._compilations.append(summary['compile_seconds'])

  def seconds(self, run: 'Run') -> float:
    """Returns what a run takes, as those nearest to it did; 0 of no known run.

    Of the same kind, model and optimizer; where there are none, of the same
    kind and model, of the same kind, or of any. Compilation is not counted.
    """
    measured = {kind for kind, _, _ in self._known}
    timed = {k: v for k, v in self._timed.items() if k[0] not in measured}
    paces = {**timed, **self._known}
    if not paces:
      return 0.0
    like: Callable[[int], list[list[float]]] = lambda n: [
      values for kind, values in paces.items() if kind[:n] == _kind(run)[:n]
    ]
    found = next(found for n in (3, 2, 1, 0) if (found := like(n)))
    return self._weight(run) * statistics.fmean(map(statistics.median, found))

  def fits(self, run: 'Run', compiled: bool) -> bool:
    """Returns whether a run may begin: it ends in time, or saves on its way."""
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
    """Returns seconds of runs, with those of compiling in the first of each."""
    costs, known = [], set()
    for run in left:
      # Where all take turns, each turn compiles.
      key = run.stage, self.deadline is not None and study.turn(run)
      costs.append(self.seconds(run) + self._compilation * (key not in known))
      known.add(key)
    return costs

  def estimate(
    self, study: 'Study', engine: Engine, kinds: Collection[str]
  ) -> str:
    """Says how long the runs that are left take, and where that is from.

    Of a study with minutes also what will be done in them and what not.
    """
    left = study.left(kinds)
    if not left:
      return ''
    source = self._learn(study, left, engine, kinds)
    slots, runs = len(engine.slots), _count(len(left), 'run')
    if not source:
      # The run itself will say what is wrong.
      return f'{runs} to do'
    workers = f'on {_count(slots, "worker")}'
    if self.deadline is None:
      total = math.fsum(self._costs(study, left))
      return f'about {_duration(total / slots)} {workers} for {runs}, {source}'
    fits = self._forecast(study, left, slots)
    self._said = len(study.planned(kinds)) - len(left) + sum(fits)
    minutes = f'{max(0.0, self.left) / 60:.3g} minutes {workers}'
    stages = [(run.stage.kind, run.stage.cell) for run in left]
    return '\n'.join(
      [
        f'{minutes} are enough for {sum(fits)} of {runs}, {source}',
        *missing(stages, fits),
      ]
    )

  def change(
    self, study: 'Study', engine: Engine, kinds: Collection[str]
  ) -> str:
    """Says how many runs will be done, '' where that is what was said."""
    left = study.left(kinds)
    whole = len(study.planned(kinds))
    fits = self._forecast(study, left, len(engine.slots))
    said = whole - len(left) + sum(fits)
    if said == self._said or not left:
      return ''
    self._said = said
    return f'the time is enough for {said} of {whole} runs now'

  def _forecast(
    self, study: 'Study', left: Sequence['Run'], slots: int
  ) -> list[bool]:
    """Returns which runs will be done, begun in their order."""
    items = [
      Item(cost, 1, run.stage, study.needs(run))
      for run, cost in zip(left, self._costs(study, left))
    ]
    return fitting(items, max(1, slots), self.left)

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
    """Finds out what runs take; returns where that is from, '' for nowhere."""
    ended = [
      run
      for run in study.planned(kinds)
      if cells.ending(run.directory) == 'finished'
    ]
    here = None
    if self.deadline is not None or not ended:
      # With minutes it matters that runs may be from another machine.
      first = {run.stage.kind: run for run in reversed(left)}
      timed = [first[kind] for kind in kinds if kind in first]
      for run in timed if self.deadline is not None else [left[0]]:
        job = {'config': json.loads(run.config.to_json())}
        try:
          summary, here = engine.submit(
            engine.slots[0], worker.time_steps, job
          ).result()
        except JobFailedError:
          continue
        self._note_compilation(summary)
        whole = summary['seconds'] / summary['steps'] * run.config.steps
        self._timed[_kind(run)] = [whole / self._weight(run)]
    self._known = {}
    for run in ended:
      if here is None or _machine(run.directory) == _of(here):
        self.add(run)
    if count := sum(map(len, self._known.values())):
      return f'as {_count(count, "finished run")} took'
    timed_ones = 'by some timed steps, validation and benchmarks not counted'
    return timed_ones if self._timed else ''


def weight(config: ConfigDict) -> float:
  """Returns what a run computes, in arbitrary units.

  Tokens × parameters of its blocks and readout, and what curvature adds.
  """
  width, layers = config.model.width, config.model.num_layers
  # Twelve width² a block, and a readout of a few thousand entries.
  size = 12 * layers * width**2 + 2048 * width
  found = float(config.steps * config.batch_size * config.model.context * size)
  o = config_lib.resolve(config).optimizer
  if find(o.name).curvature is not None:
    cost = flops.of_estimate(o.hessian_estimator, o.hessian_subset)
    found *= 1 + cost / o.hessian_every
  return found


def _kind(run: 'Run') -> _Kind:
  return run.stage.kind, run.stage.cell.model, run.stage.cell.optimizer


def _machine(directory: pathlib.Path) -> list[Any]:
  path = directory / 'env.json'
  return _of(json.loads(path.read_text('utf-8')) if path.exists() else {})


def _of(env: Mapping[str, Any]) -> list[Any]:
  return [env[key] if key in env else None for key in _MACHINE]


def _count(number: int, noun: str) -> str:
  return f'{number} {noun}' if number == 1 else f'{number} {noun}s'


def _duration(seconds: float) -> str:
  if seconds < 5400:
    return _count(max(1, round(seconds / 60)), 'minute')
  return f'{seconds / 3600:.1f} hours'

"""Which run of a study each worker does next, shared with other processes.

What is done stands in the run directories alone, and who does what in their
locks, so any number of processes can work on a study, each with workers of
its own.
"""

from collections.abc import Callable, Sequence
import contextlib
import dataclasses
import json
import math
import pathlib
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from steepest.training import metrics
from steepest.tuning import (
  cells,
  locks as locks_lib,
  pruning,
  search,
  space,
)
from steepest.tuning.cells import Cell
from steepest.tuning.space import Values


class Stage(NamedTuple):
  """The trials or the targets of a cell; trials serve all cells of a search."""

  cell: Cell
  kind: str


@dataclasses.dataclass(frozen=True)
class Task:
  """What one worker is given.

  Attributes:
    stage: that it belongs to.
    directory: of its run.
    job: for tuning/worker.py.
  """

  stage: Stage
  directory: pathlib.Path
  job: dict[str, Any]


class _Run(NamedTuple):
  directory: pathlib.Path
  config: ConfigDict


def breadth(config: ConfigDict, todo: Sequence[Cell]) -> int:
  """Returns how many runs of some cells can be under way at once."""
  most = 0
  searches = [cells.search_of(config, cell) for cell in todo]
  for searched in dict.fromkeys(searches):
    trials = config.study.trials
    if config.study.search == 'grid':
      found = space.dimensions(config, searched.optimizer)
      trials = math.prod(len(dimension.values) for dimension in found)
    targets = config.study.seeds * searches.count(searched)
    most += max(targets, _at_once(config, trials))
  return most


def _at_once(config: ConfigDict, waiting: int) -> int:
  """Returns how many of a search's waiting trials may be under way."""
  study = config.study
  if study.search == 'tpe' or study.pruning != 'none':
    return min(waiting, study.parallel_trials)
  return waiting


class Schedule:
  """Hands out the runs that are neither done nor under way.

  Attributes:
    failures: cell → why nothing more of it is done.
  """

  def __init__(
    self,
    config: ConfigDict,
    workdir: pathlib.Path,
    todo: Sequence[Cell],
    locks: locks_lib.Locks,
    on_best: Callable[[Cell, Values], None],
    on_failure: Callable[[Cell, str], None],
  ):
    """Hands out nothing yet.

    Args:
      config: of the study.
      workdir: of the study.
      todo: cells whose targets are not done.
      locks: of this process.
      on_best: called with a search's cell and the values that it found.
      on_failure: called with why nothing more of a cell is done.
    """
    self._config = config
    self._workdir = workdir
    self._locks = locks
    self._on_best = on_best
    self._on_failure = on_failure
    self._open = list(todo)
    self._search_of = {cell: cells.search_of(config, cell) for cell in todo}
    # By the cell that is searched, which may be none of those to do.
    self._searches = {
      cell: search.make(config, cell.optimizer, cells.trials_dir(workdir, cell))
      for cell in dict.fromkeys(self._search_of.values())
    }
    self._losses: dict[Cell, dict[str, float]] = {c: {} for c in self._searches}
    self._best: dict[Cell, Values] = {}
    self._histories: dict[pathlib.Path, dict[int, float]] = {}
    self._running: dict[int, Task] = {}
    self._last: dict[int, Stage] = {}
    self._rule = pruning.rule(config)
    self.failures: dict[Cell, str] = {}

  @property
  def over(self) -> bool:
    """Whether every cell is done or has failed."""
    return not self._open and not self._running

  def take(self, worker: int) -> Task | None:
    """Returns what an idle worker does next; None if there is nothing now.

    A worker stays with what it has compiled, then takes what nobody is at,
    then joins in.
    """
    task, known = None, -1
    # A search that ends makes room for targets: look again.
    while task is None and known != len(self._best):
      known = len(self._best)
      task = self._find(worker)
    if task is not None:
      self._running[worker] = task
      self._last[worker] = task.stage
    return task

  def _find(self, worker: int) -> Task | None:
    known = len(self._best)
    for joins in (False, True):
      for stage in self._order(worker):
        taken = {task.stage for task in self._running.values()}
        if stage in taken and not joins:
          continue
        task = self._start(stage, joins)
        if task or known != len(self._best):
          return task
    return None

  def ended(self, worker: int, error: str | None) -> Task:
    """Notes that a worker has done its task, or failed with an error."""
    task = self._running.pop(worker)
    self._locks.release(task.directory)
    if error is not None:
      self._fail(task.stage, error)
    return task

  def _order(self, worker: int) -> list[Stage]:
    wanted = dict.fromkeys(self._search_of[cell] for cell in self._open)
    stages = [Stage(c, 'trials') for c in wanted if c not in self._best]
    ready = [c for c in self._open if self._search_of[c] in self._best]
    stages += [Stage(cell, 'targets') for cell in ready]
    if worker not in self._last:
      return stages
    last = self._last[worker]
    key = lambda stage: (stage != last, _program(stage) != _program(last))
    return sorted(stages, key=key)

  def _start(self, stage: Stage, joins: bool) -> Task | None:
    """Returns a stage's next task, its runs locked; None if there is none."""
    with contextlib.ExitStack() as stack:
      searched = stage.cell
      if stage.kind == 'targets':
        searched = self._search_of[stage.cell]
      home = cells.trials_dir(self._workdir, searched)
      if not stack.enter_context(self._locks.hold(home)):
        return None
      try:
        waiting = (
          self._trials(stage.cell)
          if stage.kind == 'trials'
          else self._targets(stage.cell)
        )
        return self._lock(stage, waiting, joins)
      except ValueError as error:
        self._fail(stage, ' '.join(str(error).split()))
        return None

  def _trials(self, cell: Cell) -> list[_Run]:
    """Returns the trials that may begin; once all ended, picks the best."""
    losses = self._losses[cell]
    home = cells.trials_dir(self._workdir, cell)
    while True:
      trials = self._searches[cell].trials(losses)
      waiting = []
      new = False
      for trial in trials:
        if trial.name in losses:
          continue
        run = _Run(
          home / trial.name,
          cells.trial_config(self._config, cell, trial.values),
        )
        loss = cells.ended(run.config, run.directory)
        if loss is None:
          waiting.append(run)
        else:
          losses[trial.name] = loss
          new = True
      if new:
        continue
      if not waiting:
        rule = self._config.study.optimum
        self._best[cell] = search.best_values(trials, losses, rule)
        self._on_best(cell, self._best[cell])
      return waiting[: _at_once(self._config, len(waiting))]

  def _targets(self, cell: Cell) -> list[_Run]:
    """Returns the targets that may begin; notes when all have ended."""
    waiting = []
    for seed in range(self._config.study.seeds):
      run = self._target(cell, seed)
      if cells.ended(run.config, run.directory) is None:
        waiting.append(run)
    if not waiting:
      self._open.remove(cell)
    return waiting

  def _target(self, cell: Cell, seed: int) -> _Run:
    values = self._best[self._search_of[cell]]
    config = cells.target_config(self._config, cell, values, seed)
    return _Run(cells.target_dir(self._workdir, cell, seed), config)

  def _lock(
    self, stage: Stage, waiting: Sequence[_Run], joins: bool
  ) -> Task | None:
    for run in waiting:
      if not self._locks.take(run.directory):
        if not joins:
          return None  # Somebody else is at it.
        continue
      # It may have ended between the look and the lock.
      if cells.ended(run.config, run.directory) is not None:
        self._locks.release(run.directory)
        continue
      job = {
        'kind': 'run',
        'config': json.loads(run.config.to_json()),
        'directory': str(run.directory),
        'watch': self._watch(stage) if stage.kind == 'trials' else None,
      }
      return Task(stage, run.directory, job)
    return None

  def _watch(self, stage: Stage) -> dict[str, Any] | None:
    """Returns the losses above which the trials of a cell end early."""
    if self._rule is None:
      return None
    home = cells.trials_dir(self._workdir, stage.cell)
    finished = []
    for name, loss in self._losses[stage.cell].items():
      directory = home / name
      if math.isinf(loss):
        continue
      if directory not in self._histories:
        rows = metrics.read_rows(directory)
        self._histories[directory] = pruning.smoothed(rows, self._rule.window)
      finished.append(self._histories[directory])
    limits = pruning.limits(finished, self._rule)
    return {'window': self._rule.window, 'limits': list(limits.items())}

  def _fail(self, stage: Stage, error: str) -> None:
    """Gives up the cells that a stage serves."""
    failed = [stage.cell]
    if stage.kind == 'trials':
      failed = [c for c in self._open if self._search_of[c] == stage.cell]
    for cell in failed:
      self.failures[cell] = error
      self._on_failure(cell, error)
      if cell in self._open:
        self._open.remove(cell)


def _program(stage: Stage) -> tuple[object, ...]:
  """Returns what runs that share a compilation have in common."""
  compiled = [p for p in stage.cell.point if p[0] in ('batch_size', 'schedule')]
  return stage.kind, stage.cell.model, stage.cell.optimizer, compiled

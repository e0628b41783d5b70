"""A study: searches on proxies, then targets, on the slots of an engine.

All progress is in the run directories and the searches' journal, so that the
same command resumes a study that was killed.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent import futures
import json
import math
import pathlib
import statistics
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from steepest.data import buckets
from steepest.models import config as model_config
from steepest.training import config as config_lib, metrics
from steepest.tuning import budget as budget_lib, cells, pruning, search, worker
from steepest.tuning.budget import Budget, weight
from steepest.tuning.cells import Cell
from steepest.tuning.engine import Engine, JobFailedError
from steepest.tuning.search import Search, Values
from steepest.tuning.status import StudyDisplay

# What a stage consists of.
KINDS = ('trials', 'targets')


class Stage(NamedTuple):
  """The trials or targets of a cell; trials serve all cells of a search."""

  cell: Cell
  kind: str


class Run(NamedTuple):
  """A run of a study.

  Attributes:
    stage: that it belongs to.
    directory: of the run.
    config: of the run.
    label: a short description.
    number: of the trial, or the target's seed.
  """

  stage: Stage
  directory: pathlib.Path
  config: ConfigDict
  label: str
  number: int


class Study:
  """The progress of a study, and what comes next.

  Attributes:
    failures: cell → why it was given up.
  """

  def __init__(
    self,
    config: ConfigDict,
    workdir: pathlib.Path,
    send: Callable[[list[Run]], None] | None = None,
    stage: buckets.Stage | None = None,
  ):
    """Opens the searches.

    Args:
      config: of the study.
      workdir: of the study.
      send: takes a cell's unfinished targets once its search is done, instead
        of the slots; None: slots train them.
      stage: of a workdir whose runs other machines train; None: all see it.

    Raises:
      ValueError: the configuration is inconsistent, or a search began with
        other settings.
    """
    self.config = config
    self.workdir = workdir
    self.failures: dict[Cell, str] = {}
    self._send, self._stage = send, stage
    self.cells = cells.cells(config)
    self._points = cells.points(config)
    self._open = [cell for cell in self.cells if not self._done(cell)]
    self._search_of = {c: cells.search_of(config, c) for c in self.cells}
    self._searches: dict[Cell, Search] = {}
    begun = (workdir / search.JOURNAL).exists()
    if self._open or begun:
      searched = [self._search_of[cell] for cell in self._open]
      _refuse_older(workdir, begun, searched)
      storage = search.open_journal(workdir)
      for cell in dict.fromkeys(self._search_of.values()):
        self._searches[cell] = Search(config, cell, storage)
    self._losses: dict[Cell, dict[int, float]] = {c: {} for c in self._searches}
    self._best: dict[Cell, Values] = {}
    # Directory → loss of an ended run, infinite without one.
    self._ended: dict[pathlib.Path, float] = {}
    # A cache: building a configuration takes milliseconds.
    self._runs: dict[object, list[Run]] = {}
    self._curves: dict[pathlib.Path, list[tuple[int, float]]] = {}
    self._running: dict[int, Run] = {}
    self._last: dict[int, Stage] = {}

  @property
  def over(self) -> bool:
    """Whether every cell is done or has failed."""
    return not self._open and not self._running

  @property
  def has_results(self) -> bool:
    """Whether a target has ended."""
    seeds = range(self.config.study.seeds)
    return any(
      cells.has_ended(cells.target_dir(self.workdir, cell, seed))
      for cell in self.cells
      for seed in seeds
    )

  def breadth(self, kinds: Collection[str] = KINDS) -> int:
    """Returns how many runs of some kinds can run at once."""
    keys, most = self.config.study, 0
    open_ = [self._search_of[cell] for cell in self._open]
    for cell in dict.fromkeys(open_):
      trials = search.at_once(self.config, cell.optimizer) * keys.trial_seeds
      targets = 0 if self._send else keys.seeds * open_.count(cell)
      counts = {'trials': trials, 'targets': targets}
      most += max(counts[kind] for kind in kinds)
    return most

  def examples(self) -> list[Run]:
    """Returns a trial and a target of every cell that is not done."""
    found = []
    for cell in dict.fromkeys(self._search_of[cell] for cell in self._open):
      found += self._trial_runs(cell, 0, {})[:1]
    for cell in self._open if self._send is None else ():
      found += target_runs(self.config, self.workdir, cell, {})[:1]
    return found

  def take(
    self,
    slot: int,
    kinds: Collection[str] = KINDS,
    fits: Callable[[Run, bool], bool] | None = None,
  ) -> Run | None:
    """Returns the next run of an idle slot; None if there is none now.

    A slot stays with what it has compiled, then takes what no other slot works
    on, then joins others.

    Args:
      slot: idle one.
      kinds: of runs that it may do.
      fits: (run, whether the slot has compiled it) → whether there is time for
        it; if given, cells take turns.
    """
    run, known = None, -1
    # A search that has just ended releases targets: look again.
    while run is None and known != len(self._best):
      known = len(self._best)
      found = self._find(slot, kinds, fits)
      if fits is None:
        run = next(found, None)
      else:
        run = min(found, key=self.turn, default=None)
    if run is not None:
      self._running[slot] = run
      self._last[slot] = run.stage
    return run

  def end(
    self,
    slot: int,
    loss: float | None,
    error: str | None,
    stopped: bool = False,
  ) -> Run:
    """Records how a slot's run ended: its loss, an error, or not yet."""
    run = self._running.pop(slot)
    if self._stage is not None:
      self._stage.pull(run.directory)
    if error is not None:
      self._fail(run.stage, error)
    elif not stopped:
      self._ended[run.directory] = math.inf if loss is None else loss
    return run

  def job(self, run: Run, deadline: float | None = None) -> dict[str, Any]:
    """Returns a run as `worker.train` takes it."""
    stage = self._stage or buckets.Stage(self.workdir)
    return {
      'deadline': deadline,
      'stop': stage.address(self.workdir / worker.STOP),
      'programs': stage.address(self.workdir / 'programs'),
      'config': json.loads(run.config.to_json()),
      'directory': stage.address(run.directory),
      'finished': self._finished_curves(run),
    }

  def waiting(self) -> list[Run]:
    """Returns all runs that may begin now."""
    found, known = [], -1
    while known != len(self._best):
      known = len(self._best)
      stages = self._order(-1)
      found = [run for stage in stages for run in self._waiting(stage)]
    return found

  def planned(self, kinds: Collection[str] = KINDS) -> list[Run]:
    """Returns all runs, without those that extensions may add."""
    found = []
    if 'trials' in kinds:
      for cell in dict.fromkeys(self._search_of.values()):
        for number in range(search.count(self.config, cell.optimizer)):
          found += self._trial_runs(cell, number, {})
    if 'targets' in kinds and self._send is None:
      for cell in self.cells:
        if cell not in self._runs:
          runs = target_runs(self.config, self.workdir, cell, {})
          self._runs[cell] = runs
        found += self._runs[cell]
    return found

  def left(self, kinds: Collection[str] = KINDS) -> list[Run]:
    """Returns the unfinished runs of `planned`, in order of turns."""
    found = self.planned(kinds)
    left = [run for run in found if not cells.has_ended(run.directory)]
    return sorted(left, key=self.turn)

  def needs(self, run: Run) -> Stage | None:
    """Returns the trials that a run depends on, if any."""
    if run.stage.kind == 'trials':
      return None
    return Stage(self._search_of[run.stage.cell], 'trials')

  def turn(self, run: Run) -> tuple[bool, int, int]:
    """Returns the sort key of a run when cells take turns.

    Searches come before targets, the study's own point before others.
    """
    cell, kind = run.stage
    count = search.count(self.config, cell.optimizer)
    turn = budget_lib.turn(kind, run.number, count)
    return kind == 'targets', self._points.index(cell.point), turn

  def raise_failures(self) -> None:
    """Raises ValueError, naming the failed cells, if there are any."""
    if self.failures:
      said = (f'{cell}: {error}' for cell, error in self.failures.items())
      raise ValueError('; '.join(said))

  def best(self, cell: Cell) -> Values | None:
    """Returns the best values of a cell's search; None while it runs."""
    return self._best.get(self._search_of[cell])

  def _find(
    self,
    slot: int,
    kinds: Collection[str],
    fits: Callable[[Run, bool], bool] | None,
  ) -> Iterator[Run]:
    """Yields one run of each stage that a slot may do, the best first."""
    known = len(self._best)
    taken = {run.stage for run in self._running.values()}
    for joins in (False, True):
      for stage in self._order(slot):
        if stage.kind not in kinds or (stage in taken) != joins:
          continue
        waiting = self._waiting(stage)
        compiled = slot in self._last and (
          _program(stage) == _program(self._last[slot])
        )
        yield from [
          run for run in waiting if fits is None or fits(run, compiled)
        ][:1]
        if known != len(self._best) and fits is None:
          return

  def _waiting(self, stage: Stage) -> list[Run]:
    """Returns the runs of a stage that may begin; gives up a failing stage."""
    try:
      if stage.kind == 'trials':
        return self._trials(stage.cell)
      return self._targets(stage.cell)
    except ValueError as error:
      self._fail(stage, ' '.join(str(error).split()))
      return []

  def _order(self, slot: int) -> list[Stage]:
    wanted = dict.fromkeys(self._search_of[cell] for cell in self._open)
    stages = [Stage(c, 'trials') for c in wanted if c not in self._best]
    ready = [c for c in self._open if self._search_of[c] in self._best]
    stages += [Stage(cell, 'targets') for cell in ready]
    if slot not in self._last:
      return stages
    last = self._last[slot]
    key = lambda stage: (stage != last, _program(stage) != _program(last))
    return sorted(stages, key=key)

  def _trials(self, cell: Cell) -> list[Run]:
    """Returns the trials that may begin; once all ended, picks the best."""
    losses, known = self._losses[cell], -1
    while known != len(losses):
      known = len(losses)
      trials = self._searches[cell].trials(losses)
      waiting = []
      for trial in trials:
        if trial.number in losses:
          continue
        runs = self._trial_runs(cell, trial.number, trial.values)
        left = [run for run in runs if not self._has_ended(run)]
        waiting += left
        if not left:
          of_seeds = [self._ended[run.directory] for run in runs]
          losses[trial.number] = statistics.fmean(of_seeds)
    if len(losses) == len(trials):
      self._best[cell] = self._searches[cell].best(losses)
    return self._idle(waiting)

  def _targets(self, cell: Cell) -> list[Run]:
    """Returns the targets that may begin; notes when all have ended."""
    best = self._best[self._search_of[cell]]
    runs = target_runs(self.config, self.workdir, cell, best)
    waiting = [run for run in runs if not self._has_ended(run)]
    if waiting and self._send is not None:
      self._send(waiting)
      waiting = []
    if not waiting:
      self._open.remove(cell)
    return self._idle(waiting)

  def _idle(self, runs: Iterable[Run]) -> list[Run]:
    busy = {run.directory for run in self._running.values()}
    return [run for run in runs if run.directory not in busy]

  def _trial_runs(self, cell: Cell, number: int, values: Values) -> list[Run]:
    key = cell, number, tuple(values.items())
    if key in self._runs:
      return self._runs[key]
    shown = ' '.join(f'{name}={value:.6g}' for name, value in values.items())
    found = []
    for seed in range(self.config.study.trial_seeds):
      at = cells.trial_dir(self.config, self.workdir, cell, number, seed)
      config = cells.trial_config(self.config, cell, values, seed)
      many = f' seed={seed}' * (self.config.study.trial_seeds > 1)
      label = f'{cell} {shown}{many}'
      found.append(Run(Stage(cell, 'trials'), at, config, label, number))
    self._runs[key] = found
    return found

  def _has_ended(self, run: Run) -> bool:
    if run.directory not in self._ended:
      loss = cells.ended(run.config, run.directory)
      if loss is None:
        return False
      self._ended[run.directory] = loss
    return True

  def _done(self, cell: Cell) -> bool:
    """Returns whether all targets of a cell are done."""
    return all(
      cells.has_ended(cells.target_dir(self.workdir, cell, seed))
      for seed in range(self.config.study.seeds)
    )

  def _finished_curves(self, run: Run) -> list[list[tuple[int, float]]] | None:
    """Returns the curves against which to prune a trial, None for none."""
    if run.stage.kind != 'trials' or self.config.study.pruning == 'none':
      return None
    cell, found = run.stage.cell, []
    for number in self._searches[cell].before(run.number):
      if math.isinf(self._losses[cell][number]):
        continue
      # Runs of the same seed, on the same batches.
      at = cells.trials_dir(self.workdir, cell) / f'{number:03d}'
      if self.config.study.trial_seeds > 1:
        at /= run.directory.name
      if at not in self._curves:
        rows = metrics.read_rows(at)
        self._curves[at] = pruning.curve(rows, run.config.steps)
      found.append(self._curves[at])
    return found

  def _fail(self, stage: Stage, error: str) -> None:
    """Gives up the cells that a stage serves."""
    failed = [stage.cell]
    if stage.kind == 'trials':
      failed = [c for c in self._open if self._search_of[c] == stage.cell]
    for cell in failed:
      self.failures[cell] = error
      if cell in self._open:
        self._open.remove(cell)


def complete(config: ConfigDict) -> None:
  """Checks a study's configuration; fills in optimizers and learning rates.

  Raises:
    ValueError: it is inconsistent, which the first target would only find hours
      later.
  """
  config_lib.check_ranges(config)
  config_lib.make_absolute(config)
  config.study.optimizers = ','.join(cells.optimizers(config))
  search.check(config)
  search.complete(config)
  for cell in cells.cells(config):
    target = cells.target_config(config, cell, {}, 0)
    try:
      cells.search_of(config, cell)
      config_lib.check_ranges(target)
      model_config.resolve(target.model, config.study.vocab_size, target.dtype)
    except ValueError as error:
      keys = ['width_ratio', *(f'axis_{name}' for name, _ in cell.point)]
      given = ', '.join(f'study.{key}={config.study[key]}' for key in keys)
      raise ValueError(f'targets of {cell}, {given}: {error}') from error


def target_runs(
  config: ConfigDict, workdir: pathlib.Path, cell: Cell, values: Values
) -> list[Run]:
  """Returns the targets of a cell with the values of a search."""
  return [
    Run(
      Stage(cell, 'targets'),
      cells.target_dir(workdir, cell, seed),
      cells.target_config(config, cell, values, seed),
      f'{cell} seed={seed}',
      seed,
    )
    for seed in range(config.study.seeds)
  ]


def phases(
  config: ConfigDict, machine: int, away: bool = False
) -> list[tuple[tuple[str, ...], int]]:
  """Returns the phases of a study: kinds of runs, and devices per run.

  Trials and targets share a phase if they take equally many.

  Args:
    config: of the study.
    machine: see `cells.devices`.
    away: whether targets are sent away, and so take no devices.
  """
  trials = cells.devices(config.study.trial_mesh, machine)
  if away:
    return [(KINDS, trials)]
  target = cells.target_config(config, cells.cells(config)[0], {}, 0)
  sizes = {
    'trials': trials,
    'targets': cells.devices(target.mesh, machine),
  }
  if len(set(sizes.values())) == 1:
    return [(KINDS, sizes['trials'])]
  return [((kind,), sizes[kind]) for kind in KINDS]


def check(study: Study, engine: Engine, machine: int) -> None:
  """Checks data, mesh and memory of each kind of run left.

  Args:
    study: to run.
    engine: its first slot does the check.
    machine: see `cells.devices`.

  Raises:
    ValueError: names what would fail, before anything is trained.
  """
  runs = []
  for one in study.examples():
    config = json.loads(one.config.to_json())
    devices = cells.devices(one.config.mesh, machine)
    runs.append((f'{one.stage.kind} of {one.stage.cell}', config, devices))
  if runs:
    engine.submit(engine.slots[0], worker.check, {'runs': runs}).result()


def run(
  study: Study,
  engine: Engine,
  kinds: Collection[str] = KINDS,
  budget: Budget | None = None,
) -> None:
  """Does all runs of some kinds that fit, and shows progress."""
  budget = budget or Budget()
  if study.over or budget.ended:
    return
  if said := budget.estimate(study, engine, kinds):
    print(said, flush=True)
  planned = {r.directory: weight(r.config) for r in study.planned(kinds)}
  ended = [directory for directory in planned if cells.has_ended(directory)]
  with StudyDisplay(planned, ended, engine.slots) as display:
    _run(study, engine, kinds, budget, display)


def _run(
  study: Study,
  engine: Engine,
  kinds: Collection[str],
  budget: Budget,
  display: StudyDisplay,
) -> None:
  pending: dict[futures.Future[Any], int] = {}
  fits = None if budget.deadline is None else budget.fits
  told: set[Cell] = set()
  while True:
    # An idle slot whose result is not recorded yet is not free.
    free = set(engine.slots) - set(pending.values())
    for slot in sorted(free) if budget.left > 0 else ():
      if (taken := study.take(slot, kinds, fits)) is not None:
        display.begin(slot, taken.directory, taken.label)
        job = study.job(taken, budget.deadline)
        pending[engine.submit(slot, worker.train, job)] = slot
    for cell in study.cells:
      if cell in told:
        continue
      if cell in study.failures:
        told.add(cell)
        display.say(f'{cell} failed: {study.failures[cell]}')
      elif values := study.best(cell):
        told.add(cell)
        shown = ', '.join(f'{k} {v:.6g}' for k, v in values.items())
        display.say(f'{cell}: best on the proxy {shown}')
    if not pending:
      return
    done, _ = futures.wait(pending, None, futures.FIRST_COMPLETED)
    for future in done:
      slot, loss, error = pending.pop(future), None, None
      try:
        loss = future.result()
      except JobFailedError as failure:
        error = str(failure)
      stopped = loss == worker.STOPPED
      loss = None if stopped else loss
      ended = study.end(slot, loss, error, stopped)
      text = cells.ending(ended.directory)
      if loss is not None:
        budget.add(ended)
        text = f'loss {loss:.4f}'
      display.end(slot, f'{ended.label}: {error or text}', stopped)
    if fits is not None and (said := budget.change(study, engine, kinds)):
      display.say(said)


def _refuse_older(
  workdir: pathlib.Path, begun: bool, searched: Iterable[Cell]
) -> None:
  """Raises ValueError if searches of an earlier version have begun."""
  for cell in searched:
    home = cells.trials_dir(workdir, cell)
    if not begun and home.exists() and any(home.iterdir()):
      raise ValueError(
        f'{home} holds trials without {search.JOURNAL}, of an earlier version, '
        'whose search cannot resume: use another --workdir; launch.report '
        f'--runs={workdir} reads them'
      )


def _program(stage: Stage) -> tuple[object, ...]:
  """Returns a key that runs with the same compiled program share."""
  free = ('epochs', 'tokens')
  compiled = [at for at in stage.cell.point if at[0] not in free]
  return stage.kind, stage.cell.model, stage.cell.optimizer, compiled

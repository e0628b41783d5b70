"""Does the runs of a transfer experiment on a pool of workers."""

from collections.abc import Iterable
import json
import math
import pathlib
import time
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from steepest.tuning import ladder
from steepest.tuning.bars import Bars
from steepest.tuning.ladder import Rung
from steepest.tuning.pool import Pool


class Task(NamedTuple):
  """What one worker does with one compilation."""

  rung: Rung
  seeds: tuple[int, ...]


class Run(NamedTuple):
  """A run of a task."""

  rung: Rung
  seed: int
  lr: float

  def __str__(self) -> str:
    return f'{self.rung} seed {self.seed} lr {self.lr:.6g}'


class State:
  """What is done and what comes next.

  Attributes:
    losses: (rung, seed) → learning rate → loss, infinite where it diverged.
  """

  def __init__(self, config: ConfigDict, workdir: pathlib.Path):
    """Finds the runs that are done in `workdir`."""
    self._config = config
    self._workdir = workdir
    # Width ratio → wall seconds of the runs that this process did.
    self._seconds: dict[int, list[float]] = {}
    self.losses: dict[tuple[Rung, int], dict[float, float]] = {
      (rung, seed): {}
      for rung in ladder.rungs(config)
      for seed in range(config.transfer.seeds)
    }
    for rung, seed in self.losses:
      while run := self.next_run(Task(rung, (seed,))):
        path = ladder.run_dir(workdir, *run) / 'summary.json'
        if not path.exists():
          break
        summary = json.loads(path.read_text('utf-8'))
        loss = summary['eval_loss']
        # Without validation data the training loss is compared.
        loss = summary['train_loss'] if loss is None else loss
        self.losses[rung, seed][run.lr] = _loss(loss)

  def tasks(self) -> list[Task]:
    """Returns all tasks: seed 0 first, so that a part says something of all."""
    rungs = ladder.rungs(self._config)
    others = tuple(range(1, self._config.transfer.seeds))
    tasks = [Task(rung, (0,)) for rung in rungs]
    return tasks + [Task(rung, others) for rung in rungs if others]

  def next_run(self, task: Task) -> Run | None:
    """Returns a task's next run; None where it is done or cannot begin."""
    t = self._config.transfer
    for seed in task.seeds:
      planned = ladder.grid(self._config, task.rung.optimizer)
      if seed:
        if self.next_run(Task(task.rung, (0,))):
          return None
        planned = ladder.window(self.losses[task.rung, 0], t.refine)
      losses = self.losses[task.rung, seed]
      lr = ladder.next_lr(planned, losses, t.max_extensions)
      if lr is not None:
        return Run(task.rung, seed, lr)
    return None

  def finished(self, task: Task) -> bool:
    """Returns whether nothing of a task is left to do."""
    waits = 0 not in task.seeds and self.next_run(Task(task.rung, (0,)))
    return not waits and self.next_run(task) is None

  def record(self, run: Run, loss: float | None, seconds: float) -> None:
    """Notes a run that ended; a loss of None is one that diverged."""
    self.losses[run.rung, run.seed][run.lr] = _loss(loss)
    self._seconds.setdefault(run.rung.ratio, []).append(seconds)

  def job(self, run: Run) -> dict[str, Any]:
    """Returns the job of tuning/worker.py that does a run."""
    config = ladder.run_config(self._config, *run)
    return {
      'kind': 'run',
      'config': json.loads(config.to_json()),
      'directory': str(ladder.run_dir(self._workdir, *run)),
    }

  def done(self) -> int:
    """Returns how many runs are done."""
    return sum(len(losses) for losses in self.losses.values())

  def left(self) -> dict[int, int]:
    """Returns width ratio → runs to do, extensions of grids not foreseen."""
    refine = self._config.transfer.refine
    left: dict[int, int] = {}
    for (rung, seed), losses in self.losses.items():
      planned = len(ladder.grid(self._config, rung.optimizer))
      if seed and refine:
        planned = min(planned, 2 * refine + 1)
      more = max(0, planned - len(losses))
      left[rung.ratio] = left.setdefault(rung.ratio, 0) + more
    return left

  def seconds_left(self, workers: int) -> float | None:
    """Returns the time left at the pace of this process; None: not known."""
    if not self._seconds:
      return None
    means = {r: sum(s) / len(s) for r, s in self._seconds.items()}
    total = 0.0
    for ratio, runs in self.left().items():
      timed = min(means, key=lambda r: abs(math.log(r / ratio)))
      # Between widths that were timed the cost grows about as the width.
      total += runs * means[timed] * ratio / timed
    return total / workers


class Display(Bars):
  """A bar for the experiment and a line for each worker.

  Without a terminal, a line for every run that ends.
  """

  def __init__(self, state: State, workers: int):
    super().__init__('transfer', workers)
    self._state = state
    self._count = workers
    self._update()

  def show(self, run: Run, message: dict[str, Any]) -> None:
    """Shows what a worker says about its run."""
    if message['kind'] == 'row':
      self.show_row(str(run), message)
    elif message['kind'] == 'failed':
      self.console.print(f'{run} failed: {message["error"]}')

  def end(self, run: Run, loss: float | None) -> None:
    """Shows a run that ended."""
    text = 'diverged' if loss is None else f'loss {loss:.4f}'
    self.console.print(f'{self._update()}  {run}: {text}', highlight=False)

  def _update(self) -> str:
    done, left = self._state.done(), sum(self._state.left().values())
    seconds = self._state.seconds_left(self._count)
    status = f'{done} of {done + left} runs'
    if seconds is not None:
      status += f', {seconds // 60:.0f}:{seconds % 60:02.0f} left'
    self.show_all(done / (done + left), status)
    return status


def climb(
  state: State, tasks: Iterable[Task], pool: Pool, display: Display
) -> None:
  """Does all runs of the tasks; those of one task go to one worker.

  Raises:
    ChildProcessError: a worker ended.
    ValueError: runs failed; it names them.
  """
  waiting = list(tasks)
  failures: list[str] = []
  # Worker → its task, its run and when that began.
  busy: dict[int, tuple[Task, Run, float]] = {}

  def begin(worker: int, task: Task) -> bool:
    run = state.next_run(task)
    if run is not None:
      busy[worker] = task, run, time.monotonic()
      pool.start(worker, state.job(run))
    return run is not None

  def give_work() -> None:
    for worker in sorted(set(range(len(pool))) - set(busy)):
      for task in list(waiting):
        if state.finished(task):
          waiting.remove(task)
        elif begin(worker, task):
          waiting.remove(task)
          break

  give_work()
  for message in pool.messages():
    worker = message['worker']
    task, run, since = busy[worker]
    display.show(run, message)
    if message['kind'] == 'run':
      state.record(run, message['loss'], time.monotonic() - since)
      display.end(run, message['loss'])
    elif message['kind'] == 'failed':
      failures.append(f'{run}: {message["error"]}')
    if message['kind'] in ('done', 'failed'):
      del busy[worker]
      # What is left of a task whose run failed would fail alike.
      if message['kind'] == 'failed' or not begin(worker, task):
        give_work()
    if not busy:
      break
  if failures:
    raise ValueError('; '.join(failures))


def _loss(loss: float | None) -> float:
  return math.inf if loss is None else loss

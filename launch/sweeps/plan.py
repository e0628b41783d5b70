"""What a study has to do, what is done of it, and how it shows that."""

import json
import math
import pathlib
import time
from types import TracebackType
from typing import Any

from ml_collections import ConfigDict
from rich.console import Console
from rich.progress import BarColumn
from rich.progress import Progress
from rich.progress import TextColumn

from steepest.launch import progress
from steepest.launch.sweeps import cells
from steepest.launch.sweeps import search
from steepest.launch.sweeps.space import Values


class Plan:
  """The runs of a study, each weighed by what it computes.

  Attributes:
    weights: run directory relative to the study → tokens × parameters of its
      blocks and readout, in arbitrary units.
  """

  def __init__(self, config: ConfigDict, workdir: pathlib.Path):
    self.workdir = workdir
    self._seeds = config.study.seeds
    self.weights: dict[str, float] = {}
    planned = cells.cells(config)
    for cell in dict.fromkeys(cells.search_of(config, c) for c in planned):
      home = cells.trials_dir(workdir, cell)
      trial = cells.trial_config(config, cell, {})
      for name in search.first_names(config, cell.optimizer):
        self._add(home / name, trial)
    for cell in planned:
      for seed in range(self._seeds):
        target = cells.target_config(config, cell, {}, seed)
        self._add(cells.target_dir(workdir, cell, seed), target)

  def done(self, cell: cells.Cell) -> bool:
    """Returns whether all targets of a cell are there; each needs them."""
    return all(
      self.finished(self.name(cells.target_dir(self.workdir, cell, seed)))
      for seed in range(self._seeds)
    )

  def name(self, directory: pathlib.Path) -> str:
    """Returns a run's directory relative to the study's."""
    return str(directory.relative_to(self.workdir))

  def finished(self, name: str) -> bool:
    """Returns whether a run is done."""
    path = self.workdir / name / 'summary.json'
    return path.exists() and 'status' in json.loads(path.read_text('utf-8'))

  def ending(self, name: str) -> str:
    """Returns how a run without a loss ended."""
    path = self.workdir / name / 'summary.json'
    return str(json.loads(path.read_text('utf-8'))['status'])

  def _add(self, directory: pathlib.Path, config: ConfigDict) -> None:
    width, layers = config.model.width, config.model.num_layers
    # Twelve width² a block, and a readout of a few thousand entries.
    size = 12 * layers * width**2 + 2048 * width
    tokens = config.steps * config.batch_size * config.model.context
    self.weights[self.name(directory)] = float(tokens * size)


class Display:
  """A bar for the study and a line for each worker.

  Without a terminal, a line for every run that ends and every minute.
  """

  def __init__(self, plan: Plan, workers: int):
    self._plan = plan
    self._console = Console()
    self._parts = {n: float(plan.finished(n)) for n in plan.weights}
    self._bar = Progress(
      TextColumn('{task.description}'),
      BarColumn(bar_width=24),
      TextColumn('{task.fields[status]}'),
      TextColumn('{task.fields[left]}'),
      console=self._console,
      disable=not self._console.is_terminal,
    )
    add = lambda name: self._bar.add_task(
      name, total=1.0, status='starting', left=''
    )
    self._all = add('study')
    self._workers = [add(f'worker {i}') for i in range(workers)]
    self._start = self._said = time.monotonic()
    self._before = self._fraction()

  def __enter__(self) -> 'Display':
    self._bar.start()
    self._update()
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    self._bar.stop()

  def show(self, message: dict[str, Any]) -> None:
    """Shows what a worker says."""
    task = self._workers[message['worker']]
    if message['kind'] == 'row':
      name = self._plan.name(pathlib.Path(message['run']))
      row, steps = message['row'], message['steps']
      done = (row['step'] + 1) / steps
      self._parts[name] = done
      status = f'step {row["step"] + 1}/{steps} {progress.describe(row)}'
      self._bar.update(
        task, description=_short(name), completed=done, status=status
      )
    elif message['kind'] == 'run':
      name = self._plan.name(pathlib.Path(message['run']))
      self._parts[name] = 1.0
      loss = message['loss']
      text = self._plan.ending(name) if loss is None else f'loss {loss:.4f}'
      self._say(f'{_short(name)}: {text}')
    self._update()

  def best(self, cell: cells.Cell, values: Values) -> None:
    """Shows what a search found."""
    others = ''.join(
      f', {name} {value:.6g}' for name, value in values.items() if name != 'lr'
    )
    self._say(
      f'{cell}: best learning rate on the proxy {values["lr"]:.6g}{others}, '
      'training targets'
    )

  def failed(self, cell: cells.Cell, error: str) -> None:
    """Shows why nothing more of a cell is done."""
    self._console.print(f'{cell} failed: {error}')

  def refresh(self) -> None:
    """Looks which runs other processes have ended."""
    for name, part in self._parts.items():
      if part < 1.0 and self._plan.finished(name):
        self._parts[name] = 1.0
    self._update()

  def _say(self, text: str) -> None:
    self._console.print(f'{self._fraction():4.0%} {text}', highlight=False)

  def _update(self) -> None:
    finished = sum(part == 1.0 for part in self._parts.values())
    done = self._fraction()
    status = f'{finished} of {len(self._parts)} runs'
    left = self._left(done)
    self._bar.update(self._all, completed=done, status=status, left=left)
    if not self._console.is_terminal and time.monotonic() > self._said + 60:
      self._said = time.monotonic()
      self._say(f'{status} {left}')

  def _left(self, done: float) -> str:
    """Returns the time left, at the pace since this process began."""
    spent = time.monotonic() - self._start
    if done - self._before < 0.01:
      return ''
    left = spent * (1 - done) / (done - self._before)
    return f'{left // 60:.0f}:{left % 60:02.0f} left'

  def _fraction(self) -> float:
    # A grid that is extended adds runs as it goes.
    mean = math.fsum(self._plan.weights.values()) / len(self._plan.weights)
    for name in self._parts:
      self._plan.weights.setdefault(name, mean)
    total = math.fsum(self._plan.weights.values())
    done = math.fsum(
      self._plan.weights[name] * part for name, part in self._parts.items()
    )
    return done / total


def _short(run: str) -> str:
  """gpt2-adamw lr=0.001 or gpt2-adamw seed=0."""
  return ' '.join(pathlib.Path(run).parts[1:])

"""What a study has to do, what is done of it, and how it shows that."""

import dataclasses
import json
import math
import pathlib
import time
from typing import Any

from ml_collections import ConfigDict

from steepest.optimizers import build
from steepest.training import flops
from steepest.tuning import cells, search
from steepest.tuning.bars import Bars
from steepest.tuning.space import Values


@dataclasses.dataclass(frozen=True)
class Planned:
  """A run of a study.

  Attributes:
    key: kind ('trials' or 'targets'), model and optimizer.
    config: its configuration, without the values that a search finds.
    weight: what it computes: tokens × parameters of its blocks and readout,
      times what curvature adds; in arbitrary units.
  """

  key: tuple[str, str, str]
  config: ConfigDict
  weight: float


class Plan:
  """The runs of a study, each weighed by what it computes.

  Attributes:
    runs: run directory relative to the study → what is planned.
  """

  def __init__(self, config: ConfigDict, workdir: pathlib.Path):
    """Plans the runs that there are without extensions of the search."""
    self.workdir = workdir
    self._seeds = config.study.seeds
    self.runs: dict[str, Planned] = {}
    planned = cells.cells(config)
    for cell in dict.fromkeys(cells.search_of(config, c) for c in planned):
      home = cells.trials_dir(workdir, cell)
      run = _planned('trials', cell, cells.trial_config(config, cell, {}))
      for name in search.first_names(config, cell.optimizer):
        self.runs[self.name(home / name)] = run
    for cell in planned:
      target = cells.target_config(config, cell, {}, 0)
      run = _planned('targets', cell, target)
      for seed in range(self._seeds):
        directory = cells.target_dir(workdir, cell, seed)
        self.runs[self.name(directory)] = run

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


def _planned(kind: str, cell: cells.Cell, config: ConfigDict) -> Planned:
  width, layers = config.model.width, config.model.num_layers
  # Twelve width² a block, and a readout of a few thousand entries.
  size = 12 * layers * width**2 + 2048 * width
  tokens = config.steps * config.batch_size * config.model.context
  weight = float(tokens * size)
  if hasattr(build.find(cell.optimizer), 'update_curvature'):
    o = config.optimizer
    cost = flops.of_estimate(o.hessian_estimator, o.hessian_subset)
    weight *= 1 + cost / o.hessian_every
  key = kind, cell.model, cell.optimizer
  return Planned(key, config, weight)


class Display(Bars):
  """A bar for the study and a line for each worker.

  Without a terminal, a line for every run that ends and every minute.
  """

  def __init__(self, plan: Plan, workers: int):
    super().__init__('study', workers)
    self._plan = plan
    self._weights = {name: run.weight for name, run in plan.runs.items()}
    self._parts = {n: float(plan.finished(n)) for n in plan.runs}
    self._start = self._said = time.monotonic()
    self._before = self._fraction()
    self._update()

  def show(self, message: dict[str, Any]) -> None:
    """Shows what a worker says."""
    if message['kind'] == 'row':
      name = self._plan.name(pathlib.Path(message['run']))
      self._parts[name] = self.show_row(_short(name), message)
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
    self.console.print(f'{cell} failed: {error}')

  def refresh(self) -> None:
    """Looks which runs other processes have ended."""
    for name, part in self._parts.items():
      if part < 1.0 and self._plan.finished(name):
        self._parts[name] = 1.0
    self._update()

  def _say(self, text: str) -> None:
    self.console.print(f'{self._fraction():4.0%} {text}', highlight=False)

  def _update(self) -> None:
    finished = sum(part == 1.0 for part in self._parts.values())
    done = self._fraction()
    status = f'{finished} of {len(self._parts)} runs {self._left(done)}'
    self.show_all(done, status)
    if not self.console.is_terminal and time.monotonic() > self._said + 60:
      self._said = time.monotonic()
      self._say(status)

  def _left(self, done: float) -> str:
    """Returns the time left, at the pace since this process began."""
    spent = time.monotonic() - self._start
    if done - self._before < 0.01:
      return ''
    left = spent * (1 - done) / (done - self._before)
    return f'{left // 60:.0f}:{left % 60:02.0f} left'

  def _fraction(self) -> float:
    # A grid that is extended adds runs as it goes.
    mean = math.fsum(self._weights.values()) / len(self._weights)
    for name in self._parts:
      self._weights.setdefault(name, mean)
    total = math.fsum(self._weights.values())
    done = math.fsum(self._weights[n] * part for n, part in self._parts.items())
    return done / total


def _short(run: str) -> str:
  """gpt2-adamw lr=0.001 or gpt2-adamw seed=0."""
  return ' '.join(pathlib.Path(run).parts[1:])

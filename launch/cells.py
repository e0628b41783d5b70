"""The cells of a study: what each of its runs trains.

A cell is a model × an optimizer. Its learning rate is searched on a proxy and
carried to a target `study.width_ratio` times as wide by µP.
"""

from collections.abc import Callable
import dataclasses
import math
import pathlib
from typing import Any

from ml_collections import ConfigDict

from steepest.experiments import base
from steepest.launch import assemble
from steepest.models import config as model_config
from steepest.training.loop import Diverged

Runner = Callable[[ConfigDict, pathlib.Path], float]


@dataclasses.dataclass(frozen=True)
class Cell:
  """A model × an optimizer."""

  model: str
  optimizer: str

  def __str__(self) -> str:
    return f'{self.model}-{self.optimizer}'


def cells(config: ConfigDict) -> list[Cell]:
  """Returns the cells of a study in the order in which they are run."""
  study = config.study
  models, optimizers = study.models.split(','), study.optimizers.split(',')
  return [Cell(m, o) for o in optimizers for m in models]


def grid(config: ConfigDict, cell: Cell) -> list[float]:
  """Returns the learning rates that a cell's search starts with.

  Raises:
    ValueError: there are fewer than four, or they do not grow.
  """
  key = f'lrs_{cell.optimizer}'
  if key not in config.study:
    raise ValueError(f'study.{key} is missing: give its learning rates')
  lrs = [float(lr) for lr in config.study[key]]
  if len(lrs) < 4 or lrs != sorted(set(lrs)) or lrs[0] <= 0:
    raise ValueError(f'study.{key}={lrs}: give four or more rising rates')
  return lrs


def trial_config(config: ConfigDict, cell: Cell, lr: float) -> ConfigDict:
  """Returns the configuration of a proxy run of the search."""
  run = _cell_config(config, cell)
  run.stage = 'tune'
  run.optimizer.lr = lr
  # Only the end of a trial is compared.
  run.eval_every = 0
  run.eval_tasks = ''
  # A trial is short: it is done again rather than resumed.
  run.checkpoint_every = 0
  return run


def target_config(
  config: ConfigDict, cell: Cell, lr: float, seed: int
) -> ConfigDict:
  """Returns the configuration of a target run with the proxy's best rate."""
  run = _cell_config(config, cell)
  ratio = config.study.width_ratio
  run.stage = 'final'
  run.seed = seed
  run.optimizer.lr = lr
  run.steps = config.study.target_steps
  run.model.width *= ratio
  run.model.num_heads *= ratio
  run.model.num_kv_heads *= ratio
  run.model.mlp_dim *= ratio
  return run


def trial_dir(workdir: pathlib.Path, cell: Cell, lr: float) -> pathlib.Path:
  """Returns where a trial's run is kept."""
  return workdir / 'trials' / str(cell) / f'lr={lr:.6g}'


def target_dir(workdir: pathlib.Path, cell: Cell, seed: int) -> pathlib.Path:
  """Returns where a target's run is kept."""
  return workdir / 'finals' / str(cell) / f'seed={seed}'


def search(
  config: ConfigDict, cell: Cell, workdir: pathlib.Path, run: Runner
) -> float:
  """Returns the best learning rate of a cell.

  While the best rate is at an edge of the grid, the grid is extended there by
  its own ratio.

  Args:
    config: of the study.
    cell: to be tuned.
    workdir: of the study.
    run: (configuration, directory) → final loss, infinite if it diverged.

  Raises:
    ValueError: the best is still at an edge after study.max_extensions.
  """
  lrs = grid(config, cell)
  losses: dict[float, float] = {}
  for _ in range(config.study.max_extensions + 1):
    for lr in lrs:
      if lr not in losses:
        trial = trial_config(config, cell, lr)
        losses[lr] = run(trial, trial_dir(workdir, cell, lr))
    best = min(lrs, key=losses.__getitem__)
    if math.isinf(losses[best]):
      raise ValueError(f'every learning rate of {lrs} diverged')
    if best not in (lrs[0], lrs[-1]):
      return best
    if best == lrs[0]:
      lrs.insert(0, float(f'{lrs[0] ** 2 / lrs[1]:.6g}'))
    else:
      lrs.append(float(f'{lrs[-1] ** 2 / lrs[-2]:.6g}'))
  raise ValueError(
    f'the best learning rate {best:.6g} is still at the edge after '
    f'{config.study.max_extensions} extensions: widen '
    f'study.lrs_{cell.optimizer}'
  )


def run_once(
  config: ConfigDict,
  workdir: pathlib.Path,
  on_row: Callable[[dict[str, Any]], None],
) -> float:
  """Trains a run unless it is done and returns the loss to compare.

  That is the validation loss, or the training loss where none is read;
  infinite if the run diverged.
  """
  try:
    summary = assemble.train(config, workdir, {}, on_row)
  except Diverged:
    return math.inf
  loss = summary['eval_loss']
  return summary['train_loss'] if loss is None else loss


def _cell_config(config: ConfigDict, cell: Cell) -> ConfigDict:
  """Returns the study's proxy with the cell's model, optimizer and base."""
  run = ConfigDict(config.to_dict())
  del run.study
  base.set_model(run, cell.model)
  # The study fixes everything of the optimizer but its name and its habits.
  base.set_optimizer(run, cell.optimizer)
  shapes = model_config.resolve(run.model, 1, run.dtype)
  for key in ('num_kv_heads', 'head_dim', 'mlp_dim'):
    run.model[key] = getattr(shapes, key)
  run.parametrization.update(
    base_width=shapes.width,
    base_depth=shapes.num_layers,
    base_mlp_dim=shapes.mlp_dim,
    base_num_heads=shapes.num_heads,
    base_head_dim=shapes.head_dim,
  )
  return run

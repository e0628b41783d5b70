"""The cells of a study: what each of its runs trains.

A cell is a model × an optimizer × a point of the study's axes. Hyperparameters
are searched on a proxy and carried to a target `study.width_ratio` times as
wide by µP. Cells that differ on axes that are not retuned share a search.
"""

from collections.abc import Callable, Mapping
import dataclasses
import difflib
import math
import pathlib
from typing import Any

from ml_collections import ConfigDict

from steepest.experiments import base
from steepest.models import config as model_config
from steepest.optimizers import build
from steepest.training import run as assemble
from steepest.training.loop import Diverged
from steepest.tuning import axes, space
from steepest.tuning.pruning import Pruned


@dataclasses.dataclass(frozen=True)
class Cell:
  """A model × an optimizer × a point of the axes (tuning/axes.py)."""

  model: str
  optimizer: str
  point: axes.Point = ()

  def __str__(self) -> str:
    return f'{self.model}-{self.optimizer}{axes.suffix(self.point)}'


def cells(config: ConfigDict) -> list[Cell]:
  """Returns the cells of a study in the order in which they are run.

  Raises:
    ValueError: an optimizer is unknown, or an axis not what it may be.
  """
  models = config.study.models.split(',')
  names, points = optimizers(config), axes.points(config)
  return [Cell(m, o, p) for p in points for o in names for m in models]


def optimizers(config: ConfigDict) -> list[str]:
  """Returns the optimizers of a study; 'all' are those in optimizers/.

  Raises:
    ValueError: one is unknown or given twice.
  """
  given = config.study.optimizers
  if given == 'all':
    return build.names()
  found = given.split(',')
  if len(set(found)) < len(found):
    raise ValueError(f'study.optimizers={given!r}: give each once')
  for name in found:
    build.find(name)
  return found


def search_of(config: ConfigDict, cell: Cell) -> Cell:
  """Returns the cell whose search gives a cell its hyperparameters."""
  point = axes.retuned(config, cell.point)
  return dataclasses.replace(cell, point=point)


def trial_config(
  config: ConfigDict, cell: Cell, values: Mapping[str, float]
) -> ConfigDict:
  """Returns the configuration of a proxy run with the values of a trial.

  Args:
    config: of the study.
    cell: that is searched, see `search_of`.
    values: of the trial.
  """
  run = _cell_config(config, cell)
  run.stage = 'tune'
  space.set_values(run, values)
  axes.apply(run, cell.point)
  # Only the end of a trial is compared.
  run.eval_every = 0
  run.eval_tasks = ''
  # A trial is short: it is done again rather than resumed.
  run.checkpoint_every = 0
  return run


def target_config(
  config: ConfigDict, cell: Cell, values: Mapping[str, float], seed: int
) -> ConfigDict:
  """Returns the configuration of a target run with the proxy's best values.

  Raises:
    ValueError: study.target_keys is malformed, or an axis does not divide.
  """
  run = _cell_config(config, cell)
  ratio = config.study.width_ratio
  run.model.width *= ratio
  run.model.num_heads *= ratio
  run.model.num_kv_heads *= ratio
  run.model.mlp_dim *= ratio
  _set_keys(run, config.study.target_keys)
  run.stage = 'final'
  run.seed = seed
  run.steps = config.study.target_steps
  space.set_values(run, values)
  axes.apply(run, cell.point)
  return run


def _set_keys(run: ConfigDict, given: str) -> None:
  """Sets the keys of 'KEY=VALUE,…', with values of the types they have."""
  known = base.flatten(run)
  for word in filter(None, given.split(',')):
    key, _, text = (part.strip() for part in word.partition('='))
    where = f'study.target_keys: {word!r}'
    if key not in known:
      near = difflib.get_close_matches(key, known, 1)
      hint = f'; did you mean {near[0]}?' if near else ''
      raise ValueError(f'{where}: there is no such key{hint}')
    kind = type(known[key])
    if kind not in (int, float, str):
      raise ValueError(f'{where}: only numbers and words can be set here')
    try:
      run.update_from_flattened_dict({key: kind(text)})
    except ValueError as error:
      raise ValueError(f'{where}: give a value as {known[key]!r}') from error


def trials_dir(workdir: pathlib.Path, cell: Cell) -> pathlib.Path:
  """Returns where a search's trials are kept, a directory each."""
  return workdir / 'trials' / str(cell)


def target_dir(workdir: pathlib.Path, cell: Cell, seed: int) -> pathlib.Path:
  """Returns where a target's run is kept."""
  return workdir / 'finals' / str(cell) / f'seed={seed}'


def run_once(
  config: ConfigDict,
  workdir: pathlib.Path,
  on_row: Callable[[dict[str, Any]], None],
  make_evaluate: Callable[..., Any] | None,
) -> float:
  """Trains a run unless it is done and returns the loss to compare.

  That is the validation loss, or the training loss where none is read;
  infinite if the run diverged or was pruned.
  """
  loss = ended(config, workdir)
  if loss is None:
    try:
      loss = loss_of(
        assemble.train(config, workdir, {}, on_row, make_evaluate=make_evaluate)
      )
    except (Diverged, Pruned):
      loss = math.inf
  return loss


def ended(config: ConfigDict, workdir: pathlib.Path) -> float | None:
  """Returns the loss to compare of a run; None while it has not ended.

  Raises:
    ValueError: the directory holds another run.
  """
  try:
    summary = assemble.finished(config.copy_and_resolve_references(), workdir)
  except (Diverged, Pruned):
    return math.inf
  return None if summary is None else loss_of(summary)


def loss_of(summary: Mapping[str, Any]) -> float:
  loss = summary['eval_loss']
  return float(summary['train_loss'] if loss is None else loss)


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

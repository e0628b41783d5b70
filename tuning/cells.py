"""The cells of a study: what each of its runs trains.

A cell is a model × an optimizer × a point on the study's axes. Hyperparameters
are searched on a proxy and transferred by µP to a target `study.width_ratio`
times as wide. Cells that differ only on axes that are not retuned share a
search.

The values of an axis always include the study's own, from its configuration. A
point holds the values that are not the study's own. The keys are
`study.axis_*` in experiments/base.py.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import itertools
import json
import math
import pathlib
from typing import Any

from flax import linen as nn
import jax
from ml_collections import ConfigDict

from steepest.experiments import base, outside
from steepest.models import config as model_config, parametrization
from steepest.optimizers import optimizer as optimizer_lib, schedules
from steepest.training import (
  config as config_lib,
  flops,
  run as training_run,
  state,
)
from steepest.training.loop import Diverged, Pruned
from steepest.training.mesh import AXES

MODES = ('one_at_a_time', 'product')

Value = int | float | str
# (axis, value) of every axis that is not at the study's own value.
Point = tuple[tuple[str, Value], ...]


@dataclasses.dataclass(frozen=True)
class Axis:
  """An axis of a study: the study's own value and the others tried."""

  name: str
  own: Value
  others: tuple[Value, ...]


@dataclasses.dataclass(frozen=True)
class Cell:
  """A model × an optimizer × a point on the axes.

  Model and optimizer are names or paths. As text, and so in directories, a
  model's path becomes its stem, and an optimizer's the name in its file.
  """

  model: str
  optimizer: str
  point: Point = ()

  def __str__(self) -> str:
    at = ''.join(f'-{name}={_shown(value)}' for name, value in self.point)
    return f'{outside.stem(self.model)}-{name_of(self.optimizer)}{at}'


def name_of(optimizer: str) -> str:
  """Returns the name of an optimizer given by name or path."""
  if outside.is_path(optimizer):
    return optimizer_lib.find(optimizer).name
  return optimizer


def cells(config: ConfigDict) -> list[Cell]:
  """Returns the cells of a study in the order in which they are run.

  Raises:
    ValueError: an optimizer or an axis value is invalid, or two models share a
      name.
  """
  given = config.study.models
  models = given.split(',')
  _check_distinct('models', given, [outside.stem(name) for name in models])
  names, at = optimizers(config), points(config)
  return [Cell(m, o, p) for p in at for o in names for m in models]


def optimizers(config: ConfigDict) -> list[str]:
  """Returns the optimizers of a study; 'all' are those in optimizers/.

  Raises:
    ValueError: one is unknown, or two share a name.
  """
  given = config.study.optimizers
  if given == 'all':
    return optimizer_lib.names()
  found = given.split(',')
  _check_distinct(
    'optimizers', given, [optimizer_lib.find(name).name for name in found]
  )
  return found


def _check_distinct(key: str, given: str, named: Sequence[str]) -> None:
  if len(set(named)) < len(named):
    raise ValueError(
      f'study.{key}={given!r}: these are named {", ".join(named)}; give each '
      'once, with its own name'
    )


def axes(config: ConfigDict) -> list[Axis]:
  """Returns all axes of a study; those without values have no `others`.

  Raises:
    ValueError: a value is out of its range or given twice.
  """
  kinds = ('sp', 'mup')
  return [
    _axis(config, 'width', config.study.width_ratio, int),
    _axis(config, 'depth', 1, int),
    _axis(config, 'parametrization', config.parametrization.kind, kinds),
    _axis(config, 'epochs', config.data.epochs, int),
    _axis(config, 'batch_size', config.batch_size, int),
    _axis(config, 'schedule', config.schedule.kind, schedules.KINDS),
    _axis(config, 'tokens', 1, float),
  ]


def _axis(
  config: ConfigDict, name: str, own: Value, kind: type | tuple[str, ...]
) -> Axis:
  """Returns an axis; `kind` is the type of its values, or its words."""
  given = tuple(config.study[f'axis_{name}'])
  key = f'study.axis_{name}={given}'
  for value in given:
    if isinstance(kind, tuple):
      if value not in kind:
        raise ValueError(f'{key}: there are {", ".join(kind)}')
    elif isinstance(value, str) or value != kind(value) or value <= 0:
      wanted = 'whole numbers' if kind is int else 'numbers'
      raise ValueError(f'{key}: give {wanted} above 0')
  if len(set(given)) < len(given):
    raise ValueError(f'{key}: give each value once')
  values = given if isinstance(kind, tuple) else [kind(v) for v in given]
  return Axis(name, own, tuple(v for v in values if v != own))


def points(config: ConfigDict) -> list[Point]:
  """Returns the points of the targets, the study's own values () first.

  Raises:
    ValueError: as `axes`, or study.axes_mode is unknown.
  """
  mode, found = config.study.axes_mode, axes(config)
  if mode not in MODES:
    raise ValueError(
      f'study.axes_mode={mode!r}: must be one of {", ".join(MODES)}'
    )
  choices: list[list[Point]] = [
    [(), *(((axis.name, value),) for value in axis.others)] for axis in found
  ]
  if mode == 'product':
    return [tuple(itertools.chain(*at)) for at in itertools.product(*choices)]
  return [(), *(point for of_axis in choices for point in of_axis[1:])]


def search_of(config: ConfigDict, cell: Cell) -> Cell:
  """Returns the cell whose search supplies a cell's hyperparameters.

  Raises:
    ValueError: study.retune names an axis that does not exist, or widths are
      retuned but the study's own targets are wider than its proxies.
  """
  names = [n.strip() for n in config.study.retune.split(',') if n.strip()]
  known = [axis.name for axis in axes(config)]
  for name in names:
    if name not in known:
      raise ValueError(
        f'study.retune={config.study.retune!r}: there are {", ".join(known)}'
      )
  if 'width' in names and config.study.width_ratio != 1:
    raise ValueError(
      'study.retune=width searches every width itself: set study.width_ratio=1'
    )
  point = tuple((name, value) for name, value in cell.point if name in names)
  return dataclasses.replace(cell, point=point)


def trial_config(
  config: ConfigDict, cell: Cell, values: Mapping[str, float], seed: int
) -> ConfigDict:
  """Returns the configuration of a proxy run with the values of a trial.

  Args:
    config: of the study.
    cell: to search, see `search_of`.
    values: of the trial, by hyperparameter.
    seed: of the run, counted from the study's own.
  """
  run = _cell_config(config, cell)
  run.stage = 'tune'
  run.mesh = config.study.trial_mesh.copy_and_resolve_references()
  run.seed += seed
  set_values(run, values)
  _apply(run, dict(cell.point), 1)
  # Only the final loss of a trial is compared.
  run.eval_every = 0
  run.eval_tasks = ''
  # A trial is short: it is rerun rather than resumed.
  run.checkpoint_every = 0
  return run


def target_config(
  config: ConfigDict, cell: Cell, values: Mapping[str, float], seed: int
) -> ConfigDict:
  """Returns the configuration of a target run with the values of a search.

  Raises:
    ValueError: study.target has an unknown key, an axis does not divide, or
      tokens per parameter are asked for without a vocabulary.
  """
  run = _cell_config(config, cell)
  try:
    run.lock().update(config.study.target.to_dict())
  except (KeyError, TypeError, ValueError) as error:
    raise ValueError(f'study.target: {" ".join(str(error).split())}') from error
  run.unlock()
  run.stage = 'final'
  run.seed = seed
  run.steps = config.study.target_steps
  set_values(run, values)
  at = dict(cell.point)
  per_parameter = config.study.tokens_per_parameter
  if per_parameter:
    per_parameter *= at.pop('tokens', 1)
  _apply(run, at, config.study.width_ratio)
  if per_parameter:
    tokens = per_parameter * parameters(run)
    run.steps = max(1, round(tokens / (run.batch_size * run.model.context)))
  return run


def parameters(run: ConfigDict) -> int:
  """Returns the number of a run's parameters, embeddings included.

  Raises:
    ValueError: model.vocab_size is 0, which leaves it to the data.
  """
  if not run.model.vocab_size:
    raise ValueError(
      'study.tokens_per_parameter counts parameters: set model.vocab_size'
    )
  model = model_config.resolve(run.model, run.model.vocab_size, run.dtype)
  return _parameters(parametrization.resolve(run.parametrization, model))


@functools.lru_cache
def _parameters(rules: parametrization.Parametrization) -> int:
  module = model_config.find_model(rules.model.name).Model(rules.model, rules)
  shapes = jax.eval_shape(lambda: state.init_params(module, rules.model, 0))
  return flops.count(nn.unbox(shapes))['parameters']


def devices(mesh: ConfigDict, machine: int) -> int:
  """Returns the number of devices that train a run: those of a slot.

  Args:
    mesh: of the run.
    machine: devices of a machine, which data=-1 fills.

  Raises:
    ValueError: a size is invalid, or the machine does not divide.
  """
  sizes = {axis: mesh[axis] for axis in AXES}
  rest = math.prod(n for axis, n in sizes.items() if axis != 'data')
  if rest < 1 or min(sizes.values()) < -1 or sizes['data'] == 0:
    raise ValueError(f'mesh: {sizes}: must be positive (data: or -1)')
  if sizes['data'] != -1:
    return rest * sizes['data']
  if machine % rest:
    raise ValueError(
      f'mesh: {machine} devices of a machine do not divide by '
      f'fsdp·tensor·sequence = {rest}'
    )
  return machine


def set_values(run: ConfigDict, values: Mapping[str, float]) -> None:
  """Sets hyperparameters, named as in tuning/search.py, in a run."""
  for name, value in values.items():
    group = run.schedule if name == 'warmup' else run.optimizer
    group[name] = value


def trials_dir(workdir: pathlib.Path, cell: Cell) -> pathlib.Path:
  """Returns the directory of a search's trials, which have one each."""
  return workdir / 'trials' / str(cell)


def trial_dir(
  config: ConfigDict, workdir: pathlib.Path, cell: Cell, number: int, seed: int
) -> pathlib.Path:
  """Returns the directory of a trial's run; several seeds nest deeper."""
  home = trials_dir(workdir, cell) / f'{number:03d}'
  return home / f'seed={seed}' if config.study.trial_seeds > 1 else home


def target_dir(workdir: pathlib.Path, cell: Cell, seed: int) -> pathlib.Path:
  """Returns the directory of a target's run."""
  return workdir / 'finals' / str(cell) / f'seed={seed}'


def ended(config: ConfigDict, workdir: pathlib.Path) -> float | None:
  """Returns a run's loss for comparison; None while it has not ended.

  Infinite if the run diverged or was ended early.

  Raises:
    ValueError: the directory holds another run.
  """
  try:
    summary = training_run.finished(config_lib.resolve(config), workdir)
  except (Diverged, Pruned):
    return math.inf
  return None if summary is None else loss_of(summary)


def outcome(workdir: pathlib.Path) -> dict[str, Any]:
  """Returns the summary of a run; {} while it has not ended."""
  path = workdir / 'summary.json'
  return json.loads(path.read_text('utf-8')) if path.exists() else {}


def has_ended(workdir: pathlib.Path) -> bool:
  """Returns whether a run has ended in any way."""
  return 'status' in outcome(workdir)


def ending(workdir: pathlib.Path) -> str:
  """Returns how a run ended: 'finished', 'diverged' or 'pruned'."""
  found = outcome(workdir)
  return str(found['status']) if 'status' in found else 'not ended'


def loss_of(summary: Mapping[str, Any]) -> float:
  """Returns the validation loss, else the training loss."""
  loss = summary['eval_loss']
  return float(summary['train_loss'] if loss is None else loss)


def _cell_config(config: ConfigDict, cell: Cell) -> ConfigDict:
  """Returns the study's proxy with the cell's model, optimizer and base."""
  run = ConfigDict(config.to_dict())
  del run.study
  base.set_model(run, cell.model)
  # The study fixes all optimizer keys but its name and defaults.
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


def _apply(run: ConfigDict, at: dict[str, Value], ratio: int) -> None:
  """Moves a run from the study's own values to a point.

  Wider models have more heads of the same size. Runs with other batch sizes
  read as many tokens: steps, warm-up and validation intervals scale inversely,
  and a micro-batch keeps its sequences. Other token budgets keep the warm-up.

  Args:
    run: a proxy's configuration.
    at: values by axis.
    ratio: width over the proxy's, if the point has none.

  Raises:
    ValueError: the steps would not be a whole number.
  """
  ratio = int(at['width']) if 'width' in at else ratio
  for key in ('width', 'num_heads', 'num_kv_heads', 'mlp_dim'):
    run.model[key] *= ratio
  if 'depth' in at:
    run.model.num_layers *= int(at['depth'])
  if 'parametrization' in at:
    run.parametrization.kind = at['parametrization']
  if 'epochs' in at:
    run.data.epochs = at['epochs']
  if 'schedule' in at:
    run.schedule.kind = at['schedule']
  if 'batch_size' in at:
    _set_batch_size(run, int(at['batch_size']))
  if 'tokens' in at:
    tokens = float(at['tokens'])
    run.steps = _whole(run.steps * tokens, 'tokens', tokens)


def _set_batch_size(run: ConfigDict, size: int) -> None:
  share = run.batch_size / size
  run.steps = _whole(run.steps * run.batch_size / size, 'batch_size', size)
  run.schedule.warmup_steps = round(run.schedule.warmup_steps * share)
  for key in ('eval_every', 'eval_tasks_every'):
    run[key] = max(1, round(run[key] * share)) if run[key] else 0
  rows = run.batch_size // run.microbatches
  if size <= rows:
    run.microbatches = 1
  elif size % rows == 0:
    run.microbatches = size // rows
  run.batch_size = size


def _whole(steps: float, name: str, value: Value) -> int:
  if steps < 1 or steps != round(steps):
    raise ValueError(
      f'study.axis_{name}: {_shown(value)} makes {steps:g} steps of a run; '
      'choose steps and values that divide'
    )
  return round(steps)


def _shown(value: Value) -> str:
  return value if isinstance(value, str) else f'{value:.6g}'

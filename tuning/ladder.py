"""The runs of a transfer experiment: rates × widths × seeds of each cell.

A rung is what one compilation serves: a cell (model × optimizer ×
parametrization) at one width. Seed 0 tries the whole grid of rates; then each
other seed tries those around seed 0's best. While the best of a seed is at an
edge of what it tried, the next rate beyond that edge is tried as well.
"""

from collections.abc import Mapping
import dataclasses
import math
import pathlib

from ml_collections import ConfigDict

from steepest.experiments import base
from steepest.models import config as model_config
from steepest.tuning import space

# Multiples of the base width for which LLaMA's MLP has the same proportion.
_MLP_MULTIPLE = 8


@dataclasses.dataclass(frozen=True)
class Rung:
  """A model × an optimizer × a parametrization at a width ratio."""

  model: str
  optimizer: str
  parametrization: str
  ratio: int

  def __str__(self) -> str:
    return f'{self.model}-{self.optimizer}-{self.parametrization} ×{self.ratio}'


def rungs(config: ConfigDict) -> list[Rung]:
  """Returns all rungs, those of µP first."""
  t = config.transfer
  return [
    Rung(model, optimizer, parametrization, int(ratio))
    for parametrization in t.parametrizations.split(',')
    for optimizer in t.optimizers.split(',')
    for model in t.models.split(',')
    for ratio in t.width_ratios
  ]


def grid(config: ConfigDict, optimizer: str) -> list[float]:
  """Returns the learning rates that every width tries.

  Raises:
    ValueError: there are fewer than four, or they do not grow.
  """
  return space.rates(config.transfer, 'transfer', optimizer)


def next_lr(
  planned: list[float], losses: Mapping[float, float], extensions: int
) -> float | None:
  """Returns the rate that a seed tries next, None where it is done.

  Args:
    planned: rising rates, at least two.
    losses: rate → loss of the runs done, infinite where one diverged.
    extensions: rates beyond `planned` that may be tried.
  """
  for lr in planned:
    if lr not in losses:
      return lr
  tried = sorted(losses)
  best = min(tried, key=losses.__getitem__)
  if math.isinf(losses[best]) or len(tried) - len(planned) >= extensions:
    return None
  if best == tried[0]:
    return float(f'{tried[0] ** 2 / tried[1]:.6g}')
  if best == tried[-1]:
    return float(f'{tried[-1] ** 2 / tried[-2]:.6g}')
  return None


def window(losses: Mapping[float, float], refine: int) -> list[float]:
  """Returns the rates around the best of seed 0 that other seeds try.

  Args:
    losses: rate → loss of seed 0, all runs done.
    refine: rates on either side; 0: all.
  """
  lrs = sorted(losses)
  if not refine:
    return lrs
  best = lrs.index(min(lrs, key=losses.__getitem__))
  return lrs[max(0, best - refine) : best + refine + 1]


def run_config(
  config: ConfigDict, rung: Rung, seed: int, lr: float
) -> ConfigDict:
  """Returns the configuration of one run.

  Raises:
    ValueError: a name is unknown or a shape does not fit.
  """
  run = ConfigDict(config.to_dict())
  del run.transfer
  base.set_model(run, rung.model)
  # The experiment fixes everything but the optimizer's name and habits.
  base.set_optimizer(run, rung.optimizer)
  run.stage = 'tune'
  run.seed = seed
  run.optimizer.lr = lr
  run.optimizer.rho = config.transfer[f'rho_{rung.model}']
  shapes = model_config.resolve(run.model, 1, run.dtype)
  run.parametrization.update(
    kind=rung.parametrization,
    base_width=shapes.width,
    base_depth=shapes.num_layers,
    base_mlp_dim=_mlp_dim(config, shapes),
    base_num_heads=shapes.num_heads,
    base_head_dim=shapes.head_dim,
  )
  run.model.update(
    width=shapes.width * rung.ratio,
    num_heads=shapes.num_heads * rung.ratio,
    num_kv_heads=shapes.num_kv_heads * rung.ratio,
    head_dim=shapes.head_dim,
    mlp_dim=run.parametrization.base_mlp_dim * rung.ratio,
  )
  return run


def run_dir(
  workdir: pathlib.Path, rung: Rung, seed: int, lr: float
) -> pathlib.Path:
  """Returns where a run is kept."""
  cell = f'{rung.model}-{rung.optimizer}-{rung.parametrization}'
  return (
    workdir
    / 'runs'
    / cell
    / f'ratio={rung.ratio}'
    / f'seed={seed}'
    / f'lr={lr:.6g}'
  )


def _mlp_dim(config: ConfigDict, shapes: model_config.ModelConfig) -> int:
  """Returns the base's mlp_dim; 8/3·width is rounded less than usual."""
  if config.model.mlp_dim or shapes.name != 'llama':
    return shapes.mlp_dim
  return round(8 * shapes.width / 3 / _MLP_MULTIPLE) * _MLP_MULTIPLE

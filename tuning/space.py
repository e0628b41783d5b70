"""What a search varies: dimensions, their values and where they are set."""

from collections.abc import Mapping
import dataclasses
import math

from ml_collections import ConfigDict

# Names of hyperparameters → values; lr is always among them.
Values = dict[str, float]

# Constants of the compiled step: each value that is tried compiles anew.
MULTIPLIERS = ('attention_multiplier', 'logit_multiplier')
# Optimizers without a hyperparameter do not search it.
_ONLY = {'rho': ('sophia',)}


@dataclasses.dataclass(frozen=True)
class Dimension:
  """A hyperparameter that is searched.

  Its coordinate is log x, or log(1 - x) for decay rates of averages, so that
  equal steps change what it does by equal factors.

  Attributes:
    name: as in `set_values`.
    values: of a grid, rising; the lowest and highest bound what is drawn.
  """

  name: str
  values: tuple[float, ...]

  @property
  def bounds(self) -> tuple[float, float]:
    """Lowest and highest coordinate."""
    ends = [self.coordinate(self.values[i]) for i in (0, -1)]
    return min(ends), max(ends)

  @property
  def label(self) -> str:
    """What the coordinate is."""
    return f'log(1 - {self.name})' if self._complement else f'log {self.name}'

  def coordinate(self, value: float) -> float:
    return math.log(1 - value if self._complement else value)

  def value(self, coordinate: float) -> float:
    """Returns the value at a coordinate, to six digits as in names of runs."""
    value = math.exp(coordinate)
    if self.name == 'warmup_steps':
      return float(round(value))
    return float(f'{1 - value if self._complement else value:.6g}')

  @property
  def _complement(self) -> bool:
    return self.name in ('b1', 'b2')


def dimensions(config: ConfigDict, optimizer: str) -> list[Dimension]:
  """Returns what a study searches for an optimizer, lr first.

  Raises:
    ValueError: values are out of their range, do not rise, or there are fewer
      than four rates.
  """
  found = [Dimension('lr', tuple(rates(config.study, 'study', optimizer)))]
  for name in ('weight_decay', 'b1', 'b2', 'warmup_steps', 'rho', *MULTIPLIERS):
    key = f'space_{name}'
    values = [float(v) for v in config.study[key]]
    if not values or optimizer not in _ONLY.get(name, (optimizer,)):
      continue
    shown = f'study.{key}={tuple(values)}'
    if values != sorted(set(values)) or values[0] < 0:
      raise ValueError(f'{shown}: give rising values')
    if name in ('b1', 'b2') and values[-1] >= 1:
      raise ValueError(f'{shown}: give values below 1')
    if config.study.search != 'grid':
      if len(values) < 2:
        raise ValueError(f'{shown}: give a lowest and a highest value')
      if values[0] == 0 and name not in ('b1', 'b2'):
        raise ValueError(f'{shown}: give a lowest value above 0')
    found.append(Dimension(name, tuple(values)))
  return found


def rates(keys: ConfigDict, group: str, optimizer: str) -> list[float]:
  """Returns the learning rates that a search starts with.

  Args:
    keys: those of `group`, with `lrs_OPTIMIZER`.
    group: 'study' or 'transfer', for messages.
    optimizer: whose rates.

  Raises:
    ValueError: there are fewer than four, or they do not grow.
  """
  key = f'lrs_{optimizer}'
  if key not in keys:
    raise ValueError(f'{group}.{key} is missing: give its learning rates')
  lrs = [float(lr) for lr in keys[key]]
  if len(lrs) < 4 or lrs != sorted(set(lrs)) or lrs[0] <= 0:
    raise ValueError(f'{group}.{key}={lrs}: give four or more rising rates')
  return lrs


def set_values(run: ConfigDict, values: Mapping[str, float]) -> None:
  """Sets hyperparameters in a run's configuration."""
  for name, value in values.items():
    if name in ('b1', 'b2'):
      b1, b2 = run.optimizer.betas
      pair = (value, b2) if name == 'b1' else (b1, value)
      run.optimizer.betas = pair
    elif name == 'warmup_steps':
      run.schedule.warmup_steps = int(value)
    elif name in MULTIPLIERS:
      run.parametrization[name] = value
    else:
      run.optimizer[name] = value

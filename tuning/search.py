"""The search of a cell: which trials to run, given the losses of others.

Optuna stores it in the journal WORKDIR/optuna.log, which its dashboard opens
(`optuna-dashboard runs/study/optuna.log`). A search is polled: `Search.trials`
returns all trials so far, and the search is over once each of them has a loss.
A proposal depends only on the trials with lower numbers and their losses, never
on which ended first or how many ran at once, so a study that was killed goes on
with the very same trials.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import itertools
import json
import math
import pathlib
from typing import TYPE_CHECKING, Any, NamedTuple

from ml_collections import ConfigDict
import numpy as np
from scipy.stats import qmc

from steepest.optimizers import horizons
from steepest.optimizers.optimizer import Hyper, find
from steepest.tuning import cells

if TYPE_CHECKING:
  import optuna

KINDS = ('grid', 'sobol', 'tpe')
JOURNAL = 'optuna.log'

# Hyperparameter → value; always includes lr.
Values = dict[str, float]

# Shared hyperparameters, in the order of the Sobol sequence's dimensions; an
# optimizer's own follow in the order of its file. The sequence always has
# `_COLUMNS` dimensions, so that points agree in what is shared.
_SHARED = (
  *('lr', horizons.TIMESCALE, 'b1_half_life', 'b2_half_life', 'b3_half_life'),
  *('warmup', 'auxiliary_lr'),
)
_COLUMNS = 32
# Hyperparameters of every optimizer, searched if a study's own key says so. The
# clip takes the last column, so that the others keep theirs.
_OF_ALL = {'warmup': Hyper(0.0), 'clip_norm': Hyper(1.0)}
# Trials of a search: a base, plus so many for each dimension.
_TRIALS, _TRIALS_OF_EACH = 8, 4
# A half-life is searched up to this share of the proxy's run, over at least
# this factor.
_LONGEST, _NARROWEST = 1 / 4, 8.0
# Learning rates of a grid over an optimizer's own range.
_RATES = 4
# Share of the range of log lr, at each end, that counts as its edge.
_EDGE = 0.1
# Ratios between learning rates that differ by a smaller factor are equal.
_SAME = 1.05


class Trial(NamedTuple):
  """A trial's number in its search, and its hyperparameters."""

  number: int
  values: Values


@dataclasses.dataclass(frozen=True)
class Dimension:
  """A hyperparameter to search.

  Its coordinate is log x, so that equal steps change its effect by equal
  factors, unless the optimizer's file says otherwise.

  Attributes:
    name: key of the hyperparameter or of its horizon.
    values: ascending; those of a grid, or the ends bound a range.
    scale: 'log', 'linear' or 'log1m', see optimizers/optimizer.py.
  """

  name: str
  values: tuple[float, ...]
  scale: str = 'log'

  @property
  def bounds(self) -> tuple[float, float]:
    """Lowest and highest coordinate."""
    ends = [self.coordinate(self.values[i]) for i in (0, -1)]
    return min(ends), max(ends)

  @property
  def label(self) -> str:
    """Optuna's label: the evenly spread coordinate, or its exponential."""
    return f'1 - {self.name}' if self.scale == 'log1m' else self.name

  def coordinate(self, value: float) -> float:
    return value if self.scale == 'linear' else math.log(self.shown(value))

  def shown(self, value: float) -> float:
    return 1 - value if self.scale == 'log1m' else value

  def value(self, coordinate: float) -> float:
    """Returns the value at a coordinate, rounded to six digits."""
    value = coordinate if self.scale == 'linear' else math.exp(coordinate)
    return float(f'{self.shown(value):.6g}')


def dimensions(config: ConfigDict, optimizer: str) -> list[Dimension]:
  """Returns the dimensions that a study searches for an optimizer, lr first.

  Raises:
    ValueError: values are out of range or not ascending, or there are fewer
      than four learning rates.
  """
  study = config.study
  key = _rates_key(optimizer)
  if key in study:
    lrs = tuple(float(lr) for lr in study[key])
    if len(lrs) < 4 or list(lrs) != sorted(set(lrs)) or lrs[0] <= 0:
      raise ValueError(
        f'study.{key}={lrs}: give four or more increasing learning rates'
      )
  else:
    ends = find(optimizer).hyperparameters['lr'].range
    if ends is None:
      raise ValueError(
        f'study.{key} is missing, and {optimizer} has no range for them'
      )
    lrs = tuple(float(f'{x:.6g}') for x in np.geomspace(*ends, _RATES))
  found = [Dimension('lr', lrs)]
  wanted = [n.strip() for n in study.space.split(',')]
  hypers = {**find(optimizer).hyperparameters, **_OF_ALL}
  hypers.pop('lr')
  for name, hyper in hypers.items():
    name = horizons.key(name, hyper)
    of_all = f'space_{name}'
    if of_all in study:
      values = _given_values(config, of_all, hyper)
    elif study.search == 'grid' or hyper.range is None:
      continue
    elif wanted == ['all'] or name in wanted:
      values = _bounds(config, hyper, hyper.range)
    else:
      continue
    scale = hyper.scale if hyper.scale in ('linear', 'log1m') else 'log'
    found.append(Dimension(name, values, scale))
  return found


def complete(config: ConfigDict) -> None:
  """Writes the initial learning rates into a study, for its report."""
  for optimizer in cells.optimizers(config):
    lrs, *_ = dimensions(config, optimizer)
    config.study[_rates_key(optimizer)] = lrs.values


def _rates_key(optimizer: str) -> str:
  return f'lrs_{cells.name_of(optimizer)}'


def _given_values(
  config: ConfigDict, key: str, hyper: Hyper
) -> tuple[float, ...]:
  """Returns a dimension's values from the study's own key."""
  values = tuple(float(v) for v in config.study[key])
  shown = f'study.{key}={values}'
  if not values or list(values) != sorted(set(values)):
    raise ValueError(f'{shown}: give increasing values')
  if config.study.search != 'grid':
    if len(values) < 2:
      raise ValueError(f'{shown}: give a lowest and a highest value')
    if values[0] <= 0 and hyper.scale not in ('linear', 'log1m'):
      raise ValueError(f'{shown}: give a lowest value above 0')
  if hyper.scale == 'log1m' and values[-1] >= 1:
    raise ValueError(f'{shown}: give values below 1')
  return values


def _bounds(
  config: ConfigDict, hyper: Hyper, ends: tuple[float, float]
) -> tuple[float, float]:
  """Returns the range in an optimizer's file, half-lives in tokens.

  The file gives half-lives in steps of the proxy; they are limited to a share
  of its run.
  """
  if hyper.scale != 'half_life' or hyper.unit != 'tokens':
    return ends
  high = min(ends[1], max(_NARROWEST, _LONGEST * config.steps))
  low = min(ends[0], high / _NARROWEST)
  of_step = config.batch_size * config.model.context
  return float(low * of_step), float(high * of_step)


def check(config: ConfigDict) -> None:
  """Raises ValueError, naming the search's first invalid key."""
  for key, known in (('search', KINDS), ('pruning', ('none', 'median'))):
    if config.study[key] not in known:
      raise ValueError(
        f'study.{key}={config.study[key]!r}: must be one of {", ".join(known)}'
      )
  found: set[str] = set()
  for optimizer in cells.optimizers(config):
    found |= {d.name for d in dimensions(config, optimizer)}
  given = {k[len('space_') :] for k in config.study if k.startswith('space_')}
  wanted = {n.strip() for n in config.study.space.split(',')} - {'all', 'lr'}
  for key, names in (('space_', given), ('space=', wanted)):
    for name in sorted(names - found):
      raise ValueError(
        f'study.{key}{name}: no optimizer of the study searches {name}, there '
        f'are {", ".join(sorted(found))}'
      )


def count(config: ConfigDict, optimizer: str) -> int:
  """Returns the number of trials of a search without extensions."""
  found = dimensions(config, optimizer)
  if config.study.search == 'grid':
    return math.prod(len(d.values) for d in found)
  own = _TRIALS + _TRIALS_OF_EACH * len(found)
  return int(config.study.trials) or own


def at_once(config: ConfigDict, optimizer: str) -> int:
  """Returns how many trials of a search can be under way at once."""
  study = config.study
  if study.search == 'tpe' or study.pruning != 'none':
    return int(study.parallel_trials)
  return count(config, optimizer)


def open_journal(workdir: pathlib.Path) -> 'optuna.storages.JournalStorage':
  """Opens the journal of a study; only one process may have it open."""
  import optuna
  from optuna.storages import journal

  optuna.logging.set_verbosity(optuna.logging.ERROR)
  path = workdir / JOURNAL
  workdir.mkdir(parents=True, exist_ok=True)
  if path.exists():
    # A killed driver may have left half a line, or Optuna's own lock.
    text = path.read_bytes()
    if not text.endswith(b'\n'):
      with path.open('r+b') as file:
        file.truncate(text.rfind(b'\n') + 1)
  path.with_name(f'{path.name}.lock').unlink(missing_ok=True)
  # Optuna's default lock is a symbolic link, which not every file system has.
  lock = journal.JournalFileOpenLock(str(path))
  backend = journal.JournalFileBackend(str(path), lock)
  return optuna.storages.JournalStorage(backend)


class Search:
  """The trials of one cell.

  A grid takes all combinations of the values; while the best trial's learning
  rate is the lowest or highest tried with its other values, the grid adds the
  next one, by its own ratio, with those values. `sobol` takes points of a
  scrambled Sobol sequence between the lowest and highest values; `tpe` begins
  with a quarter of them, at least four, then asks Optuna's tree-structured
  Parzen estimator. While the best learning rate is at an edge, both widen the
  range by one step of the given rates, at the same density of trials.
  """

  def __init__(
    self,
    config: ConfigDict,
    cell: cells.Cell,
    storage: 'optuna.storages.JournalStorage',
  ):
    """Opens the search in its study's journal, or begins it.

    Raises:
      ValueError: it began with other settings, or one of its keys is invalid.
    """
    import optuna

    check(config)
    self._keys = keys = config.study
    self._rates_key = _rates_key(cell.optimizer)
    self._dimensions = dimensions(config, cell.optimizer)
    self._count = count(config, cell.optimizer)
    self._ordered = keys.search == 'tpe' or keys.pruning != 'none'
    self._study = optuna.create_study(
      storage=storage,
      study_name=str(cell),
      direction='minimize',
      load_if_exists=True,
    )
    self._check_same(cell)
    self._trials = [
      Trial(t.number, t.user_attrs['values'])
      for t in self._study.get_trials(deepcopy=False)
    ]
    for _ in self._study.get_trials(False, (_states().WAITING,)):
      self._study.ask(self._distributions())
    self._told = {
      t.number for t in self._study.get_trials(False) if t.state.is_finished()
    }

  def trials(self, losses: Mapping[int, float]) -> list[Trial]:
    """Returns all trials so far; call again once some have ended.

    Args:
      losses: of ended trials, by number; infinite if the trial diverged or was
        ended early.

    Raises:
      ValueError: every trial diverged, or the best learning rate is still at
        the edge after study.max_extensions.
    """
    for number in sorted(losses.keys() - self._told):
      if math.isfinite(losses[number]):
        self._study.tell(number, losses[number])
      else:
        self._study.tell(number, state=_states().PRUNED)
      self._told.add(number)
    while (values := self._next(losses)) is not None:
      self._trials.append(Trial(len(self._trials), values))
      shown = {d.label: d.shown(values[d.name]) for d in self._dimensions}
      self._study.enqueue_trial(shown, {'values': values})
      self._study.ask(self._distributions())
    return list(self._trials)

  def before(self, number: int) -> range:
    """Returns the trials that may decide whether a trial ends early."""
    return range(max(0, number - self._keys.parallel_trials + 1))

  def best(self, losses: Mapping[int, float]) -> Values:
    """Returns the values with the lowest loss of a finished search.

    Raises:
      ValueError: every trial diverged.
    """
    return self._best(self._trials, losses).values

  def _next(self, losses: Mapping[int, float]) -> Values | None:
    """Returns the next values to try; None: nothing, for now or at all."""
    number = len(self._trials)
    if self._ordered and any(n not in losses for n in self.before(number)):
      return None
    if self._keys.search == 'grid':
      return self._next_of_grid(number, losses)
    ends, extension = self._count, 0
    low, high = drawn = self._dimensions[0].bounds
    gaps = len(self._dimensions[0].values) - 1
    edge, step = _EDGE * (high - low), (high - low) / gaps
    while number >= ends:
      if any(n not in losses for n in range(ends)):
        return None
      lr = self._best(self._trials[:ends], losses).values['lr']
      x = math.log(lr)
      if low + edge <= x <= high - edge:
        return None
      self._check_extensions(extension, lr)
      if x - low < high - x:
        drawn = low - step, low
      else:
        drawn = high, high + step
      low, high = min(low, drawn[0]), max(high, drawn[1])
      ends, extension = ends + math.ceil(self._count / gaps), extension + 1
    if self._keys.search == 'tpe' and number >= max(4, self._count // 4):
      return self._parzen(number, losses, (low, high))
    point = _sobol(number)
    names = dict.fromkeys((*_SHARED, *(d.name for d in self._dimensions)))
    values = {}
    for d in self._dimensions:
      start, stop = drawn if d.name == 'lr' else d.bounds
      column = list(names).index(d.name) if d.name != 'clip_norm' else -1
      at = point[column]
      values[d.name] = d.value(start + at * (stop - start))
    return values

  def _next_of_grid(
    self, number: int, losses: Mapping[int, float]
  ) -> Values | None:
    if number < self._count:
      names = [d.name for d in self._dimensions]
      grid = itertools.product(*(d.values for d in self._dimensions))
      values = next(itertools.islice(grid, number, None))
      return dict(zip(names, values, strict=True))
    if any(trial.number not in losses for trial in self._trials):
      return None
    best = self._best(self._trials, losses).values
    lr = best['lr']
    lrs = sorted(
      t.values['lr'] for t in self._trials if {**t.values, 'lr': lr} == best
    )
    if lr not in (lrs[0], lrs[-1]):
      return None
    self._check_extensions(number - self._count, lr)
    at, inner = (0, 1) if lr == lrs[0] else (-1, -2)
    return {**best, 'lr': float(f'{lrs[at] ** 2 / lrs[inner]:.6g}')}

  def _parzen(
    self, number: int, losses: Mapping[int, float], lrs: tuple[float, float]
  ) -> Values:
    """Asks a sampler that knows only the trials in `before(number)`.

    Later ones count as running, whether or not they have ended.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.TPESampler(
      n_startup_trials=0,
      seed=number,
      constant_liar=self._keys.parallel_trials > 1,
    )
    study = optuna.create_study(sampler=sampler)
    bounds = {d.name: d.bounds for d in self._dimensions} | {'lr': lrs}
    space: dict[str, Any] = {
      name: optuna.distributions.FloatDistribution(*ends)
      for name, ends in bounds.items()
    }
    known = self.before(number)
    for trial in self._trials:
      loss = losses[trial.number] if trial.number in known else None
      state, value = _states().RUNNING, None
      if loss is not None and math.isfinite(loss):
        state, value = _states().COMPLETE, loss
      elif loss is not None:
        state = _states().PRUNED
      at = {
        d.name: min(max(d.coordinate(trial.values[d.name]), low), high)
        for d in self._dimensions
        for low, high in [bounds[d.name]]
      }
      study.add_trial(
        optuna.trial.create_trial(
          state=state, value=value, params=at, distributions=space
        )
      )
    at = study.ask(space).params
    return {d.name: d.value(at[d.name]) for d in self._dimensions}

  def _best(
    self, trials: Sequence[Trial], losses: Mapping[int, float]
  ) -> Trial:
    best = min(trials, key=lambda trial: losses[trial.number])
    if math.isinf(losses[best.number]):
      lrs = sorted({trial.values['lr'] for trial in trials})
      raise ValueError(f'every learning rate of {lrs} diverged')
    return best

  def _check_extensions(self, done: int, lr: float) -> None:
    if done >= self._keys.max_extensions:
      raise ValueError(
        f'the best learning rate {lr:.6g} is still at the edge after {done} '
        'extensions: raise study.max_extensions, or widen '
        f'study.{self._rates_key} in another --workdir'
      )

  def _distributions(self) -> dict[str, Any]:
    """Returns ranges that hold all trials so far, for Optuna's dashboard."""
    import optuna

    found = {}
    for d in self._dimensions:
      tried = [d.shown(t.values[d.name]) for t in self._trials]
      tried += map(d.shown, d.values)
      low, high = min(tried), max(tried)
      log = low > 0 and d.scale != 'linear'
      found[d.label] = optuna.distributions.FloatDistribution(
        low, high, log=log
      )
    return found

  def _check_same(self, cell: cells.Cell) -> None:
    """Raises ValueError if the search began with other settings."""
    names = ['search', 'pruning', 'trial_seeds']
    names += ['parallel_trials'] * self._ordered
    now: dict[str, Any] = {name: self._keys[name] for name in names}
    now |= {'trials': self._count} if self._keys.search != 'grid' else {}
    now |= {
      self._rates_key if d.name == 'lr' else f'space_{d.name}': list(d.values)
      for d in self._dimensions
    }
    attributes = self._study.user_attrs
    if 'search' not in attributes:
      self._study.set_user_attr('search', json.dumps(now))
      return
    # Earlier versions had a seed; there is only that of 0 now.
    begun = {'search_seed': 0} | json.loads(attributes['search'])
    now['search_seed'] = 0
    for key in now | begun:
      a, b = (keys[key] if key in keys else () for keys in (begun, now))
      if a != b:
        raise ValueError(
          f'the search of {cell} was started with study.{key}={a}, asked for '
          f'{b}: use another --workdir'
        )


def _states() -> Any:
  from optuna.trial import TrialState

  return TrialState


@functools.lru_cache(maxsize=64)
def _sobol(number: int) -> np.ndarray:
  """Returns a point of the sequence that all searches share."""
  sequence = qmc.Sobol(_COLUMNS, rng=np.random.default_rng(0))
  return sequence.random_base2((number + 1).bit_length())[number]


def notes(config: ConfigDict) -> list[str]:
  """Returns what is unequal in the searches of a study, one line each.

  Compares the trials, the factor between neighbouring learning rates, the
  factor that they span, and the number of searched hyperparameters: with more
  of any, an optimizer has a better chance to come near its best.

  Raises:
    ValueError: a key of the search is invalid.
  """
  check(config)
  names = cells.optimizers(config)
  found = {cells.name_of(name): dimensions(config, name) for name in names}
  rates = {name: of[0].values for name, of in found.items()}
  is_grid = config.study.search == 'grid'
  said = []
  trials = {cells.name_of(name): count(config, name) for name in names}
  if is_grid and len(set(trials.values())) > 1:
    said.append(
      f'unequal grids, in trials: {_listed(trials)}; study.search=sobol gives '
      'equally many hyperparameters equally many'
    )
  gaps = {n: max(b / a for a, b in zip(r, r[1:])) for n, r in rates.items()}
  if is_grid and _unequal(gaps):
    said.append(f'unequal grids, learning rates in factors of {_listed(gaps)}')
  spans = {name: lrs[-1] / lrs[0] for name, lrs in rates.items()}
  if _unequal(spans):
    said.append(
      f'unequal ranges, learning rates span factors of {_listed(spans)}'
    )
  counts = {name: len(of) for name, of in found.items()}
  if len(set(counts.values())) > 1 and not is_grid and config.study.trials:
    said.append(
      f'unequal searches, in hyperparameters: {_listed(counts)}; the same '
      'number of trials covers more of them less densely'
    )
  return said


def _unequal(factors: Mapping[str, float]) -> bool:
  return max(factors.values()) > min(factors.values()) * _SAME


def _listed(values: Mapping[str, float]) -> str:
  return ', '.join(f'{name} {value:.4g}' for name, value in values.items())

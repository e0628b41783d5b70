"""The search of a cell: which trials it wants, given how others ended.

Optuna keeps it, in the journal WORKDIR/optuna.log, which its dashboard opens
(`optuna-dashboard runs/study/optuna.log`). A search is asked again and again:
`Search.trials` returns all trials so far, and the search is over once each of
them has a loss. A proposal depends on the trials with lower numbers and their
losses alone, never on which of them ended first or on how many ran at once, so
a study that was killed goes on with the very same trials.
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

from steepest.optimizers.optimizer import find
from steepest.tuning import cells

if TYPE_CHECKING:
  import optuna

KINDS = ('grid', 'sobol', 'tpe')
JOURNAL = 'optuna.log'

# Names of hyperparameters → values; lr is always among them.
Values = dict[str, float]

# What can be searched, in the order of the Sobol sequence's dimensions: all of
# them whatever a study searches, so that an optimizer with one hyperparameter
# more has the same points in the others.
_NAMES = ('lr', 'weight_decay', 'b1', 'b2', 'warmup_steps', 'rho')
# Rates of a grid over an optimizer's own range.
_RATES = 4
# Share of the range of log lr, at each end, that counts as its edge.
_EDGE = 0.1
# Finished trials before any is ended early, and the share of a trial's steps in
# which it is not; the share that its training loss is averaged over.
_FINISHED, _FREE, _WINDOW = 4, 0.3, 1 / 20
# Factors between rates that differ by less count as equal.
_SAME = 1.05


class Trial(NamedTuple):
  """A trial's number in its search, and its hyperparameters."""

  number: int
  values: Values


@dataclasses.dataclass(frozen=True)
class Dimension:
  """A hyperparameter that is searched.

  Its coordinate is log x, or log(1 - x) for decay rates of averages, so that
  equal steps change what it does by equal factors.

  Attributes:
    name: of the hyperparameter.
    values: rising; of a grid, or those whose lowest and highest bound a range.
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
    """What Optuna shows: the coordinate's exponential."""
    return f'1 - {self.name}' if self._is_decay else self.name

  def coordinate(self, value: float) -> float:
    return math.log(self.shown(value))

  def shown(self, value: float) -> float:
    return 1 - value if self._is_decay else value

  def value(self, coordinate: float) -> float:
    """Returns the value at a coordinate, rounded to six digits."""
    value = math.exp(coordinate)
    if self.name == 'warmup_steps':
      return float(round(value))
    return float(f'{self.shown(value):.6g}')

  @property
  def _is_decay(self) -> bool:
    return self.name in ('b1', 'b2')


def dimensions(config: ConfigDict, optimizer: str) -> list[Dimension]:
  """Returns what a study searches for an optimizer, lr first.

  Raises:
    ValueError: values are out of their range, do not rise, or there are fewer
      than four rates.
  """
  study = config.study
  key = f'lrs_{cells.name_of(optimizer)}'
  if key in study:
    lrs = tuple(float(lr) for lr in study[key])
    if len(lrs) < 4 or list(lrs) != sorted(set(lrs)) or lrs[0] <= 0:
      raise ValueError(f'study.{key}={lrs}: give four or more rising rates')
  else:
    ends = find(optimizer).hyperparameters['lr'].range
    if ends is None:
      raise ValueError(
        f'study.{key} is missing, and {optimizer} has no range of rates'
      )
    lrs = tuple(float(f'{x:.6g}') for x in np.geomspace(*ends, _RATES))
  found = [Dimension('lr', lrs)]
  known = {*find(optimizer).hyperparameters, 'warmup_steps'}
  for name in _NAMES[1:]:
    values = tuple(float(v) for v in study[f'space_{name}'])
    if not values or name not in known:
      continue
    shown = f'study.space_{name}={values}'
    if list(values) != sorted(set(values)) or values[0] < 0:
      raise ValueError(f'{shown}: give rising values')
    if name in ('b1', 'b2') and values[-1] >= 1:
      raise ValueError(f'{shown}: give values below 1')
    if study.search != 'grid':
      if len(values) < 2:
        raise ValueError(f'{shown}: give a lowest and a highest value')
      if values[0] == 0 and name not in ('b1', 'b2'):
        raise ValueError(f'{shown}: give a lowest value above 0')
    found.append(Dimension(name, values))
  return found


def check(config: ConfigDict) -> None:
  """Raises a ValueError that names the first wrong key of the search."""
  for key, known in (('search', KINDS), ('pruning', ('none', 'median'))):
    if config.study[key] not in known:
      raise ValueError(
        f'study.{key}={config.study[key]!r}: must be one of {", ".join(known)}'
      )
  for optimizer in cells.optimizers(config):
    dimensions(config, optimizer)


def count(config: ConfigDict, optimizer: str) -> int:
  """Returns how many trials a search has if its range is not extended."""
  if config.study.search != 'grid':
    return int(config.study.trials)
  return math.prod(len(d.values) for d in dimensions(config, optimizer))


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
    # A driver that was killed may have left half a line, or Optuna's own lock.
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

  A grid takes all combinations of the values; while the best trial's rate is
  the lowest or highest tried with its other values, the next rate, by the
  grid's own ratio, is tried with them. `sobol` draws study.trials points of a
  scrambled Sobol sequence between the lowest and highest values; `tpe` begins
  with a quarter of them, at least four, and then asks Optuna's tree-structured
  Parzen estimator. While the best rate lies at an edge, both widen the range by
  one step of the rates, with as many trials as that length had before.
  """

  def __init__(
    self,
    config: ConfigDict,
    cell: cells.Cell,
    storage: 'optuna.storages.JournalStorage',
  ):
    """Opens the search in its study's journal, or begins it.

    Raises:
      ValueError: it was begun otherwise, or a key of it is wrong.
    """
    import optuna

    check(config)
    self._keys = keys = config.study
    self._optimizer = cells.name_of(cell.optimizer)
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
    """Returns all trials so far; asked again once some have ended.

    Args:
      losses: by the trial's number, of those that have ended; infinite where
        the trial diverged or was ended early.

    Raises:
      ValueError: every trial diverged, or the best rate is still at the edge
        of what was tried after study.max_extensions.
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
    """Returns the values of the lowest loss of a search that is over.

    Raises:
      ValueError: there is none, since every trial diverged.
    """
    return self._best(self._trials, losses).values

  def _next(self, losses: Mapping[int, float]) -> Values | None:
    """Returns what is tried next; None: nothing, for now or at all."""
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
    point = _sobol(self._keys.search_seed, number)
    values = {}
    for d in self._dimensions:
      start, stop = drawn if d.name == 'lr' else d.bounds
      at = point[_NAMES.index(d.name)]
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
    """Asks a sampler that knows the trials up to `before(number)` alone.

    Those after them count as running, whether or not they have ended.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.TPESampler(
      n_startup_trials=0,
      seed=(self._keys.search_seed * 100_003 + number) % 2**32,
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
        f'study.lrs_{self._optimizer} in another --workdir'
      )

  def _distributions(self) -> dict[str, Any]:
    """Returns ranges that hold all trials so far, for Optuna's dashboard."""
    import optuna

    found = {}
    for d in self._dimensions:
      tried = [d.shown(t.values[d.name]) for t in self._trials]
      tried += map(d.shown, d.values)
      low, high = min(tried), max(tried)
      found[d.label] = optuna.distributions.FloatDistribution(
        low, high, log=low > 0
      )
    return found

  def _check_same(self, cell: cells.Cell) -> None:
    """Raises a ValueError if the search was begun otherwise."""
    names = ['search', 'pruning', 'trial_seeds']
    names += ['parallel_trials'] * self._ordered
    names += ['trials', 'search_seed'] * (self._keys.search != 'grid')
    now: dict[str, Any] = {name: self._keys[name] for name in names}
    now |= {
      f'lrs_{self._optimizer}' if d.name == 'lr' else f'space_{d.name}': list(
        d.values
      )
      for d in self._dimensions
    }
    attributes = self._study.user_attrs
    if 'search' not in attributes:
      self._study.set_user_attr('search', json.dumps(now))
      return
    begun = json.loads(attributes['search'])
    for key in now | begun:
      a, b = (keys[key] if key in keys else () for keys in (begun, now))
      if a != b:
        raise ValueError(
          f'the search of {cell} was begun with study.{key}={a}, asked for '
          f'{b}: use another --workdir'
        )


def _states() -> Any:
  from optuna.trial import TrialState

  return TrialState


@functools.lru_cache(maxsize=64)
def _sobol(seed: int, number: int) -> np.ndarray:
  """Returns a point of the sequence that all searches of a seed share."""
  sequence = qmc.Sobol(len(_NAMES), rng=np.random.default_rng(seed))
  return sequence.random_base2((number + 1).bit_length())[number]


def curve(
  rows: Sequence[Mapping[str, Any]], steps: int
) -> list[tuple[int, float]]:
  """Returns (steps done, mean training loss since the point before).

  Args:
    rows: of metrics.jsonl; stretches without a row are left out.
    steps: of the run, a twentieth of which makes a stretch.
  """
  window = max(1, round(steps * _WINDOW))
  losses: dict[int, list[float]] = {}
  for row in rows:
    if 'train/loss' in row:
      losses.setdefault(row['step'] // window, []).append(row['train/loss'])
  return [
    ((i + 1) * window, math.fsum(held) / len(held))
    for i, held in sorted(losses.items())
    if (i + 1) * window <= steps
  ]


class MedianPruner:
  """Tells when Optuna's median pruner ends a trial.

  All trials of a cell read the same batches, so that their training losses can
  be compared step by step. A trial ends once the lowest point of its curve so
  far is above the median of the finished trials' curves at the same step.
  """

  def __init__(
    self,
    finished: Sequence[Sequence[tuple[int, float]]],
    steps: int,
    log_every: int,
  ):
    """Takes the curves of finished trials, and of the trial its steps."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    self._steps = steps
    self._log_every = log_every
    self._rows: list[Mapping[str, Any]] = []
    self._window = max(1, round(steps * _WINDOW))
    study = optuna.create_study(
      pruner=optuna.pruners.MedianPruner(_FINISHED, round(_FREE * steps))
    )
    for points in finished:
      values = {int(step): loss for step, loss in points}
      study.add_trial(
        optuna.trial.create_trial(value=0.0, intermediate_values=values)
      )
    self._trial = study.ask()

  def ends(self, row: Mapping[str, Any]) -> str:
    """Returns why a trial ends at a row, '' while it does not."""
    # The finished trials are known by the rows that they kept alone.
    if row['step'] % self._log_every == 0:
      self._rows.append(row)
    done = row['step'] + 1
    if done % self._window:
      return ''
    found = curve(self._rows, self._steps)
    self._rows = []
    if not found or found[-1][0] != done:
      return ''
    self._trial.report(found[-1][1], done)
    if not self._trial.should_prune():
      return ''
    return (
      f'ended after {done} steps: its training loss lies above the median of '
      'the finished trials'
    )


def notes(config: ConfigDict) -> list[str]:
  """Returns what is unequal in the searches of a study, a line each.

  Trials, the factor between neighbouring rates, the factor that all rates
  span, and how many hyperparameters are searched: with more of any, an
  optimizer has a better chance to come near its best.

  Raises:
    ValueError: a key of the search is wrong.
  """
  check(config)
  names = cells.optimizers(config)
  found = {cells.name_of(name): dimensions(config, name) for name in names}
  rates = {name: of[0].values for name, of in found.items()}
  is_grid = config.study.search == 'grid'
  said = []
  trials = {cells.name_of(name): count(config, name) for name in names}
  if len(set(trials.values())) > 1:
    said.append(
      f'unequal budgets, in trials: {_listed(trials)}; study.search=sobol or '
      'tpe gives all the same'
    )
  gaps = {n: max(b / a for a, b in zip(r, r[1:])) for n, r in rates.items()}
  if is_grid and _unequal(gaps):
    said.append(f'unequal grids, rates in factors of {_listed(gaps)}')
  spans = {name: lrs[-1] / lrs[0] for name, lrs in rates.items()}
  if _unequal(spans):
    said.append(f'unequal ranges, rates span factors of {_listed(spans)}')
  counts = {name: len(of) for name, of in found.items()}
  if len(set(counts.values())) > 1 and not is_grid:
    said.append(
      f'unequal searches, in hyperparameters: {_listed(counts)}; as many '
      'trials cover more of them less well'
    )
  return said


def _unequal(factors: Mapping[str, float]) -> bool:
  return max(factors.values()) > min(factors.values()) * _SAME


def _listed(values: Mapping[str, float]) -> str:
  return ', '.join(f'{name} {value:.4g}' for name, value in values.items())

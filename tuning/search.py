"""The search of a cell: which trials it wants, given how others ended.

A search is asked again and again: `trials(losses)` returns all trials so far,
and it is over once every one of them has a loss. What a grid and random draws
return follows from the losses alone, so a study that was killed goes on with
the very same trials. Diverged and pruned trials have an infinite loss.
"""

from collections.abc import Mapping, Sequence
import itertools
import math
import pathlib
from typing import NamedTuple, Protocol
import zlib

from ml_collections import ConfigDict
import numpy as np

from steepest.eval.comparing import optimum
from steepest.tuning import space
from steepest.tuning.space import Values

KINDS = ('grid', 'random', 'tpe')


class Trial(NamedTuple):
  """A trial's directory below its cell's, and its hyperparameters."""

  name: str
  values: Values


class Search(Protocol):
  """How the trials of a cell are chosen."""

  def trials(self, losses: Mapping[str, float]) -> list[Trial]:
    """Returns all trials so far; asked again once they have ended.

    Args:
      losses: by the trial's name, of those that have ended.

    Raises:
      ValueError: every trial diverged, or the best rate is still at the edge
        of what was tried after study.max_extensions.
    """


class Grid:
  """All combinations of the values; see `Search`.

  While the best trial's rate is the lowest or highest that was tried with its
  other values, the next rate, by the grid's own ratio, is tried with them.
  """

  def __init__(self, config: ConfigDict, optimizer: str):
    self._dimensions = space.dimensions(config, optimizer)
    self._most = config.study.max_extensions
    self._optimizer = optimizer

  def trials(self, losses: Mapping[str, float]) -> list[Trial]:
    """As `Search.trials`."""
    names = [d.name for d in self._dimensions]
    found: list[Trial] = []
    combinations = itertools.product(*(d.values for d in self._dimensions))
    for values in combinations:
      self._add(found, dict(zip(names, values, strict=True)))
    for extension in range(self._most + 1):
      if any(trial.name not in losses for trial in found):
        return found
      best = best_trial(found, losses)
      lrs = sorted(t.values['lr'] for t in found if _alike(t, best))
      lr = best.values['lr']
      if lr not in (lrs[0], lrs[-1]):
        return found
      if extension < self._most:
        at, inner = (0, 1) if lr == lrs[0] else (-1, -2)
        further = float(f'{lrs[at] ** 2 / lrs[inner]:.6g}')
        self._add(found, {**best.values, 'lr': further})
    raise _at_the_edge(lr, self._most, self._optimizer)

  def _add(self, found: list[Trial], values: Values) -> None:
    found.append(
      Trial(trial_name(self._dimensions, values, len(found)), values)
    )


class Random:
  """Even draws between the bounds of each coordinate; see `Search`.

  A draw depends on study.search_seed, its number and the hyperparameter, so
  every optimizer gets the same draws. Where the range of lr is widened, the
  new part gets as many trials as the old one had on the same length.
  """

  def __init__(self, config: ConfigDict, optimizer: str):
    self._dimensions = space.dimensions(config, optimizer)
    self._seed = config.study.search_seed
    self._range = Range(config, optimizer)

  def trials(self, losses: Mapping[str, float]) -> list[Trial]:
    """As `Search.trials`."""
    found: list[Trial] = []
    part: Part | None = self._range.first
    while part is not None:
      for _ in range(part.trials):
        found.append(self._draw(len(found), part.drawn))
      if any(trial.name not in losses for trial in found):
        break
      part = self._range.wider(part, best_trial(found, losses).values['lr'])
    return found

  def _draw(self, number: int, lr_bounds: tuple[float, float]) -> Trial:
    values = {}
    for dimension in self._dimensions:
      low, high = lr_bounds if dimension.name == 'lr' else dimension.bounds
      entropy = [self._seed, number, zlib.crc32(dimension.name.encode())]
      share = np.random.default_rng(entropy).uniform()
      values[dimension.name] = dimension.value(low + share * (high - low))
    return Trial(trial_name(self._dimensions, values, number), values)


class Part(NamedTuple):
  """A stretch of a search.

  Attributes:
    trials: how many it adds.
    drawn: bounds of log lr of its trials.
    tried: bounds of log lr of all trials so far.
    extension: how often the range was widened before.
  """

  trials: int
  drawn: tuple[float, float]
  tried: tuple[float, float]
  extension: int


class Range:
  """The range of log lr that is drawn from, and how it grows.

  Attributes:
    first: the stretch that a search begins with.
  """

  def __init__(self, config: ConfigDict, optimizer: str):
    study = config.study
    lr = space.dimensions(config, optimizer)[0]
    low, high = lr.bounds
    steps = len(lr.values) - 1
    self.first = Part(study.trials, lr.bounds, lr.bounds, 0)
    self._step = (high - low) / steps
    self._more = math.ceil(study.trials / steps)
    self._edge = study.edge_fraction * (high - low)
    self._most = study.max_extensions
    self._optimizer = optimizer

  def wider(self, part: Part, lr: float) -> Part | None:
    """Returns the next stretch; None where the best rate lies off the edges.

    Raises:
      ValueError: the range was widened study.max_extensions times.
    """
    low, high = part.tried
    x = math.log(lr)
    if low + self._edge <= x <= high - self._edge:
      return None
    if part.extension == self._most:
      raise _at_the_edge(lr, self._most, self._optimizer)
    if x - low < high - x:
      drawn, low = (low - self._step, low), low - self._step
    else:
      drawn, high = (high, high + self._step), high + self._step
    return Part(self._more, drawn, (low, high), part.extension + 1)


def make(config: ConfigDict, optimizer: str, directory: pathlib.Path) -> Search:
  """Returns the search of a cell.

  Args:
    config: of the study.
    optimizer: of the cell.
    directory: of the cell's trials, where `tpe` keeps its own records.

  Raises:
    ValueError: study.search or another key of the search is out of range.
  """
  _check(config.study)
  study = config.study
  if study.search == 'grid':
    return Grid(config, optimizer)
  if study.search == 'random':
    return Random(config, optimizer)
  from steepest.tuning import tpe

  return tpe.Tpe(config, optimizer, directory)


def first_names(config: ConfigDict, optimizer: str) -> list[str]:
  """Returns the names of the trials that a search begins with.

  Raises:
    ValueError: as `make`.
  """
  if config.study.search == 'tpe':
    make(config, optimizer, pathlib.Path())
    return [f'trial={number:03d}' for number in range(config.study.trials)]
  first = make(config, optimizer, pathlib.Path())
  return [trial.name for trial in first.trials({})]


def _check(study: ConfigDict) -> None:
  """Raises a ValueError that names the first key out of its range."""
  for key, known in (
    ('search', KINDS),
    ('optimum', ('argmin', 'quadratic')),
    ('pruning', ('none', 'median')),
  ):
    if study[key] not in known:
      raise ValueError(
        f'study.{key}={study[key]!r}: must be one of {", ".join(known)}'
      )
  for key, least, below in (
    ('trials', 1, math.inf),
    ('parallel_trials', 1, math.inf),
    ('pruning_trials', 1, math.inf),
    ('max_extensions', 0, math.inf),
    ('edge_fraction', 0.0, 0.5),
    ('pruning_fraction', 0.0, 1.0),
  ):
    if not least <= study[key] < below:
      limit = '' if below == math.inf else f' and below {below}'
      raise ValueError(
        f'study.{key}={study[key]}: must be at least {least}{limit}'
      )


def best_values(
  trials: Sequence[Trial], losses: Mapping[str, float], rule: str
) -> Values:
  """Returns the hyperparameters that the targets get.

  Args:
    trials: all of a search that is over.
    losses: of each.
    rule: study.optimum; `quadratic` falls back on the best trial where no
      parabola can be fitted to the trials that differ from it in lr alone.
  """
  best = best_trial(trials, losses)
  if rule == 'quadratic':
    alike = [t for t in trials if _alike(t, best)]
    fitted = optimum.fit([(t.values['lr'], losses[t.name]) for t in alike])
    if fitted is not None:
      return {**best.values, 'lr': float(f'{fitted.lr:.6g}')}
  return best.values


def best_trial(trials: Sequence[Trial], losses: Mapping[str, float]) -> Trial:
  """Returns the trial of the lowest loss.

  Raises:
    ValueError: there is none, since all diverged.
  """
  best = min(trials, key=lambda trial: losses[trial.name])
  if math.isinf(losses[best.name]):
    lrs = sorted({trial.values['lr'] for trial in trials})
    raise ValueError(f'every learning rate of {lrs} diverged')
  return best


def _alike(trial: Trial, other: Trial) -> bool:
  """Returns whether two trials differ in nothing but lr."""
  lr = other.values['lr']
  return {**trial.values, 'lr': lr} == other.values


def trial_name(
  dimensions: Sequence[space.Dimension], values: Values, number: int
) -> str:
  """Returns lr=… where nothing else is searched, else trial=NNN."""
  if len(dimensions) == 1:
    return f'lr={values["lr"]:.6g}'
  return f'trial={number:03d}'


def _at_the_edge(lr: float, most: int, optimizer: str) -> ValueError:
  return ValueError(
    f'the best learning rate {lr:.6g} is still at the edge after '
    f'{most} extensions: widen study.lrs_{optimizer}'
  )

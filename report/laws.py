"""Loss over model size and tokens, L(N, D) = E + A / N^a + B / D^b.

One law per optimizer, all sharing E; N counts all parameters. Hoffmann et al.
(arXiv 2203.15556), approach 3: Huber loss on log L, summed over the runs, since
a mean ends the descent too early (arXiv 2404.10102). Losses are those of
completed runs.

Shapes: P runs, U unknowns, R redrawn sets of runs, N sizes.
"""

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pandas as pd
from scipy import optimize

from steepest.report import statistics, words
from steepest.report.speed import BASELINE
from steepest.report.statistics import Array

# An optimizer has five unknowns, of which three depend on the sizes.
FEWEST_SIZES = 3
FEWEST_POINTS = 6
# Of the Huber loss, in log L (arXiv 2203.15556).
_DELTA = 1e-3
_EXPONENTS = (0.02, 3.0)
# Starting points of the descents: E as a share of the lowest loss, exponents.
_FLOORS = (0.3, 0.6, 0.9)
_STARTS = (0.25, 0.7)
# Number of bootstrap sets.
REDRAWN = 100


@dataclasses.dataclass(frozen=True)
class Law:
  """The fitted laws of some optimizers.

  Attributes:
    optimizers: in the order of the unknowns.
    unknowns_U: log E, then log A, a, log B, b of each optimizer, with A and B
      in units of the loss at `unit`.
    redrawn_RxU: the same, fitted to each redrawn set.
    unit: geometric means of parameters and tokens.
    freedom: runs minus unknowns.
  """

  optimizers: tuple[str, ...]
  unknowns_U: Array
  redrawn_RxU: Array
  unit: tuple[float, float]
  freedom: int

  def tokens_for(
    self, optimizer: str, parameters: float, loss: Any, redrawn: bool = False
  ) -> Array:
    """Returns D with L(N, D) = loss; NaN where there is none.

    Args:
      optimizer: whose law.
      parameters: N.
      loss: a number; with `redrawn`, also one for each set.
      redrawn: whether to use each redrawn set (R) instead of the fit.
    """
    floor, scale, alpha, budget, beta = self.terms(optimizer, redrawn)
    size = np.log(parameters / self.unit[0])
    left = loss - np.exp(floor) - np.exp(scale - alpha * size)
    with np.errstate(invalid='ignore', divide='ignore'):
      return self.unit[1] * np.exp((budget - np.log(left)) / beta)

  def loss(
    self, optimizer: str, parameters: Any, tokens: Any, redrawn: bool = False
  ) -> Array:
    """Returns L(N, D); see `tokens_for`."""
    floor, scale, alpha, budget, beta = self.terms(optimizer, redrawn)
    size = np.log(parameters / self.unit[0])
    read = np.log(tokens / self.unit[1])
    return (
      np.exp(floor)
      + np.exp(scale - alpha * size)
      + np.exp(budget - beta * read)
    )

  def terms(self, optimizer: str, redrawn: bool) -> list[Array]:
    """Returns log E, log A, a, log B and b."""
    own = 1 + 4 * self.optimizers.index(optimizer)
    unknowns = self.redrawn_RxU if redrawn else self.unknowns_U
    return [unknowns[..., i] for i in (0, *range(own, own + 4))]


def why_not(points: pd.DataFrame) -> str:
  """Says why an optimizer's runs do not determine a law; '' if they do.

  Args:
    points: parameters, tokens and loss of each of its runs.
  """
  budgets = points.groupby('parameters')['tokens'].nunique()
  if len(budgets) < FEWEST_SIZES:
    return (
      f'A and a need {FEWEST_SIZES} sizes, there '
      f'{"is" if len(budgets) == 1 else "are"} {len(budgets)}'
    )
  if (budgets > 1).sum() < 2:
    return (
      'tokens change only with the size, so their effects on the loss cannot '
      'be told apart: two sizes need several budgets'
    )
  if budgets.sum() < FEWEST_POINTS:
    return f'five unknowns need {FEWEST_POINTS} points, not {budgets.sum()}'
  return ''


def refusals(points: pd.DataFrame) -> str:
  """Says which optimizers' runs determine no law, and why; '' if all do."""
  by_reason: dict[str, list[str]] = {}
  for name, of in points.groupby('optimizer'):
    by_reason.setdefault(why_not(of), []).append(words.name(str(name)))
  by_reason.pop('', None)
  return '; '.join(
    f'{words.join(names)}: {reason}' for reason, names in by_reason.items()
  )


def fit(points: pd.DataFrame, seed: int = 0) -> Law:
  """Fits the laws of all optimizers whose runs determine one.

  The bootstrap resamples residuals, scaled up for the unknowns, among all runs
  of an optimizer.

  Args:
    points: optimizer, parameters, tokens and loss of each run.
    seed: of the bootstrap.

  Raises:
    ValueError: no optimizer's runs determine one, or no exponent in range fits.
  """
  names = tuple(
    str(name) for name, of in points.groupby('optimizer') if not why_not(of)
  )
  if not names:
    raise ValueError(refusals(points))
  points = points[points['optimizer'].isin(names)]
  whose_P = points['optimizer'].map(names.index).to_numpy()
  given = np.log(points[['parameters', 'tokens', 'loss']].to_numpy(float).T)
  unit = np.exp(given[:2].mean(axis=1))
  design = (whose_P, given[0] - np.log(unit[0]), given[1] - np.log(unit[1]))
  rough = [
    _descend(design, given[2], start, 'linear')
    for start in _starts(given[2].min(), len(names))
  ]
  best = min(rough, key=lambda found: found.cost)
  fitted = _descend(design, given[2], best.x, 'huber')
  exponents = fitted.x[1:].reshape(-1, 4)[:, 1::2]
  low, high = _EXPONENTS
  if exponents.min() < 1.01 * low or exponents.max() > 0.99 * high:
    raise ValueError(f'no exponents from {low:g} to {high:g} fit the losses')
  freedom = len(points) - len(fitted.x)
  redrawn_RxU = _redraw(design, given[2], fitted.x, freedom, seed)
  return Law(
    names, fitted.x, redrawn_RxU, (float(unit[0]), float(unit[1])), freedom
  )


def _starts(lowest: float, count: int) -> list[Array]:
  """Returns the unknowns of `count` optimizers to descend from."""
  starts = []
  for floor, a, b in itertools.product(_FLOORS, _STARTS, _STARTS):
    part = lowest + math.log((1 - floor) / 2)
    own = [part, a, part, b]
    starts.append(np.array([lowest + math.log(floor), *own * count]))
  return starts


def _redraw(
  design: tuple[Any, Array, Array],
  log_loss_P: Array,
  fitted_U: Array,
  freedom: int,
  seed: int,
) -> Array:
  """Refits the law to runs with residuals resampled within each optimizer."""
  rng, whose_P = np.random.default_rng(seed), design[0]
  residual_P = _residuals(fitted_U, *design, log_loss_P)
  smooth_P = log_loss_P + residual_P
  noise_P = -residual_P * math.sqrt(len(whose_P) / max(freedom, 1))
  redrawn = []
  for _ in range(REDRAWN):
    drawn_P = smooth_P.copy()
    for own in np.unique(whose_P):
      at = np.flatnonzero(whose_P == own)
      drawn_P[at] += rng.choice(noise_P[at], len(at))
    redrawn.append(_descend(design, drawn_P, fitted_U, 'huber').x)
  return np.array(redrawn)


def _terms(
  unknowns_U: Array, whose_P: Any, size_P: Array, read_P: Array
) -> Any:
  """Returns E and the terms of size and tokens, for each run."""
  scale_P, alpha_P, budget_P, beta_P = unknowns_U[1:].reshape(-1, 4)[whose_P].T
  return (
    np.exp(unknowns_U[0]),
    np.exp(scale_P - alpha_P * size_P),
    np.exp(budget_P - beta_P * read_P),
  )


def _residuals(
  unknowns_U: Array,
  whose_P: Any,
  size_P: Array,
  read_P: Array,
  log_loss_P: Array,
) -> Array:
  return np.log(sum(_terms(unknowns_U, whose_P, size_P, read_P))) - log_loss_P


def _gradient(
  unknowns_U: Array,
  whose_P: Any,
  size_P: Array,
  read_P: Array,
  log_loss_P: Array,
) -> Array:
  floor, of_size_P, of_tokens_P = _terms(unknowns_U, whose_P, size_P, read_P)
  total_P = floor + of_size_P + of_tokens_P
  gradient_PxU = np.zeros((len(total_P), len(unknowns_U)))
  gradient_PxU[:, 0] = floor / total_P
  parts = (of_size_P, -of_size_P * size_P, of_tokens_P, -of_tokens_P * read_P)
  rows = np.arange(len(total_P))
  for i, part_P in enumerate(parts, 1):
    gradient_PxU[rows, 4 * whose_P + i] = part_P / total_P
  return gradient_PxU


def _descend(
  design: tuple[Any, Array, Array], log_loss_P: Array, start_U: Array, loss: str
) -> optimize.OptimizeResult:
  low, high = _EXPONENTS
  free, ends = [-np.inf, np.inf], [low, high]
  low_U, high_U = np.array(
    [free, *[free, ends, free, ends] * (len(start_U) // 4)]
  ).T
  return optimize.least_squares(
    _residuals,
    np.clip(start_U, low_U, high_U),
    _gradient,
    (low_U, high_U),
    loss=loss,
    f_scale=_DELTA,
    x_scale='jac',
    ftol=1e-7,
    xtol=1e-6,
    args=(*design, log_loss_P),
  )


def trend(
  law: Law, optimizer: str, ratio: float, sizes_N: Array
) -> pd.DataFrame:
  """Returns the speed-up of an optimizer's law over the baseline's by size.

  Args:
    law: holds both.
    optimizer: to compare.
    ratio: its tokens per parameter.
    sizes_N: numbers of parameters.

  Returns:
    parameters, speedup, low, high (95 %, of the redrawn laws); NaN where no
    finite number of tokens would do for the baseline.
  """
  rows = []
  for size in sizes_N:
    tokens = ratio * size
    logs = []
    for redrawn in (False, True):
      loss = law.loss(optimizer, size, tokens, redrawn)
      at = law.tokens_for(BASELINE, size, loss, redrawn)
      logs.append(np.log(at / tokens))
    value, redrawn_R = logs
    reach = float(np.std(redrawn_R) * statistics.quantile(0.05, law.freedom))
    low, high = np.exp([value - reach, value + reach])
    rows.append((size, float(np.exp(value)), float(low), float(high)))
  return pd.DataFrame(rows, columns=['parameters', 'speedup', 'low', 'high'])

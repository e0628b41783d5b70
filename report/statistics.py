"""Differences, their intervals and p-values, and the power of seed counts.

Nothing here knows about runs or files. Functions take arrays with any leading
axes, so that a simulation of thousands of studies runs the same code that
decides about one (tests/report/family_test.py).

Shapes: K optimizers, M comparisons, S seeds, Q questions.
"""

from collections.abc import Sequence
import dataclasses
import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special, stats

# Two-sided level of every family of comparisons.
LEVEL = 0.05
# Fewer seeds support no claim: two leave one degree of freedom.
FEWEST_SEEDS = 3
# Probability of seeing a difference called detectable.
POWER = 0.8
# Stands for zero degrees of freedom, where the error is unknown.
_NO_FREEDOM = 1e-9
# Levels between which p-values of two sources are interpolated.
_LEVELS = np.geomspace(1e-12, 1.0, 512)

Array = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Differences:
  """Differences of means, elementwise.

  Their squared error is the sum of the variances of one or two sources. The
  critical value is the mean of the sources' own Student's t quantiles, weighted
  by variance (Cochran and Cox, Experimental Designs, 1950). A single number of
  degrees of freedom for the sum (Satterthwaite 1946) errs too often with few
  seeds: of three equal optimizers with three seeds it told two apart by
  accuracy in 11 % of simulations, of 14 in 62 %; two with unpaired seeds by
  loss in 6.6 %.

  Attributes:
    value: first minus second.
    sources: variance and degrees of freedom of each source, seeds first.
    n: seeds of the smaller side.
  """

  value: Array
  sources: tuple[tuple[Array, Array | float], ...]
  n: int

  @property
  def stderr(self) -> Array:
    """The standard error of `value`; NaN for one seed."""
    return np.sqrt(np.sum([variance for variance, _ in self.sources], axis=0))

  def critical(self, level: float) -> Array:
    """Returns what |value| exceeds by chance with probability `level`."""
    return self._weighted([quantile(level, f) for _, f in self.sources])

  def _weighted(self, quantiles: Sequence[Array]) -> Array:
    """Returns the error times the variance-weighted mean of quantiles."""
    if len(self.sources) == 1:
      return quantiles[0] * self.stderr
    sums = zip(self.sources, quantiles, strict=True)
    with np.errstate(divide='ignore', invalid='ignore'):
      found = np.sum([v * q for (v, _), q in sums], axis=0) / self.stderr
    return np.where(self.stderr > 0, found, self.stderr)

  @property
  def p(self) -> Array:
    """Two-sided p-values of each comparison alone; NaN for one seed."""
    size = np.abs(self.value)
    if len(self.sources) == 1:
      freedom = np.asarray(self.sources[0][1], np.float64)
      with np.errstate(divide='ignore', invalid='ignore'):
        t = np.where(self.stderr > 0, size / self.stderr, np.inf)
      t = np.where((size == 0) & (self.stderr == 0), 0.0, t)
      p = 2 * special.stdtr(np.maximum(freedom, _NO_FREEDOM), -t)
      return np.where(np.isnan(self.stderr), np.nan, p)
    # Find the level at which |value| is critical: bisect, then interpolate.
    grid = [quantile(_LEVELS, f) for _, f in self.sources]
    low = np.zeros(size.shape, np.int64)
    high = np.full(size.shape, _LEVELS.size - 1)
    for _ in range(math.ceil(math.log2(_LEVELS.size))):
      middle = (low + high) // 2
      above = self._weighted([of[middle] for of in grid]) >= size
      low, high = np.where(above, middle, low), np.where(above, high, middle)
    at = [self._weighted([of[i] for of in grid]) for i in (low, high)]
    with np.errstate(divide='ignore', invalid='ignore'):
      share = np.clip((at[0] - size) / (at[0] - at[1]), 0, 1)
    p = _LEVELS[low] * (_LEVELS[high] / _LEVELS[low]) ** np.nan_to_num(share)
    p = np.where((self.stderr == 0) | (at[1] >= size), size == 0, p)
    return np.where(np.isnan(self.stderr), np.nan, p)

  def interval(self, level: float = LEVEL) -> tuple[Array, Array]:
    """Returns the ends of the 1 − level confidence interval."""
    reach = self.critical(level)
    return self.value - reach, self.value + reach

  def row(self, comparisons: int = 1) -> dict[str, float]:
    """Returns a single difference as a row of a table.

    Has difference, stderr and n; with enough seeds also low, high, p and
    detectable (among so many comparisons).
    """
    found = {
      'difference': float(self.value),
      'stderr': float(self.stderr),
      'n': self.n,
    }
    if self.n < FEWEST_SEEDS:
      return found
    low, high = self.interval()
    return found | {
      'low': float(low),
      'high': float(high),
      'p': float(self.p),
      'detectable': float(self.detectable(comparisons)),
    }

  def detectable(self, comparisons: int = 1) -> Array:
    """Returns the difference that would be seen with probability POWER.

    Uses the critical value at the level that Holm's rule sets for the smallest
    of `comparisons` p-values, and approximates the noncentral t by a shifted
    Student's t.
    """
    return self.critical(LEVEL / comparisons) + self.critical(2 * (1 - POWER))


def quantile(level: ArrayLike, freedom: ArrayLike) -> Array:
  """Returns what |t| exceeds with probability `level`."""
  freedom = np.maximum(np.asarray(freedom, np.float64), _NO_FREEDOM)
  return -special.stdtrit(freedom, np.asarray(level) / 2)


def paired(first_S: ArrayLike, second_S: ArrayLike) -> Differences:
  """Compares optimizers over shared seeds: Student's paired t.

  Args:
    first_S: …×S, one value per seed.
    second_S: …×S, of the same seeds in the same order.
  """
  difference_S = np.asarray(first_S, np.float64) - np.asarray(second_S)
  n = difference_S.shape[-1]
  source = (_sd(difference_S) ** 2 / n, n - 1.0)
  return Differences(difference_S.mean(-1), (source,), n)


def unpaired(first_S: ArrayLike, second_S: ArrayLike) -> Differences:
  """Compares optimizers that share no seeds; each has its own variance.

  Args:
    first_S: …×S.
    second_S: …×T, of other seeds.
  """
  sides = [np.asarray(x, np.float64) for x in (first_S, second_S)]
  n = [x.shape[-1] for x in sides]
  sources = tuple(
    (_sd(x) ** 2 / count, count - 1.0)
    for x, count in zip(sides, n, strict=True)
  )
  return Differences(sides[0].mean(-1) - sides[1].mean(-1), sources, min(n))


def scored(
  first_S: ArrayLike,
  second_S: ArrayLike,
  variance: ArrayLike,
  questions: int,
) -> Differences:
  """Compares accuracies: seeds and questions are two sources of variance.

  All seeds answer the same questions, so more seeds do not reduce the error of
  the questions. Variance common to both sources is counted twice, so their sum
  errs on the large side.

  Args:
    first_S: …×S, each seed's accuracy over the questions.
    second_S: …×S, of the same seeds in the same order.
    variance: of the mean difference over questions, from `question_variance`.
    questions: Q.
  """
  seeds = paired(first_S, second_S)
  over = np.broadcast_to(np.asarray(variance, np.float64), seeds.value.shape)
  sources = (*seeds.sources, (over, questions - 1.0))
  return Differences(seeds.value, sources, seeds.n)


def question_variance(first_SxQ: Array, second_SxQ: Array) -> Array:
  """Returns the variance of an accuracy difference due to the questions.

  Args:
    first_SxQ: …×S×Q, 1 where the seed's model answers correctly, else 0.
    second_SxQ: the same seeds and questions for the other optimizer.
  """
  difference_Q = np.mean(
    np.asarray(first_SxQ, np.float64) - second_SxQ, axis=-2
  )
  return _sd(difference_Q) ** 2 / difference_Q.shape[-1]


def _sd(values_S: Array) -> Array:
  """Returns the sample standard deviation (n − 1); NaN for one value."""
  if values_S.shape[-1] < 2:
    return np.full(values_S.shape[:-1], np.nan)
  return np.std(values_S, axis=-1, ddof=1)


def sample(values: ArrayLike) -> tuple[float, float]:
  """Returns mean and sample standard deviation (NaN for one value)."""
  values_S = np.asarray(values, np.float64)
  return float(values_S.mean()), float(_sd(values_S))


def holm(p_M: ArrayLike) -> Array:
  """Applies Holm's correction (1979) to p-values over the last axis.

  NaN counts as a comparison that shows nothing, and stays NaN.
  """
  p_M = np.asarray(p_M, np.float64)
  order = np.argsort(p_M, axis=-1)
  ranked = np.take_along_axis(np.nan_to_num(p_M, nan=1.0), order, -1)
  ranked = ranked * (p_M.shape[-1] - np.arange(p_M.shape[-1]))
  ranked = np.minimum(np.maximum.accumulate(ranked, axis=-1), 1.0)
  corrected = np.empty_like(ranked)
  np.put_along_axis(corrected, order, ranked, -1)
  return np.where(np.isnan(p_M), np.nan, corrected)


def pairs(k: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
  """Returns the indices (first_M, second_M) of every two of k optimizers."""
  return np.triu_indices(k, 1)


def holds_scores(n: int, k: int) -> bool:
  """Whether scores of n seeds may tell apart all pairs of k optimizers.

  Far in the tails, where many comparisons put the level, the critical values of
  two sources are too low for few seeds: 14 equal optimizers with three seeds
  that differ by a point were told apart in 11 % of simulations.
  """
  return n >= 5 or k <= {3: 3, 4: 6}.get(n, 0)


def corrected(p_M: Array, best: ArrayLike, k: int, every: bool = True) -> Array:
  """Corrects the p-values of all pairs; the best is tested first.

  The first hypothesis is that the best optimizer beats all others: it is
  claimed if all its k − 1 comparisons hold after Holm's correction for k − 1.
  The pairs of the others follow, corrected for their number. Without such a
  winner all pairs are corrected together. The probability of telling apart any
  two equal optimizers stays at LEVEL, as the slow test shows.

  Args:
    p_M: …×M, of the pairs in the order of `pairs`; NaN where not comparable.
    best: …, index of the optimizer with the best mean.
    k: optimizers.
    every: whether pairs without the best, and all pairs if none wins, get a
      p-value too; see `holds_scores`.

  Returns:
    …×M corrected p-values: the best wins where all of its own are below LEVEL.
  """
  first_M, second_M = pairs(k)
  best = np.asarray(best)[..., None]
  own_M = (first_M == best) | (second_M == best)
  # Excluded pairs come first in Holm's order, so that they do not count.
  own = holm(np.where(own_M, p_M, -1.0))
  rest = holm(np.where(own_M, -1.0, p_M))
  wins = np.all(np.where(own_M, own < LEVEL, True), -1, keepdims=True)
  if not every:
    return np.where(wins & own_M, own, np.nan)
  return np.where(wins, np.where(own_M, own, rest), holm(p_M))


def seeds_needed(gap: float, k: int, most: int = 100) -> int | None:
  """Returns how many seeds show a gap to all others with probability POWER.

  Args:
    gap: in standard deviations of a one-seed difference between two optimizers.
    k: optimizers; the comparison is the most demanding of k − 1.
    most: returns None if more seeds are needed.
  """
  for n in range(FEWEST_SEEDS, most + 1):
    unit = Differences(np.zeros(()), ((np.asarray(1 / n), n - 1.0),), n)
    if unit.detectable(max(k - 1, 1)) <= abs(gap):
      return n
  return None


def ratio(values: ArrayLike) -> tuple[float, float, float]:
  """Returns the geometric mean of ratios over seeds and its 95 % interval.

  The ends are NaN with fewer than FEWEST_SEEDS seeds.
  """
  logs_S = np.log(np.asarray(values, np.float64))
  found = paired(logs_S, np.zeros_like(logs_S))
  low, high = found.interval()
  if found.n < FEWEST_SEEDS:
    low = high = np.asarray(np.nan)
  mean, *ends = np.exp([found.value, low, high])
  return float(mean), float(ends[0]), float(ends[1])


def divergences(first: tuple[int, int], second: tuple[int, int]) -> float:
  """Returns Fisher's exact p-value for equal shares of diverged seeds.

  Args:
    first: diverged seeds, and all seeds.
    second: likewise for the other optimizer.
  """
  table = [(bad, n - bad) for bad, n in (first, second)]
  return float(stats.fisher_exact(table).pvalue)


def smoothed(losses_P: ArrayLike) -> Array:
  """Returns the closest curve that never rises (isotonic regression)."""
  return optimize.isotonic_regression(losses_P, increasing=False).x


def question_test(first_Q: ArrayLike, second_Q: ArrayLike) -> dict[str, float]:
  """Compares two models question by question.

  Returns:
    value (mean of the first minus mean of the second), stderr (NaN for one
    question), low, high (95 %), p (Student's paired t); first_only,
    second_only: questions on which only that one did better; p_signs, from
    these two counts alone (for right or wrong answers: McNemar's exact test).
  """
  found = paired(np.asarray(first_Q, np.float64), np.asarray(second_Q))
  difference_Q = np.asarray(first_Q, np.float64) - np.asarray(second_Q)
  more, less = int((difference_Q > 0).sum()), int((difference_Q < 0).sum())
  signs = stats.binomtest(more, more + less).pvalue if more + less else 1.0
  low, high = found.interval()
  return {
    'value': float(found.value),
    'stderr': float(found.stderr),
    'low': float(low),
    'high': float(high),
    'p': float(found.p),
    'first_only': more,
    'second_only': less,
    'p_signs': float(signs),
  }

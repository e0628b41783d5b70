"""Means, spreads and the rules by which the report calls a difference one.

Nothing here knows of runs or files: sequences in, numbers out.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math
from typing import TypeVar

import numpy as np
from scipy import special, stats

_Key = TypeVar('_Key')

# Two-sided level of every comparison of losses and times.
CONFIDENCE = 0.95
# Standard errors that a difference of accuracies has to exceed.
ACCURACY_ERRORS = 2.0


@dataclasses.dataclass(frozen=True)
class Spread:
  """Mean and sample standard deviation (None for one value) of n values."""

  mean: float
  sd: float | None
  n: int


@dataclasses.dataclass(frozen=True)
class Difference:
  """A difference of two means and what it has to exceed.

  Attributes:
    value: mean of the first minus mean of the second.
    error: standard error of `value`; None where no spread is known.
    limit: the smallest |value| that counts; None where no spread is known.
      Of several comparisons (`correct`), the one that Holm's rule asks.
    rule: 'paired', 'pooled', 'one seed', 'exact', 'questions, paired' or
      'questions, unpaired'.
    freedom: degrees of freedom of Student's t; None: the normal distribution.
    low, high: interval of this comparison alone; None where no spread is known.
    p: two-sided, of this comparison alone; None where no spread is known.
    p_holm: the same corrected for the comparisons made at once.
  """

  value: float
  error: float | None
  limit: float | None
  rule: str
  freedom: float | None = None
  low: float | None = None
  high: float | None = None
  p: float | None = None
  p_holm: float | None = None

  @property
  def exceeds(self) -> bool | None:
    """Whether the difference counts; None where no spread is known."""
    return None if self.limit is None else abs(self.value) > self.limit

  def reversed(self) -> 'Difference':
    """Returns the second minus the first."""
    low = None if self.high is None else -self.high
    high = None if self.low is None else -self.low
    return dataclasses.replace(self, value=-self.value, low=low, high=high)


@dataclasses.dataclass(frozen=True)
class Ratio:
  """A geometric mean of ratios over seeds.

  Attributes:
    value: exp(mean of the logarithms).
    low, high: interval of CONFIDENCE; None for one seed.
    p: two-sided, of a ratio of 1; None for one seed.
    n: seeds.
  """

  value: float
  low: float | None
  high: float | None
  p: float | None
  n: int


def spread(values: Sequence[float]) -> Spread:
  """Returns mean and sample standard deviation (n - 1) of `values`."""
  values_S = np.asarray(values, np.float64)
  sd = float(values_S.std(ddof=1)) if values_S.size > 1 else None
  return Spread(float(values_S.mean()), sd, values_S.size)


def pooled_sd(groups: Sequence[Sequence[float]]) -> tuple[float, int]:
  """Returns the standard deviation within `groups` and its freedom.

  sqrt(sum of squared deviations from each group's mean / sum of (n - 1)).

  Raises:
    ValueError: no group has two values.
  """
  freedom = sum(len(group) - 1 for group in groups)
  if freedom < 1:
    raise ValueError('pooled_sd: needs a group of two values or more')
  squares = sum(
    float(np.sum((np.asarray(group, np.float64) - np.mean(group)) ** 2))
    for group in groups
  )
  return math.sqrt(squares / freedom), freedom


def seed_difference(
  groups: Mapping[str, Sequence[float]], first: str, second: str
) -> Difference:
  """Compares two groups whose i-th values come from the same seed.

  With three seeds or more: Student's t for the paired differences. With two,
  where a paired test has a single degree of freedom: the standard deviation
  within seeds pooled over all `groups`. With one: no limit.

  Args:
    groups: per optimizer the values of the same seeds in the same order.
    first: a key of `groups`.
    second: another.
  """
  a_S = np.asarray(groups[first], np.float64)
  b_S = np.asarray(groups[second], np.float64)
  value = float(a_S.mean() - b_S.mean())
  seeds = a_S.size
  if seeds == 1:
    return Difference(value, None, None, 'one seed')
  if seeds == 2:
    sd, freedom = pooled_sd(list(groups.values()))
    return difference(value, sd * math.sqrt(2 / seeds), freedom, 'pooled')
  sd = float((a_S - b_S).std(ddof=1))
  return difference(value, sd / math.sqrt(seeds), seeds - 1, 'paired')


def mean_difference(
  groups: Mapping[str, Sequence[float]], name: str
) -> Difference:
  """Tests whether the mean of differences that are paired already is zero.

  With three or more: Student's t of the differences. With two: their standard
  deviation pooled over all `groups`. With one: no limit.

  Args:
    groups: per optimizer a difference for each seed.
    name: a key of `groups`.
  """
  values_S = np.asarray(groups[name], np.float64)
  value, seeds = float(values_S.mean()), values_S.size
  if seeds == 1:
    return Difference(value, None, None, 'one seed')
  if seeds == 2:
    sd, freedom = pooled_sd(list(groups.values()))
    return difference(value, sd / math.sqrt(2), freedom, 'pooled')
  sd = float(values_S.std(ddof=1))
  return difference(value, sd / math.sqrt(seeds), seeds - 1, 'paired')


def ratio(groups: Mapping[str, Sequence[float]], name: str) -> Ratio:
  """Returns the geometric mean of a group's ratios, as `mean_difference`.

  Args:
    groups: per optimizer a positive ratio for each seed.
    name: a key of `groups`.
  """
  logs = {key: np.log(np.asarray(v)) for key, v in groups.items()}
  found = mean_difference(logs, name)
  return Ratio(
    math.exp(found.value),
    None if found.low is None else math.exp(found.low),
    None if found.high is None else math.exp(found.high),
    found.p,
    len(groups[name]),
  )


def difference(
  value: float, error: float, freedom: float | None, rule: str
) -> Difference:
  """Returns a difference with its limit, interval and p-value.

  Args:
    value: the difference of two means.
    error: its standard error.
    freedom: degrees of freedom of Student's t; None: two errors of the normal
      distribution.
    rule: see `Difference`.
  """
  limit = _quantile(_level(freedom), freedom) * error
  if error:
    p = 2 * _tail(abs(value) / error, freedom)
  else:
    p = float(value == 0)
  return Difference(
    value, error, limit, rule, freedom, value - limit, value + limit, p, p
  )


def correct(found: Mapping[_Key, Difference]) -> dict[_Key, Difference]:
  """Corrects comparisons made at once for their number (Holm 1979).

  A difference exceeds its new limit exactly if Holm's rule rejects that it is
  zero: the limit is taken at the level of its rank, or at that of the first
  rank that fails. Differences without a p-value stay as they are.
  """
  ranked = sorted(
    (key for key in found if found[key].p is not None),
    key=lambda key: found[key].p or 0.0,
  )
  adjusted = dict(zip(ranked, holm([found[key].p or 0.0 for key in ranked])))
  result = dict(found)
  failed = None
  for rank, key in enumerate(ranked):
    one = found[key]
    assert one.error is not None
    share = len(ranked) - (rank if failed is None else failed)
    level = _level(one.freedom) / share
    limit = _quantile(level, one.freedom) * one.error
    if failed is None and abs(one.value) <= limit:
      failed = rank
    result[key] = dataclasses.replace(one, limit=limit, p_holm=adjusted[key])
  return result


def _level(freedom: float | None) -> float:
  if freedom is None:
    return 2 * _tail(ACCURACY_ERRORS, None)
  return 1 - CONFIDENCE


def _tail(x: float, freedom: float | None) -> float:
  """Returns the probability above x of Student's t or the normal."""
  # As scipy.stats has them, without building a distribution each time.
  below = special.ndtr(-x) if freedom is None else special.stdtr(freedom, -x)
  return float(below)


def _quantile(level: float, freedom: float | None) -> float:
  """Returns what is exceeded either way with probability `level`."""
  if freedom is None:
    return float(-special.ndtri(level / 2))
  return float(-special.stdtrit(freedom, level / 2))


def accuracy_error(
  errors: Sequence[float], accuracies: Sequence[float]
) -> float:
  """Returns the standard error of a mean accuracy over seeds.

  All seeds answer the same questions, so the question error does not shrink
  with their number: sqrt(mean of squared question errors + sd² / seeds), sd
  being that of the accuracies between seeds (0 for one seed).

  Args:
    errors: each seed's standard error over questions.
    accuracies: each seed's accuracy.
  """
  squared = float(np.mean(np.square(errors)))
  between = spread(accuracies)
  if between.sd is not None:
    squared += between.sd**2 / between.n
  return math.sqrt(squared)


def paired_accuracy_difference(
  first_SxQ: np.ndarray, second_SxQ: np.ndarray
) -> Difference:
  """Compares two optimizers question by question.

  error² = sd over questions of (a question's difference, averaged over
  seeds)² / questions + sd between the seeds' differences² / seeds.

  Args:
    first_SxQ: 1 where the seed's model answers the question rightly, else 0.
    second_SxQ: the same questions and seeds for the other optimizer.
  """
  difference_SxQ = np.asarray(first_SxQ, float) - np.asarray(second_SxQ, float)
  seeds, questions = difference_SxQ.shape
  over_questions = spread(difference_SxQ.mean(axis=0))
  squared = (over_questions.sd or 0.0) ** 2 / questions
  between = spread(difference_SxQ.mean(axis=1))
  if between.sd is not None:
    squared += between.sd**2 / seeds
  return difference(
    over_questions.mean, math.sqrt(squared), None, 'questions, paired'
  )


def paired_average_difference(
  tasks: Sequence[tuple[np.ndarray, np.ndarray]],
) -> Difference:
  """Compares the mean accuracy over tasks, every task counted once.

  error² = sum over tasks of s² / questions / tasks² + sd between the seeds'
  differences² / seeds, with s the deviation over a task's questions of the
  difference averaged over seeds.

  Args:
    tasks: of each the answers as in `paired_accuracy_difference`.
  """
  squared = 0.0
  by_seed = []
  for first_SxQ, second_SxQ in tasks:
    difference_SxQ = np.asarray(first_SxQ, float) - second_SxQ
    by_seed.append(difference_SxQ.mean(axis=1))
    over = spread(difference_SxQ.mean(axis=0))
    squared += (over.sd or 0.0) ** 2 / over.n / len(tasks) ** 2
  between = spread(np.mean(by_seed, axis=0))
  if between.sd is not None:
    squared += between.sd**2 / between.n
  return difference(between.mean, math.sqrt(squared), None, 'questions, paired')


def accuracy_difference(
  first: tuple[float, float], second: tuple[float, float]
) -> Difference:
  """Compares two (accuracy, standard error) whose questions are not known."""
  error = math.hypot(first[1], second[1])
  return difference(first[0] - second[0], error, None, 'questions, unpaired')


@dataclasses.dataclass(frozen=True)
class PairedTest:
  """Two models on the same questions.

  Attributes:
    value: mean of the first minus mean of the second.
    error: standard error of `value`; None for one question.
    low, high: the interval of CONFIDENCE around `value`, Student's t.
    p: two-sided, that the means differ no more by chance, Student's t for
      paired differences; None for one question.
    first_only, second_only: questions on which one of them had more.
    p_signs: the same of these two counts alone (for right and wrong: McNemar's
      exact test).
  """

  value: float
  error: float | None
  low: float | None
  high: float | None
  p: float | None
  first_only: int
  second_only: int
  p_signs: float


def paired_test(first_Q: np.ndarray, second_Q: np.ndarray) -> PairedTest:
  """Compares two models question by question."""
  difference_Q = np.asarray(first_Q, np.float64) - np.asarray(second_Q)
  more, less = int((difference_Q > 0).sum()), int((difference_Q < 0).sum())
  p_signs = (
    float(stats.binomtest(more, more + less).pvalue) if more + less else 1.0
  )
  value = float(difference_Q.mean())
  sd = spread(difference_Q).sd
  if sd is None:
    return PairedTest(value, None, None, None, None, more, less, p_signs)
  questions = difference_Q.size
  error = sd / math.sqrt(questions)
  reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, questions - 1)) * error
  p = float(value == 0)
  if error:
    p = float(2 * stats.t.sf(abs(value) / error, questions - 1))
  return PairedTest(
    value, error, value - reach, value + reach, p, more, less, p_signs
  )


def holm(ps: Sequence[float]) -> list[float]:
  """Returns p-values corrected for their number (Holm 1979)."""
  adjusted = [0.0] * len(ps)
  highest = 0.0
  for rank, i in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
    highest = max(highest, min(1.0, (len(ps) - rank) * ps[i]))
    adjusted[i] = highest
  return adjusted


def parabola_minimum(
  points: Sequence[tuple[float, float]],
) -> tuple[float, float] | None:
  """Returns the minimum (x, y) of the parabola through three points.

  None where the points lie on a line or the parabola opens downwards.
  """
  (x0, y0), (x1, y1), (x2, y2) = points
  slope01 = (y1 - y0) / (x1 - x0)
  curvature = ((y2 - y1) / (x2 - x1) - slope01) / (x2 - x0)
  if curvature <= 0:
    return None
  x = (x0 + x1) / 2 - slope01 / (2 * curvature)
  return x, y0 + (x - x0) * (slope01 + curvature * (x - x1))

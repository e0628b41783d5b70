"""How much worse the loss is where a hyperparameter is off its best value."""

from collections.abc import Sequence
import dataclasses
import math

import numpy as np
from scipy import interpolate

from steepest.eval.comparing import budgets, groups
from steepest.eval.comparing.runs import Run

# Factors off the best value; of decay rates b, off 1 - b.
FACTORS = (0.25, 0.5, 2.0, 4.0)
# The widest range that learning-rate sensitivity is taken over, as a factor on
# either side of the best rate.
WIDEST = 4.0
_CLOSE = 1e-4


@dataclasses.dataclass(frozen=True)
class Off:
  """The loss at a factor off the best value.

  Attributes:
    factor: of FACTORS.
    increase: loss minus the best trial's, in nats; None unless `status` is
      'tried' or 'interpolated'.
    status: 'tried', 'interpolated', 'diverged' or 'not tried'.
  """

  factor: float
  increase: float | None
  status: str


@dataclasses.dataclass(frozen=True)
class RateSensitivity:
  """Expected deviation of the loss from the best over a range of rates.

  The mean over log lr of min(loss, loss at initialization) - lowest loss
  (Wortsman et al., arXiv 2309.14322, section 2.2).

  Attributes:
    value: in nats.
    low, high: the range.
    initial: loss at initialization, which a diverged trial counts as.
  """

  value: float
  low: float
  high: float
  initial: float


@dataclasses.dataclass(frozen=True)
class Sensitivity:
  """One hyperparameter of one search, all others as in the best trial.

  Attributes:
    architecture: model.name.
    optimizer: optimizer.name.
    axes: values on axes that were searched anew, in words; ''.
    name: of the hyperparameter.
    best: its value in the best trial.
    offs: one for each of FACTORS.
    rates: of lr alone; None where the best rate is at the edge of what was
      tried, or where the loss at initialization was not logged.
    trials: that ended, of the whole search.
    diverged: of these.
  """

  architecture: str
  optimizer: str
  axes: str
  name: str
  best: float
  offs: tuple[Off, ...]
  rates: RateSensitivity | None
  trials: int
  diverged: int


Points = list[tuple[float, float]]


def profile(trials: Sequence[Run], name: str) -> tuple[float, Points] | None:
  """Returns the best value and (value, loss) with all else as in the best.

  Losses of the same value are averaged; infinite where a trial diverged. Pruned
  trials have no final loss and are left out. None where none has finished.
  """
  ended = [r for r in trials if r.status in ('finished', 'diverged')]
  losses = [budgets.final_loss(run) for run in ended]
  if not losses or not math.isfinite(min(losses)):
    return None
  held = [budgets.hyperparameters(run) for run in ended]
  best = held[losses.index(min(losses))]
  names = [n for n in budgets.searched(ended) if n != name]
  found: dict[float, list[float]] = {}
  for of, loss in zip(held, losses):
    if all(of[n] == best[n] for n in names):
      found.setdefault(of[name], []).append(loss)
  return best[name], [
    (v, float(np.mean(of))) for v, of in sorted(found.items())
  ]


def offs(name: str, best: float, points: Points) -> tuple[Off, ...]:
  """Returns the losses at FACTORS off the best value.

  Interpolated by monotone cubics in the logarithm (scipy's PCHIP), within what
  was tried only.
  """
  known = _coordinates(name, points)
  (center, lowest) = next(
    ((x, y) for x, y in known if math.isclose(x, _x(name, best))),
    (math.nan, math.nan),
  )
  result = []
  for factor in FACTORS:
    if not math.isfinite(center):
      result.append(Off(factor, None, 'not tried'))
      continue
    result.append(_off(factor, center + math.log(factor), lowest, known))
  return tuple(result)


def _off(factor: float, x: float, lowest: float, points: Points) -> Off:
  at = [y for other, y in points if abs(other - x) < _CLOSE]
  if at:
    if not math.isfinite(at[0]):
      return Off(factor, None, 'diverged')
    return Off(factor, at[0] - lowest, 'tried')
  below = [p for p in points if p[0] < x]
  above = [p for p in points if p[0] > x]
  if not below or not above:
    return Off(factor, None, 'not tried')
  ends = below[-1][1], above[0][1]
  if not any(map(math.isfinite, ends)):
    return Off(factor, None, 'diverged')
  if not all(map(math.isfinite, ends)):
    return Off(factor, None, 'not tried')
  finite = [p for p in points if math.isfinite(p[1])]
  curve = interpolate.PchipInterpolator(*np.transpose(finite))
  return Off(factor, float(curve(x)) - lowest, 'interpolated')


def reach(best: float, points: Points) -> float:
  """Returns the factor that was tried on either side of the best rate."""
  rates = [lr for lr, _ in points]
  return min(best / min(rates), max(rates) / best)


def rate_sensitivity(
  points: Points, initial: float, low: float, high: float
) -> RateSensitivity:
  """Returns the learning-rate sensitivity over a range.

  Args:
    points: (rate, loss) that reach from `low` to `high`; infinite: diverged.
    initial: loss at initialization, in nats.
    low: lowest rate of the range.
    high: highest.

  Raises:
    ValueError: the points do not reach that far.
  """
  x_P = np.log([lr for lr, _ in points])
  if x_P[0] > math.log(low) + _CLOSE or x_P[-1] < math.log(high) - _CLOSE:
    raise ValueError(
      f'rate_sensitivity: rates from {points[0][0]:g} to {points[-1][0]:g} do '
      f'not hold the range from {low:g} to {high:g}'
    )
  y_P = np.minimum([loss for _, loss in points], initial)
  a, b = max(x_P[0], math.log(low)), min(x_P[-1], math.log(high))
  inside = [y for x, y in zip(x_P, y_P) if a - _CLOSE <= x <= b + _CLOSE]
  curve = interpolate.PchipInterpolator(x_P, y_P)
  lowest = min([*inside, float(curve(a)), float(curve(b))])
  mean = float(curve.integrate(a, b)) / (b - a)
  return RateSensitivity(float(mean - lowest), low, high, initial)


def initial_loss(trials: Sequence[Run]) -> float | None:
  """Returns the mean loss before the first update; None where not logged."""
  values = [
    float(run.rows[0]['train/loss'])
    for run in trials
    if run.rows and run.rows[0]['step'] == 0 and 'train/loss' in run.rows[0]
  ]
  return float(np.mean(values)) if values else None


def of_searches(searches: Sequence[Sequence[Run]]) -> list[Sensitivity]:
  """Returns the sensitivities of all searches.

  All optimizers of a model are given the same range of rates around their best
  ones: the factor that all of them have tried, WIDEST at most.

  Args:
    searches: the trials of each.
  """
  factors: dict[tuple[str, str], list[float]] = {}
  for trials in searches:
    found = profile(trials, 'lr')
    # A search whose best rate is at an edge has no range, and takes none away.
    if found is not None and reach(*found) > 1 + _CLOSE:
      factors.setdefault(_peers(trials), []).append(reach(*found))
  result = []
  for trials in searches:
    architecture, axes = _peers(trials)
    ended = [run for run in trials if run.status != 'unfinished']
    for name in budgets.searched(ended) if ended else ():
      found = profile(ended, name)
      if found is None:
        continue
      best, points = found
      rates = None
      if name == 'lr' and reach(best, points) > 1 + _CLOSE:
        factor = min(WIDEST, *factors[architecture, axes])
        rates = _rates(ended, best, points, factor)
      result.append(
        Sensitivity(
          architecture=architecture,
          optimizer=trials[0].optimizer,
          axes=axes,
          name=name,
          best=best,
          offs=offs(name, best, points),
          rates=rates,
          trials=len(ended),
          diverged=sum(run.status == 'diverged' for run in ended),
        )
      )
  return result


def _peers(trials: Sequence[Run]) -> tuple[str, str]:
  """Returns what searches share that are shown beside one another."""
  first = trials[0]
  return first.architecture, groups.label(dict(groups.searched_at(first)))


def _rates(
  trials: Sequence[Run], best: float, points: Points, factor: float
) -> RateSensitivity | None:
  initial = initial_loss(trials)
  if initial is None:
    return None
  return rate_sensitivity(points, initial, best / factor, best * factor)


def _x(name: str, value: float) -> float:
  """Returns the coordinate: log of the value, of a decay rate log(1 - b)."""
  value = 1 - value if name in ('b1', 'b2') else value
  return math.log(value) if value > 0 else -math.inf


def _coordinates(name: str, points: Points) -> Points:
  return sorted(
    (_x(name, v), y) for v, y in points if math.isfinite(_x(name, v))
  )

"""Loss over token budgets as L(D) = E + A·D^-alpha, and speed-ups from it.

Wen et al., "Fantastic Pretraining Optimizers and Where to Find Them" (arXiv
2509.02046): an optimizer's speed-up is the tokens that the baseline would need
for the optimizer's final loss, by a curve fitted to the baseline's own final
losses, over the tokens that the optimizer had. Every loss is that of a run to
its end.
"""

from collections.abc import Sequence
import dataclasses
import math

import numpy as np
from scipy import optimize, stats

from steepest.eval.comparing import statistics

# Of exponents that are searched.
_ALPHAS = (0.005, 5.0)
# Budgets that three unknowns need.
FEWEST = 3


@dataclasses.dataclass(frozen=True)
class ScalingFit:
  """L(D) = floor + scale·(D / tokens)^-alpha by least squares.

  Attributes:
    floor: E, the loss that no number of tokens goes below, in nats.
    scale: A in units of the loss at `tokens`.
    alpha: exponent.
    tokens: geometric mean of the budgets, the unit of D.
    covariance_3x3: of (floor, scale, alpha); None where as many points as
      unknowns leave nothing to tell it from.
    freedom: points minus unknowns.
    residual: root mean square of the distances of the points, in nats.
    budgets: the distinct numbers of tokens, rising.
    losses: the mean loss at each.
  """

  floor: float
  scale: float
  alpha: float
  tokens: float
  covariance_3x3: tuple[tuple[float, ...], ...] | None
  freedom: int
  residual: float
  budgets: tuple[float, ...]
  losses: tuple[float, ...]

  @property
  def coefficient(self) -> float:
    """A of E + A·D^-alpha with D in tokens."""
    return self.scale * self.tokens**self.alpha

  def loss(self, tokens: float) -> float:
    """Returns L(D)."""
    return self.floor + self.scale * (tokens / self.tokens) ** -self.alpha

  def tokens_for(self, loss: float) -> float | None:
    """Returns D with L(D) = loss; None where the floor is not below it."""
    if loss <= self.floor:
      return None
    share = (loss - self.floor) / self.scale
    return self.tokens * share ** (-1 / self.alpha)


@dataclasses.dataclass(frozen=True)
class FittedSpeedup:
  """The speed-up of an optimizer at one budget through the baseline's curve.

  Attributes:
    optimizer: optimizer.name.
    tokens: of its runs.
    loss: mean final validation loss over seeds.
    equivalent: tokens that the baseline needs for it by the curve.
    speedup: equivalent / tokens; None where not available.
    low, high: interval of CONFIDENCE, from the fit's covariance and the spread
      of the loss over seeds (delta method on the logarithm); None where either
      is unknown.
    extrapolated: whether `equivalent` lies outside the baseline's budgets.
    reason: why it is not available; '' where it is.
  """

  optimizer: str
  tokens: float
  loss: float
  equivalent: float | None
  speedup: float | None
  low: float | None
  high: float | None
  extrapolated: bool
  reason: str


@dataclasses.dataclass(frozen=True)
class Scaling:
  """The baseline's curve over token budgets, and the speed-ups through it.

  Attributes:
    architecture: model.name.
    axes: values of the other axes.
    baseline: whose curve it is.
    fit: None where not available.
    speedups: of the other optimizers at each budget.
    reason: why there is no fit; '' where there is.
  """

  architecture: str
  axes: dict[str, object]
  baseline: str
  fit: ScalingFit | None
  speedups: list[FittedSpeedup]
  reason: str


def fit(points: Sequence[tuple[float, float]]) -> ScalingFit:
  """Fits the curve by least squares.

  For each exponent floor and scale are linear; the exponent is searched on a
  grid of its logarithm and refined by golden sections (variable projection).

  Args:
    points: (tokens, final loss), several seeds at a budget allowed.

  Raises:
    ValueError: fewer than three budgets, or no falling curve with an exponent
      in range fits them.
  """
  tokens_P = np.asarray([d for d, _ in points], np.float64)
  losses_P = np.asarray([y for _, y in points], np.float64)
  budgets = sorted(set(tokens_P.tolist()))
  if len(budgets) < FEWEST:
    raise ValueError(f'needs {FEWEST} token budgets, there are {len(budgets)}')
  unit = float(np.exp(np.log(tokens_P).mean()))
  x_P = np.log(tokens_P / unit)

  def solve(log_alpha: float) -> tuple[float, np.ndarray]:
    design_Px2 = np.stack(
      [np.ones_like(x_P), np.exp(-math.exp(log_alpha) * x_P)], axis=1
    )
    solution_2 = np.linalg.lstsq(design_Px2, losses_P, rcond=None)[0]
    error = float(np.sum((design_Px2 @ solution_2 - losses_P) ** 2))
    return error, solution_2

  grid = np.linspace(math.log(_ALPHAS[0]), math.log(_ALPHAS[1]), 120)
  errors = [solve(a)[0] for a in grid]
  i = int(np.argmin(errors))
  if i in (0, len(grid) - 1):
    raise ValueError(
      f'no exponent from {_ALPHAS[0]:g} to {_ALPHAS[1]:g} fits the losses best'
    )
  found = optimize.minimize_scalar(
    lambda a: solve(a)[0],
    bounds=(grid[i - 1], grid[i + 1]),
    method='bounded',
    options={'xatol': 1e-12},
  )
  alpha = math.exp(found.x)
  error, (floor, scale) = solve(found.x)
  if scale <= 0:
    raise ValueError('the losses do not fall with the tokens')
  freedom = len(points) - 3
  power_P = np.exp(-alpha * x_P)
  jacobian_Px3 = np.stack(
    [np.ones_like(x_P), power_P, -scale * x_P * power_P], axis=1
  )
  covariance = None
  if freedom > 0:
    inverse_3x3 = np.linalg.pinv(jacobian_Px3.T @ jacobian_Px3)
    covariance = tuple(map(tuple, (error / freedom * inverse_3x3).tolist()))
  return ScalingFit(
    floor=float(floor),
    scale=float(scale),
    alpha=alpha,
    tokens=unit,
    covariance_3x3=covariance,
    freedom=freedom,
    residual=math.sqrt(error / len(points)),
    budgets=tuple(budgets),
    losses=tuple(float(losses_P[tokens_P == d].mean()) for d in budgets),
  )


def speedup(
  curve: ScalingFit, optimizer: str, tokens: float, losses: Sequence[float]
) -> FittedSpeedup:
  """Returns the speed-up of runs of one budget.

  Args:
    curve: the baseline's.
    optimizer: optimizer.name.
    tokens: of each run.
    losses: final validation losses of its seeds.
  """
  mean = statistics.spread(losses)
  equivalent = curve.tokens_for(mean.mean)
  if equivalent is None:
    return FittedSpeedup(
      optimizer,
      tokens,
      mean.mean,
      None,
      None,
      None,
      None,
      True,
      f'its loss is not above the floor of the fitted curve, {curve.floor:.4f}',
    )
  low, high = _interval(curve, mean, math.log(equivalent / tokens))
  return FittedSpeedup(
    optimizer,
    tokens,
    mean.mean,
    equivalent,
    equivalent / tokens,
    low,
    high,
    not curve.budgets[0] <= equivalent <= curve.budgets[-1],
    '',
  )


def _interval(
  curve: ScalingFit, mean: statistics.Spread, center: float
) -> tuple[float | None, float | None]:
  """Returns the interval of a speed-up whose logarithm is `center`."""
  if curve.covariance_3x3 is None or mean.sd is None:
    return None, None
  above = mean.mean - curve.floor
  log_share = math.log(above / curve.scale)
  # log D = log unit - log((loss - floor) / scale) / alpha.
  gradient_3 = np.array(
    [
      1 / (curve.alpha * above),
      1 / (curve.alpha * curve.scale),
      log_share / curve.alpha**2,
    ]
  )
  covariance_3x3 = np.asarray(curve.covariance_3x3)
  variance = float(gradient_3 @ covariance_3x3 @ gradient_3)
  variance += (mean.sd / (curve.alpha * above)) ** 2 / mean.n
  quantile = stats.t.ppf((1 + statistics.CONFIDENCE) / 2, curve.freedom)
  reach = float(quantile) * math.sqrt(variance)
  return _exp(center - reach), _exp(center + reach)


def _exp(x: float) -> float:
  return math.exp(min(x, 700.0))


def scaling(
  architecture: str,
  axes: dict[str, object],
  baseline: str,
  losses: dict[str, dict[float, Sequence[float]]],
) -> Scaling:
  """Fits the baseline's curve and reads every other optimizer off it.

  Args:
    architecture: model.name.
    axes: values of the axes but tokens.
    baseline: a key of `losses`, or not.
    losses: optimizer -> tokens -> final validation losses of the seeds.
  """
  own = losses[baseline] if baseline in losses else {}
  points = [(d, loss) for d, of in own.items() for loss in of]
  try:
    curve = fit(points)
  except ValueError as error:
    reason = f'the curve of {baseline}: {error}'
    return Scaling(architecture, axes, baseline, None, [], reason)
  found = [
    speedup(curve, name, d, of[d])
    for name, of in losses.items()
    if name != baseline
    for d in sorted(of)
  ]
  return Scaling(architecture, axes, baseline, curve, found, '')

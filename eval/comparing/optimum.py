"""The best learning rate by a parabola in log lr, beside the best trial's."""

from collections.abc import Sequence
import dataclasses
import math

import numpy as np

# Rates up to this factor from the best one are fitted: further off, the curve
# of loss over log lr is no parabola.
WINDOW = 4.0


@dataclasses.dataclass(frozen=True)
class Fit:
  """A parabola in log lr.

  Attributes:
    lr: where it is lowest.
    loss: how low, in the unit of the losses.
    residual: root mean square of the distances of the losses to it; 0 for
      three points, which it meets.
    points: how many were fitted.
  """

  lr: float
  loss: float
  residual: float
  points: int


def fit(trials: Sequence[tuple[float, float | None]]) -> Fit | None:
  """Fits the trials around the best one by least squares.

  Args:
    trials: (learning rate, loss), the loss None or infinite where there is
      none; one trial a rate.

  Returns:
    None where the best has no finished trial on either side, or where the
    parabola has no lowest point within the rates that it is fitted to.
  """
  ordered = sorted(trials)
  losses = [math.inf if y is None else y for _, y in ordered]
  if not ordered or not math.isfinite(min(losses)):
    return None
  best = losses.index(min(losses))
  if not 0 < best < len(ordered) - 1:
    return None
  neighbours = (best - 1, best, best + 1)
  if not all(math.isfinite(losses[i]) for i in neighbours):
    return None
  reach = math.log(WINDOW) * (1 + 1e-9)
  center = math.log(ordered[best][0])
  x = [math.log(lr) - center for lr, _ in ordered]
  chosen = [
    i
    for i in range(len(ordered))
    if math.isfinite(losses[i]) and (i in neighbours or abs(x[i]) <= reach)
  ]
  x_P = np.array([x[i] for i in chosen])
  y_P = np.array([losses[i] for i in chosen])
  a, b, c = np.polyfit(x_P, y_P, 2)
  lowest = -b / (2 * a) if a > 0 else math.inf
  if not x_P.min() <= lowest <= x_P.max():
    return None
  residual_P = np.polyval((a, b, c), x_P) - y_P
  exact = len(chosen) == 3
  return Fit(
    lr=math.exp(center + lowest),
    loss=float(c - b * b / (4 * a)),
    residual=0.0 if exact else float(np.sqrt(np.mean(residual_P**2))),
    points=len(chosen),
  )

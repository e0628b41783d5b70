"""Statements about learning rates, tested: of two models, of wider models."""

from collections.abc import Mapping
import math
from typing import Any

import numpy as np
from scipy import stats

from steepest.eval.comparing import tuning
from steepest.eval.comparing.comparison import Comparison
from steepest.eval.comparing.findings import (
  AMONG,
  CONTRADICTED,
  FOUND,
  STEPS,
  TIMES,
  UNRESOLVED,
  UNTESTED,
  Finding,
)


def rate_ratio(
  comparison: Comparison, first: str, second: str, expected: float
) -> list[Finding]:
  """Tests 'the best rate of one model is so many times that of another'.

  On the vertices of the parabolas, per optimizer. Their error is that of
  a parabola whose losses vary as the final runs of the cell do over seeds; the
  trials share one seed, so this overstates it. Found where the interval holds
  `expected` and not 1, contradicted where it does not hold `expected`.
  """
  result = []
  tuned = {curve.optimizer for curve in comparison.curves}
  for name in sorted(tuned & set(AMONG)):
    vertices = [
      _vertex(comparison, architecture, name)
      for architecture in (first, second)
    ]
    place = f'{first} over {second}, {name}'
    if None in vertices:
      remark = 'a search has no parabola around its best rate'
      result.append(Finding(place, UNTESTED, remark=remark))
      continue
    (a, error_a), (b, error_b) = (v for v in vertices if v is not None)
    if error_a is None or error_b is None:
      remark = 'one seed: the noise of a loss is unknown'
      result.append(
        Finding(
          place,
          UNRESOLVED,
          'best rate over best rate',
          2 ** (a - b),
          n=1,
          unit=TIMES,
          remark=remark,
        )
      )
      continue
    reach = float(stats.norm.isf(0.025)) * math.hypot(error_a, error_b)
    low, high = 2 ** (a - b - reach), 2 ** (a - b + reach)
    result.append(
      Finding(
        place,
        _holds(low, high, expected),
        'best rate over best rate',
        2 ** (a - b),
        low,
        high,
        n=1,
        unit=TIMES,
        remark='one seed of trials, noise of the final runs',
      )
    )
  return result


def _holds(low: float, high: float, expected: float) -> str:
  if not low <= expected <= high:
    return CONTRADICTED
  return UNRESOLVED if low <= 1 <= high else FOUND


def _vertex(
  comparison: Comparison, architecture: str, optimizer: str
) -> tuple[float, float | None] | None:
  """Returns log2 of the best rate and its standard error; None without one."""
  curve = next(
    (
      c
      for c in comparison.curves
      if (c.architecture, c.optimizer, c.axes) == (architecture, optimizer, '')
      and c.fit is not None
    ),
    None,
  )
  if curve is None or curve.fit is None:
    return None
  center = math.log2(curve.fit.lr)
  sds = [
    cell.spreads['eval_loss'].sd
    for cell in comparison.cells
    if (cell.architecture, cell.optimizer) == (architecture, optimizer)
    and 'eval_loss' in cell.spreads
  ]
  known = [sd for sd in sds if sd is not None]
  if not known:
    return center, None
  noise = math.sqrt(sum(sd**2 for sd in known) / len(known))
  return center, noise * _vertex_error(curve)


def _vertex_error(curve: tuning.Curve) -> float:
  """Returns the error of the vertex in log2 lr for losses of noise 1."""
  assert curve.fit is not None and curve.best is not None
  finished = [p for p in curve.points if p.loss is not None]
  ordered = sorted(
    finished, key=lambda p: abs(math.log(p.lr / (curve.best or p.lr)))
  )[: curve.fit.points]
  x_P = np.log2([p.lr for p in ordered])
  y_P = np.array([p.loss for p in ordered])
  design_Px3 = np.vander(x_P - x_P.mean(), 3)
  a, b, _ = np.linalg.lstsq(design_Px3, y_P, rcond=None)[0]
  inverse_3x3 = np.linalg.pinv(design_Px3.T @ design_Px3)
  gradient_3 = np.array([b / (2 * a**2), -1 / (2 * a), 0.0])
  return math.sqrt(float(gradient_3 @ inverse_3x3 @ gradient_3))


def transfers(
  transfer: Mapping[str, Any] | None, parametrization: str = 'mup'
) -> list[Finding]:
  """Tests 'the best rate stays where it is as models get wider'.

  Found where the shift of the best rate from the narrowest to the widest model
  is within a factor of two with its interval, contradicted where its interval
  lies outside. Standard errors are pooled over the cells.

  Args:
    transfer: transfer.json of launch.transfer; None: not tested.
    parametrization: whose cells.
  """
  if transfer is None:
    remark = 'no transfer.json was given'
    return [Finding('every model', UNTESTED, remark=remark)]
  cells = [
    cell
    for cell in transfer['cells']
    if cell['parametrization'] == parametrization
    and cell['shift_steps']['mean'] is not None
  ]
  freedom = sum(cell['shift_steps']['seeds'] - 1 for cell in cells)
  squares = sum(
    (cell['shift_steps']['seeds'] - 1)
    * cell['shift_steps']['seeds']
    * (cell['shift_steps']['error'] or 0.0) ** 2
    for cell in cells
  )
  found = []
  for cell in cells:
    shift, n = cell['shift_steps']['mean'], cell['shift_steps']['seeds']
    low = high = None
    conclusion = UNRESOLVED
    if freedom:
      error = math.sqrt(squares / freedom / n)
      reach = float(stats.t.isf(0.025, freedom)) * error
      low, high = shift - reach, shift + reach
      if -1 <= low and high <= 1:
        conclusion = FOUND
      elif high < -1 or low > 1:
        conclusion = CONTRADICTED
    widths = [w['width'] for w in cell['widths']]
    found.append(
      Finding(
        f'{cell["model"]}, {cell["optimizer"]}',
        conclusion,
        f'shift of the best rate from width {widths[0]} to {widths[-1]}',
        shift,
        low,
        high,
        n=n,
        unit=STEPS,
      )
    )
  return found

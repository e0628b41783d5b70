"""Whether measured quantities scale with a model's size as they should.

The slope of a quantity q over sizes n is that of log2 q over log2 n, by least
squares. In maximal-update parametrization, the change that training makes to
each activation keeps its size (arXiv 2203.03466, appendix D.1).
"""

from collections.abc import Mapping, Sequence
import dataclasses
import fnmatch
import math
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Band:
  """Slopes that pass, and why; `low` may be -inf."""

  low: float
  high: float
  reason: str

  def __str__(self) -> str:
    if math.isinf(self.low):
      return f'at most {self.high:+.2f}'
    return f'{self.low:+.2f} to {self.high:+.2f}'


@dataclasses.dataclass(frozen=True)
class Row:
  """A quantity over sizes.

  Attributes:
    axis: 'width' or 'depth'.
    quantity: such as `change/logits`.
    sizes: along the axis.
    values: sizes × seeds.
    slope: mean over seeds; NaN if a value is not positive and finite.
    error: its standard error over seeds; NaN with one seed.
    band: slopes that pass; None: no verdict.
  """

  axis: str
  quantity: str
  sizes: tuple[int, ...]
  values: np.ndarray
  slope: float
  error: float
  band: Band | None

  @property
  def passed(self) -> bool:
    return self.band is None or self.band.low <= self.slope <= self.band.high

  @property
  def words(self) -> str:
    """The verdict in words."""
    if self.band is None:
      return 'recorded only'
    if math.isnan(self.slope):
      return 'a value is zero or not finite: no slope'
    if self.passed:
      return self.band.reason
    way = 'grows faster' if self.slope > self.band.high else 'falls faster'
    return f'{way} than it may: {self.band.reason}'


# Chosen so that the right rules pass and each wrong one fails on both models
# and all optimizers (tests/launch/coordcheck_test.py, with slopes in
# docs/parametrization.md). The theory's slopes hold at infinite width: with few
# features per head, logits still shrink.
_ANY = -math.inf
_STREAM = Band(
  -0.15, 0.15, 'training must change the residual stream equally at every size'
)
_LOGITS = Band(
  _ANY, 0.1, 'may shrink, as randomly initialized outputs do, but not grow'
)
_ATTENTION = Band(
  _ANY,
  0.3,
  'may shrink, or grow somewhat while queries, which start at zero, align',
)
_LIMITS = Band(
  -0.15,
  0.15,
  'logits of queries that have become keys, as training may make them: a scale '
  'of 1/√head_dim lets them grow by 1/2',
)
# Axis → quantity pattern → slopes that pass; the first match counts.
_BANDS = {
  'width': {
    'change/embedding': _STREAM,
    'change/*_block': _STREAM,
    'change/norm': _STREAM,
    'change/*/attention_logits': _ATTENTION,
    'level/*/attention_limits': _LIMITS,
    'change/logits': _LOGITS,
    'update/hidden': Band(
      -1.15, -0.85, 'updates of n × n matrices, which add up, shrink as 1/n'
    ),
    'update/hidden/spectral': Band(
      -1.05,
      -0.4,
      'orthogonalised updates keep their spectral norm: entries fall as 1/√n, '
      'or up to 1/n where their rank stays',
    ),
    'update/*': Band(
      -0.15, 0.15, 'updates of vectors, embeddings and readout keep their size'
    ),
    'curvature/*': Band(
      -2.3, -1.4, 'squared gradients fall as 1/width², which rho makes up for'
    ),
    'unclipped/*': Band(
      -0.2, 0.25, 'if it falls, Sophia becomes the sign of its momentum'
    ),
  },
  # If branches shrink with depth, so does the contribution of the first.
  'depth': {
    'change/embedding': _STREAM,
    'change/last_block': _STREAM,
    'change/norm': _STREAM,
    'change/*/attention_logits': _ATTENTION,
    'change/logits': _LOGITS,
  },
}


def fit(sizes: Sequence[int], values: np.ndarray) -> np.ndarray:
  """Returns the slope of each seed.

  Args:
    sizes: distinct, at least two.
    values: sizes × seeds.

  Returns:
    One per seed, NaN if a value is not positive and finite.
  """
  x = np.log2(np.asarray(sizes, float))
  x -= x.mean()
  good = np.isfinite(values) & (values > 0)
  y = np.log2(np.where(good, values, 1.0))
  slopes = x @ (y - y.mean(0)) / (x @ x)
  return np.where(good.all(0), slopes, np.nan)


def judge(
  axis: str,
  sizes: Sequence[int],
  measured: Sequence[Sequence[Mapping[str, float]]],
) -> list[Row]:
  """Returns a row for each quantity, those with a verdict first.

  Args:
    axis: 'width' or 'depth'.
    sizes: along the axis.
    measured: for each size and seed, quantity → value.
  """
  rows = []
  for name in measured[0][0]:
    values = np.array([[run[name] for run in runs] for runs in measured])
    slopes = fit(sizes, values)
    n = len(slopes)
    error = float(slopes.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan
    slope = float(slopes.mean())
    rows.append(
      Row(axis, name, tuple(sizes), values, slope, error, _band(axis, name))
    )
  return sorted(rows, key=lambda r: r.band is None)


def to_dict(row: Row) -> dict[str, Any]:
  """Returns JSON values; non-finite ones become None."""
  finite = lambda x: x if math.isfinite(x) else None
  return {
    'axis': row.axis,
    'quantity': row.quantity,
    'sizes': list(row.sizes),
    'values': [[finite(float(v)) for v in seeds] for seeds in row.values],
    'slope': finite(row.slope),
    'error': finite(row.error),
    'low': None if row.band is None else finite(row.band.low),
    'high': None if row.band is None else row.band.high,
    'passed': None if row.band is None else row.passed,
    'reason': row.words,
  }


def _band(axis: str, quantity: str) -> Band | None:
  """Returns the slopes that pass; None: no verdict."""
  for pattern, allowed in _BANDS[axis].items():
    if fnmatch.fnmatchcase(quantity, pattern):
      return allowed
  return None

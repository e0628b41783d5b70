"""An optimizer's speed-up at each token budget and model size.

The speed-up at a size is the tokens that the baseline needs there for the same
loss, over those used (arXiv 2509.02046). Between the baseline's budgets of that
size it is interpolated, without any law; beyond them, it is read off the law of
report/laws.py.

Shapes: B budgets, N sizes.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import math

import numpy as np
import pandas as pd
from scipy import interpolate, optimize

from steepest.report import laws, statistics, tables, words
from steepest.report.laws import Law
from steepest.report.speed import BASELINE
from steepest.report.statistics import Array

# Columns of `measure`: the sources of a speed-up's variance, then all.
_SOURCES = ['variance', 'freedom', 'baseline_variance', 'baseline_freedom']
_COLUMNS = [
  *('optimizer', 'parameters', 'tokens', 'loss', 'n', 'speedup'),
  *('low', 'high', 'extrapolated', *_SOURCES),
]


def measure(points: pd.DataFrame, law: Law | None) -> pd.DataFrame:
  """Returns every optimizer's speed-up over the baseline.

  The interval combines the seed variances of both optimizers, each pooled over
  an optimizer's points; beyond the baseline's budgets, the variance of the
  redrawn law replaces that of the baseline's seeds.

  Args:
    points: optimizer, parameters, tokens and loss of each run.
    law: of the baseline; None: nothing beyond its budgets.

  Returns:
    One row per optimizer, size and budget: optimizer, parameters, tokens, loss
    (mean over seeds), n, speedup, low, high (95 %), extrapolated; of the log of
    the speed-up, the optimizer's and the baseline's share of its variance, each
    with its degrees of freedom.
  """
  cells = points.groupby(['optimizer', 'parameters', 'tokens'])['loss']
  means = cells.agg(['mean', 'count']).reset_index()
  spread = {}
  for name, of in points.groupby('optimizer'):
    groups = of.groupby(['parameters', 'tokens'])['loss']
    freedom = len(of) - groups.ngroups
    squares = ((of['loss'] - groups.transform('mean')) ** 2).sum()
    spread[name] = (squares / freedom if freedom else math.nan, freedom)
  rows = []
  for row in means[means['optimizer'] != BASELINE].to_dict('records'):
    own = means[
      (means['optimizer'] == BASELINE)
      & (means['parameters'] == row['parameters'])
    ].sort_values('tokens')
    loss, size = row['mean'], row['parameters']
    variance, freedom = spread[row['optimizer']]
    variance /= row['count']
    read = _between(own, loss, spread[BASELINE]) if len(own) else None
    beyond = read is None and law is not None and BASELINE in law.optimizers
    if read is not None:
      log, slope, of_baseline = read
    elif beyond and law is not None:
      at = law.tokens_for(BASELINE, size, loss)
      log = float(np.log(at))
      nearby = law.tokens_for(BASELINE, size, loss + 1e-4)
      slope = float((np.log(nearby) - log) / 1e-4)
      redrawn = np.log(law.tokens_for(BASELINE, size, loss, redrawn=True))
      of_baseline = (float(np.var(redrawn)), law.freedom)
    else:
      log = slope = math.nan
      of_baseline = (math.nan, 1)
    of_own = float(slope**2 * variance), freedom
    value = log - math.log(row['tokens'])
    low, high = _interval(value, of_own, of_baseline, row['count'])
    rows.append(
      {
        'optimizer': row['optimizer'],
        'parameters': size,
        'tokens': row['tokens'],
        'loss': loss,
        'n': row['count'],
        'speedup': _exp(value),
        'low': low,
        'high': high,
        'extrapolated': beyond,
        **dict(zip(_SOURCES, (*of_own, *of_baseline), strict=True)),
      }
    )
  return pd.DataFrame(rows, columns=_COLUMNS)


def trends(rows: pd.DataFrame) -> pd.DataFrame:
  """Returns how speed-ups change with the size, without any law.

  A straight line through log speed-up over log size, by least squares.

  Args:
    rows: from `measure`, with their model.

  Returns:
    One row per model and optimizer that has a speed-up, inside the baseline's
    budgets, at each of several sizes: model, optimizer, sizes (their number),
    change (the speed-up's factor over ten times the size), low, high (95 %).
  """
  found = []
  for (model, name), own in rows.groupby(['model', 'optimizer'], sort=False):
    inside = own[~own['extrapolated'] & own['speedup'].notna()]
    if len(inside) < 2 or not own['parameters'].is_unique:
      continue
    logs_N = np.log10(inside['parameters'].to_numpy(np.float64))
    logs_N -= logs_N.mean()
    weights_N = logs_N / (logs_N @ logs_N)
    value = float(weights_N @ np.log(inside['speedup']))
    of_own, of_baseline = (
      (float(weights_N**2 @ inside[variance]), float(inside[freedom].iloc[0]))
      for variance, freedom in zip(_SOURCES[::2], _SOURCES[1::2], strict=True)
    )
    low, high = _interval(value, of_own, of_baseline, int(inside['n'].min()))
    found.append((model, name, len(inside), math.exp(value), low, high))
  columns = ['model', 'optimizer', 'sizes', 'change', 'low', 'high']
  return pd.DataFrame(found, columns=columns)


def _interval(
  value: float,
  own: tuple[float, float],
  baseline: tuple[float, float],
  n: int,
) -> tuple[float, float]:
  """Returns the exponentials of the ends of a logarithm's 95 % interval."""
  sources = [(np.asarray(v), float(freedom)) for v, freedom in (own, baseline)]
  found = statistics.Differences(np.asarray(value), tuple(sources), n)
  low, high = (
    _exp(float(end)) if math.isfinite(end) else math.nan
    for end in found.interval()
  )
  return low, high


def _exp(value: float) -> float:
  """Returns the exponential, at most what a float holds."""
  return math.exp(min(value, 700))


def tokens_between(own: pd.DataFrame, loss: float) -> float:
  """Returns the tokens that reach a loss, interpolated; NaN beyond budgets.

  Args:
    own: tokens and mean loss of each budget, tokens ascending.
    loss: to reach.
  """
  found = _read(own['tokens'].to_numpy(), own['loss'].to_numpy(), loss)
  return math.nan if found is None else math.exp(found[0])


def _between(
  own: pd.DataFrame, loss: float, spread: tuple[float, int]
) -> tuple[float, float, tuple[float, int]] | None:
  """Interpolates a loss between a size's budgets.

  Returns:
    Log of the tokens, its slope over the loss, and its variance from the
    baseline's seeds with their degrees of freedom; None beyond the budgets.
  """
  read = _read(own['tokens'].to_numpy(), own['mean'].to_numpy(), loss)
  if read is None:
    return None
  log, slope, weights_B = read
  variance = slope**2 * spread[0] * (weights_B**2 / own['count']).sum()
  return log, slope, (float(variance), spread[1])


def _read(
  tokens_B: Array, losses_B: Array, loss: float
) -> tuple[float, float, Array] | None:
  """Interpolates a loss by a parabola over log tokens through three budgets.

  With two budgets, by a straight line.

  Returns:
    Log of the tokens, its slope over the loss, and the weight of each budget's
    loss there; None if no two neighbouring budgets bracket the loss.
  """
  logs_B = np.log(tokens_B)
  for i in range(len(logs_B) - 1):
    if losses_B[i + 1] <= loss <= losses_B[i] > losses_B[i + 1]:
      break
  else:
    return None
  far_B = np.abs(logs_B - (logs_B[i] + logs_B[i + 1]) / 2)
  near = np.sort(np.argsort(far_B, kind='stable')[:3])
  curve = interpolate.BarycentricInterpolator(logs_B[near], losses_B[near])
  ends = logs_B[i], logs_B[i + 1]
  log = float(optimize.brentq(lambda x: float(curve(x)) - loss, *ends))
  basis = interpolate.BarycentricInterpolator(logs_B[near], np.eye(len(near)))
  weights_B = np.zeros(len(logs_B))
  weights_B[near] = basis(log)
  return log, 1 / float(curve.derivative(log)), weights_B


@dataclasses.dataclass(frozen=True)
class Speedups:
  """What a comparison shows over token budgets and sizes.

  Attributes:
    rows: of all models, as `measure` returns them, and the model.
    trends: as `trends` returns them.
    laws: model → fitted law.
    groups: model of several sizes → its groups.
    remarks: sentences on laws that were not fitted.
  """

  rows: pd.DataFrame
  trends: pd.DataFrame
  laws: Mapping[str, Law]
  groups: Mapping[str, Sequence[str]]
  remarks: Sequence[str]


@functools.lru_cache(maxsize=1)
def of(comparison: tables.Comparison) -> Speedups:
  """Returns the speed-ups of all models, and the laws they may use."""
  parts = []
  fitted: dict[str, Law] = {}
  groups: dict[str, list[str]] = {}
  remarks = []
  for model, points in models(comparison).items():
    law = None
    if points['parameters'].nunique() > 1:
      groups[model] = list(points['group'].unique())
      try:
        law = fitted[model] = laws.fit(points)
        if lacking := laws.refusals(points):
          remarks.append(f'{words.named(model)}: no law of {lacking}.')
      except ValueError as error:
        remarks.append(f'{words.named(model)}: no law. {error}.')
    found = measure(points, law)
    found.insert(0, 'model', model)
    # Sizes alone, with one budget each, say nothing of speed-ups.
    if found['speedup'].notna().any():
      parts.append(found)
  rows = pd.DataFrame(columns=['model', *_COLUMNS])
  if parts:
    rows = pd.concat(parts, ignore_index=True)
  return Speedups(rows, trends(rows), fitted, groups, remarks)


def models(comparison: tables.Comparison) -> dict[str, pd.DataFrame]:
  """Returns runs of models with several sizes or budgets, as `fit` takes them.

  Keyed by model and all axes but width, depth and tokens; `group` says which
  group a run is of.
  """
  found = {}
  columns = ['optimizer', 'parameters', 'planned_tokens', 'eval_loss', 'group']
  names = ['optimizer', 'parameters', 'tokens', 'loss', 'group']
  for model, runs in tables.by_model(comparison, ('width', 'depth', 'tokens')):
    counts = runs[['parameters', 'planned_tokens']].nunique()
    if counts.max() > 1 and BASELINE in set(runs['optimizer']):
      found[model] = runs[columns].set_axis(names, axis=1)
  return found

"""Loss over token budgets as L(D) = E + A·D^−α, and speed-ups through it.

Wen et al., "Fantastic Pretraining Optimizers and Where to Find Them" (arXiv
2509.02046): an optimizer's speed-up is the tokens that the baseline would need
for its final loss, by a curve fitted to the baseline's own final losses, over
the tokens that it had. Every loss is that of a run to its end.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math
from typing import Any
import warnings

import numpy as np
from numpy.typing import NDArray
import pandas as pd
from scipy import optimize

from steepest.report import section, statistics, tables, theme, words
from steepest.report.section import Column

BASELINE = 'adamw'
# Three unknowns go through any three budgets: the fourth can contradict them.
FEWEST = 4
# Exponents that are looked for.
_ALPHAS = (0.005, 5.0)


@dataclasses.dataclass(frozen=True)
class Fit:
  """L(D) = floor + scale·(D / unit)^−alpha by least squares.

  Attributes:
    floor: E, the loss that no number of tokens goes below, in nats.
    scale: A in units of the loss at `unit`.
    alpha: exponent.
    unit: geometric mean of the budgets, in tokens.
    covariance_3x3: of (floor, scale, alpha).
    freedom: points minus unknowns.
    budgets: the distinct numbers of tokens, rising.
  """

  floor: float
  scale: float
  alpha: float
  unit: float
  covariance_3x3: NDArray[np.float64]
  freedom: int
  budgets: tuple[float, ...]

  def loss(self, tokens: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns L(D)."""
    return self.floor + self.scale * (tokens / self.unit) ** -self.alpha

  def tokens_for(self, loss: float) -> float:
    """Returns D with L(D) = loss; NaN where the floor is not below it."""
    if loss <= self.floor:
      return math.nan
    share = (loss - self.floor) / self.scale
    return self.unit * share ** (-1 / self.alpha)


def fit(points: Sequence[tuple[float, float]]) -> Fit:
  """Fits the curve by least squares.

  Args:
    points: (tokens, final loss), several seeds at a budget allowed.

  Raises:
    ValueError: there are fewer than FEWEST budgets, or no falling curve with an
      exponent in range fits them.
  """
  tokens_P, losses_P = np.asarray(points, np.float64).reshape(-1, 2).T
  budgets = np.unique(tokens_P)
  if len(budgets) < FEWEST:
    raise ValueError(
      f'three unknowns need {FEWEST} token budgets, there '
      f'{"is" if len(budgets) == 1 else "are"} {len(budgets)}'
    )
  unit = float(np.exp(np.log(tokens_P).mean()))
  low, high = _ALPHAS
  with warnings.catch_warnings(action='ignore'):
    (floor, scale, alpha), covariance_3x3 = optimize.curve_fit(
      lambda x, floor, scale, alpha: floor + scale * np.exp(-alpha * x),
      np.log(tokens_P / unit),
      losses_P,
      (losses_P.min() - np.ptp(losses_P), 2 * np.ptp(losses_P), 0.3),
      bounds=([-np.inf, 0, low], [np.inf, np.inf, high]),
    )
  if scale < 1e-9:
    raise ValueError('the losses do not fall with the tokens')
  if not 1.01 * low < alpha < 0.99 * high:
    raise ValueError(f'no exponent from {low:g} to {high:g} fits the losses')
  return Fit(
    float(floor),
    float(scale),
    float(alpha),
    unit,
    covariance_3x3,
    len(points) - 3,
    tuple(map(float, budgets)),
  )


def speedup(
  curve: Fit, tokens: float, losses: Sequence[float]
) -> tuple[float, float, float]:
  """Returns an optimizer's speed-up over the baseline and its 95 % interval.

  The interval is by the delta method on the logarithm, with the fit and the
  seeds of the loss as two sources of variance. All NaN where the loss does
  not lie above the floor of the curve.

  Args:
    curve: the baseline's.
    tokens: of each run.
    losses: final validation losses of its seeds.
  """
  mean, sd = statistics.sample(losses)
  ratio = curve.tokens_for(mean) / tokens
  if math.isnan(ratio) or math.isnan(sd):
    return ratio, math.nan, math.nan
  above = mean - curve.floor
  # log D = log unit − log((loss − floor) / scale) / alpha.
  gradient_3 = np.array(
    [
      1 / (curve.alpha * above),
      1 / (curve.alpha * curve.scale),
      math.log(above / curve.scale) / curve.alpha**2,
    ]
  )
  sources = (
    (gradient_3 @ curve.covariance_3x3 @ gradient_3, float(curve.freedom)),
    (np.square(sd / (curve.alpha * above)) / len(losses), len(losses) - 1.0),
  )
  log = statistics.Differences(np.log(ratio), sources, len(losses))
  low, high = (math.exp(min(float(end), 700.0)) for end in log.interval())
  return ratio, low, high


def speedups(
  comparison: tables.Comparison,
) -> tuple[pd.DataFrame, dict[str, Fit], dict[str, str]]:
  """Fits the baseline of each model and reads the other optimizers off it.

  Returns:
    One row a model, optimizer and budget: model, optimizer, tokens, loss (mean
    over seeds), n, speedup, low, high, extrapolated (whether the baseline had
    no such budget); the fits by model; and by model why there is none.
  """
  rows: list[dict[str, Any]] = []
  fits: dict[str, Fit] = {}
  reasons: dict[str, str] = {}
  for model, runs in tables.by_model(comparison, ('tokens',)):
    if runs['planned_tokens'].nunique() < 2:
      continue
    own = runs[runs['optimizer'] == BASELINE]
    try:
      fits[model] = fit(
        list(zip(own['planned_tokens'], own['eval_loss'], strict=True))
      )
    except ValueError as error:
      reasons[model] = f'{words.name(BASELINE)}: {error}'
    for (name, tokens), of in runs.groupby(['optimizer', 'planned_tokens']):
      losses = of['eval_loss'].to_numpy(float)
      row = {'model': model, 'optimizer': name, 'tokens': float(tokens)}
      row |= {'loss': losses.mean(), 'n': len(losses)}
      if model in fits and name != BASELINE:
        curve = fits[model]
        ratio, low, high = speedup(curve, float(tokens), losses)
        inside = curve.budgets[0] <= ratio * tokens <= curve.budgets[-1]
        row |= {'speedup': ratio, 'low': low, 'high': high}
        row['extrapolated'] = not inside
      rows.append(row)
  columns = ['model', 'optimizer', 'tokens', 'loss', 'n', 'speedup', 'low']
  columns += ['high', 'extrapolated']
  return pd.DataFrame(rows, columns=columns), fits, reasons


def sections(comparison: tables.Comparison) -> list[section.Section]:
  """Returns the section of loss over token budgets."""
  found, fits, reasons = speedups(comparison)
  if not len(found):
    return []
  looks = theme.styles(comparison.tables.runs['optimizer'])
  unit = words.unit('tokens', found['tokens'])
  blocks: list[section.Block] = [_figure(found, fits, looks, unit)]
  if fits:
    blocks.append(_table(found, fits, unit))
  blocks += [
    section.Note(
      f'{words.named(model)}: no speed-up is read off a curve. {reason}.'
    )
    for model, reason in reasons.items()
  ]
  return [section.Section('sizes', 'Loss over token budgets', blocks)]


def _figure(
  found: pd.DataFrame,
  fits: Mapping[str, Fit],
  looks: Mapping[str, Mapping[str, str]],
  unit: words.Unit,
) -> section.Figure:
  by_model = dict(list(found.groupby('model', sort=False)))
  budgets = sorted(set(found['tokens']))
  label = f'Tokens ({unit.label})' if unit.label else 'Tokens'
  layout = theme.layout(
    [words.named(str(model)) for model in by_model],
    280,
    {
      'title': label,
      'type': 'log',
      'tickvals': [theme.digits(b / unit.scale) for b in budgets],
      'ticktext': [unit.number(b) for b in budgets],
    },
    {'title': 'Validation loss'},
  )
  data: list[dict[str, Any]] = []
  for panel, (model, of) in enumerate(by_model.items(), 1):
    for name, own in of.groupby('optimizer'):
      fitted = model in fits and name == BASELINE
      data.append(
        theme.trace(
          str(name),
          panel,
          own['tokens'] / unit.scale,
          own['loss'],
          'mean over seeds',
          looks[str(name)],
          mode='markers' if fitted else 'lines+markers',
          hovertemplate='%{y:.4f}<extra>%{fullData.name}</extra>',
        )
      )
    if model in fits:
      curve = fits[str(model)]
      tokens_P = np.geomspace(curve.budgets[0], curve.budgets[-1], 60)
      data.append(
        theme.trace(
          BASELINE,
          panel,
          tokens_P / unit.scale,
          curve.loss(tokens_P),
          'fit',
          looks[BASELINE],
          mode='lines',
          hoverinfo='skip',
        )
      )
  return section.Figure(
    'sizes',
    'Final validation loss over token budgets',
    'Final validation loss of runs trained to their end with each budget, '
    'means over seeds; the line through the marks of '
    f'{words.name(BASELINE)} is the fitted curve where there is one.',
    {
      'data': data,
      'layout': layout,
      'csv': {'x': label.lower(), 'y': 'loss (nats per token)'},
    },
    optimizers=theme.names(found['optimizer']),
  )


def _table(
  found: pd.DataFrame, fits: Mapping[str, Fit], unit: words.Unit
) -> section.Table:
  heads = {
    model: f'{words.named(model)}: {words.name(BASELINE)} has L(D) = '
    f'{curve.floor:.3f} + {curve.scale:.3f}·(D / '
    f'{words.count(curve.unit)})^−{curve.alpha:.3f}'
    for model, curve in fits.items()
  }
  rows = found[found['speedup'].notna()]
  ends = zip(rows['low'], rows['high'], strict=True)
  far = 'beyond the budgets of the curve'
  rows = rows.assign(
    model=rows['model'].map(heads),
    tokens=rows['tokens'].map(unit.number),
    interval=[words.interval(*pair, '.2f') for pair in ends],
    remark=[far if beyond else '' for beyond in rows['extrapolated']],
  )
  return section.Table.of(
    'Speed-ups',
    rows,
    {
      'optimizer': Column('Optimizer'),
      'tokens': Column('Tokens', unit.label, True),
      'loss': Column('Validation loss', number=True, form='.4f'),
      'speedup': Column('Speed-up', '×', True, form='.2f'),
      'interval': Column('95 % interval', number=True),
      'remark': Column('Remark'),
    },
    heading='model',
    note=f'Tokens that {words.name(BASELINE)} needs for the same loss by its '
    'fitted curve, over those used (arXiv 2509.02046).',
  )

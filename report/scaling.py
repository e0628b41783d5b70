"""An optimizer's speed-up at each token budget and model size.

The speed-up at a size is the tokens that the baseline needs there for the same
loss, over those used (arXiv 2509.02046). Between the baseline's budgets of that
size it is interpolated, without any law; beyond them, and beyond the sizes, it
is read off the law of report/laws.py.

Shapes: B budgets.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import functools
import math
from typing import Any

import numpy as np
import pandas as pd
from scipy import interpolate, optimize

from steepest.report import (
  fairness,
  laws,
  section,
  statistics,
  tables,
  theme,
  words,
)
from steepest.report.laws import Law
from steepest.report.section import Column
from steepest.report.speed import BASELINE
from steepest.report.statistics import Array

# The largest size drawn, over the largest measured.
_BEYOND = 10.0
# Marks of one size are this share of the axis apart.
_APART = 0.012
# An axis with more values than these has round ticks.
_MOST_TICKS = 6
# Axis ticks of speed-ups.
_TICKS = [0.2, 0.3, 0.5, 0.7, 1, 1.2, 1.5, 2, 3, 5]


def speedups(points: pd.DataFrame, law: Law | None) -> pd.DataFrame:
  """Returns every optimizer's speed-up over the baseline.

  The interval combines the seed variances of both optimizers, each pooled over
  an optimizer's points; beyond the baseline's budgets, the variance of the
  redrawn law replaces that of the baseline's seeds.

  Args:
    points: optimizer, parameters, tokens and loss of each run.
    law: of the baseline; None: nothing beyond its budgets.

  Returns:
    One row per optimizer, size and budget: optimizer, parameters, tokens, loss
    (mean over seeds), n, speedup, low, high (95 %), extrapolated.
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
    of_own = np.asarray(slope**2 * variance), float(freedom)
    found = statistics.Differences(
      np.asarray(log - math.log(row['tokens'])),
      (of_own, (np.asarray(of_baseline[0]), float(of_baseline[1]))),
      row['count'],
    )
    ends = [
      float(e) if math.isfinite(e) else math.nan for e in found.interval()
    ]
    rows.append(
      {
        'optimizer': row['optimizer'],
        'parameters': size,
        'tokens': row['tokens'],
        'loss': loss,
        'n': row['count'],
        'speedup': float(np.exp(found.value)),
        'low': math.exp(min(ends[0], 700)),
        'high': math.exp(min(ends[1], 700)),
        'extrapolated': beyond,
      }
    )
  columns = ['optimizer', 'parameters', 'tokens', 'loss', 'n', 'speedup']
  return pd.DataFrame(rows, columns=[*columns, 'low', 'high', 'extrapolated'])


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
class Scaling:
  """What a comparison shows over token budgets and sizes.

  Attributes:
    speedups: of all models, as `speedups` returns them, and the model.
    laws: model → fitted law.
    groups: model of several sizes → its groups.
    remarks: sentences on laws that were not fitted.
  """

  speedups: pd.DataFrame
  laws: Mapping[str, Law]
  groups: Mapping[str, Sequence[str]]
  remarks: Sequence[str]


@functools.lru_cache(maxsize=1)
def measured(comparison: tables.Comparison) -> Scaling:
  """Returns the speed-ups and laws of all models."""
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
    found = speedups(points, law)
    found.insert(0, 'model', model)
    parts.append(found)
  rows = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
  return Scaling(rows, fitted, groups, remarks)


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


def answers(comparison: tables.Comparison) -> list[section.Answer]:
  """Returns which optimizers are faster than the baseline at every size."""
  found = measured(comparison)
  said = []
  for model, groups in found.groups.items():
    of = found.speedups[found.speedups['model'] == model]
    sizes = of.groupby('optimizer')['parameters'].transform('nunique')
    of = of[sizes > 1]
    contests = [group for group in comparison.contests if group in groups]
    if not len(of) or not contests:
      continue
    span = words.join(map(words.count, sorted(of['parameters'].unique())))
    text = f'No speed-up over {words.name(BASELINE)} is claimed.'
    if not any(map(comparison.refused, contests)):
      text = _at_every_size(of)
    said.append(
      section.Answer(
        f'{words.named(model)}, {span} parameters',
        text,
        *fairness.answer(comparison, contests),
      )
    )
  return said


def _at_every_size(of: pd.DataFrame) -> str:
  """Says which optimizers are faster or slower at all sizes of a model."""
  sentences = []
  rest: dict[str, list[str]] = {}
  fastest = of.groupby('optimizer')['speedup'].mean().sort_values()[::-1]
  for name in fastest.index:
    own = of[of['optimizer'] == name]
    shown = words.name(str(name))
    inside = ~own['extrapolated'] & own['speedup'].notna()
    for kind, holds, factors in (
      ('fewer', own['low'] > 1, own['speedup']),
      ('more', own['high'] < 1, 1 / own['speedup']),
    ):
      if (inside & holds).all():
        numbers = words.join(f'{factor:.2f}' for factor in factors)
        sentences.append(
          f'{shown} needs {kind} tokens than {words.name(BASELINE)} for the '
          f'same loss at every size: by factors of {numbers}.'
        )
        break
    else:
      rest.setdefault('within' if inside.all() else 'outside', []).append(shown)
  for kind, text in (
    ('within', 'Neither faster nor slower at every size'),
    ('outside', f'Outside {words.name(BASELINE)}’s budgets'),
  ):
    if kind in rest:
      sentences.append(f'{text}: {words.join(rest[kind])}.')
  return ' '.join(sentences)


def sections(comparison: tables.Comparison) -> list[section.Section]:
  """Returns the section of losses and speed-ups over budgets and sizes.

  It starts open if there are several sizes, since these are then the question.
  """
  looks = theme.styles(comparison.tables.runs['optimizer'])
  found = measured(comparison)
  blocks = _losses(comparison, looks)
  rows = found.speedups
  sized = False
  if len(rows):
    several = rows[rows['model'].isin(found.groups)]
    sized = bool(several['speedup'].notna().any())
    if sized:
      blocks.insert(0, _figure(several, found.laws, looks))
    blocks.append(_table(rows))
  blocks += [*_law_table(found.laws), *map(section.Note, found.remarks)]
  title = 'Does the advantage last as tokens and size grow?'
  made = section.Section('scaling', title, blocks, folded=not sized)
  return [made] if blocks else []


def _losses(
  comparison: tables.Comparison, looks: Mapping[str, Mapping[str, str]]
) -> list[section.Block]:
  """Draws final losses over token budgets, one panel per model and size."""
  panels = [
    (model, runs)
    for model, runs in tables.by_model(comparison, ('tokens',))
    if runs['planned_tokens'].nunique() > 1
  ]
  if not panels:
    return []
  layout = theme.layout(
    [words.named(model) for model, _ in panels],
    280,
    {'title': 'Tokens'},
    {'title': 'Validation loss'},
  )
  data: list[dict[str, Any]] = []
  for panel, (_, runs) in enumerate(panels, 1):
    layout[theme.axis('x', panel)] |= _ticks(runs['planned_tokens'])
    for name, own in runs.groupby('optimizer'):
      mean = own.groupby('planned_tokens')['eval_loss'].mean()
      at = mean.index, mean, 'mean over seeds', looks[str(name)]
      data.append(theme.trace(str(name), panel, *at, mode='lines+markers'))
  csv = {'x': 'tokens', 'y': 'loss (nats per token)'}
  return [
    section.Figure(
      'budgets',
      'Final validation loss over token budgets',
      'Final validation loss of runs planned for each token budget, means over '
      'seeds.',
      {'data': data, 'layout': layout, 'csv': csv},
      optimizers=theme.names(trace['legendgroup'] for trace in data),
    )
  ]


def _figure(
  rows: pd.DataFrame,
  fitted: Mapping[str, Law],
  looks: Mapping[str, Mapping[str, str]],
) -> section.Figure:
  by_model = dict(list(rows.groupby('model', sort=False)))
  layout = theme.layout(
    [words.named(str(model)) for model in by_model],
    280,
    {'title': 'Parameters'},
    {
      'title': f'Speed-up over {words.name(BASELINE)} (×)',
      'type': 'log',
      'tickvals': _TICKS,
      'ticktext': [f'{tick:g}' for tick in _TICKS],
    },
  )
  data: list[dict[str, Any]] = []
  for panel, (model, of) in enumerate(by_model.items(), 1):
    ends = [of['parameters'].min(), of['parameters'].max()]
    law = fitted[model] if model in fitted else None
    far = [] if law is None else [_BEYOND * ends[1]]
    layout[theme.axis('x', panel)] |= _ticks([*of['parameters'], *far])
    apart = _side_by_side(of)
    data.append(
      theme.trace(
        BASELINE,
        panel,
        ends,
        [1.0, 1.0],
        'as fast',
        looks[BASELINE],
        mode='lines',
        hoverinfo='skip',
      )
    )
    for name, own in of.groupby('optimizer'):
      at = str(name), own, panel, looks[str(name)]
      joined = law is None or not {name, BASELINE} <= set(law.optimizers)
      if law is not None and not joined:
        data += _lines(law, *at)
      data += _marks(*at, apart[str(name)], joined)
  return section.Figure(
    'scaling',
    'Speed-up over model size',
    f'Tokens that {words.name(BASELINE)} needs for the same loss, divided by '
    'the tokens used, with 95 % intervals: above 1, the optimizer is faster. '
    'Filled marks, drawn side by side, are interpolated between '
    f'{words.name(BASELINE)}’s own budgets of that size; thin lines guide the '
    'eye. Open marks and thick lines come from the fitted law, dotted beyond '
    'all sizes that were trained.',
    {
      'data': data,
      'layout': layout,
      'csv': {
        'x': 'parameters',
        'y': 'speed-up',
        'error_y': 'to the upper end',
      },
    },
    optimizers=theme.names([*rows['optimizer'], BASELINE]),
  )


def _side_by_side(of: pd.DataFrame) -> dict[str, float]:
  """Returns factors of the sizes that keep optimizers' marks apart."""
  logs = np.log(np.unique(of['parameters']))
  names = sorted(set(of['optimizer']))
  # One size has an axis of its own.
  span = float(np.ptp(logs)) or 1.0
  step = min(_APART * span, np.diff(logs).min(initial=span) / (2 * len(names)))
  middle = (len(names) - 1) / 2
  return {name: math.exp((i - middle) * step) for i, name in enumerate(names)}


def _marks(
  name: str,
  own: pd.DataFrame,
  panel: int,
  look: Mapping[str, str],
  shift: float,
  joined: bool,
) -> list[dict[str, Any]]:
  """Returns marks of an optimizer's speed-ups, hollow where extrapolated.

  Args:
    name: of the optimizer.
    own: its rows of `speedups`.
    panel: number of the panel.
    look: see theme.trace.
    shift: factor of the sizes, for drawing only.
    joined: whether a line joins the marks, if there is one of each size.
  """
  joined = joined and own['parameters'].is_unique
  return [
    theme.trace(
      name,
      panel,
      shift * part['parameters'],
      part['speedup'],
      'beyond the budgets' if beyond else 'measured',
      look,
      {'x': theme.rounded(part['parameters'])},
      mode='lines+markers' if joined else 'markers',
      line={'color': look['color'], 'width': 1, 'dash': look['dash']},
      # Plotly's asymmetric error bars.
      error_y={
        'type': 'data',
        'array': theme.rounded(part['high'] - part['speedup']),
        'arrayminus': theme.rounded(part['speedup'] - part['low']),
        'thickness': 1.3,
        'width': 3,
        'color': look['color'],
      },
      marker={
        'symbol': look['marker'] + ('-open' if beyond else ''),
        'size': 8,
        'color': look['color'],
      },
      hovertemplate='%{y:.3f} ×<extra>%{fullData.name}</extra>',
    )
    for beyond, part in own.groupby('extrapolated')
  ]


def _lines(
  law: Law, name: str, own: pd.DataFrame, panel: int, look: Mapping[str, str]
) -> list[dict[str, Any]]:
  """Returns the trend of a law with its band, dotted where extrapolated."""
  ratio = float((own['tokens'] / own['parameters']).median())
  low, high = own['parameters'].min(), own['parameters'].max()
  inside = laws.trend(law, name, ratio, np.geomspace(low, high, 30))
  outside = laws.trend(law, name, ratio, np.geomspace(high, _BEYOND * high, 20))
  drawn = []
  for part, kind, dash in (
    (inside, 'law', 'solid'),
    (outside, 'law, extrapolated', 'dot'),
  ):
    band = pd.concat([part['high'], part['low'][::-1]])
    around = pd.concat([part['parameters'], part['parameters'][::-1]])
    drawn.append(
      theme.trace(
        name,
        panel,
        around,
        band,
        f'{kind}, band',
        look,
        mode='lines',
        line={'width': 0},
        fill='toself',
        fillcolor=theme.pale(look['color'], 0.12),
        hoverinfo='skip',
      )
    )
    drawn.append(
      theme.trace(
        name,
        panel,
        part['parameters'],
        part['speedup'],
        kind,
        look,
        mode='lines',
        line={'color': look['color'], 'width': 2, 'dash': dash},
        hovertemplate='%{y:.3f} ×<extra>%{fullData.name}</extra>',
      )
    )
  return drawn


def _ticks(values: Iterable[float]) -> dict[str, Any]:
  """Returns a logarithmic axis with counts at its values, if not too many."""
  at = sorted({float(value) for value in values})
  if len(at) > _MOST_TICKS:
    at = theme.log_ticks(at)['tickvals']
  return {'type': 'log', 'tickvals': at, 'ticktext': [*map(words.count, at)]}


def _table(rows: pd.DataFrame) -> section.Table:
  far = f'from the law: outside {words.name(BASELINE)}’s budgets'
  none = f'outside {words.name(BASELINE)}’s budgets of this size'
  rows = rows.assign(
    size=rows['parameters'].map(words.count),
    budget=rows['tokens'].map(words.count),
    interval=[
      words.interval(*pair, '.2f')
      for pair in zip(rows['low'], rows['high'], strict=True)
    ],
    remark=[
      far if beyond else none if math.isnan(value) else ''
      for beyond, value in zip(
        rows['extrapolated'], rows['speedup'], strict=True
      )
    ],
  )
  return section.Table.of(
    'Speed-ups by size',
    rows,
    {
      'optimizer': Column('Optimizer'),
      'size': Column('Parameters', number=True),
      'budget': Column('Tokens', number=True),
      'loss': Column('Validation loss', number=True, form='.4f'),
      'n': Column('Seeds', number=True),
      'speedup': Column('Speed-up', '×', True, form='.2f'),
      'interval': Column('95 % interval', number=True),
      'remark': Column('Remark'),
    },
    heading='model',
    folded=True,
  )


def _law_table(fitted: Mapping[str, Law]) -> list[section.Block]:
  rows = []
  for model, law in fitted.items():
    for name in law.optimizers:
      floor, scale, alpha, budget, beta = law.terms(name, False)
      redrawn = law.terms(name, True)
      half = statistics.quantile(0.05, law.freedom)
      rows.append(
        {
          'model': model,
          'optimizer': name,
          'floor': float(np.exp(floor)),
          'of_size': float(np.exp(scale)),
          'alpha': f'{alpha:.3f} ± {float(np.std(redrawn[2]) * half):.3f}',
          'of_tokens': float(np.exp(budget)),
          'beta': f'{beta:.3f} ± {float(np.std(redrawn[4]) * half):.3f}',
          'at': ', '.join(map(words.count, law.unit)),
        }
      )
  if not rows:
    return []
  return [
    section.Table.of(
      'The fitted laws',
      pd.DataFrame(rows),
      {
        'optimizer': Column('Optimizer'),
        'floor': Column('E', 'nats', True, form='.3f'),
        'of_size': Column('A / N^a', 'nats', True, form='.3f'),
        'alpha': Column('a', number=True),
        'of_tokens': Column('B / D^b', 'nats', True, form='.3f'),
        'beta': Column('b', number=True),
        'at': Column('At N, D', number=True),
      },
      heading='model',
      note='L(N, D) = E + A / N^a + B / D^b (arXiv 2203.15556), with the terms '
      'of size and tokens at the geometric mean of the runs; ± is half of a '
      '95 % interval.',
      folded=True,
    )
  ]

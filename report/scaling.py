"""The section on speed-ups over token budgets and model sizes."""

from collections.abc import Iterable, Mapping
import math
from typing import Any

import numpy as np
import pandas as pd

from steepest.report import (
  fairness,
  laws,
  section,
  speedups,
  statistics,
  tables,
  theme,
  words,
)
from steepest.report.laws import Law
from steepest.report.section import Column
from steepest.report.speed import BASELINE

# The largest size drawn, over the largest measured.
_BEYOND = 10.0
# Marks of one size are this share of the axis apart.
_APART = 0.012
# An axis with more values than these has round ticks.
_MOST_TICKS = 6
# Axis ticks of speed-ups.
_TICKS = [0.2, 0.3, 0.5, 0.7, 1, 1.2, 1.5, 2, 3, 5]


def answers(comparison: tables.Comparison) -> list[section.Answer]:
  """Returns which optimizers are faster than the baseline at every size."""
  found = speedups.of(comparison)
  said = []
  for model, groups in found.groups.items():
    of = found.rows[found.rows['model'] == model]
    sizes = of.groupby('optimizer')['parameters'].transform('nunique')
    of = of[sizes > 1]
    contests = [group for group in comparison.contests if group in groups]
    if not len(of) or not contests:
      continue
    span = words.join(map(words.count, sorted(of['parameters'].unique())))
    text = f'No speed-up over {words.name(BASELINE)} is claimed.'
    if not any(map(comparison.refused, contests)):
      trends = found.trends[found.trends['model'] == model]
      text = _at_every_size(of, trends.set_index('optimizer'))
    said.append(
      section.Answer(
        f'{words.named(model)}, {span} parameters',
        text,
        *fairness.answer(comparison, contests),
      )
    )
  return said


def _at_every_size(of: pd.DataFrame, trends: pd.DataFrame) -> str:
  """Says which optimizers are faster or slower at all sizes of a model."""
  sentences = []
  rest: dict[str, list[str]] = {}
  sizes = set(of['parameters'])
  fastest = of.groupby('optimizer')['speedup'].mean().sort_values()[::-1]
  for name in fastest.index:
    own = of[of['optimizer'] == name]
    shown = words.name(str(name))
    inside = ~own['extrapolated'] & own['speedup'].notna()
    if set(own['parameters']) < sizes:
      rest.setdefault('missing', []).append(shown)
      continue
    for kind, holds, factors in (
      ('fewer', own['low'] > 1, own['speedup']),
      ('more', own['high'] < 1, 1 / own['speedup']),
    ):
      if (inside & holds).all():
        numbers = words.join(f'{factor:.2f}' for factor in factors)
        trend = _trend(trends.loc[name]) if name in trends.index else ''
        sentences.append(
          f'{shown} needs {kind} tokens than {words.name(BASELINE)} for the '
          f'same loss at every size: by factors of {numbers}{trend}.'
        )
        break
    else:
      rest.setdefault('within' if inside.all() else 'outside', []).append(shown)
  for kind, text in (
    ('missing', 'Not trained at every size'),
    ('within', 'Neither faster nor slower at every size'),
    ('outside', f'Outside {words.name(BASELINE)}’s budgets'),
  ):
    if kind in rest:
      sentences.append(f'{text}: {words.join(rest[kind])}.')
  return ' '.join(sentences)


def _trend(found: pd.Series) -> str:
  """Says whether an optimizer's speed-ups change with the size."""
  low, high = found['low'], found['high']
  kind = 'no trend shown' if low <= 1 <= high else 'a trend'
  return (
    f' ({kind}: × {found["change"]:.2f} for ten times the size, '
    f'{words.interval(low, high, ".2f")})'
  )


def sections(comparison: tables.Comparison) -> list[section.Section]:
  """Returns the section of losses and speed-ups over budgets and sizes.

  It starts open if there are several sizes, since these are then the question.
  """
  looks = theme.styles(comparison.tables.runs['optimizer'])
  found = speedups.of(comparison)
  blocks = _losses(comparison, looks)
  several = found.rows[found.rows['model'].isin(found.groups)]
  if len(several):
    blocks.insert(0, _figure(several, found.laws, looks))
  if len(found.rows):
    blocks.append(_table(found.rows))
  if len(found.trends):
    blocks.append(_trend_table(found.trends))
  blocks += [*_law_table(found.laws), *map(section.Note, found.remarks)]
  title = 'Does the advantage last as tokens and size grow?'
  made = section.Section('scaling', title, blocks, folded=not len(several))
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
    own: its rows of `speedups.measure`.
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


def _trend_table(trends: pd.DataFrame) -> section.Table:
  ends = zip(trends['low'], trends['high'], strict=True)
  return section.Table.of(
    'Do speed-ups change with the size?',
    trends.assign(interval=[words.interval(*pair, '.2f') for pair in ends]),
    {
      'optimizer': Column('Optimizer'),
      'sizes': Column('Sizes', number=True),
      'change': Column('For ten times the size', '×', True, form='.2f'),
      'interval': Column('95 % interval', number=True),
    },
    heading='model',
    note='The factor by which a speed-up changes, along a straight line '
    'through its logarithm over that of the size. Intervals that hold 1 show '
    'no trend.',
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

"""How each optimizer was tuned: every trial over each searched value."""

from collections.abc import Mapping
import json
import math
from typing import Any

import numpy as np
import pandas as pd

from steepest.report import (
  fairness,
  section,
  selection,
  tables,
  theme,
  words,
)
from steepest.report.section import Cell, Column

_MEMORIES = ('b1', 'b2', 'b3')
# Marks at the upper edge, for trials without one at their loss.
_AT_EDGE = {
  'diverged': 'x',
  'ended early': 'triangle-down',
  'above the range shown': 'triangle-up',
}


def sections(comparison: tables.Comparison) -> list[section.Section]:
  """Returns the section on the searches."""
  blocks: list[section.Block] = []
  found = trials(comparison.tables)
  if len(found):
    looks = theme.styles(comparison.tables.runs['optimizer'])
    blocks.append(_figure(found, looks))
  tuned = comparison.tuning
  if tuned['trials'].any():
    blocks.append(_table(tuned))
  title = 'How they were tuned'
  if not blocks:
    return []
  return [section.Section('tuning', title, blocks, folded=False)]


def trials(found: tables.Tables) -> pd.DataFrame:
  """Returns a row per trial and hyperparameter that its search varied.

  Columns: model (and the axes that got a search of their own), optimizer, name
  (of the hyperparameter), x (its value; for a memory b, 1 − b), loss, status,
  alone (whether the search varied nothing else), used (x of the final runs,
  else of the best trial). Searches without a finished trial are left out.
  """
  runs = found.runs
  parts = []
  ended = runs[(runs['stage'] == 'tune') & (runs['status'] != 'unfinished')]
  searches = [of for _, of in selection.searches(ended)]
  for of in sorted(searches, key=lambda of: _order(of.iloc[0])):
    if not np.isfinite(of['loss'].min()):
      continue
    rows = of.to_dict('records')
    values = pd.DataFrame(map(tables.hyperparameters, rows), of.index)
    varied = [n for n in values if values[n].nunique(dropna=False) > 1]
    cell, optimizer = of['cell'].iloc[0], of['optimizer'].iloc[0]
    finals = runs[(runs['stage'] == 'final') & (runs['cell'] == cell)]
    used = values.loc[of['loss'].astype(float).idxmin()].to_dict()
    # Shares of a run are shown in the proxies' tokens.
    length = {'planned_tokens': rows[0]['planned_tokens']}
    for final in finals.head(1).to_dict('records'):
      used |= tables.hyperparameters({**final, **length})
    for name in sorted(varied, key=lambda name: (name != 'lr', name)):
      frame = pd.DataFrame(
        {
          'model': cell.removesuffix(f' · {optimizer}'),
          'optimizer': optimizer,
          'name': name,
          'x': 1 - values[name] if name in _MEMORIES else values[name],
          'loss': of['loss'].astype(float),
          'status': of['status'],
          'alone': len(varied) == 1,
          'used': 1 - used[name] if name in _MEMORIES else used[name],
        }
      )
      parts.append(frame[frame['x'] > 0].sort_values('x'))
  return pd.concat(parts) if parts else pd.DataFrame()


def _order(run: Mapping[str, Any]) -> tuple[Any, ...]:
  """Returns the sort key of a trial's search: sizes as numbers."""
  sizes = [tables.config(run, f'model.{k}') for k in ('num_layers', 'width')]
  kind = tables.config(run, 'parametrization.kind')
  return run['architecture'], kind, *sizes, run['cell']


def _label(name: str) -> str:
  """Returns the axis label of a hyperparameter."""
  if name == 'lr':
    return 'Peak learning rate'
  if name in _MEMORIES:
    return f'1 − {words.name(name)}'
  unit = ' (tokens)' if name.endswith('_half_life') else ''
  return words.capitalized(words.name(name).replace('_', ' ')) + unit


def _figure(
  found: pd.DataFrame, looks: Mapping[str, Mapping[str, str]]
) -> section.Figure:
  """Draws every trial's loss, one panel per optimizer.

  Optimizers of a model share the vertical axis, which shows the better half of
  every search.
  """
  names = sorted(found['name'].unique(), key=lambda name: (name != 'lr', name))
  models = list(dict.fromkeys(found['model']))
  optimizers = list(dict.fromkeys(found['optimizer']))
  axes = {
    name: {'title': {'text': _label(name)}, **theme.log_ticks(of['x'])}
    for name, of in found.groupby('name')
  }
  layout = theme.layout(
    [words.name(o) for o in optimizers],
    180,
    {**axes[names[0]], 'title': _label(names[0])},
    {'title': 'Loss of the proxy'},
    narrowest=220,
    columns=5,
  )
  finite = found[np.isfinite(found['loss'])]
  limits = {m: _range(finite[finite['model'] == m]) for m in models}
  data = []
  keys = ['model', 'optimizer', 'name']
  for (model, optimizer, name), of in found.groupby(keys, sort=False):
    when = {'hyperparameter': name, 'model': model}
    panel = optimizers.index(optimizer) + 1
    data += _trials(of, looks[optimizer], panel, limits[model][1], when)
  switches = [
    section.Switch('model', 'Model', {m: words.named(m) for m in models}),
    section.Switch('hyperparameter', 'Over', {n: _label(n) for n in names}),
  ]
  return section.Figure(
    'tuning',
    'Loss of the proxy over the hyperparameters that were searched',
    'The final loss of every trial; lines join trials that differ in nothing '
    'else. A ring marks what the final runs use. At the upper edge: × '
    'diverged, ▾ ended early, ▴ finished above the range shown.',
    {
      'data': data,
      'layout': layout,
      'limits': {
        'switch': 'model',
        'of': {
          model: [ends] * len(optimizers) for model, ends in limits.items()
        },
      },
      'xnames': {'switch': 'hyperparameter', 'of': axes},
      'csv': {'x': 'value', 'y': 'loss of the proxy (nats per token)'},
    },
    switches,
  )


def _range(found: pd.DataFrame) -> list[float]:
  """Returns the range of losses in a model's panels."""
  by_search = found.groupby('optimizer')['loss']
  low = float(found['loss'].min())
  high = float(by_search.quantile(0.75).max())
  room = 0.1 * (high - low) or 0.02 * abs(high) or 0.1
  return [theme.digits(low - room), theme.digits(high + 2 * room)]


def _trials(
  of: pd.DataFrame,
  look: Mapping[str, str],
  panel: int,
  high: float,
  when: Mapping[str, str],
) -> list[dict[str, Any]]:
  """Returns marks of trials and of the value used, and the curve's line."""
  optimizer, used = of['optimizer'].iloc[0], of['used'].iloc[0]
  done = of[of['status'] == 'finished']
  held = {
    'diverged': of[of['status'] == 'diverged'],
    'ended early': of[of['status'] == 'pruned'],
    'above the range shown': done[done['loss'] > high],
  }
  made = []
  for kind, frame in held.items():
    if len(frame):
      # The height at the edge is not a loss.
      meta = {'when': when, 'edge': True}
      y = [high] * len(frame)
      hover = f'{kind}, %{{x:.3~g}}<extra>%{{fullData.name}}</extra>'
      trace = theme.trace(
        optimizer, panel, frame['x'], y, kind, look, meta, hovertemplate=hover
      )
      trace['marker']['symbol'] = _AT_EDGE[kind]
      made.append(trace | {'cliponaxis': False})
  mean = done.groupby('x')['loss'].mean()
  if of['alone'].all():
    line: dict[str, Any] = {'mode': 'lines', 'hoverinfo': 'skip'}
    at = mean.index, mean, 'mean', look, {'when': when}
    made.append(theme.trace(optimizer, panel, *at, **line))
  hover = '%{y:.4f} at %{x:.3~g}<extra>%{fullData.name}</extra>'
  at = done['x'], done['loss'], 'trial', look, {'when': when}
  made.append(theme.trace(optimizer, panel, *at, hovertemplate=hover))
  if used > 0 and len(done):
    near = min(mean.index, key=lambda x: abs(math.log(x / used)))
    best = done[done['x'] == near]['loss'].min()
    ring = {'size': 17, 'line': {'width': 2}, 'symbol': 'circle-open'}
    trace = theme.trace(
      optimizer, panel, [used], [best], 'used', look, {'when': when}
    )
    made.append(
      trace | {'marker': {**ring, 'color': look['color']}, 'hoverinfo': 'skip'}
    )
  return made


def _table(tuned: pd.DataFrame) -> section.Table:
  """Returns how each optimizer of each group was searched, one row each."""
  tokens = words.unit('tokens', tuned['tokens_per_trial'])
  spent = words.unit('tokens', tuned['tokens'])
  seconds = words.unit('seconds', tuned['seconds'])
  rows = []
  for row in tuned.to_dict('records'):
    shown = {'group': row['group'], 'optimizer': row['optimizer']}
    if not row['trials']:
      shown |= dict.fromkeys(_COLUMNS, words.MISSING)
      rows.append(shown | {'trials': Cell('none', style='bad')})
      continue
    counts = {
      'diverged': row['diverged'],
      'ended early': row['pruned'],
      'added at an edge': row['trials'] - row['planned'],
    }
    notes = [f'{int(n)} {text}' for text, n in counts.items() if n]
    searched = json.loads(row['searched'])
    if row['due'] == row['planned']:
      rule = f'{fairness.TRIALS} + {fairness.TRIALS_OF_EACH}'
      notes.insert(0, f'{rule} × {len(searched)}')
    sides = ''
    if not tables.missing(row['below']):
      sides = f'{int(row["below"])} lower, {int(row["above"])} higher tried'
    shown |= {
      'trials': Cell(str(int(row['planned'])), ', '.join(notes)),
      'tokens': tokens.number(row['tokens_per_trial']),
      'all': spent.number(row['tokens']),
      'searched': words.join(map(words.name, searched)),
      'span': f'{row["span"]:.3g}×',
      'best': Cell(words.rate(row['best_lr']), sides),
      'chosen': words.rate(row['chosen_lr']),
      'seconds': seconds.number(row['seconds']),
    }
    rows.append(shown)
  units = {'tokens': tokens.label, 'all': spent.label}
  units['seconds'] = seconds.label
  return section.Table.of(
    'Search of each optimizer',
    pd.DataFrame(rows),
    {'optimizer': Column('Optimizer')}
    | {
      key: Column(title, units.get(key, ''), key != 'searched')
      for key, title in _COLUMNS.items()
    },
    heading='group',
    style='wide',
  )


_COLUMNS = {
  'trials': 'Trials',
  'tokens': 'Tokens per trial',
  'all': 'Tokens in all',
  'searched': 'Searched',
  'span': 'Range of learning rates',
  'best': 'Best learning rate',
  'chosen': 'Learning rate of final runs',
  'seconds': 'Time of all trials',
}

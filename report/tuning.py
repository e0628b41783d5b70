"""How each optimizer was tuned: its trials, their curves, what mattered."""

from collections.abc import Mapping, Sequence
import dataclasses
import math
from typing import Any

import numpy as np
import pandas as pd

from steepest.report import selection, tables, theme, words
from steepest.report.section import (
  Block,
  Cell,
  Column,
  Figure,
  Section,
  Switch,
  Table,
)

# Shares of a rate that are no difference.
_CLOSE = 1e-4
# Optimizers up to which the searches of a model share a panel.
_TOGETHER = 6


@dataclasses.dataclass(frozen=True)
class Search:
  """The trials of one optimizer on one proxy.

  Attributes:
    group: model, and the axes that got a search of their own, as shown.
    optimizer: optimizer.name.
    trials: rows of tables.runs that ended, in order.
    values: of every searched hyperparameter in each trial, its columns; those
      that all trials share are left out.
    under_way: trials that have not ended.
    finals: rows of tables.runs that the search served.
  """

  group: str
  optimizer: str
  trials: pd.DataFrame
  values: pd.DataFrame
  under_way: int
  finals: pd.DataFrame

  @property
  def best(self) -> int | None:
    """Position of the trial of the lowest loss; None where none finished."""
    losses = self.trials['loss'].to_numpy(float)
    if not len(losses) or not np.isfinite(losses).any():
      return None
    return int(np.argmin(losses))

  def count(self, status: str) -> int:
    return int((self.trials['status'] == status).sum())


def searches(found: tables.Tables) -> list[Search]:
  """Returns the searches of all studies, by model and optimizer."""
  runs = found.runs
  result = []
  of_trials = selection.searches(runs[runs['stage'] == 'tune'])
  for _, frame in sorted(
    of_trials, key=lambda search: _order(search[1].iloc[0])
  ):
    first = frame.iloc[0]
    ended = frame[frame['status'] != 'unfinished']
    rows = [tables.hyperparameters(row) for row in ended.to_dict('records')]
    values = pd.DataFrame(rows, index=ended.index)
    varied = [n for n in values if values[n].nunique(dropna=False) > 1]
    finals = runs[(runs['stage'] == 'final') & (runs['cell'] == first['cell'])]
    result.append(
      Search(
        str(first['cell']).removesuffix(f' · {first["optimizer"]}'),
        str(first['optimizer']),
        ended,
        values[sorted(varied, key=lambda name: (name != 'lr', name))],
        len(frame) - len(ended),
        finals,
      )
    )
  return result


def _order(run: Mapping[str, Any]) -> tuple[Any, ...]:
  """Returns what searches are sorted by, given a trial: sizes as numbers."""
  sizes = [tables.config(run, f'model.{k}') for k in ('num_layers', 'width')]
  kind = tables.config(run, 'parametrization.kind')
  return run['architecture'], kind, *sizes, run['cell']


def sections(comparison: tables.Comparison) -> list[Section]:
  """Returns the section of the searches."""
  found = searches(comparison.tables)
  if not found:
    return []
  looks = theme.styles(comparison.tables.runs['optimizer'])
  blocks: list[Block] = []
  figure = _figure(found, looks)
  if figure is not None:
    blocks.append(figure)
  blocks.append(_table(found))
  return [Section('tuning', 'How they were tuned', blocks, folded=False)]


def coordinate(name: str, value: float) -> float:
  """Returns the value, of a memory b its 1 − b: what is searched in logs."""
  return 1 - value if name in ('b1', 'b2', 'b3') else value


def label(name: str) -> str:
  """Returns what `coordinate` of a hyperparameter is called."""
  if name == 'lr':
    return 'Peak learning rate'
  if name in ('b1', 'b2', 'b3'):
    return f'1 − {words.name(name)}'
  return words.capitalized(words.name(name).replace('_', ' '))


# Tuning curves.


def _figure(
  found: Sequence[Search], looks: Mapping[str, Mapping[str, str]]
) -> Figure | None:
  """Draws every trial's loss over each hyperparameter that was searched."""
  found = [search for search in found if search.best is not None]
  names = list(dict.fromkeys(n for search in found for n in search.values))
  names.sort(key=lambda name: name != 'lr')
  if not names:
    return None
  groups = list(dict.fromkeys(search.group for search in found))
  optimizers = list(dict.fromkeys(search.optimizer for search in found))
  together = len(optimizers) <= _TOGETHER
  panels = groups if together else optimizers
  layout = (
    theme.layout([words.named(g) for g in groups], 290)
    if together
    else theme.layout([words.name(o) for o in optimizers], 150, 200, 5)
  )
  # The vertical axes depend on the model where optimizers have panels.
  options = names if together else groups
  data, limits = _panels(found, looks, panels, options, names, together)
  for panel in range(1, len(panels) + 1):
    layout[theme.axis('x', panel)] |= {
      'type': 'log',
      'title': theme.title(label(names[0])),
      **_ticks(found, names[0]),
    }
    layout[theme.axis('y', panel)]['title'] = theme.title('Loss of the proxy')
  labels = {name: label(name) for name in names}
  switches = [Switch('hyperparameter', 'Over', labels)]
  if not together:
    models = {group: words.named(group) for group in groups}
    switches.append(Switch('model', 'Model', models))
  return Figure(
    'tuning',
    'Loss of the proxy over the hyperparameters that were searched',
    'Every trial, its loss at the end; lines where trials differ in nothing '
    'else. A ring marks what the final runs use. At the upper edge: × '
    'diverged, ▾ ended early, ▴ finished above what is shown.',
    {
      'data': data,
      'layout': layout,
      'limits': {
        'switch': 'hyperparameter' if together else 'model',
        'of': limits,
      },
      'xnames': {
        'switch': 'hyperparameter',
        'of': {
          name: {'title': {'text': label(name)}, **_ticks(found, name)}
          for name in names
        },
      },
      'csv': {'x': 'value', 'y': 'loss of the proxy (nats per token)'},
    },
    switches,
    theme.names(optimizers) if together else {},
  )


def _panels(
  found: Sequence[Search],
  looks: Mapping[str, Mapping[str, str]],
  panels: Sequence[str],
  options: Sequence[str],
  names: Sequence[str],
  together: bool,
) -> tuple[list[dict[str, Any]], dict[str, list[list[float]]]]:
  """Returns the traces of all panels, and the panels' ranges by option.

  Args:
    found: the searches.
    looks: of theme.styles.
    panels: models where optimizers are `together`, else optimizers.
    options: of what the ranges depend on.
    names: of hyperparameters.
    together: whether the optimizers share panels.
  """
  data: list[dict[str, Any]] = []
  limits: dict[str, list[list[float]]] = {option: [] for option in options}
  for option in options:
    for panel, title in enumerate(panels, 1):
      model = title if together else option
      shown = [search for search in found if search.group == model]
      low, high = _range(shown)
      limits[option].append([low, high])
      for search in shown:
        if not together and search.optimizer != title:
          continue
        for name in [option] if together else names:
          when = {'hyperparameter': name}
          if not together:
            when['model'] = option
          if name in search.values:
            data += _trials(search, name, looks, panel, high, when)
  return data, limits


def _ticks(found: Sequence[Search], name: str) -> dict[str, Any]:
  """Returns labels at powers of ten, and at 3 times them over few of them."""
  x = [
    coordinate(name, value)
    for search in found
    if name in search.values
    for value in search.values[name]
  ]
  known = [value for value in x if value > 0] or [1.0]
  low, high = math.log10(min(known)), math.log10(max(known))
  steps: tuple[int, ...] = (1, 3) if high - low < 3 else (1,)
  if high - low < 1:
    steps = (1, 2, 3, 5)
  values = [
    theme.digits(step * 10.0**exponent)
    for exponent in range(math.floor(low), math.ceil(high) + 1)
    for step in steps
  ]
  return {'tickvals': values, 'ticktext': [words.rate(v) for v in values]}


def _range(found: Sequence[Search]) -> tuple[float, float]:
  """Returns the losses that a panel shows: the best half of every search."""
  low, high = math.inf, -math.inf
  for search in found:
    losses = search.trials['loss'].to_numpy(float)
    losses = losses[np.isfinite(losses)]
    low = min(low, float(losses.min()))
    high = max(high, float(np.quantile(losses, 0.75)))
  if not low <= high:
    return 0.0, 1.0
  room = 0.1 * (high - low) or 0.02 * abs(high) or 0.1
  return theme.digits(low - room), theme.digits(high + 2 * room)


def _trials(
  search: Search,
  name: str,
  looks: Mapping[str, Mapping[str, str]],
  panel: int,
  high: float,
  when: Mapping[str, str],
) -> list[dict[str, Any]]:
  """Returns marks of trials and of what was used, and a line of a curve."""
  look = looks[search.optimizer]
  frame = _points(search, name)
  done = frame[frame['status'] == 'finished']
  curve = len(search.values.columns) == 1

  def trace(
    kind: str, x: Any, y: Any, hover: str = '', **style: Any
  ) -> dict[str, Any]:
    if hover:
      style['hovertemplate'] = f'{hover}<extra>%{{fullData.name}}</extra>'
    else:
      style['hoverinfo'] = 'skip'
    meta = {'kind': kind, 'when': dict(when)}
    return theme.trace(search.optimizer, panel, x, y, meta, **style)

  traces = []
  for kind, symbol, held in (
    ('diverged', 'x', frame[frame['status'] == 'diverged']),
    ('ended early', 'triangle-down', frame[frame['status'] == 'pruned']),
    ('above what is shown', 'triangle-up', done[done['loss'] > high]),
  ):
    if len(held):
      marker = {**theme.marker(look, 8), 'symbol': symbol}
      at_edge = trace(
        kind,
        held['x'],
        [high] * len(held),
        f'{kind}, %{{x:.3~g}}',
        marker=marker,
        cliponaxis=False,
      )
      # The edge's height is no loss.
      at_edge['meta']['edge'] = True
      traces.append(at_edge)
  if curve:
    mean = done.groupby('x')['loss'].mean()
    traces.append(
      trace('mean', mean.index, mean, mode='lines', line=theme.line(look))
    )
  traces.append(
    trace(
      'trial',
      done['x'],
      done['loss'],
      '%{y:.4f} at %{x:.3~g}',
      marker=theme.marker(look, 7 if curve else 6),
    )
  )
  used = _used(search, name)
  if used is not None and len(done):
    near = done.loc[(np.log(done['x']) - math.log(used)).abs().idxmin()]
    best = done[np.isclose(done['x'], near['x'])]['loss'].min()
    ring = {'size': 17, 'line': {'width': 2}, 'symbol': 'circle-open'}
    marker = {**ring, 'color': look['color']}
    traces.append(trace('used', [used], [best], marker=marker))
  return traces


def _points(search: Search, name: str) -> pd.DataFrame:
  """Returns x (a coordinate above 0, rising), loss and status of the trials."""
  frame = pd.DataFrame(
    {
      'x': [coordinate(name, v) for v in search.values[name]],
      'loss': search.trials['loss'].to_numpy(float),
      'status': search.trials['status'].to_numpy(),
    }
  )
  return frame[frame['x'] > 0].sort_values('x')


def _used(search: Search, name: str) -> float | None:
  """Returns the coordinate of the final runs, or else of the best trial."""
  rows = search.finals.head(1).to_dict('records')
  held = tables.hyperparameters(rows[0]) if rows else {}
  if name not in held and search.best is not None:
    held = search.values.iloc[search.best].to_dict()
  value = coordinate(name, held[name]) if name in held else math.nan
  return value if value > 0 else None


# The table of searches.


def _table(found: Sequence[Search]) -> Table:
  trial_tokens = words.unit('tokens', (_tokens(s) for s in found))
  all_tokens = words.unit('tokens', (_spent(s) for s in found))
  rows: list[Sequence[Cell | str] | str] = []
  group = None
  for search in found:
    if search.group != group:
      rows.append(words.named(search.group))
      group = search.group
    rows.append(_row(search, trial_tokens, all_tokens))
  return Table(
    'Searches',
    [
      Column('Optimizer'),
      Column('Proxy', 'layers × width'),
      Column('Target', 'layers × width'),
      Column('Searched'),
      Column('Trials', number=True),
      Column('Tokens a trial', trial_tokens.label, True),
      Column('Tokens in all', all_tokens.label, True),
      Column('Best rate', number=True),
      Column('Used rate', number=True),
      Column('Place of the best', 'rates below and above'),
    ],
    rows,
    note='Trials that were ended early count with the tokens they took, '
    'diverged ones in full. Under µP the rate goes to the target as it '
    'stands; the parametrization carries it over the width.',
    style='wide',
  )


def _row(
  search: Search, trial_tokens: words.Unit, all_tokens: words.Unit
) -> list[Cell | str]:
  first = search.trials.iloc[0] if len(search.trials) else None
  remarks = [
    f'{search.count(status)} {text}'
    for status, text in (('diverged', 'diverged'), ('pruned', 'ended early'))
    if search.count(status)
  ]
  if search.under_way:
    remarks.append(f'{search.under_way} under way')
  best = None if search.best is None else search.trials.iloc[search.best]
  used = search.finals.iloc[0] if len(search.finals) else None
  place = words.MISSING
  edge = False
  if best is not None:
    rates = np.unique(search.trials['lr'].to_numpy(float))
    below = int((rates < best['lr'] * (1 - _CLOSE)).sum())
    above = int((rates > best['lr'] * (1 + _CLOSE)).sum())
    edge = not (below and above)
    place = 'at the edge' if edge else f'{below} and {above}'
  return [
    Cell(words.name(search.optimizer), optimizer=search.optimizer),
    words.MISSING if first is None else _shape(first),
    words.MISSING if used is None else _shape(used),
    words.join(words.name(n) for n in search.values.columns) or words.MISSING,
    Cell(str(len(search.trials)), ', '.join(remarks)),
    trial_tokens.number(_tokens(search)),
    all_tokens.number(_spent(search)),
    words.MISSING if best is None else words.rate(float(best['lr'])),
    words.MISSING if used is None else words.rate(float(used['lr'])),
    Cell(place, style='bad' if edge else ''),
  ]


def _shape(run: Mapping[str, Any]) -> str:
  layers, width = (
    tables.config(run, f'model.{key}') for key in ('num_layers', 'width')
  )
  return f'{layers:.0f} × {width:.0f}'


def _tokens(search: Search) -> float:
  planned = search.trials['planned_tokens']
  return float(planned.iloc[0]) if len(planned) else math.nan


def _spent(search: Search) -> float:
  pruned = search.trials['status'] == 'pruned'
  return float(
    search.trials['tokens'].where(pruned, search.trials['planned_tokens']).sum()
  )

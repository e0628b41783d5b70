"""A run's course: losses, benchmark scores and what optimizers log.

A line is the mean over the seeds of one optimizer, its band reaches from the
lowest to the highest seed; single seeds are a switch away. Diverged runs are
in no mean and are always drawn.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import math
from typing import Any

import numpy as np
import pandas as pd

from steepest.report import scores as scores_lib, tables, theme, words
from steepest.report.section import Block, Figure, Section, Switch

# Share of a run that the running mean of the training loss spans.
_SMOOTHING = 0.05
# Points of a drawn line; longer ones are averaged in bins.
_POINTS = {'loss': 400, 'single': 150, 'internals': 100}
# Points up to which each is marked.
_MARKED = 12
# Quantity → its name and whether it is drawn on a logarithmic axis. Those of a
# role have its name behind a slash.
_QUANTITIES = {
  'grad_norm': ('Gradient norm', True),
  'update_rms': ('Update size', True),
  'unclipped_fraction': ('Unclipped fraction', False),
  'param_norm': ('Parameter norm', True),
  'lr': ('Learning rate', False),
}
# Between a quantity and a layer (optimizers/statistics.py).
LAYER = '/layer/'
_POSITIONS = {
  'tokens': 'Tokens',
  'flops': 'FLOPs',
  'seconds': 'Training time',
}
_UNITS = {'k': 'thousands', 'M': 'millions', 'B': 'billions', 'T': 'trillions'}
_SEEDS = Switch('seeds', 'Seeds', {'mean': 'mean', 'single': 'each'})
_SPANS = {'0,1': 'all', '0.25,1': 'last 75 %', '0.75,1': 'last 25 %'}


def loss(comparison: tables.Comparison) -> list[Section]:
  """Returns the section of training and validation losses."""
  course = _Course(comparison)
  if not course.groups or not course.positions:
    return []
  layout = course.layout('Loss (nats per token)', 310)
  data: list[dict[str, Any]] = []
  for panel, cell in course.cells():
    for kind in ('eval', 'train'):
      data += course.traces(
        cell, f'{kind}/loss', panel, {'kind': kind}, kind=kind
      )
    data += course.divergences(cell, panel)
  figure = course.figure(
    'loss',
    'Loss against tokens, FLOPs or training time',
    'Lines are means over seeds, bands reach from the lowest to the highest '
    'seed; × is where a seed diverged, at the lowest loss that it had. Drag to '
    'enlarge a part, in all figures of a run’s course at once; double-click to '
    'return. '
    f'Training loss: running mean over {_SMOOTHING:.0%} of the run. Training '
    'time leaves out compilation, evaluation and checkpoints. Runs under way '
    'are pale.',
    {'data': data, 'layout': layout, 'skip': 0.3},
    [
      Switch('kind', 'Loss', {'eval': 'Validation', 'train': 'Training'}),
      _SEEDS,
    ],
    'loss (nats per token)',
  )
  return [Section('loss', 'Loss curves', [figure], folded=False)]


def scores(comparison: tables.Comparison) -> list[Section]:
  """Returns the section of benchmark scores during training."""
  course = _Course(comparison)
  columns = _scored(course.points)
  if not columns or not course.positions:
    return []
  layout = course.layout('Accuracy (%)', 260)
  data: list[dict[str, Any]] = []
  for panel, cell in course.cells():
    for column in columns:
      data += course.traces(
        cell, f'eval/{column}', panel, {'column': column}, scale=100.0
      )
  for panel, group in enumerate(course.groups, 1):
    for column in columns:
      data += course.chance(group, column, panel)
  figure = course.figure(
    'score-curves',
    'Benchmark accuracy during training',
    'Lines are means over seeds, bands reach from the lowest to the highest '
    'seed; the dotted line is the accuracy of guessing.',
    {'data': data, 'layout': layout},
    [
      Switch('column', 'Benchmark', {c: words.head(c) for c in columns}),
      _SEEDS,
    ],
    'accuracy (%)',
  )
  return [Section('score-curves', 'Benchmarks during training', [figure])]


def internals(comparison: tables.Comparison) -> list[Section]:
  """Returns the section of norms and sizes by role."""
  course = _Course(comparison)
  roles = [key for key in logged(course.points) if LAYER not in key]
  course.show_groups_with(roles)
  blocks: list[Block] = []
  if roles and course.positions:
    data: list[dict[str, Any]] = []
    for panel, cell in course.cells():
      for key in roles:
        data += course.traces(cell, key, panel, {'quantity': key}, kind=key)
    blocks.append(
      course.figure(
        'internals',
        'Gradient norm, update size and more during training',
        'Means over seeds with a band from the lowest to the highest. Gradient '
        'norm: of all parameters, before clipping. Update size: root mean '
        'square of a parameter’s change in a step. Unclipped fraction: '
        'coordinates whose update the optimizer’s bound does not clip. What '
        'stands behind a name: of these parameters alone.',
        {
          'data': data,
          'layout': course.layout(quantity(roles[0]), 260),
          'types': {key: scale_type(key) for key in roles},
          'names': {key: quantity(key) for key in roles},
        },
        [Switch('quantity', 'Show', {key: quantity(key) for key in roles})],
        'value',
      )
    )
  if not blocks:
    return []
  return [Section('internals', 'Inside the training', blocks)]


@dataclasses.dataclass(frozen=True)
class _Cell:
  """Final runs of one optimizer in one group, and their logged points."""

  group: str
  optimizer: str
  runs: pd.DataFrame
  points: dict[str, pd.DataFrame]


@dataclasses.dataclass(frozen=True)
class _Position:
  """A horizontal axis: what one unit of it is."""

  key: str
  scale: float
  unit: str

  @property
  def title(self) -> str:
    return f'{_POSITIONS[self.key]} ({self.unit})'


class _Course:
  """The final runs of a comparison along the same horizontal axes."""

  def __init__(self, comparison: tables.Comparison):
    runs = comparison.tables.runs
    under_way = runs[
      (runs['stage'] == 'final') & (runs['status'] == 'unfinished')
    ]
    self.runs = pd.concat([comparison.compared, under_way]).drop_duplicates(
      'run'
    )
    points = comparison.tables.points
    self.points = points[points['run'].isin(self.runs['run'])]
    self._scores = comparison.tables.scores
    self._by_run = dict(list(self.points.groupby('run', sort=False)))
    shown = self.runs[self.runs['run'].isin(self._by_run)]
    self.groups = list(dict.fromkeys(shown['group']))
    self._looks = theme.styles(runs['optimizer'])
    # Many bands over one another would hide the lines.
    self._opacity = 0.2 if len(self._looks) <= 6 else 0.07
    self.positions = {
      key: _position(key, float(self.points[key].max()))
      for key in _POSITIONS
      if key in self.points and self.points[key].max() > 0
    }

  def show_groups_with(self, keys: Sequence[str]) -> None:
    """Leaves out groups without any of the quantities: no panel is empty."""
    held = self.points[self.points[list(keys)].notna().any(axis=1)]['run']
    groups = set(self.runs[self.runs['run'].isin(held)]['group'])
    self.groups = [group for group in self.groups if group in groups]

  def cells(self) -> Iterator[tuple[int, _Cell]]:
    """Yields the panel, 1, 2, …, and each cell in it."""
    for panel, group in enumerate(self.groups, 1):
      of_group = self.runs[self.runs['group'] == group]
      for optimizer, runs in of_group.groupby('optimizer'):
        held = {
          run: self._by_run[run] for run in runs['run'] if run in self._by_run
        }
        yield panel, _Cell(group, str(optimizer), runs, held)

  def layout(self, name: str, height: int) -> dict[str, Any]:
    """Returns a layout with a panel for each group.

    Args:
      name: of the vertical axes.
      height: of a panel, in pixels.
    """
    layout = theme.layout([words.named(g) for g in self.groups], height)
    first = next(iter(self.positions.values()), None)
    for panel in range(1, len(self.groups) + 1):
      layout[theme.axis('y', panel)]['title'] = theme.title(name)
      if first is not None:
        layout[theme.axis('x', panel)]['title'] = theme.title(first.title)
    return layout

  def figure(
    self,
    key: str,
    title: str,
    caption: str,
    content: dict[str, Any],
    switches: Sequence[Switch],
    value: str,
  ) -> Figure:
    """Returns a figure with the switches that all of a run's course have."""
    titles = {k: position.title for k, position in self.positions.items()}
    return Figure(
      key,
      title,
      caption,
      {**content, 'titles': titles, 'csv': {'y': value}},
      [
        *switches,
        Switch('x', 'against', titles),
        Switch('span', 'part', _SPANS),
      ],
      theme.names(self.runs['optimizer']),
    )

  def traces(
    self,
    cell: _Cell,
    column: str,
    panel: int,
    when: dict[str, str],
    kind: str = 'value',
    scale: float = 1.0,
  ) -> list[dict[str, Any]]:
    """Returns mean, band and single lines of what a cell has logged."""
    logged = {
      run: points.dropna(subset=[column])
      for run, points in cell.points.items()
      if column in points
    }
    lines = {
      run: self._line(points, column, scale)
      for run, points in logged.items()
      if len(points)
    }
    runs = cell.runs.set_index('run')
    finished = [r for r in lines if runs['status'][r] == 'finished']
    inner = kind.partition('/')[0] in _QUANTITIES
    points = _POINTS['internals' if inner else 'loss']
    found: list[dict[str, Any]] = []
    if finished:
      # Ragged seeds have a mean where all have a value.
      found += self._mean(
        cell, [lines[run] for run in finished], panel, when, kind, points
      )
    for run, line in lines.items():
      status = runs['status'][run]
      if status == 'finished' and (inner or len(finished) == 1):
        continue
      trace = self._trace(
        cell,
        _thinned(line, min(points, _POINTS['single'])),
        panel,
        {**when, 'seeds': 'single'} if status == 'finished' else when,
        width=1.2,
      )
      trace['name'] += f', seed {runs["seed"][run]}'
      if status != 'finished':
        trace['name'] += f' ({status})'
        trace['opacity'] = 0.45
      trace['meta'] |= {
        'kind': kind,
        'run': run,
        'seed': int(runs['seed'][run]),
        'status': status,
      }
      found.append(trace)
    return found

  def divergences(self, cell: _Cell, panel: int) -> list[dict[str, Any]]:
    """Returns a mark where a run diverged, at its lowest logged loss."""
    found = []
    diverged = cell.runs[cell.runs['status'] == 'diverged']
    for run, seed in zip(diverged['run'], diverged['seed'], strict=True):
      if run not in cell.points or 'train/loss' not in cell.points[run]:
        continue
      logged = cell.points[run].dropna(subset=['train/loss'])
      if not len(logged):
        continue
      # Where it ended its loss is off the panel.
      lowest = logged['train/loss'].min()
      last = logged.tail(1).assign(**{'train/loss': lowest})
      trace = self._trace(
        cell, self._line(last, 'train/loss', 1.0), panel, {}, width=1.2
      )
      name = f'{trace["name"]}, seed {seed}'
      trace |= {
        'mode': 'markers',
        'name': name,
        'marker': {
          'symbol': 'x',
          'size': 10,
          'color': self._looks[cell.optimizer]['color'],
        },
        'hovertemplate': f'diverged<extra>{name}</extra>',
      }
      trace['meta'] |= {'kind': 'mark', 'run': run, 'seed': int(seed)}
      found.append(trace)
    return found

  def chance(self, group: str, column: str, panel: int) -> list[dict[str, Any]]:
    """Returns a dotted line at the accuracy of guessing, where known."""
    task, _, metric = column.rpartition('/')
    held = self._scores
    held = held[(held['task'] == task) & (held['metric'] == metric)]
    known = held['chance'].dropna()
    runs = self.runs.loc[self.runs['group'] == group, 'run']
    points = self.points[self.points['run'].isin(runs)]
    if not len(known) or not len(points):
      return []
    ends = points.sort_values('tokens').iloc[[0, -1]]
    shares = {
      key: theme.rounded(ends[key] / position.scale)
      for key, position in self.positions.items()
    }
    return [
      {
        'type': 'scatter',
        'mode': 'lines',
        'name': 'chance',
        'legendgroup': 'chance',
        'xs': {k: x for k, x in shares.items() if None not in x},
        'y': [theme.digits(100 * float(known.iloc[0]))] * 2,
        'line': {'color': theme.INK, 'width': 2, 'dash': 'dot'},
        'hovertemplate': 'chance %{y:.1f} %<extra></extra>',
        'meta': {'kind': 'chance', 'when': {'column': column}},
        **theme.panel(panel),
      }
    ]

  def _line(
    self, points: pd.DataFrame, column: str, scale: float
  ) -> pd.DataFrame:
    """Returns step, positions and y of a run's logged values."""
    kept = ['step', *self.positions]
    line = points[[key for key in kept if key in points]].copy()
    values = scale * points[column].to_numpy(float)
    if column == 'train/loss' and len(values) > 1:
      window = max(1, round(len(values) * _SMOOTHING))
      values = _running_mean(values, window)
      # Towards the end ever fewer values would be averaged: the line would end
      # in one step's noise.
      line, values = (of[: len(of) - window // 2] for of in (line, values))
    if scale_type(column) == 'log':
      # What is zero has no place on a logarithmic axis.
      values = np.where(values > 0, values, np.nan)
    line['y'] = values
    return line[np.isfinite(line['y'])]

  def _mean(
    self,
    cell: _Cell,
    lines: Sequence[pd.DataFrame],
    panel: int,
    when: dict[str, str],
    kind: str,
    points: int,
  ) -> list[dict[str, Any]]:
    """Returns the mean over seeds where all have a value, and their range."""
    several = len(lines) > 1
    by_step = pd.concat(lines).groupby('step')
    mean = by_step.mean()[by_step.size() == len(lines)]
    if not len(mean):
      return []
    for end in ('min', 'max'):
      mean[end] = by_step['y'].agg(end)
    mean = _thinned(mean.reset_index(), points)
    look = self._looks[cell.optimizer]
    found = []
    single = kind.partition('/')[0] not in _QUANTITIES
    shown = {**when, 'seeds': 'mean'} if several and single else when
    if several:
      for end, fill in (('min', None), ('max', 'tonexty')):
        band = self._trace(
          cell, mean.assign(y=mean[end]), panel, shown, width=0
        )
        band['meta']['kind'] = (
          f'{kind}, {"lowest" if fill is None else "highest"} seed'
        )
        band['hoverinfo'] = 'skip'
        del band['hovertemplate']
        if fill is not None:
          band |= {
            'fill': fill,
            'fillcolor': theme.pale(look['color'], self._opacity),
          }
        found.append(band)
    line = self._trace(cell, mean, panel, shown)
    if several:
      line['name'] += f', mean of {len(lines)} seeds'
    line['meta']['kind'] = kind
    if len(mean) <= _MARKED:
      line |= {
        'mode': 'lines+markers',
        'marker': {'symbol': look['marker'], 'size': 5},
      }
    return [*found, line]

  def _trace(
    self,
    cell: _Cell,
    line: pd.DataFrame,
    panel: int,
    when: dict[str, str],
    width: float = 2.0,
  ) -> dict[str, Any]:
    xs = {
      key: theme.rounded(line[key] / position.scale)
      for key, position in self.positions.items()
      if key in line
    }
    hover = ''.join(
      f'<br>{_POSITIONS[key]}: %{{customdata[{i}]:.4~g}} {position.unit}'
      for i, (key, position) in enumerate(self.positions.items())
      if key in xs and None not in xs[key]
    )
    return {
      'type': 'scatter',
      'mode': 'lines',
      'name': theme.text(words.name(cell.optimizer)),
      'legendgroup': cell.optimizer,
      'xs': {key: x for key, x in xs.items() if None not in x},
      'y': theme.rounded(line['y']),
      'line': theme.line(self._looks[cell.optimizer], width),
      'hovertemplate': f'%{{y:.5~g}}{hover}<extra>%{{fullData.name}}</extra>',
      'meta': {'optimizer': cell.optimizer, 'when': when},
      **theme.panel(panel),
    }


def _position(key: str, last: float) -> _Position:
  """Returns a horizontal axis that ends at `last`."""
  if key == 'flops':
    exponent = math.floor(math.log10(last))
    return _Position(key, 10.0**exponent, words.power(exponent))
  if key == 'seconds':
    unit = words.time_unit(last)
    return _Position(key, unit.scale, unit.label)
  unit = words.count_unit(last)
  label = _UNITS[unit.label] if unit.label else 'number'
  return _Position(key, unit.scale, label)


def _running_mean(values_P: np.ndarray, window: int) -> np.ndarray:
  """Returns the centred mean over `window` points, fewer towards the ends."""
  sums = np.concatenate(([0.0], np.cumsum(values_P)))
  index = np.arange(len(values_P))
  # A symmetric window, so that the ends are not biased by the slope.
  half = np.minimum(window // 2, np.minimum(index, len(values_P) - 1 - index))
  return (sums[index + half + 1] - sums[index - half]) / (2 * half + 1)


def _thinned(line: pd.DataFrame, points: int) -> pd.DataFrame:
  """Returns at most `points` rows, neighbours averaged, the last one kept."""
  if len(line) <= points:
    return line
  bins = np.arange(len(line) - 1) * (points - 1) // (len(line) - 1)
  return pd.concat([line[:-1].groupby(bins).mean(), line[-1:]])


def _scored(points: pd.DataFrame) -> list[str]:
  """Returns 'task/metric' of what a run was scored on repeatedly."""
  found = []
  for name in points.columns:
    prefix, _, rest = name.partition('/')
    task, _, metric = rest.rpartition('/')
    if prefix == 'eval' and task and metric in ('acc', 'acc_norm'):
      held = points.loc[points[name].notna(), 'run']
      if len(held) and held.value_counts().max() > 1:
        found.append(rest)
  return scores_lib.ordered(found)


def logged(points: pd.DataFrame) -> list[str]:
  """Returns the logged quantities in the order of _QUANTITIES."""
  order = list(_QUANTITIES)
  held = [
    name
    for name in points.columns
    if name.partition('/')[0] in _QUANTITIES and points[name].notna().any()
  ]
  return sorted(
    held, key=lambda k: (order.index(k.partition('/')[0]), k.partition('/')[2])
  )


def quantity(key: str) -> str:
  """Returns such as 'Update size, hidden'."""
  base, _, part = key.partition('/')
  name = _QUANTITIES[base][0]
  return f'{name}, {part.replace("_", " ")}' if part else name


def scale_type(key: str) -> str:
  base = key.partition('/')[0]
  return 'log' if base in _QUANTITIES and _QUANTITIES[base][1] else 'linear'

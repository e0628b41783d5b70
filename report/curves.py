"""Loss curves over the course of training.

A line is the mean over an optimizer's seeds; its band spans the lowest to the
highest seed. A switch shows single seeds. Diverged runs enter no mean and are
always drawn.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import math
from typing import Any

import numpy as np
import pandas as pd

from steepest.report import section, tables, theme, words
from steepest.report.section import Section, Switch

# Window of the training loss's running mean, as a share of the run.
_SMOOTHING = 0.05
# Most points of a drawn line; longer ones are averaged in bins.
_POINTS = {'mean': 400, 'single': 150}
# Most points for a line to mark each one.
_MARKED = 12
_POSITIONS = {
  'tokens': 'Tokens',
  'flops': 'FLOPs',
  'seconds': 'Training time',
}
_UNITS = {'k': 'thousands', 'M': 'millions', 'B': 'billions', 'T': 'trillions'}
_SWITCHES = (
  Switch('kind', 'Loss', {'eval': 'Validation', 'train': 'Training'}),
  Switch('seeds', 'Seeds', {'mean': 'mean', 'single': 'each'}),
  Switch(
    'span',
    'part',
    {'0,1': 'all', '0.25,1': 'last 75 %', '0.75,1': 'last 25 %'},
  ),
)


@dataclasses.dataclass(frozen=True)
class _Position:
  """A horizontal axis and its unit."""

  scale: float
  unit: str
  title: str


def loss(comparison: tables.Comparison) -> list[Section]:
  """Returns the section of training and validation losses."""
  all_runs, points = comparison.tables.runs, comparison.tables.points
  under_way = all_runs[
    (all_runs['stage'] == 'final') & (all_runs['status'] == 'unfinished')
  ]
  runs = pd.concat([comparison.compared, under_way]).drop_duplicates('run')
  runs = runs[runs['run'].isin(points['run'])]
  points = points[points['run'].isin(runs['run'])]
  positions = {
    key: _position(key, float(points[key].max()))
    for key in _POSITIONS
    if key in points and points[key].max() > 0
  }
  if not positions:
    return []
  titles = {key: of.title for key, of in positions.items()}
  by_group = dict(list(runs.groupby('group', sort=False)))
  layout = theme.layout(
    [words.named(str(group)) for group in by_group],
    310,
    {'title': next(iter(titles.values()))},
    {'title': 'Loss (nats per token)'},
  )
  looks = theme.styles(all_runs['optimizer'])
  draw = _Draw(dict(list(points.groupby('run'))), positions, looks)
  data = [
    trace
    for panel, of_group in enumerate(by_group.values(), 1)
    for _, of in of_group.groupby('optimizer')
    for trace in draw.optimizer(panel, of)
  ]
  figure = section.Figure(
    'loss',
    'Loss against tokens, FLOPs or training time',
    'Lines are means over seeds, bands span the lowest to the highest seed; × '
    'marks where a seed diverged, at its lowest loss. Drag to zoom; '
    'double-click to reset. Training loss is a running mean over '
    f'{_SMOOTHING:.0%} of the run. Training time excludes compilation, '
    'evaluation and checkpoints. Unfinished runs are pale.',
    {
      'data': data,
      'layout': layout,
      'titles': titles,
      'csv': {'y': 'loss (nats per token)'},
    },
    [*_SWITCHES[:2], Switch('x', 'against', titles), _SWITCHES[2]],
    theme.names(runs['optimizer']),
  )
  return [Section('loss', 'Loss curves', [figure], folded=False)]


@dataclasses.dataclass(frozen=True)
class _Draw:
  """Makes traces of runs.

  Attributes:
    points: logged points by run.
    positions: horizontal axes by column of the points.
    looks: from theme.styles.
  """

  points: Mapping[str, pd.DataFrame]
  positions: Mapping[str, _Position]
  looks: Mapping[str, Mapping[str, str]]

  def optimizer(
    self, panel: int, runs: pd.DataFrame
  ) -> Iterator[dict[str, Any]]:
    """Yields all traces of an optimizer's runs in a panel."""
    for kind in ('eval', 'train'):
      lines = {run: self._line(run, f'{kind}/loss') for run in runs['run']}
      with_any = runs[[len(lines[run]) > 0 for run in runs['run']]]
      finished = with_any[with_any['status'] == 'finished']
      if len(finished):
        of = [lines[run] for run in finished['run']]
        yield from self._mean(panel, finished['optimizer'].iloc[0], of, kind)
      for run in with_any.to_dict('records'):
        done = run['status'] == 'finished'
        if done and len(finished) == 1:
          continue
        yield self._trace(
          panel,
          run['optimizer'],
          _thinned(lines[run['run']], _POINTS['single']),
          kind,
          {'kind': kind, **({'seeds': 'single'} if done else {})},
          f', seed {run["seed"]}' + ('' if done else f' ({run["status"]})'),
          run,
          1.2,
          opacity=1 if done else 0.45,
        )
    for run in runs[runs['status'] == 'diverged'].to_dict('records'):
      logged = self.points[run['run']]
      # A diverged run's final loss is off the panel.
      if 'train/loss' not in logged or logged['train/loss'].isna().all():
        continue
      color = self.looks[run['optimizer']]['color']
      yield self._trace(
        panel,
        run['optimizer'],
        logged.tail(1).assign(y=logged['train/loss'].min()),
        'mark',
        {},
        f', seed {run["seed"]}',
        run,
        mode='markers',
        marker={'symbol': 'x', 'size': 10, 'color': color},
        hovertemplate='diverged<extra>%{fullData.name}</extra>',
      )

  def _line(self, run: str, column: str) -> pd.DataFrame:
    """Returns step, positions and y of what a run logged in a column."""
    points = self.points[run]
    if column not in points:
      return points.iloc[:0]
    points = points[np.isfinite(points[column])]
    line = points[['step', *self.positions]].assign(y=points[column])
    if column != 'train/loss' or len(line) < 2:
      return line
    window = max(1, round(len(line) * _SMOOTHING))
    line['y'] = _running_mean(line['y'].to_numpy(), window)
    # Drop the end, where the window shrinks until the line shows the noise of a
    # single step.
    return line[: len(line) - window // 2]

  def _mean(
    self, panel: int, name: str, lines: Sequence[pd.DataFrame], kind: str
  ) -> Iterator[dict[str, Any]]:
    """Yields the range over seeds and their mean, where all have a value."""
    by_step = pd.concat(lines).groupby('step')
    mean = by_step.mean()[by_step.size() == len(lines)]
    if not len(mean):
      return
    ends = by_step['y'].agg(['min', 'max'])
    mean = _thinned(mean.join(ends).reset_index(), _POINTS['mean'])
    suffix, when = '', {'kind': kind}
    if len(lines) > 1:
      suffix = f', mean of {len(lines)} seeds'
      when['seeds'] = 'mean'
      # Many overlapping bands would hide the lines.
      opacity = 0.2 if len(self.looks) <= 6 else 0.07
      fill: dict[str, Any] = {
        'fill': 'tonexty',
        'fillcolor': theme.pale(self.looks[name]['color'], opacity),
      }
      for end, said, more in (('min', 'lowest', {}), ('max', 'highest', fill)):
        yield self._trace(
          panel,
          name,
          mean.assign(y=mean[end]),
          f'{kind}, {said} seed',
          when,
          width=0,
          hoverinfo='skip',
          hovertemplate=None,
          **more,
        )
    mode = 'lines+markers' if len(mean) <= _MARKED else 'lines'
    yield self._trace(panel, name, mean, kind, when, suffix, mode=mode)

  def _trace(
    self,
    panel: int,
    optimizer: str,
    line: pd.DataFrame,
    kind: str,
    when: Mapping[str, str],
    suffix: str = '',
    run: Mapping[str, Any] | None = None,
    width: float = 2.0,
    **style: Any,
  ) -> dict[str, Any]:
    xs = {
      key: theme.rounded(line[key] / position.scale)
      for key, position in self.positions.items()
      if line[key].notna().all()
    }
    hover = ''.join(
      f'<br>{_POSITIONS[key]}: %{{customdata[{i}]:.4~g}} '
      f'{self.positions[key].unit}'
      for i, key in enumerate(xs)
    )
    look = self.looks[optimizer]
    meta = {key: run[key] for key in _META} if run else {}
    return theme.trace(
      optimizer,
      panel,
      [],
      line['y'],
      kind,
      look,
      {'when': when, **meta},
      size=5,
      xs=xs,
      name=theme.text(words.name(optimizer)) + suffix,
      **{
        'mode': 'lines',
        'line': {'color': look['color'], 'width': width, 'dash': look['dash']},
        'hovertemplate': f'%{{y:.5~g}}{hover}<extra>%{{fullData.name}}</extra>',
        **style,
      },
    )


_META = ('run', 'seed', 'status')


def _position(key: str, last: float) -> _Position:
  """Returns a horizontal axis that ends at `last`."""
  if key == 'flops':
    exponent = math.floor(math.log10(last))
    scale, label = 10.0**exponent, words.power(exponent)
  else:
    unit = words.unit(key, [last])
    scale, label = unit.scale, unit.label
    if key == 'tokens':
      label = _UNITS[label] if label else 'number'
  return _Position(scale, label, f'{_POSITIONS[key]} ({label})')


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

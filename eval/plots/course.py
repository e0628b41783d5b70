"""What figures of values over a run's course share: runs, horizontal axes.

A trace carries its horizontal positions on all three axes in `xs`, of which
the page draws one; `meta` says which optimizer and seed it is of, by which the
page hides it, and in `when` under which setting of a switch it is shown.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

import numpy as np

from steepest.eval.comparing import formatting
from steepest.eval.comparing.comparison import Group
from steepest.eval.comparing.runs import Run
from steepest.eval.plots import theme

# Points of a drawn curve; longer ones are averaged in bins.
POINTS = 400
# Points up to which each is marked.
MARKED = 40

_TITLES = {
  'tokens': 'Tokens',
  'flops': 'FLOPs',
  'seconds': 'Training time',
}
_TOKENS = ((1e12, 'trillions'), (1e9, 'billions'), (1e6, 'millions'))


def shown_runs(group: Group) -> list[Run]:
  """Returns the runs whose curves are drawn, compared ones first."""
  runs = [run for cell in group.cells for run in (*cell.runs, *cell.diverged)]
  return [*runs, *group.selection.unfinished]


@dataclasses.dataclass(frozen=True)
class Axis:
  """A horizontal axis of values over a run's course.

  Attributes:
    key: 'tokens', 'flops' or 'seconds'.
    scale: what one unit is.
    unit: its name.
  """

  key: str
  scale: float
  unit: str

  @property
  def title(self) -> str:
    return f'{_TITLES[self.key]} ({self.unit})'


class Courses:
  """Runs of a comparison, along the same three axes.

  Attributes:
    groups: those with runs to draw.
    axes: key -> axis; without 'flops' where no run has counted them.
    look: optimizer -> its style, see theme.styles.
  """

  def __init__(self, groups: Sequence[Group]):
    self.groups = [g for g in groups if shown_runs(g)]
    runs = [run for group in self.groups for run in shown_runs(group)]
    self.look = theme.styles([run.optimizer for run in runs])
    self._flops = {
      run.path: _flops_per_token(run, shown_runs(group))
      for group in self.groups
      for run in shown_runs(group)
    }
    self.axes: dict[str, Axis] = {}
    for key in _TITLES:
      ends = [self.positions(run, run.rows[-1:])[key] for run in runs]
      last = max((float(x) for end in ends for x in end), default=np.nan)
      if np.isfinite(last):
        self.axes[key] = _axis(key, last)

  def positions(
    self, run: Run, rows: Sequence[dict[str, Any]]
  ) -> dict[str, np.ndarray]:
    """Returns key -> where the rows lie; nan where that is not known.

    FLOPs grow with the tokens, at what the run took in all: the passes for
    the curvature are spread evenly.
    """
    tokens_R = np.array([row['tokens'] for row in rows], float)
    known = [row['seconds'] if 'seconds' in row else np.nan for row in rows]
    per_token = self._flops[run.path]
    return {
      'tokens': tokens_R,
      'flops': tokens_R * (np.nan if per_token is None else per_token),
      'seconds': np.array(known, float),
    }

  def trace(
    self,
    run: Run,
    rows: Sequence[dict[str, Any]],
    values: Sequence[float] | np.ndarray,
    panel: int,
    when: dict[str, str],
    points: int = POINTS,
    **style: Any,
  ) -> dict[str, Any]:
    """Returns a line of `values` at `rows`.

    Args:
      run: that the rows are of.
      rows: of metrics.jsonl.
      values: a value a row.
      panel: 1, 2, …
      when: switch -> its setting under which the line is shown.
      points: at most; neighbours of longer lines are averaged.
      style: what differs from a plain line.
    """
    look = self.look[run.optimizer]
    label = f'{theme.text(formatting.name(run.optimizer))}, '
    label += f'seed {run.seed}'
    if run.status != 'finished':
      label += f' ({run.status})'
    xs = {
      key: theme.rounded(
        thin(self.positions(run, rows)[key] / axis.scale, points)
      )
      for key, axis in self.axes.items()
    }
    return {
      'type': 'scatter',
      'showlegend': False,
      'name': label,
      'legendgroup': run.optimizer,
      'xs': {k: v for k, v in xs.items() if np.isfinite(v).all()},
      'y': theme.rounded(thin(np.asarray(values, float), points)),
      'mode': 'lines',
      'line': {'color': look['color'], 'width': 2, 'dash': look['dash']},
      'opacity': 0.45 if run.status == 'unfinished' else 1.0,
      'meta': {
        'kind': 'run',
        'run': run.name,
        'status': run.status,
        'optimizer': run.optimizer,
        'seed': run.seed,
        'when': when,
      },
      **theme.panel_axes(panel),
      **style,
    }

  def hover(self, value: str) -> str:
    """Returns a hover text: the value and where it lies on every axis."""
    lines = [value]
    for i, axis in enumerate(self.axes.values()):
      title = _TITLES[axis.key]
      lines.append(f'{title}: %{{customdata[{i}]:.4~g}} {axis.unit}')
    return '<br>'.join(lines) + '<extra>%{fullData.name}</extra>'

  def title(self, layout: dict[str, Any]) -> dict[str, str]:
    """Titles the horizontal axes; returns key -> title, for the page."""
    titles = {key: axis.title for key, axis in self.axes.items()}
    for panel in range(1, len(self.groups) + 1):
      place = layout[theme.axis('x', panel)]
      place['title'] = theme.title(next(iter(titles.values())))
    return titles


def values(run: Run, key: str) -> tuple[list[dict[str, Any]], np.ndarray]:
  """Returns the rows that have a finite value of `key`, and these values."""
  rows = [
    row
    for row in run.rows
    if key in row and row[key] is not None and np.isfinite(row[key])
  ]
  return rows, np.array([row[key] for row in rows], float)


def running_mean(values_R: np.ndarray, window: int) -> np.ndarray:
  """Returns the centred mean over `window` rows, fewer towards the ends."""
  if window <= 1:
    return values_R
  sums = np.concatenate(([0.0], np.cumsum(values_R)))
  index = np.arange(len(values_R))
  # A symmetric window, so that the ends are not biased by the slope.
  half = np.minimum(window // 2, np.minimum(index, len(values_R) - 1 - index))
  return (sums[index + half + 1] - sums[index - half]) / (2 * half + 1)


def thin(values_R: np.ndarray, points: int) -> np.ndarray:
  """Averages neighbours until at most `points` are left."""
  if len(values_R) <= points:
    return values_R
  edges = np.linspace(0, len(values_R), points + 1).astype(int)
  return np.add.reduceat(values_R, edges[:-1]) / np.diff(edges)


def _flops_per_token(run: Run, peers: Sequence[Run]) -> float | None:
  """Returns what a token takes, by the run or one of its cell that ended."""
  same = [r for r in peers if r.optimizer == run.optimizer]
  for source in (run, *same):
    summary = source.summary
    if summary and summary.get('flops') and summary['tokens']:
      return float(summary['flops'] / summary['tokens'])
  return None


def _axis(key: str, last: float) -> Axis:
  if key == 'tokens':
    for scale, unit in _TOKENS:
      if last >= scale:
        return Axis(key, scale, unit)
    return Axis(key, 1e3, 'thousands')
  if key == 'flops':
    power = 3 * int(np.log10(max(last, 1.0)) // 3)
    return Axis(key, 10.0**power, formatting.power(power))
  if last < 300:
    return Axis(key, 1.0, 's')
  return Axis(key, 60.0, 'min') if last < 3 * 3600 else Axis(key, 3600.0, 'h')

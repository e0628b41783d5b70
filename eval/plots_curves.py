"""Benchmark scores during training, a line per run and the mean over seeds.

Traces carry their task and metric in `meta`, of which the page shows one at a
time, and their runs, by which it hides them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from steepest.eval import accuracy
from steepest.eval import plots_layout
from steepest.eval import plots_loss
from steepest.eval import report_names
from steepest.eval.comparison import Comparison
from steepest.eval.comparison import Group
from steepest.eval.runs import Run

_METRICS = [name for name, lower in accuracy.METRICS.items() if not lower]


def list_columns(comparison: Comparison) -> list[tuple[str, str]]:
  """Returns the (task, metric) pairs that a run was scored on repeatedly."""
  found = set()
  for group in comparison.groups:
    for run in plots_loss.shown_runs(group):
      names = {name for row in run.rows for name in row}
      for name in names:
        prefix, _, rest = name.partition('/')
        task, _, metric = rest.rpartition('/')
        if prefix != 'eval' or not task or metric not in _METRICS:
          continue
        if len(run.series(name, 'tokens')[0]) > 1:
          found.add((task, metric))
  return accuracy.outermost(found)


def curve_figure(comparison: Comparison) -> dict[str, Any] | None:
  """Draws accuracies against tokens, a panel per architecture.

  Returns:
    Besides data and layout `first`: the column that is shown first. None where
    no run was scored during training.
  """
  columns = list_columns(comparison)
  groups = [g for g in comparison.groups if any(plots_loss.shown_runs(g))]
  if not columns:
    return None
  look = plots_layout.styles(
    [r.optimizer for g in groups for r in plots_loss.shown_runs(g)]
  )
  scale, unit = plots_loss.x_unit(groups, 'tokens')
  layout = plots_layout.layout(
    [report_names.name(g.architecture) for g in groups], 360
  )
  layout['margin']['t'] = 36
  data: list[dict[str, Any]] = []
  for panel, group in enumerate(groups, 1):
    for task, metric in columns:
      drawn = _Drawer(task, metric, scale, unit, panel)
      data += drawn.chance(group)
      for optimizer in dict.fromkeys(
        run.optimizer for run in plots_loss.shown_runs(group)
      ):
        runs = [
          run
          for run in plots_loss.shown_runs(group)
          if run.optimizer == optimizer
        ]
        data += drawn.optimizer(runs, look[optimizer])
    layout[plots_layout.axis('x', panel)]['title'] = plots_layout.title(
      f'Tokens ({unit})'
    )
    layout[plots_layout.axis('y', panel)]['title'] = plots_layout.title(
      'Accuracy (%)'
    )
  return {'data': data, 'layout': layout, 'first': '/'.join(columns[0])}


class _Drawer:
  """Draws one column into one panel; see `curve_figure`."""

  def __init__(
    self, task: str, metric: str, scale: float, unit: str, panel: int
  ):
    self._task, self._metric = task, metric
    self._scale, self._unit, self._panel = scale, unit, panel

  def _series(self, run: Run) -> tuple[np.ndarray, np.ndarray]:
    xs, ys = run.series(f'eval/{self._task}/{self._metric}', 'tokens')
    return xs / self._scale, 100 * ys

  def _trace(
    self, runs: Sequence[str], name: str, xs: Any, ys: Any, **style: Any
  ) -> dict[str, Any]:
    name = plots_layout.text(name)
    return {
      'type': 'scatter',
      'showlegend': False,
      'name': name,
      'x': plots_layout.rounded(np.asarray(xs)),
      'y': plots_layout.rounded(np.asarray(ys)),
      'hovertemplate': (
        f'%{{y:.1f}} % at %{{x:.4~g}} {self._unit}<extra>{name}</extra>'
      ),
      'meta': {
        'kind': 'curve',
        'column': f'{self._task}/{self._metric}',
        'runs': list(runs),
      },
      **plots_layout.panel_axes(self._panel),
      **style,
    }

  def optimizer(
    self, runs: Sequence[Run], look: dict[str, str]
  ) -> list[dict[str, Any]]:
    """Returns a line per seed, thin where their mean is drawn too."""
    series = {run.name: self._series(run) for run in runs}
    series = {name: xy for name, xy in series.items() if len(xy[0])}
    shared = _mean(list(series.values()))
    traces = []
    for run in runs:
      if run.name not in series:
        continue
      thin = len(series) > 1
      label = f'{report_names.name(run.optimizer)}, seed {run.seed}'
      traces.append(
        self._trace(
          [run.name],
          label,
          *series[run.name],
          mode='lines' if thin else 'lines+markers',
          line={
            'color': look['color'],
            'width': 1 if thin else 2,
            'dash': look['dash'],
          },
          marker={'symbol': look['marker'], 'size': 6},
          opacity=0.4 if thin else 1.0,
        )
      )
    if len(series) > 1 and len(shared[0]):
      label = f'{report_names.name(runs[0].optimizer)}, mean of {len(series)}'
      traces.append(
        self._trace(
          list(series),
          label,
          *shared,
          mode='lines+markers',
          line={'color': look['color'], 'width': 2.5, 'dash': look['dash']},
          marker={'symbol': look['marker'], 'size': 6},
        )
      )
    return traces

  def chance(self, group: Group) -> list[dict[str, Any]]:
    """Returns a dotted line at the accuracy of guessing, where known."""
    runs = plots_loss.shown_runs(group)
    key = f'{self._task}/{self._metric}'
    known = [
      cell.scores[key].chance for cell in group.cells if key in cell.scores
    ]
    ends = [self._series(run)[0] for run in runs]
    last = max((float(xs[-1]) for xs in ends if len(xs)), default=0.0)
    if not known or known[0] is None or not last:
      return []
    line = {'color': '#000000', 'width': 2, 'dash': 'dot'}
    height = 100 * known[0]
    return [
      self._trace(
        [], 'chance', [0, last], [height, height], mode='lines', line=line
      )
    ]


def _mean(
  series: Sequence[tuple[np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the mean of several series where all have a value."""
  if not series:
    return np.zeros(0), np.zeros(0)
  xs = series[0][0]
  for other, _ in series[1:]:
    xs = np.intersect1d(xs, other)
  ys = [own_ys[np.isin(own_xs, xs)] for own_xs, own_ys in series]
  return xs, np.mean(ys, axis=0)

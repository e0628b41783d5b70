"""Loss against tokens and against time, a line per run.

Traces carry their run in `meta`, by which the page shows and hides them.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

import numpy as np

from steepest.eval import plots_layout
from steepest.eval import report_names
from steepest.eval import tuning
from steepest.eval.comparison import Comparison
from steepest.eval.comparison import Group
from steepest.eval.runs import Run

# Points of a drawn curve; longer ones are averaged in bins.
_POINTS = 400
# Share of a run that the running mean of the training loss spans.
SMOOTHING = 0.05
# Evaluations up to which each is marked.
_MARKED = 40
# Zoom -> the share of the run before it.
ZOOMS = {'all': 0.0, 'last 75 %': 0.25, 'last 25 %': 0.75}


def shown_runs(group: Group) -> list[Run]:
  """Returns the runs whose curves are drawn, compared ones first."""
  runs = [run for cell in group.cells for run in (*cell.runs, *cell.diverged)]
  return [*runs, *group.selection.unfinished]


def loss_figure(comparison: Comparison, x: str) -> dict[str, Any] | None:
  """Draws training and validation loss, a panel per architecture.

  Args:
    comparison: what to draw.
    x: 'tokens' or 'seconds' (of training).

  Returns:
    Besides data and layout `zooms`: 'train' or 'eval' -> a key of ZOOMS -> the
    layout's changes that show it. None where there is nothing to draw.
  """
  groups = [g for g in comparison.groups if any(shown_runs(g))]
  if not groups:
    return None
  look = plots_layout.styles(
    [r.optimizer for g in groups for r in shown_runs(g)]
  )
  scale, unit = x_unit(groups, x)
  data: list[dict[str, Any]] = []
  layout = plots_layout.layout(
    [report_names.name(g.architecture) for g in groups], 400
  )
  layout['margin']['t'] = 36
  zooms: dict[str, dict[str, dict[str, list[float]]]] = {
    kind: {name: {} for name in ZOOMS} for kind in ('train', 'eval')
  }
  for panel, group in enumerate(groups, 1):
    for run in shown_runs(group):
      drawer = _Drawer(run, x, scale, unit, panel, look[run.optimizer])
      data += [*drawer.training(), *drawer.validation(), *drawer.divergence()]
    title = 'Tokens' if x == 'tokens' else 'Training time'
    layout[plots_layout.axis('x', panel)]['title'] = plots_layout.title(
      f'{title} ({unit})'
    )
    layout[plots_layout.axis('y', panel)]['title'] = plots_layout.title(
      'Loss (nats per token)'
    )
    for kind, of_kind in zooms.items():
      for name, changes in of_kind.items():
        changes |= _zoom(data, kind, panel, ZOOMS[name])
  return {'data': data, 'layout': layout, 'zooms': zooms}


@dataclasses.dataclass(frozen=True)
class _Drawer:
  """Draws one run into one panel; see `loss_figure`."""

  run: Run
  x: str
  scale: float
  unit: str
  panel: int
  look: dict[str, str]

  def _trace(self, kind: str, xs: Any, ys: Any, **style: Any) -> dict[str, Any]:
    run = self.run
    label = f'{plots_layout.text(report_names.name(run.optimizer))}, '
    label += f'seed {run.seed}'
    if run.status != 'finished':
      label += f' ({run.status})'
    bx, by = thin(np.asarray(xs) / self.scale, np.asarray(ys), _POINTS)
    return {
      'type': 'scatter',
      'showlegend': False,
      'name': label,
      'x': plots_layout.rounded(bx),
      'y': plots_layout.rounded(by),
      'mode': 'lines',
      'line': {
        'color': self.look['color'],
        'width': 2,
        'dash': self.look['dash'],
      },
      'opacity': 0.45 if run.status == 'unfinished' else 1.0,
      'hovertemplate': (
        f'%{{y:.4f}} at %{{x:.4~g}} {self.unit}<extra>{label}</extra>'
      ),
      'meta': {'run': run.name, 'kind': kind, 'status': run.status},
      **plots_layout.panel_axes(self.panel),
      **style,
    }

  def training(self) -> list[dict[str, Any]]:
    """Returns the logged losses, pale, and their running mean."""
    xs, ys = self.run.series('train/loss', self.x)
    if not len(ys):
      return []
    window = max(1, round(len(ys) * SMOOTHING))
    pale = {'line': {'color': self.look['color'], 'width': 1}, 'opacity': 0.16}
    return [
      self._trace('raw', xs, ys, **pale, hoverinfo='skip', hovertemplate=None),
      self._trace('train', xs, running_mean(ys, window)),
    ]

  def validation(self) -> list[dict[str, Any]]:
    """Returns the validation losses."""
    xs, ys = self.run.series('eval/loss', self.x)
    if not len(ys):
      return []
    mode = 'lines+markers' if len(ys) <= _MARKED else 'lines'
    marker = {'symbol': self.look['marker'], 'size': 6}
    return [self._trace('eval', xs, ys, mode=mode, marker=marker)]

  def divergence(self) -> list[dict[str, Any]]:
    """Returns a mark at the last loss of a diverged run."""
    xs, ys = self.run.series('train/loss', self.x)
    if self.run.status != 'diverged' or not len(ys):
      return []
    step = tuning.diverged_step(self.run)
    mark = self._trace('mark', xs[-1:], ys[-1:], mode='markers')
    mark['marker'] = {'symbol': 'x', 'size': 10, 'color': self.look['color']}
    mark['hovertemplate'] = (
      f'diverged at step {step}<extra>{mark["name"]}</extra>'
    )
    return [mark]


def running_mean(values_R: np.ndarray, window: int) -> np.ndarray:
  """Returns the centred mean over `window` rows, fewer towards the ends."""
  if window <= 1:
    return values_R
  sums = np.concatenate(([0.0], np.cumsum(values_R)))
  index = np.arange(len(values_R))
  # A symmetric window, so that the ends are not biased by the slope.
  half = np.minimum(window // 2, np.minimum(index, len(values_R) - 1 - index))
  return (sums[index + half + 1] - sums[index - half]) / (2 * half + 1)


def thin(
  xs_R: np.ndarray, ys_R: np.ndarray, points: int
) -> tuple[np.ndarray, np.ndarray]:
  """Averages neighbours until at most `points` are left."""
  if len(xs_R) <= points:
    return xs_R, ys_R
  edges = np.linspace(0, len(xs_R), points + 1).astype(int)
  counts = np.diff(edges)
  return (
    np.add.reduceat(xs_R, edges[:-1]) / counts,
    np.add.reduceat(ys_R, edges[:-1]) / counts,
  )


def x_unit(groups: Sequence[Group], x: str) -> tuple[float, str]:
  """Returns what to divide tokens or seconds by, and its name."""
  last = max(
    (
      float(run.rows[-1][x])
      for g in groups
      for run in shown_runs(g)
      if run.rows and x in run.rows[-1]
    ),
    default=1.0,
  )
  if x == 'tokens':
    for scale, unit in ((1e9, 'billions'), (1e6, 'millions')):
      if last >= scale:
        return scale, unit
    return 1e3, 'thousands'
  if last < 300:
    return 1.0, 's'
  return (60.0, 'min') if last < 3 * 3600 else (3600.0, 'h')


def _zoom(
  data: Sequence[dict[str, Any]], kind: str, panel: int, share: float
) -> dict[str, list[float]]:
  """Returns the ranges of a panel's axes that leave out the first `share`.

  Diverged runs do not count: their last losses would flatten the others.
  """
  axes = plots_layout.panel_axes(panel)
  kept = [
    trace
    for trace in data
    if trace['yaxis'] == axes['yaxis']
    and trace['meta']['kind'] == kind
    and trace['meta']['status'] != 'diverged'
  ]
  end = max((trace['x'][-1] for trace in kept), default=1.0)
  late = [
    y
    for trace in kept
    for x, y in zip(trace['x'], trace['y'])
    if x >= share * end
  ]
  if not late:
    return {}
  pad = 0.05 * (max(late) - min(late)) or 0.1
  x_range = ((share - 0.01) * end, 1.02 * end)
  y_range = (min(late) - pad, max(late) + pad)
  return {
    f'{plots_layout.axis("x", panel)}.range': _digits(x_range),
    f'{plots_layout.axis("y", panel)}.range': _digits(y_range),
  }


def _digits(values: Sequence[float]) -> list[float]:
  return [plots_layout.digits(value) for value in values]

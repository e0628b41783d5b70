"""The proxies' loss against the learning rate."""

from collections.abc import Sequence
import math
from typing import Any

from steepest.eval import plots_layout
from steepest.eval import report_names
from steepest.eval import tuning
from steepest.eval.comparison import Comparison


def lr_figure(comparison: Comparison) -> dict[str, Any] | None:
  """Draws the proxies' loss against the learning rate, a panel each."""
  names = sorted({curve.architecture for curve in comparison.curves})
  if not names:
    return None
  look = plots_layout.styles([curve.optimizer for curve in comparison.curves])
  layout = plots_layout.layout([report_names.name(n) for n in names], 380)
  layout['showlegend'] = True
  data: list[dict[str, Any]] = []
  legend: set[str] = set()
  for panel, architecture in enumerate(names, 1):
    found = [c for c in comparison.curves if c.architecture == architecture]
    losses = [p.loss for c in found for p in c.points if p.loss is not None]
    top = _diverged_height(losses)
    for curve in found:
      many = len({(c.width, c.layers) for c in found}) > 1
      data += _curve_traces(curve, panel, look[curve.optimizer], top, many)
      data[-1]['showlegend'] = curve.optimizer not in legend
      legend.add(curve.optimizer)
    criteria = {c.criterion for c in found}
    title = 'Validation' if criteria == {'eval_loss'} else 'Training'
    layout[plots_layout.axis('x', panel)] |= {
      'type': 'log',
      'title': plots_layout.title('Peak learning rate'),
      **_rate_ticks([p.lr for c in found for p in c.points]),
    }
    layout[plots_layout.axis('y', panel)]['title'] = plots_layout.title(
      f'{title} loss of the proxy'
    )
  return {'data': data, 'layout': layout}


def _diverged_height(losses: Sequence[float]) -> float:
  """Returns the height at which diverged trials are marked."""
  if not losses:
    return 1.0
  span = max(losses) - min(losses)
  return max(losses) + 0.12 * (span or 0.1 * abs(max(losses)) or 1.0)


def _curve_traces(
  curve: tuning.Curve,
  panel: int,
  look: dict[str, str],
  top: float,
  many: bool,
) -> list[dict[str, Any]]:
  """Returns marks of trials and optima and, last, the trials' losses."""
  label = plots_layout.text(report_names.name(curve.optimizer))
  if many:
    label += f', width {curve.width}'
  common = {
    'type': 'scatter',
    'legendgroup': curve.optimizer,
    'showlegend': False,
    'name': label,
    **plots_layout.panel_axes(panel),
  }
  traces = _ended_early(curve, common, look, top, label)
  done = [p for p in curve.points if p.loss is not None]
  chosen = curve.chosen if curve.chosen is not None else curve.best
  marked = [p for p in done if chosen is not None and _close(p.lr, chosen)]
  if marked:
    traces.append(
      {
        **common,
        'x': [p.lr for p in marked],
        'y': [
          plots_layout.digits(p.loss) for p in marked if p.loss is not None
        ],
        'mode': 'markers',
        'marker': {
          'symbol': 'circle-open',
          'size': 20,
          'color': look['color'],
          'line': {'width': 2.5},
        },
        'hoverinfo': 'skip',
        'meta': {'kind': 'chosen'},
      }
    )
  if curve.fit is not None:
    traces.append(
      {
        **common,
        'x': [curve.fit.lr],
        'y': [plots_layout.digits(curve.fit.loss)],
        'mode': 'markers',
        'marker': {
          'symbol': 'diamond-open',
          'size': 12,
          'color': look['color'],
          'line': {'width': 2},
        },
        'hovertemplate': 'parabola: %{y:.4f} at lr %{x:.3~g}'
        f'<extra>{label}</extra>',
        'meta': {'kind': 'fit'},
      }
    )
  traces.append(
    {
      **common,
      'x': [p.lr for p in done],
      'y': [plots_layout.digits(p.loss) for p in done if p.loss is not None],
      'customdata': [p.trials for p in done],
      # Trials that differ in more than the rate are no curve.
      'mode': 'markers' if curve.searched else 'lines+markers',
      'line': {'color': look['color'], 'width': 2, 'dash': look['dash']},
      'marker': {'symbol': look['marker'], 'size': 8},
      'hovertemplate': '%{y:.4f} at lr %{x:.3~g} (%{customdata} trial(s))'
      f'<extra>{label}</extra>',
      'meta': {'kind': 'line'},
    }
  )
  return traces


def _ended_early(
  curve: tuning.Curve,
  common: dict[str, Any],
  look: dict[str, str],
  top: float,
  label: str,
) -> list[dict[str, Any]]:
  """Returns marks at the upper edge: diverged trials, pruned ones."""
  traces = []
  for kind, symbol, steps in (
    ('diverged', 'x', {p.lr: p.diverged_at for p in curve.points}),
    ('pruned', 'triangle-down', {p.lr: p.pruned_at for p in curve.points}),
  ):
    found = {lr: step for lr, step in steps.items() if step is not None}
    if found:
      traces.append(
        {
          **common,
          'x': list(found),
          'y': [plots_layout.digits(top)] * len(found),
          'customdata': list(found.values()),
          'mode': 'markers',
          'marker': {'symbol': symbol, 'size': 11, 'color': look['color']},
          'hovertemplate': f'{kind} at step %{{customdata}}, lr %{{x:.3~g}}'
          f'<extra>{label}</extra>',
          'meta': {'kind': kind},
        }
      )
  return traces


def _rate_ticks(rates: Sequence[float]) -> dict[str, Any]:
  """Labels tried rates, leaving out those that would overlap."""
  values: list[float] = []
  distinct = sorted(set(rates))
  if not distinct:
    return {}
  gap = math.log(distinct[-1] / distinct[0]) / 9
  for value in distinct:
    if not values or math.log(value / values[-1]) >= max(gap, 1e-9):
      values.append(value)
  return {
    'tickvals': values,
    'ticktext': [report_names.rate(value) for value in values],
  }


def _close(a: float, b: float) -> bool:
  return math.isclose(a, b, rel_tol=1e-6)

"""The proxies' loss against the learning rate."""

from collections.abc import Sequence
import math
from typing import Any

from steepest.eval.comparing import formatting, tuning
from steepest.eval.comparing.comparison import Comparison
from steepest.eval.plots import theme


def lr_figure(comparison: Comparison) -> dict[str, Any] | None:
  """Draws the proxies' loss against the learning rate, a panel each.

  Single trials are pale marks behind the means that the curves join.
  """
  names = sorted({curve.architecture for curve in comparison.curves})
  if not names:
    return None
  look = theme.styles([curve.optimizer for curve in comparison.curves])
  layout = theme.layout([formatting.name(n) for n in names], 290)
  data: list[dict[str, Any]] = []
  for panel, architecture in enumerate(names, 1):
    found = [c for c in comparison.curves if c.architecture == architecture]
    losses = [p.loss for c in found for p in c.points if p.loss is not None]
    top = _diverged_height(losses)
    for curve in found:
      many = len({(c.width, c.layers) for c in found}) > 1
      style = look[curve.optimizer]
      data += _trial_traces(comparison, curve, panel, style)
      data += _curve_traces(curve, panel, style, top, many)
    criteria = {c.criterion for c in found}
    title = 'Validation' if criteria == {'eval_loss'} else 'Training'
    layout[theme.axis('x', panel)] |= {
      'type': 'log',
      'title': theme.title('Peak learning rate'),
      **rate_ticks([p.lr for c in found for p in c.points]),
    }
    layout[theme.axis('y', panel)]['title'] = theme.title(
      f'{title} loss of the proxy'
    )
  return {
    'data': data,
    'layout': layout,
    'csv': {'x': 'learning rate', 'y': 'loss of the proxy'},
  }


def _trial_traces(
  comparison: Comparison,
  curve: tuning.Curve,
  panel: int,
  look: dict[str, str],
) -> list[dict[str, Any]]:
  """Returns a pale mark a trial, where a rate has more than one."""
  if all(point.trials < 2 for point in curve.points):
    return []
  trials = [
    run
    for run in comparison.runs
    if run.stage == 'tune'
    and run.status == 'finished'
    and (run.architecture, run.optimizer)
    == (curve.architecture, curve.optimizer)
    and (run.config['model.width'], run.config['model.num_layers'])
    == (curve.width, curve.layers)
    and run.summary is not None
    and run.summary[curve.criterion] is not None
  ]
  label = theme.text(formatting.name(curve.optimizer))
  return [
    {
      'type': 'scatter',
      'name': f'{label}, single trials',
      'legendgroup': curve.optimizer,
      'x': [run.lr for run in trials],
      'y': [
        theme.digits(run.summary[curve.criterion])
        for run in trials
        if run.summary is not None
      ],
      'mode': 'markers',
      'marker': {'symbol': look['marker'], 'size': 6, 'color': look['color']},
      'opacity': 0.35,
      'customdata': [run.seed for run in trials],
      'hovertemplate': '%{y:.4f} at lr %{x:.3~g}, seed %{customdata}'
      f'<extra>{label}</extra>',
      'meta': {'kind': 'trial', 'optimizer': curve.optimizer},
      **theme.panel_axes(panel),
    }
  ]


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
  label = theme.text(formatting.name(curve.optimizer))
  if many:
    label += f', width {curve.width}'
  common = {
    'type': 'scatter',
    'legendgroup': curve.optimizer,
    'showlegend': False,
    'name': label,
    **theme.panel_axes(panel),
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
        'y': [theme.digits(p.loss) for p in marked if p.loss is not None],
        'mode': 'markers',
        'marker': {
          'symbol': 'circle-open',
          'size': 20,
          'color': look['color'],
          'line': {'width': 2.5},
        },
        'hoverinfo': 'skip',
        'meta': {'kind': 'chosen', 'optimizer': curve.optimizer},
      }
    )
  if curve.fit is not None:
    traces.append(
      {
        **common,
        'x': [curve.fit.lr],
        'y': [theme.digits(curve.fit.loss)],
        'mode': 'markers',
        'marker': {
          'symbol': 'diamond-open',
          'size': 12,
          'color': look['color'],
          'line': {'width': 2},
        },
        'hovertemplate': 'parabola: %{y:.4f} at lr %{x:.3~g}'
        f'<extra>{label}</extra>',
        'meta': {'kind': 'fit', 'optimizer': curve.optimizer},
      }
    )
  traces.append(
    {
      **common,
      'x': [p.lr for p in done],
      'y': [theme.digits(p.loss) for p in done if p.loss is not None],
      'customdata': [p.trials for p in done],
      # Trials that differ in more than the rate are no curve.
      'mode': 'markers' if curve.searched else 'lines+markers',
      'line': {'color': look['color'], 'width': 2, 'dash': look['dash']},
      'marker': {'symbol': look['marker'], 'size': 8},
      'hovertemplate': '%{y:.4f} at lr %{x:.3~g} (%{customdata} trial(s))'
      f'<extra>{label}</extra>',
      'meta': {'kind': 'line', 'optimizer': curve.optimizer},
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
          'y': [theme.digits(top)] * len(found),
          'customdata': list(found.values()),
          'mode': 'markers',
          'marker': {'symbol': symbol, 'size': 11, 'color': look['color']},
          'hovertemplate': f'{kind} at step %{{customdata}}, lr %{{x:.3~g}}'
          f'<extra>{label}</extra>',
          'meta': {'kind': kind, 'optimizer': curve.optimizer},
        }
      )
  return traces


def rate_ticks(rates: Sequence[float]) -> dict[str, Any]:
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
    'ticktext': [formatting.rate(value) for value in values],
  }


def _close(a: float, b: float) -> bool:
  return math.isclose(a, b, rel_tol=1e-6)

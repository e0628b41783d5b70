"""Benchmark accuracies beside chance."""

from typing import Any

from steepest.eval import plots_layout
from steepest.eval import report_names
from steepest.eval.comparison import Comparison

# Columns up to which their names fit beside one another.
_LEVEL_LABELS = 9


def score_figure(comparison: Comparison) -> dict[str, Any] | None:
  """Draws accuracies with standard errors and chance, a panel each."""
  columns = [
    c
    for c in comparison.columns
    if c.kind == 'benchmark' and c.metric != 'perplexity'
  ]
  groups = [g for g in comparison.groups if any(c.scores for c in g.cells)]
  if not columns or not groups:
    return None
  look = plots_layout.styles([c.optimizer for g in groups for c in g.cells])
  level = len(columns) <= _LEVEL_LABELS
  layout = plots_layout.layout(
    [report_names.name(g.architecture) for g in groups],
    340 if level else 440,
    stacked=True,
  )
  layout |= {'barmode': 'group', 'bargap': 0.28, 'showlegend': True}
  layout['hovermode'] = 'closest'
  break_ = '<br>' if level else ' '
  labels = [
    plots_layout.text(report_names.name(c.task))
    + break_
    + plots_layout.text(c.metric)
    for c in columns
  ]
  data: list[dict[str, Any]] = []
  legend: set[str] = set()
  for panel, group in enumerate(groups, 1):
    chance: dict[int, float] = {}
    for cell in group.cells:
      places = [i for i, c in enumerate(columns) if c.key in cell.scores]
      scores = [cell.scores[columns[i].key] for i in places]
      chance |= {
        i: s.chance for i, s in zip(places, scores) if s.chance is not None
      }
      style = look[cell.optimizer]
      data.append(
        {
          'type': 'bar',
          'name': plots_layout.text(report_names.name(cell.optimizer)),
          'legendgroup': cell.optimizer,
          'showlegend': cell.optimizer not in legend,
          'x': places,
          'y': [plots_layout.digits(100 * s.mean) for s in scores],
          'error_y': {
            'type': 'data',
            'array': [plots_layout.digits(100 * s.error) for s in scores],
            'thickness': 1.2,
            'width': 4,
            'color': plots_layout.INK,
          },
          'marker': {
            'color': style['color'],
            'pattern': {
              'shape': style['pattern'],
              'fillmode': 'overlay',
              'fgcolor': '#ffffff',
              'size': 6,
              'solidity': 0.25,
            },
          },
          'customdata': [s.questions for s in scores],
          'hovertemplate': '%{y:.1f} ± %{error_y.array:.1f} %, '
          '%{customdata:,} questions<extra>%{fullData.name}</extra>',
          'meta': {'kind': 'bar'},
          **plots_layout.panel_axes(panel),
        }
      )
      legend.add(cell.optimizer)
    data.append(_chance_trace(chance, panel))
    layout[plots_layout.axis('x', panel)] |= {
      'tickvals': list(range(len(columns))),
      'ticktext': labels,
      'showgrid': False,
      'tickangle': 0 if level else -60,
      'range': [-0.5, len(columns) - 0.5],
    }
    layout[plots_layout.axis('y', panel)] |= {
      'title': plots_layout.title('Accuracy (%)'),
      'rangemode': 'tozero',
    }
  return {'data': data, 'layout': layout}


def _chance_trace(chance: dict[int, float], panel: int) -> dict[str, Any]:
  xs: list[float | None] = []
  ys: list[float | None] = []
  for place, value in sorted(chance.items()):
    height = plots_layout.digits(100 * value)
    xs += [place - 0.42, place + 0.42, None]
    ys += [height, height, None]
  return {
    'type': 'scatter',
    'name': 'chance',
    'mode': 'lines',
    'x': xs,
    'y': ys,
    'connectgaps': False,
    'line': {'color': '#000000', 'width': 2, 'dash': 'dot'},
    'hovertemplate': 'chance %{y:.1f} %<extra></extra>',
    'showlegend': panel == 1,
    'legendgroup': 'chance',
    'meta': {'kind': 'chance'},
    **plots_layout.panel_axes(panel),
  }

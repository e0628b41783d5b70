"""Benchmark accuracies beside chance."""

from collections.abc import Sequence
from typing import Any

from steepest.eval.comparing import accuracy, formatting
from steepest.eval.comparing.comparison import Cell, Column, Comparison
from steepest.eval.plots import theme

# Of a row, the share in which the optimizers' marks lie.
_SPREAD = 0.62


def score_figure(comparison: Comparison) -> dict[str, Any] | None:
  """Draws accuracies with standard errors and chance, a panel per group.

  A row is a benchmark; the optimizers' marks lie below one another in it.
  """
  columns = [
    c
    for c in comparison.columns
    if c.kind == 'benchmark' and c.metric != 'perplexity'
  ]
  groups = [g for g in comparison.groups if any(c.scores for c in g.cells)]
  if not columns or not groups:
    return None
  names = [c.optimizer for g in groups for c in g.cells]
  look = theme.styles(names)
  order = list(dict.fromkeys(sorted(names)))
  row = max(34, 14 + 11 * len(order))
  layout = theme.layout(
    [formatting.group_name(g) for g in groups], row * len(columns)
  )
  layout['margin']['l'] = 104
  data: list[dict[str, Any]] = []
  for panel, group in enumerate(groups, 1):
    chance: dict[int, float] = {}
    for cell in group.cells:
      places = [i for i, c in enumerate(columns) if c.key in cell.scores]
      scores = [cell.scores[columns[i].key] for i in places]
      chance |= {
        i: s.chance for i, s in zip(places, scores) if s.chance is not None
      }
      shift = (order.index(cell.optimizer) + 0.5) / len(order) - 0.5
      marks = [place + _SPREAD * shift for place in places]
      data.append(
        _marks(cell, [columns[i] for i in places], scores, marks, look, panel)
      )
    data.append(_chance_trace(chance, panel))
    layout[theme.axis('y', panel)] |= {
      'tickvals': list(range(len(columns))),
      'ticktext': [
        f'{theme.text(formatting.name(c.task))}<br>{theme.text(c.metric)}'
        for c in columns
      ],
      'showgrid': False,
      'range': [len(columns) - 0.5, -0.5],
      'zeroline': False,
      'fixedrange': True,
    }
    layout[theme.axis('x', panel)]['title'] = theme.title('Accuracy (%)')
  return {
    'data': data,
    'layout': layout,
    'csv': {'x': 'accuracy (%)', 'y': None, 'error_x': 'standard error'},
  }


def _marks(
  cell: Cell,
  columns: Sequence[Column],
  scores: Sequence[accuracy.Score],
  places: Sequence[float],
  look: dict[str, dict[str, str]],
  panel: int,
) -> dict[str, Any]:
  style = look[cell.optimizer]
  return {
    'type': 'scatter',
    'mode': 'markers',
    'name': theme.text(formatting.name(cell.optimizer)),
    'legendgroup': cell.optimizer,
    'x': [theme.digits(100 * s.mean) for s in scores],
    'y': [theme.digits(place) for place in places],
    'error_x': {
      'type': 'data',
      'array': [theme.digits(100 * s.error) for s in scores],
      'thickness': 1.6,
      'width': 0,
      'color': style['color'],
    },
    'marker': {'color': style['color'], 'symbol': style['marker'], 'size': 9},
    'text': [
      f'{theme.text(formatting.column_name(column))}, '
      f'{score.questions:,} questions'
      for column, score in zip(columns, scores)
    ],
    'hovertemplate': '%{text}<br>%{x:.1f} ± %{error_x.array:.1f} %'
    '<extra>%{fullData.name}</extra>',
    'meta': {
      'kind': 'score',
      'optimizer': cell.optimizer,
      'labels': [column.key for column in columns],
    },
    **theme.panel_axes(panel),
  }


def _chance_trace(chance: dict[int, float], panel: int) -> dict[str, Any]:
  xs: list[float | None] = []
  ys: list[float | None] = []
  for place, value in sorted(chance.items()):
    height = theme.digits(100 * value)
    xs += [height, height, None]
    ys += [place - 0.44, place + 0.44, None]
  return {
    'type': 'scatter',
    'name': 'chance',
    'mode': 'lines',
    'x': xs,
    'y': ys,
    'connectgaps': False,
    'line': {'color': theme.INK, 'width': 2, 'dash': 'dot'},
    'hovertemplate': 'chance %{x:.1f} %<extra></extra>',
    'legendgroup': 'chance',
    'meta': {'kind': 'chance'},
    **theme.panel_axes(panel),
  }

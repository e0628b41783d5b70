"""Measured quantities over a model's size, as a page that opens offline."""

from collections.abc import Sequence
import html
import os
import pathlib
from typing import Any

import numpy as np
from plotly import io

from steepest.eval.plots import theme
from steepest.tuning.slopes import Row

# Start of a quantity's name -> title of its panel.
_PANELS = {
  'change/': 'Change of activations: mean |x after - x before|',
  'level/': 'Size of activations: mean |x|',
  'update/': 'Next update: mean |Δθ|',
  'curvature/': 'Curvature: mean over coordinates',
  'unclipped/': 'Share of coordinates that are not clipped',
}
_STYLE = """
body{font:14px system-ui,sans-serif;color:#1f2933;max-width:64rem;
margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse}td,th{padding:.2rem .8rem .2rem 0;
text-align:left;border-bottom:1px solid #e4e7eb;vertical-align:top}
td:nth-child(n+3):nth-child(-n+4){white-space:nowrap}
.fails td{background:#fdecea}
"""


def write(
  rows: Sequence[Row], title: str, subtitle: str, path: pathlib.Path
) -> None:
  """Writes the page: verdicts, then curves.

  Args:
    rows: of slopes.judge, over one or two axes.
    title: of the page.
    subtitle: what was run.
    path: of the HTML file.
  """
  judged = [row for row in rows if row.band is not None]
  figures = ''.join(
    io.to_html(
      figure(judged, axis),
      include_plotlyjs=first,
      full_html=False,
      validate=False,
    )
    for axis, first in _axes(judged)
  )
  page = (
    f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
    f'<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>'
    f'<h1>{html.escape(title)}</h1><p>{html.escape(subtitle)}</p>'
    f'{_table(judged)}{figures}</body></html>'
  )
  temporary = path.with_name(f'.{path.name}.{os.getpid()}')
  temporary.write_text(page, 'utf-8')
  os.replace(temporary, path)


def figure(rows: Sequence[Row], axis: str) -> dict[str, Any]:
  """Returns log-log curves of the rows over one axis, a panel a kind."""
  rows = [row for row in rows if row.axis == axis]
  panels = [
    prefix
    for prefix in _PANELS
    if any(row.quantity.startswith(prefix) for row in rows)
  ]
  layout = theme.layout(
    [_PANELS[prefix] for prefix in panels], 320, stacked=True
  )
  layout |= {'showlegend': True, 'legend': {'tracegroupgap': 40}}
  data: list[dict[str, Any]] = []
  for i, prefix in enumerate(panels, 1):
    shown = [row for row in rows if row.quantity.startswith(prefix)]
    looks = theme.styles([row.quantity for row in shown])
    data += [_trace(row, prefix, looks[row.quantity], i) for row in shown]
    layout[theme.axis('x', i)] |= {
      'type': 'log',
      'title': theme.title(axis.capitalize()),
      'tickvals': list(shown[0].sizes),
      'ticktext': [str(size) for size in shown[0].sizes],
    }
    layout[theme.axis('y', i)]['type'] = 'log'
  return {'data': data, 'layout': layout}


def _axes(rows: Sequence[Row]) -> list[tuple[str, bool]]:
  """Returns each axis and whether it is the first."""
  axes = list(dict.fromkeys(row.axis for row in rows))
  return [(axis, i == 0) for i, axis in enumerate(axes)]


def _trace(
  row: Row, prefix: str, look: dict[str, str], panel: int
) -> dict[str, Any]:
  values = np.where(row.values > 0, row.values, np.nan)
  means = np.exp(np.log(values).mean(1))
  verdict = '' if row.passed else ' — fails'
  name = f'{row.quantity.removeprefix(prefix)} {row.slope:+.2f}{verdict}'
  return {
    'type': 'scatter',
    'name': theme.text(name),
    'x': list(row.sizes),
    'y': [v if np.isfinite(v) else None for v in theme.rounded(means)],
    'mode': 'lines+markers',
    'line': {'color': look['color'], 'dash': look['dash'], 'width': 2},
    'marker': {
      'symbol': look['marker'] if row.passed else 'x',
      'size': 8,
    },
    'hovertemplate': '%{y:.3g} at %{x}<extra>%{fullData.name}</extra>',
    'legendgroup': prefix,
    'legendgrouptitle': {'text': prefix.rstrip('/')},
    **theme.panel_axes(panel),
  }


def _table(rows: Sequence[Row]) -> str:
  cells = lambda values, tag: ''.join(
    f'<{tag}>{html.escape(v)}</{tag}>' for v in values
  )
  body = ''.join(
    f'<tr{"" if row.passed else " class=fails"}>'
    + cells(
      (
        f'{row.quantity} over {row.axis}',
        'passes' if row.passed else 'FAILS',
        f'{row.slope:+.2f}',
        str(row.band),
        row.words,
      ),
      'td',
    )
    + '</tr>'
    for row in rows
  )
  head = cells(('quantity', 'verdict', 'slope', 'allowed', 'reason'), 'th')
  return f'<table><tr>{head}</tr>{body}</table>'

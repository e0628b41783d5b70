"""Shared parts of figures: optimizer styles, panels, axes, rounding.

A figure is a dict of plain values: Plotly's `data` and `layout`, and
  csv: names of the columns x, y, error_x, error_y of its download; a column
    without a name is left out.
  titles: key → title of each horizontal axis that a figure over a run's course
    offers; its traces hold their positions in `xs`, key → values, not in x.
  limits: {'switch': name, 'of': option → range of each panel} where, without
    `titles`, the vertical axes depend on a switch.
  xnames: {'switch': name, 'of': option → horizontal axis} likewise.
The `meta` of a trace has `kind` (a column of the CSV), `optimizer` and `seed`
where it has one, `run`, `labels` of its points, `x` of its points if they are
drawn beside it, and `when`: switch → option that shows it.

Text from files is escaped here, since Plotly reads labels as HTML.
"""

from collections.abc import Iterable, Mapping, Sequence
import html
from typing import Any

import numpy as np

from steepest.report import words

# Okabe and Ito's colour-blind-safe colours and three more; dashes and markers
# distinguish optimizers in grey.
_COLORS = (
  '#0072B2',
  '#D55E00',
  '#009E73',
  '#CC79A7',
  '#56B4E9',
  '#E69F00',
  '#7A52A8',
  '#8C6D31',
  '#7F7F7F',
)
_DASHES = ('solid', 'dash', 'dot', 'dashdot', 'longdash', 'longdashdot')
_MARKERS = ('circle', 'square', 'diamond', 'triangle-up', 'cross', 'star')
_FIRST = ('adamw', 'lion', 'sophia')

INK = '#1f2933'
# Style of traces without an optimizer.
PLAIN = {'color': INK, 'dash': 'solid', 'marker': 'circle'}
_MARGIN = {'l': 62, 'r': 12, 't': 34, 'b': 56}
_GAP = 92  # between stacked panels, in pixels
_LINE = {
  'gridcolor': '#e4e7eb',
  'linecolor': '#9aa5b1',
  'zeroline': False,
  'ticks': 'outside',
  'tickcolor': '#9aa5b1',
  'ticklen': 4,
  'automargin': True,
}
_TITLE = {
  'x': 0,
  'yshift': 4,
  'xref': 'paper',
  'yref': 'paper',
  'xanchor': 'left',
  'yanchor': 'bottom',
  'align': 'left',
  'showarrow': False,
  'font': {'size': 14},
}
_FONT = {
  'family': 'system-ui, -apple-system, "Segoe UI", Roboto, sans-serif',
  'size': 13,
  'color': INK,
}


def styles(optimizers: Iterable[str]) -> dict[str, dict[str, str]]:
  """Returns optimizer → color, dash and marker.

  Pass all optimizers of the page, so that each has one style in all figures.
  Up to 54 differ in at least one of the three, up to six in all three.
  """
  names = set(optimizers)
  first = [name for name in _FIRST if name in names]
  taken = {name: _FIRST.index(name) for name in first}
  free = [
    place
    for place in range(len(_COLORS) * len(_DASHES))
    if place not in taken.values()
  ]
  others = sorted(names - set(_FIRST))
  taken |= {name: free[i % len(free)] for i, name in enumerate(others)}
  return {name: _style(place) for name, place in taken.items()}


def _style(place: int) -> dict[str, str]:
  color = place % len(_COLORS)
  # Each round of the colours pairs them with other dashes.
  form = (color + place // len(_COLORS)) % len(_DASHES)
  return {
    'color': _COLORS[color],
    'dash': _DASHES[form],
    'marker': _MARKERS[form],
  }


def names(optimizers: Iterable[str]) -> dict[str, str]:
  """Returns optimizer → its usual spelling, for a figure's buttons."""
  return {name: words.name(name) for name in sorted(set(optimizers))}


def pale(color: str, share: float = 0.2) -> str:
  """Returns a colour '#rrggbb' made transparent."""
  red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
  return f'rgba({red},{green},{blue},{share:g})'


def text(value: object) -> str:
  """Returns `value` escaped for a Plotly label: no markup, no template."""
  return html.escape(str(value)).replace('%{', '% {')


def layout(
  titles: Sequence[str],
  height: int,
  x: Mapping[str, Any],
  y: Mapping[str, Any],
  narrowest: int = 300,
  columns: int = 3,
) -> dict[str, Any]:
  """Returns a layout with one panel per title, stacked.

  page.js puts panels side by side where there is room, using `meta`.

  Args:
    titles: of the panels; their annotations come first.
    height: of a panel's plot area, in pixels.
    x: Plotly's keys for all horizontal axes; `title` is a text.
    y: likewise for the vertical ones.
    narrowest: least width of a panel beside another, in pixels.
    columns: most panels side by side.
  """
  inner = len(titles) * height + (len(titles) - 1) * _GAP
  figure: dict[str, Any] = {
    'height': inner + _MARGIN['t'] + _MARGIN['b'],
    'margin': dict(_MARGIN),
    'font': _FONT,
    'paper_bgcolor': '#ffffff',
    'plot_bgcolor': '#ffffff',
    'hovermode': 'closest',
    'hoverlabel': {'font': {'size': 12}, 'namelength': -1, 'align': 'left'},
    'showlegend': False,
    'annotations': [],
    'meta': {
      'panels': len(titles),
      'height': height,
      'narrowest': narrowest,
      'columns': columns,
      # page.js wraps titles that are wider than their panels.
      'titles': [text(name) for name in titles],
    },
  }
  for i, name in enumerate(titles):
    top = 1 - i * (height + _GAP) / inner
    bottom = digits(max(0.0, top - height / inner))
    at = panel(i + 1)
    for letter, keys, domain, anchor in (
      ('x', x, [0.0, 1.0], at['yaxis']),
      ('y', y, [bottom, digits(top)], at['xaxis']),
    ):
      made = {**_LINE, 'domain': domain, 'anchor': anchor, **keys}
      if 'title' in keys:
        made['title'] = title(keys['title'])
      figure[axis(letter, i + 1)] = made
    figure['annotations'].append(
      {**_TITLE, 'text': f'<b>{text(name)}</b>', 'y': digits(top)}
    )
  return figure


def title(name: str) -> dict[str, Any]:
  """Returns the title of an axis."""
  return {'text': name, 'font': {'size': 13}, 'standoff': 8}


def chance(
  x: Sequence[float | None], y: Sequence[float | None], number: int
) -> dict[str, Any]:
  """Returns the dotted line of chance, broken at None."""
  return {
    'type': 'scatter',
    'mode': 'lines',
    'name': 'chance',
    'legendgroup': 'chance',
    'x': list(x),
    'y': list(y),
    'line': {'color': INK, 'width': 2, 'dash': 'dot'},
    'hoverinfo': 'skip',
    'meta': {'kind': 'chance'},
    **panel(number),
  }


def log_ticks(values: Iterable[float]) -> dict[str, Any]:
  """Returns a logarithmic axis with labels at 1, and 3 or more, times 10ⁿ."""
  known = [v for v in values if v > 0 and np.isfinite(v)] or [1.0]
  low, high = np.log10(min(known)), np.log10(max(known))
  steps = [1, 3] if high - low < 3 else [1]
  if high - low < 1:
    steps = [1, 2, 3, 5]
  ticks = [
    digits(step * 10.0**exponent)
    for exponent in range(int(np.floor(low)), int(np.ceil(high)) + 1)
    for step in steps
  ]
  return {
    'type': 'log',
    'tickvals': ticks,
    'ticktext': [words.rate(tick) for tick in ticks],
  }


def axis(letter: str, number: int) -> str:
  """Returns the layout key of an axis of panel 1, 2, …"""
  return f'{letter}axis' if number == 1 else f'{letter}axis{number}'


def panel(number: int) -> dict[str, str]:
  """Returns the axes of a trace in panel 1, 2, …"""
  suffix = '' if number == 1 else str(number)
  return {'xaxis': f'x{suffix}', 'yaxis': f'y{suffix}'}


def trace(
  optimizer: str,
  number: int,
  x: Iterable[float],
  y: Iterable[float],
  kind: str,
  look: Mapping[str, str],
  meta: Mapping[str, Any] | None = None,
  errors: Mapping[str, Iterable[float]] | None = None,
  size: int = 7,
  **style: Any,
) -> dict[str, Any]:
  """Returns a trace of an optimizer in panel 1, 2, …, its numbers rounded.

  Args:
    optimizer: optimizer.name.
    number: of the panel.
    x: positions.
    y: heights.
    kind: see above.
    look: from `styles`: color, dash and marker.
    meta: further keys of `meta`.
    errors: error_x, error_y: symmetric error bars.
    size: of the marks.
    style: further Plotly keys.
  """
  bars = {
    key: {
      'type': 'data',
      'array': rounded(values),
      'thickness': 1.3,
      'width': 3,
      'color': look['color'],
    }
    for key, values in (errors or {}).items()
  }
  return {
    'type': 'scatter',
    'mode': 'markers',
    'name': text(words.name(optimizer)),
    'legendgroup': optimizer,
    'x': rounded(x),
    'y': rounded(y),
    'line': {'color': look['color'], 'width': 2.0, 'dash': look['dash']},
    'marker': {'symbol': look['marker'], 'size': size, 'color': look['color']},
    'meta': {'kind': kind, 'optimizer': optimizer, **(meta or {})},
    **bars,
    **panel(number),
    **style,
  }


def digits(value: float) -> float:
  """Rounds to six significant digits: subpixel, a third of the bytes."""
  return float(f'{value:.6g}')


def rounded(values: Iterable[float]) -> list[float | None]:
  """Rounds each to six significant digits; None for non-finite values."""
  return [digits(float(v)) if np.isfinite(v) else None for v in values]

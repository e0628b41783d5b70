"""What the figures share: looks of optimizers, panels, axes, rounding.

A figure is a dict of plain values: `data` and `layout` of Plotly, and
  csv: names of the columns x, y, error_x, error_y of its download; a column
    without a name is left out.
  titles: key → title of the horizontal axes that a figure over a run's course
    can have; its traces hold their positions in `xs`, key → values, not in x.
  types, names: option of the switch `quantity` → type and title of the vertical
    axes.
  limits: {'switch': name, 'of': option → range of each panel, 'types', 'names'}
    where the vertical axes depend on a switch otherwise.
The `meta` of a trace has `kind` (a column of the CSV), `optimizer` and `seed`
where it is of one, `run`, `labels` of its points, and `when`: switch → option
under which it is shown.

Text out of files is escaped here, since Plotly reads its labels as HTML.
"""

from collections.abc import Iterable, Mapping, Sequence
import html
from typing import Any

import numpy as np

from steepest.report import words

# Okabe and Ito's colours, told apart by the colour-blind, and three more;
# dashes, markers and patterns tell the same in grey.
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
_PATTERNS = ('', '/', '.', 'x', '-', '+')
_FIRST = ('adamw', 'lion', 'sophia')

INK = '#1f2933'
_MARGIN = {'l': 62, 'r': 12, 't': 34, 'b': 56}
_GAP = 92  # between panels that lie below one another, in pixels
_LINE = {
  'gridcolor': '#e4e7eb',
  'linecolor': '#9aa5b1',
  'zeroline': False,
  'ticks': 'outside',
  'tickcolor': '#9aa5b1',
  'ticklen': 4,
  'automargin': True,
}
_FONT = {
  'family': 'system-ui, -apple-system, "Segoe UI", Roboto, sans-serif',
  'size': 13,
  'color': INK,
}


def styles(optimizers: Iterable[str]) -> dict[str, dict[str, str]]:
  """Returns optimizer → color, dash, marker and pattern.

  Pass all optimizers of the page, so that each looks the same in all figures.
  Up to 54 differ in at least one of the four, up to six in each.
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
  # Each round of the colours takes other dashes for them.
  form = (color + place // len(_COLORS)) % len(_DASHES)
  return {
    'color': _COLORS[color],
    'dash': _DASHES[form],
    'marker': _MARKERS[form],
    'pattern': _PATTERNS[form],
  }


def names(optimizers: Iterable[str]) -> dict[str, str]:
  """Returns optimizer → its usual spelling, for a figure's buttons."""
  return {name: words.name(name) for name in sorted(set(optimizers))}


def pale(color: str, share: float = 0.2) -> str:
  """Returns a colour '#rrggbb' that lets the paper shine through."""
  red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
  return f'rgba({red},{green},{blue},{share:g})'


def text(value: object) -> str:
  """Returns `value` for a Plotly label: neither markup nor a template."""
  return html.escape(str(value)).replace('%{', '% {')


def layout(
  titles: Sequence[str], height: int, narrowest: int = 300, columns: int = 3
) -> dict[str, Any]:
  """Returns a layout with a panel for each title, below one another.

  page.js puts panels side by side where there is room, by `meta`.

  Args:
    titles: of the panels; their annotations come first.
    height: of a panel's plot area, in pixels.
    narrowest: width of a panel beside another, in pixels.
    columns: at most this many panels stand side by side.
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
      # Lines are broken where a panel is narrower than its title.
      'titles': [text(name) for name in titles],
    },
  }
  for i, name in enumerate(titles):
    top = 1 - i * (height + _GAP) / inner
    at = panel(i + 1)
    figure[axis('x', i + 1)] = {
      **_LINE,
      'domain': [0.0, 1.0],
      'anchor': at['yaxis'],
    }
    figure[axis('y', i + 1)] = {
      **_LINE,
      'domain': [digits(max(0.0, top - height / inner)), digits(top)],
      'anchor': at['xaxis'],
    }
    figure['annotations'].append(
      {
        'text': f'<b>{text(name)}</b>',
        'x': 0,
        'y': digits(top),
        'yshift': 4,
        'xref': 'paper',
        'yref': 'paper',
        'xanchor': 'left',
        'yanchor': 'bottom',
        'align': 'left',
        'showarrow': False,
        'font': {'size': 14},
      }
    )
  return figure


def title(name: str) -> dict[str, Any]:
  """Returns the title of an axis."""
  return {'text': name, 'font': {'size': 13}, 'standoff': 8}


def axis(letter: str, number: int) -> str:
  """Returns the layout's key of an axis of panel 1, 2, …"""
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
  meta: Mapping[str, Any],
  **style: Any,
) -> dict[str, Any]:
  """Returns a trace of an optimizer in panel 1, 2, …, its numbers rounded.

  Args:
    optimizer: optimizer.name.
    number: of the panel.
    x: positions.
    y: heights.
    meta: `kind` and `when`, see above.
    style: further keys of Plotly.
  """
  return {
    'type': 'scatter',
    'mode': 'markers',
    'name': text(words.name(optimizer)),
    'legendgroup': optimizer,
    'x': rounded(x),
    'y': rounded(y),
    'meta': {'optimizer': optimizer, **meta},
    **panel(number),
    **style,
  }


def marker(look: Mapping[str, str], size: int) -> dict[str, Any]:
  """Returns the marker of an optimizer."""
  return {'symbol': look['marker'], 'size': size, 'color': look['color']}


def error(values: Iterable[float], color: str) -> dict[str, Any]:
  """Returns error bars of equal length both ways."""
  return {
    'type': 'data',
    'array': rounded(values),
    'thickness': 1.3,
    'width': 3,
    'color': color,
  }


def line(look: Mapping[str, str], width: float = 2.0) -> dict[str, Any]:
  """Returns the line of an optimizer."""
  return {'color': look['color'], 'width': width, 'dash': look['dash']}


def digits(value: float) -> float:
  """Returns six significant digits: less than a pixel, a third of the bytes."""
  return float(f'{value:.6g}')


def rounded(values: Iterable[float]) -> list[float | None]:
  """Returns six significant digits of each; None for what is not finite."""
  return [digits(float(v)) if np.isfinite(v) else None for v in values]

"""What the report's figures share: look, panels, axes.

Text out of configs is escaped here, since Plotly reads its labels as HTML.
"""

from collections.abc import Sequence
import html
from typing import Any

import numpy as np

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
_KNOWN = ('adamw', 'lion', 'sophia')

INK = '#1f2933'
# Between panels that lie below one another, in pixels.
PANEL_GAP = 92
_MARGIN = {'l': 62, 'r': 12, 't': 34, 'b': 56}
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


def styles(optimizers: Sequence[str]) -> dict[str, dict[str, str]]:
  """Returns optimizer -> color, dash, marker and pattern.

  Up to 54 optimizers differ in at least one of them, up to six in each.
  """
  names = [n for n in _KNOWN if n in optimizers]
  taken = [_KNOWN.index(n) for n in names]
  others = sorted(set(optimizers) - set(_KNOWN))
  count = len(_COLORS) * len(_DASHES)
  free = [i for i in range(count) if i not in taken]
  places = dict(zip(names, taken))
  places |= {name: free[i % len(free)] for i, name in enumerate(others)}
  return {name: _style(place) for name, place in places.items()}


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


def text(value: object) -> str:
  """Returns `value` for a Plotly label: neither markup nor a template."""
  return html.escape(str(value)).replace('%{', '% {')


def layout(
  titles: Sequence[str], height: int, stacked: bool = False
) -> dict[str, Any]:
  """Returns a layout with a panel per title, below one another.

  Where there is room the page puts them side by side; it reads the number of
  panels and their height from `meta`.

  Args:
    titles: of the panels; their annotations come first.
    height: of a panel's plot area, in pixels.
    stacked: whether the panels stay below one another.
  """
  gap = PANEL_GAP
  inner = len(titles) * height + (len(titles) - 1) * gap
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
    'meta': {'panels': len(titles), 'height': height, 'stacked': stacked},
  }
  for i, name in enumerate(titles):
    top = 1 - i * (height + gap) / inner
    panel = panel_axes(i + 1)
    figure[axis('x', i + 1)] = {
      **_LINE,
      'domain': [0.0, 1.0],
      'anchor': panel['yaxis'],
    }
    figure[axis('y', i + 1)] = {
      **_LINE,
      'domain': [digits(max(0.0, top - height / inner)), digits(top)],
      'anchor': panel['xaxis'],
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
        'showarrow': False,
        'font': {'size': 14},
      }
    )
  return figure


def title(words: str) -> dict[str, Any]:
  """Returns an axis title."""
  return {'text': words, 'font': {'size': 13}, 'standoff': 8}


def axis(letter: str, panel: int) -> str:
  """Returns the layout's key of an axis of panel 1, 2, …"""
  return f'{letter}axis' if panel == 1 else f'{letter}axis{panel}'


def panel_axes(panel: int) -> dict[str, str]:
  """Returns the axes of a trace in panel 1, 2, …"""
  suffix = '' if panel == 1 else str(panel)
  return {'xaxis': f'x{suffix}', 'yaxis': f'y{suffix}'}


def digits(value: float) -> float:
  """Six significant digits: less than a pixel, a third of the bytes."""
  return float(f'{value:.6g}')


def rounded(values: np.ndarray) -> list[float]:
  """Returns `values` with six significant digits."""
  return [digits(float(value)) for value in values]

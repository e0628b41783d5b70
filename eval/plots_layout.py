"""What the report's figures share: look, panels, axes.

Text out of configs is escaped here, since Plotly reads its labels as HTML.
"""

from collections.abc import Sequence
import html
from typing import Any

import numpy as np

# Okabe and Ito's colours, told apart by the colour-blind; dashes, markers and
# patterns tell the same in grey.
_COLORS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#56B4E9', '#E69F00')
_DASHES = ('solid', 'dash', 'dot', 'dashdot', 'longdash', 'longdashdot')
_MARKERS = ('circle', 'square', 'diamond', 'triangle-up', 'cross', 'star')
_PATTERNS = ('', '/', '.', 'x', '-', '+')
_KNOWN = ('adamw', 'lion', 'sophia')

INK = '#1f2933'
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
  """Returns optimizer -> color, dash, marker and pattern."""
  names = [n for n in _KNOWN if n in optimizers]
  taken = [_KNOWN.index(n) for n in names]
  free = [i for i in range(len(_COLORS)) if i not in taken]
  places = dict(zip(names, taken))
  for i, other in enumerate(sorted(set(optimizers) - set(_KNOWN))):
    places[other] = free[i % len(free)] if free else i % len(_COLORS)
  return {
    name: {
      'color': _COLORS[place],
      'dash': _DASHES[place],
      'marker': _MARKERS[place],
      'pattern': _PATTERNS[place],
    }
    for name, place in places.items()
  }


def text(value: object) -> str:
  """Returns `value` for a Plotly label: neither markup nor a template."""
  return html.escape(str(value)).replace('%{', '% {')


def layout(
  titles: Sequence[str], height: int, stacked: bool = False
) -> dict[str, Any]:
  """Returns a layout with a panel per title.

  Args:
    titles: of the panels.
    height: of a row of panels, in pixels.
    stacked: below one another instead of side by side.
  """
  rows = len(titles) if stacked else 1
  figure: dict[str, Any] = {
    'height': height * rows,
    'margin': {'l': 62, 'r': 12, 't': 64, 'b': 56},
    'font': _FONT,
    'paper_bgcolor': '#ffffff',
    'plot_bgcolor': '#ffffff',
    'hovermode': 'closest',
    'hoverlabel': {'font': {'size': 12}, 'namelength': -1},
    'showlegend': False,
    'legend': {
      'orientation': 'h',
      'x': 0,
      'xanchor': 'left',
      'y': 1,
      'yref': 'container',
      'yanchor': 'top',
    },
    'annotations': [],
  }
  gap = 0.3 / rows if stacked else 0.09
  size = (1 - gap * (len(titles) - 1)) / len(titles)
  for i, name in enumerate(titles):
    # The first panel is the left or the upper one.
    start = i * (size + gap)
    x = [0.0, 1.0] if stacked else [start, min(1.0, start + size)]
    y = [max(0.0, 1 - start - size), 1 - start] if stacked else [0.0, 1.0]
    panel = panel_axes(i + 1)
    figure[axis('x', i + 1)] = {
      **_LINE,
      'domain': [digits(v) for v in x],
      'anchor': panel['yaxis'],
    }
    figure[axis('y', i + 1)] = {
      **_LINE,
      'domain': [digits(v) for v in y],
      'anchor': panel['xaxis'],
    }
    figure['annotations'].append(
      {
        'text': f'<b>{text(name)}</b>',
        'x': digits(x[0]),
        'y': digits(y[1]),
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

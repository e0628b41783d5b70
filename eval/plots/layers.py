"""What a run logs of each layer: norms and sizes over the model's depth."""

from collections.abc import Sequence
import re
from typing import Any

import numpy as np

from steepest.eval.comparing import formatting
from steepest.eval.comparing.cells import Cell
from steepest.eval.comparing.comparison import Comparison
from steepest.eval.plots import theme, training

_INPUTS = ('embedding', 'positions')


def list_quantities(comparison: Comparison) -> list[tuple[str, str]]:
  """Returns (key, name) of what finished runs have logged of layers."""
  keys = {
    key.partition(training.LAYER)[0]
    for group in comparison.groups
    for cell in group.cells
    for run in cell.runs
    for row in run.rows[-20:]
    for key in row
    if training.LAYER in key
  }
  return [
    (key, training.quantity_name(key))
    for key in training.QUANTITIES
    if key in keys
  ]


def layer_figure(comparison: Comparison) -> dict[str, Any] | None:
  """Draws each layer's average over the run, a line an optimizer.

  The mean of the runs' averages with their standard deviation over seeds.

  Returns:
    Besides data and layout `limits`: the switch `layer_quantity`, and for each
    of its options the type, name and ranges of the panels' vertical axes. None
    where nothing was logged.
  """
  quantities = list_quantities(comparison)
  groups = [
    g
    for g in comparison.groups
    if any(_names(cell, key) for cell in g.cells for key, _ in quantities)
  ]
  if not groups:
    return None
  layout = theme.layout([formatting.group_name(g) for g in groups], 260)
  look = theme.styles([c.optimizer for g in groups for c in g.cells])
  data: list[dict[str, Any]] = []
  ranges: dict[str, list[list[float]]] = {key: [] for key, _ in quantities}
  for panel, group in enumerate(groups, 1):
    names = in_order({n for c in group.cells for n in _names(c, 'update_rms')})
    layout[theme.axis('x', panel)] |= {
      'tickvals': list(range(len(names))),
      'ticktext': [theme.text(name.replace('_', ' ')) for name in names],
      'range': [-0.4, len(names) - 0.6],
      'title': theme.title('Layer'),
    }
    layout[theme.axis('y', panel)] |= {'title': theme.title(quantities[0][1])}
    for key, name in quantities:
      traces = [
        trace
        for cell in group.cells
        if (trace := _trace(cell, key, name, names, look[cell.optimizer]))
      ]
      ranges[key].append(_range(traces, training.is_log(key)))
      data += [{**trace, **theme.panel_axes(panel)} for trace in traces]
  return {
    'data': data,
    'layout': layout,
    'limits': {
      'switch': 'layer_quantity',
      'of': ranges,
      'types': {
        k: 'log' if training.is_log(k) else 'linear' for k, _ in quantities
      },
      'names': dict(quantities),
    },
    'csv': {'y': 'average over the run', 'error_y': 'sd over seeds'},
  }


def in_order(names: set[str]) -> list[str]:
  """Returns layers from the model's input to its output."""

  def place(name: str) -> tuple[int, int, str]:
    number = re.search(r'_(\d+)$', name)
    if number:
      return 1, int(number[1]), name
    return (0 if name in _INPUTS else 2), 0, name

  return sorted(names, key=place)


def averages(cell: Cell, quantity: str, layer: str) -> list[float]:
  """Returns each run's mean over its logged rows, of those that have any."""
  key = f'{quantity}{training.LAYER}{layer}'
  held = [[row[key] for row in run.rows if key in row] for run in cell.runs]
  return [float(np.mean(values)) for values in held if values]


def _names(cell: Cell, quantity: str) -> set[str]:
  return {
    layer
    for run in cell.runs
    for row in run.rows[-20:]
    for key in row
    for base, _, layer in [key.partition(training.LAYER)]
    if layer and base == quantity
  }


def _trace(
  cell: Cell,
  quantity: str,
  name: str,
  layers: Sequence[str],
  look: dict[str, str],
) -> dict[str, Any] | None:
  found = [averages(cell, quantity, layer) for layer in layers]
  places = [i for i, values in enumerate(found) if values]
  if not places:
    return None
  shown = theme.text(formatting.name(cell.optimizer))
  sd = [np.std(found[i], ddof=1) if len(found[i]) > 1 else 0.0 for i in places]
  return {
    'type': 'scatter',
    'mode': 'lines+markers',
    'name': shown,
    'legendgroup': cell.optimizer,
    'x': places,
    'y': theme.rounded(np.array([np.mean(found[i]) for i in places])),
    'error_y': {
      'type': 'data',
      'array': theme.rounded(np.array(sd)),
      'thickness': 1,
      'width': 3,
    },
    'line': {'color': look['color'], 'width': 1.6, 'dash': look['dash']},
    'marker': {'symbol': look['marker'], 'size': 7, 'color': look['color']},
    'hovertemplate': (
      f'%{{x}}: {theme.text(name)} %{{y:.3~g}}<extra>{shown}</extra>'
    ),
    'meta': {
      'kind': 'layer',
      'quantity': quantity,
      'optimizer': cell.optimizer,
      'labels': [layers[i] for i in places],
      'when': {'layer_quantity': quantity},
    },
  }


def _range(traces: Sequence[dict[str, Any]], log: bool) -> list[float]:
  """Returns the vertical range in which all traces are seen."""
  shown = [y for trace in traces for y in trace['y'] if y > 0 or not log]
  values = np.array(shown or [1.0])
  if log:
    values = np.log10(values)
    room = 0.08 * float(np.ptp(values)) or 0.1
    return theme.rounded(np.array([values.min() - room, values.max() + room]))
  return [0.0, theme.digits(1.08 * float(values.max()) or 1.0)]

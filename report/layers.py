"""What optimizers log of each layer: norms and sizes over the model's depth."""

from collections.abc import Iterable, Mapping
import re
from typing import Any

import numpy as np
import pandas as pd

from steepest.report import curves, tables, theme, words
from steepest.report.section import Figure, Section, Switch


def sections(comparison: tables.Comparison) -> list[Section]:
  """Returns the section of each layer's average over the run."""
  points = comparison.tables.points
  keys = [key for key in curves.logged(points) if curves.LAYER in key]
  runs = comparison.compared
  runs = runs[runs['status'] == 'finished']
  means = points[['run', *keys]].groupby('run').mean().dropna(how='all')
  means = runs.join(means, on='run', how='inner')
  if not keys or not len(means):
    return []
  looks = theme.styles(comparison.tables.runs['optimizer'])
  figure = _figure(means, keys, looks)
  return [Section('layers', 'From layer to layer', [figure])]


def _figure(
  means: pd.DataFrame, keys: list[str], looks: Mapping[str, Mapping[str, str]]
) -> Figure:
  """Draws averages over the run, a panel a group.

  Args:
    means: a row a run: group, optimizer and the average of each key.
    keys: 'quantity/layer/name'.
    looks: of theme.styles.
  """
  quantities = list(
    dict.fromkeys(key.partition(curves.LAYER)[0] for key in keys)
  )
  groups = list(dict.fromkeys(means['group']))
  layout = theme.layout([words.named(g) for g in groups], 260)
  data: list[dict[str, Any]] = []
  ranges: dict[str, list[list[float]]] = {key: [] for key in quantities}
  for panel, group in enumerate(groups, 1):
    of_group = means[means['group'] == group]
    layers = _in_order(
      key.partition(curves.LAYER)[2]
      for key in keys
      if of_group[key].notna().any()
    )
    layout[theme.axis('x', panel)] |= {
      'tickvals': list(range(len(layers))),
      'ticktext': [theme.text(name.replace('_', ' ')) for name in layers],
      'range': [-0.4, len(layers) - 0.6],
      'title': theme.title('Layer'),
    }
    name = curves.quantity(quantities[0])
    layout[theme.axis('y', panel)]['title'] = theme.title(name)
    for quantity in quantities:
      columns = [f'{quantity}{curves.LAYER}{layer}' for layer in layers]
      of_quantity = of_group.reindex(columns=columns).set_axis(layers, axis=1)
      log = curves.scale_type(quantity) == 'log'
      ranges[quantity].append(_range(of_quantity.to_numpy(float), log))
      for optimizer, frame in of_quantity.groupby(of_group['optimizer']):
        look = looks[str(optimizer)]
        data.append(_line(frame, quantity, str(optimizer), look, panel))
  names = {quantity: curves.quantity(quantity) for quantity in quantities}
  return Figure(
    'layers',
    'Gradient norm and update size over the depth',
    'Averages over the logged steps of finished runs, from the model’s input '
    'to its output: mean over seeds ± standard deviation.',
    {
      'data': data,
      'layout': layout,
      'limits': {
        'switch': 'layer_quantity',
        'of': ranges,
        'types': {key: curves.scale_type(key) for key in quantities},
        'names': names,
      },
      'csv': {'y': 'average over the run', 'error_y': 'sd over seeds'},
    },
    [Switch('layer_quantity', 'Show', names)],
    theme.names(means['optimizer']),
  )


def _line(
  frame: pd.DataFrame,
  quantity: str,
  optimizer: str,
  look: Mapping[str, str],
  panel: int,
) -> dict[str, Any]:
  """Returns the line of an optimizer: a row a run, a column a layer."""
  mean, sd = frame.mean(), frame.std().fillna(0.0)
  known = mean.notna().to_numpy()
  return theme.trace(
    optimizer,
    panel,
    np.flatnonzero(known),
    mean[known],
    {
      'kind': quantity,
      'labels': list(mean.index[known]),
      'when': {'layer_quantity': quantity},
    },
    mode='lines+markers',
    error_y=theme.error(sd[known], look['color']),
    line=theme.line(look, 1.6),
    marker=theme.marker(look, 6),
    hovertemplate='%{x}: %{y:.3~g}<extra>%{fullData.name}</extra>',
  )


def _in_order(layers: Iterable[str]) -> list[str]:
  """Returns layers from the model's input to its output."""

  def place(name: str) -> tuple[int, int, str]:
    number = re.search(r'_(\d+)$', name)
    if number:
      return 1, int(number[1]), name
    return (0 if name in ('embedding', 'positions') else 2), 0, name

  return sorted(set(layers), key=place)


def _range(values: np.ndarray, log: bool) -> list[float]:
  """Returns the vertical range in which all values are seen."""
  shown = values[np.isfinite(values) & (values > 0 if log else True)]
  if not shown.size:
    return [0.0, 1.0]
  if not log:
    return [0.0, theme.digits(1.08 * float(shown.max()) or 1.0)]
  low, high = np.log10(shown.min()), np.log10(shown.max())
  room = 0.08 * (high - low) or 0.1
  return [theme.digits(low - room), theme.digits(high + room)]

"""What a run logs beside its losses: norms and sizes over its course."""

from typing import Any

import numpy as np

from steepest.eval.comparing import formatting
from steepest.eval.comparing.comparison import Comparison
from steepest.eval.plots import course, theme

# Quantity -> its name and whether it is drawn on a logarithmic axis. Those
# logged by role have its name behind a slash.
QUANTITIES = {
  'grad_norm': ('Gradient norm', True),
  'update_rms': ('Update size', True),
  'unclipped_fraction': ('Unclipped fraction', False),
  'param_norm': ('Parameter norm', True),
  'lr': ('Learning rate', False),
}
# Between a quantity and a layer in what is logged (optimizers/parts.py); layers
# have a figure of their own.
LAYER = '/layer/'
# Points of a curve; fewer than of a loss, as there are more of them.
_POINTS = 100


def list_quantities(comparison: Comparison) -> list[tuple[str, str]]:
  """Returns (key, name) of what any drawn run has logged."""
  keys = {
    key
    for group in comparison.groups
    for run in course.shown_runs(group)
    for row in run.rows[-20:]
    for key in row
    if key.partition('/')[0] in QUANTITIES and LAYER not in key
  }
  order = list(QUANTITIES)
  return [
    (key, quantity_name(key))
    for key in sorted(
      keys,
      key=lambda k: (order.index(k.partition('/')[0]), k.partition('/')[2]),
    )
  ]


def quantity_name(key: str) -> str:
  """Returns such as 'Update size, hidden'."""
  base, _, part = key.partition('/')
  name = QUANTITIES[base][0]
  return f'{name}, {part}' if part else name


def training_figure(comparison: Comparison) -> dict[str, Any] | None:
  """Draws every logged quantity, of which the page shows one at a time.

  Returns:
    Besides data and layout `titles` of the horizontal axes and `types`:
    quantity -> type of the vertical axis. None where nothing was logged.
  """
  courses = course.Courses(comparison.groups)
  quantities = list_quantities(comparison)
  if not courses.axes or not quantities:
    return None
  layout = theme.layout([formatting.group_name(g) for g in courses.groups], 260)
  for panel in range(1, len(courses.groups) + 1):
    layout[theme.axis('y', panel)]['title'] = theme.title(quantities[0][1])
  data = []
  for panel, group in enumerate(courses.groups, 1):
    for run in course.shown_runs(group):
      for key, name in quantities:
        rows, values = course.values(run, key)
        # What is zero has no place on a logarithmic axis.
        values = np.where(values > 0, values, np.nan) if is_log(key) else values
        kept = np.isfinite(values)
        rows = [row for row, keep in zip(rows, kept) if keep]
        if not rows:
          continue
        trace = courses.trace(
          run,
          rows,
          values[kept],
          panel,
          {'quantity': key},
          points=_POINTS,
          hovertemplate=courses.hover(f'{theme.text(name)}: %{{y:.4~g}}'),
        )
        trace['meta']['quantity'] = key
        trace['line'] = {**trace['line'], 'width': 1.4}
        data.append(trace)
  return {
    'data': data,
    'layout': layout,
    'titles': courses.title(layout),
    'types': {k: 'log' if is_log(k) else 'linear' for k, _ in quantities},
    'names': {key: name for key, name in quantities},
    'csv': {'y': 'value'},
  }


def is_log(key: str) -> bool:
  """Returns whether a quantity is drawn on a logarithmic axis."""
  return QUANTITIES[key.partition('/')[0]][1]

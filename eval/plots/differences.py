"""Paired differences with their intervals: optimizers, and values of axes."""

from collections.abc import Sequence
from typing import Any

from steepest.eval.comparing import (
  costs,
  formatting,
  groups as groups_lib,
  statistics,
  verdicts,
)
from steepest.eval.comparing.comparison import Comparison, Group
from steepest.eval.plots import theme

# Pairs up to which all are drawn; beyond, those with the baseline.
_MOST = 10


def difference_figure(comparison: Comparison) -> dict[str, Any] | None:
  """Draws differences of the final validation loss, a panel per group."""
  groups = [g for g in comparison.groups if 'eval_loss' in g.pairs]
  if not groups:
    return None
  panels = []
  for group in groups:
    rows = [
      (
        f'{formatting.name(pair.first)} − {formatting.name(pair.second)}',
        pair.difference,
        None,
      )
      for pair in _shown(group)
    ]
    panels.append((formatting.group_name(group), rows))
  title = 'Difference of loss (nats per token)'
  return _forest(panels, title, 'difference of validation loss')


def effect_figure(comparison: Comparison) -> dict[str, Any] | None:
  """Draws what other values of the axes change, a panel per model."""
  panels: dict[str, list[tuple[str, statistics.Difference, str | None]]] = {}
  for found in comparison.effects:
    if found.loss is None:
      continue
    others = groups_lib.label(found.others)
    model = formatting.model_name(found.architecture, others)
    axis = found.axis.replace('_', ' ')
    sides = map(formatting.axis_value, (found.reference, found.value))
    title = f'{model}: {axis} {" → ".join(sides)}'
    name = formatting.name(found.optimizer)
    panels.setdefault(title, []).append((name, found.loss, found.optimizer))
  if not panels:
    return None
  title = 'Change of loss (nats per token)'
  return _forest(list(panels.items()), title, 'change of validation loss')


def _shown(group: Group) -> Sequence[verdicts.Pair]:
  pairs = group.pairs['eval_loss']
  base = costs.baseline([cell.optimizer for cell in group.cells])
  if len(pairs) <= _MOST or base is None:
    return pairs
  return [pair for pair in pairs if base in (pair.first, pair.second)]


def _forest(
  panels: Sequence[
    tuple[str, Sequence[tuple[str, statistics.Difference, str | None]]]
  ],
  title: str,
  column: str,
) -> dict[str, Any]:
  """Returns a row a difference, with its interval around it.

  Args:
    panels: their titles and rows: name, difference and optimizer, if of one.
    title: of the horizontal axes.
    column: of the CSV.
  """
  most = max(len(rows) for _, rows in panels)
  layout = theme.layout([name for name, _ in panels], 26 * most + 30)
  longest = max(len(name) for _, rows in panels for name, _, _ in rows)
  layout['margin']['l'] = 34 + 7 * min(longest, 26)
  look = theme.styles([o for _, rows in panels for _, _, o in rows if o])
  data = []
  for panel, (_, rows) in enumerate(panels, 1):
    layout[theme.axis('x', panel)] |= {
      'title': theme.title(title),
      'zeroline': True,
      'rangemode': 'tozero',
      'zerolinecolor': theme.INK,
      'zerolinewidth': 1.5,
    }
    layout[theme.axis('y', panel)] |= {
      'tickvals': list(range(len(rows))),
      'ticktext': [theme.text(name) for name, _, _ in rows],
      'range': [most - 0.4, -0.6],
      'showgrid': False,
      'fixedrange': True,
    }
    data += [
      _row(i, name, d, look[optimizer] if optimizer else None, optimizer, panel)
      for i, (name, d, optimizer) in enumerate(rows)
    ]
  return {
    'data': data,
    'layout': layout,
    'csv': {
      'x': column,
      'y': None,
      'error_x': 'half of the interval of 95 %',
    },
  }


def _row(
  place: int,
  name: str,
  d: statistics.Difference,
  look: dict[str, str] | None,
  optimizer: str | None,
  panel: int,
) -> dict[str, Any]:
  color = theme.INK if look is None else look['color']
  reach = None if d.high is None else theme.digits(d.high - d.value)
  counts = bool(d.exceeds)
  # Full where the difference counts, open where it does not.
  symbol = 'circle' if look is None else look['marker']
  p = formatting.p_value(d.p_holm)
  return {
    'type': 'scatter',
    'mode': 'markers',
    'name': theme.text(name),
    'x': [theme.digits(d.value)],
    'y': [place],
    'error_x': {
      'type': 'data',
      'array': [reach],
      'thickness': 1.8,
      'width': 4,
      'color': color,
    },
    'marker': {
      'symbol': symbol if counts else f'{symbol}-open',
      'size': 10,
      'color': color,
      'line': {'width': 2, 'color': color},
    },
    'hovertemplate': '%{x:+.4f}'
    + ('' if reach is None else ' ± %{error_x.array:.4f}')
    + f', corrected p {p}<extra>{theme.text(name)}</extra>',
    'meta': {
      'kind': 'counts' if counts else 'does not count',
      **({'optimizer': optimizer} if optimizer else {}),
    },
    **theme.panel_axes(panel),
  }

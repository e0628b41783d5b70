"""How much worse the loss is at a quarter, half, twice and four times."""

from typing import Any

from steepest.eval.comparing import formatting, sensitivity
from steepest.eval.comparing.comparison import Comparison
from steepest.eval.plots import theme

_LABELS = {0.25: '¼ ×', 0.5: '½ ×', 2.0: '2 ×', 4.0: '4 ×'}


def sensitivity_figure(comparison: Comparison) -> dict[str, Any] | None:
  """Draws the increase of the proxy's loss, a panel a model and quantity."""
  panels: dict[tuple[str, str, str], list[sensitivity.Sensitivity]] = {}
  for found in comparison.sensitivities:
    if any(off.increase is not None for off in found.offs):
      key = (found.architecture, found.axes, found.name)
      panels.setdefault(key, []).append(found)
  if not panels:
    return None
  layout = theme.layout(
    [
      f'{formatting.model_name(architecture, axes)}: '
      + ('learning rate' if name == 'lr' else name)
      for architecture, axes, name in panels
    ],
    250,
  )
  layout |= {'barmode': 'group', 'bargap': 0.25, 'bargroupgap': 0.08}
  look = theme.styles([f.optimizer for f in comparison.sensitivities])
  data: list[dict[str, Any]] = []
  for panel, group in enumerate(panels.values(), 1):
    known = [
      o.increase for f in group for o in f.offs if o.increase is not None
    ]
    top = max([*known, 1e-6])
    for found in group:
      data += _bars(found, look[found.optimizer], panel)
      data += _missing(found, look[found.optimizer], panel, top, group)
    layout[theme.axis('x', panel)] |= {
      'tickvals': list(range(len(sensitivity.FACTORS))),
      'ticktext': [_LABELS[f] for f in sensitivity.FACTORS],
      'range': [-0.5, len(sensitivity.FACTORS) - 0.5],
      'showgrid': False,
      'title': theme.title('Times the best value'),
    }
    layout[theme.axis('y', panel)] |= {
      'title': theme.title('Loss above the best (nats)'),
      'rangemode': 'tozero',
    }
  return {
    'data': data,
    'layout': layout,
    'csv': {'x': None, 'y': 'loss above the best (nats)'},
  }


def _bars(
  found: sensitivity.Sensitivity, look: dict[str, str], panel: int
) -> list[dict[str, Any]]:
  shown = [
    (i, off) for i, off in enumerate(found.offs) if off.increase is not None
  ]
  name = theme.text(formatting.name(found.optimizer))
  return [
    {
      'type': 'bar',
      'name': name,
      'legendgroup': found.optimizer,
      'offsetgroup': found.optimizer,
      'x': [i for i, _ in shown],
      'y': [theme.digits(off.increase or 0.0) for _, off in shown],
      'text': [off.status for _, off in shown],
      'textposition': 'none',
      'marker': {
        'color': look['color'],
        'pattern': {
          'shape': look['pattern'],
          'fillmode': 'overlay',
          'fgcolor': '#ffffff',
          'size': 6,
          'solidity': 0.25,
        },
      },
      'hovertemplate': f'+%{{y:.4f}} nats, %{{text}}<extra>{name}</extra>',
      'meta': {
        'kind': 'increase',
        'optimizer': found.optimizer,
        'labels': [f'{off.factor:g} times, {off.status}' for _, off in shown],
      },
      **theme.panel_axes(panel),
    }
  ]


def _missing(
  found: sensitivity.Sensitivity,
  look: dict[str, str],
  panel: int,
  top: float,
  group: list[sensitivity.Sensitivity],
) -> list[dict[str, Any]]:
  """Returns × where it diverged."""
  width = 0.75 / len(group)
  shift = (group.index(found) - (len(group) - 1) / 2) * width
  places = [
    i + shift for i, off in enumerate(found.offs) if off.status == 'diverged'
  ]
  if not places:
    return []
  name = theme.text(formatting.name(found.optimizer))
  return [
    {
      'type': 'scatter',
      'mode': 'markers',
      'name': name,
      'x': [theme.digits(place) for place in places],
      'y': [theme.digits(1.04 * top)] * len(places),
      'marker': {'symbol': 'x', 'size': 11, 'color': look['color']},
      'hovertemplate': f'diverged<extra>{name}</extra>',
      'meta': {'kind': 'diverged', 'optimizer': found.optimizer},
      **theme.panel_axes(panel),
    }
  ]

"""Training time against loss and accuracy, with the Pareto set marked."""

from collections.abc import Sequence
from typing import Any

from steepest.eval.comparing import formatting, groups as groups_lib, pareto
from steepest.eval.comparing.comparison import Comparison
from steepest.eval.plots import theme

_SYMBOLS = (
  'circle',
  'square',
  'diamond',
  'triangle-up',
  'triangle-down',
  'cross',
  'pentagon',
  'hexagon',
  'star',
)
# Diameters of the lowest and the highest accuracy, in pixels.
_SIZES = (10.0, 26.0)
# Cells of the Pareto set up to which their names fit.
_LABELLED = 8


def pareto_figure(comparison: Comparison) -> dict[str, Any] | None:
  """Draws every cell: time, loss, and accuracy as the size of its mark."""
  found = comparison.pareto
  if not found:
    return None
  scale, unit = _unit(max(one.seconds for one in found))
  layout = theme.layout(['Training time, loss and accuracy'], 400)
  layout['xaxis']['title'] = theme.title(f'Training time of a run ({unit})')
  layout['yaxis']['title'] = theme.title(
    'Final validation loss (nats per token)'
  )
  look = theme.styles([one.optimizer for one in found])
  models = list(dict.fromkeys(model_name(one) for one in found))
  known = [one.accuracy for one in found if one.accuracy is not None]
  deviations = {
    (cell.architecture, cell.optimizer, groups_lib.label(cell.axes)): (
      cell.spreads['seconds'].sd,
      cell.spreads['eval_loss'].sd,
    )
    for cell in comparison.cells
    if 'seconds' in cell.spreads and 'eval_loss' in cell.spreads
  }
  labelled = sum(one.efficient for one in found) <= _LABELLED
  data = [_front(found, scale)] if any(o.efficient for o in found) else []
  for one in found:
    symbol = _SYMBOLS[models.index(model_name(one)) % len(_SYMBOLS)]
    key = (one.architecture, one.optimizer, groups_lib.label(one.axes))
    data.append(
      _mark(
        one,
        look[one.optimizer],
        symbol,
        known,
        scale,
        deviations[key],
        labelled,
      )
    )
    data[-1]['hovertemplate'] = _hover(one, unit)
  return {
    'data': data,
    'layout': layout,
    'symbols': {
      model: _SYMBOLS[i % len(_SYMBOLS)] for i, model in enumerate(models)
    },
    'csv': {
      'x': f'training time ({unit})',
      'y': 'final validation loss (nats per token)',
      'error_x': 'its standard deviation over seeds',
      'error_y': 'that of the loss',
    },
  }


def model_name(one: pareto.Candidate) -> str:
  """Returns the model and values of axes of a candidate."""
  label = groups_lib.label(one.axes)
  return formatting.model_name(one.architecture, label)


def _front(found: Sequence[pareto.Candidate], scale: float) -> dict[str, Any]:
  """Returns the steps below which no cell lies in time and loss."""
  points = sorted((one.seconds / scale, one.loss) for one in found)
  x: list[float] = []
  y: list[float] = []
  for seconds, loss in points:
    if not y or loss < y[-1]:
      x.append(theme.digits(seconds))
      y.append(theme.digits(loss))
  return {
    'type': 'scatter',
    'mode': 'lines',
    'name': 'Pareto front of time and loss',
    'x': x,
    'y': y,
    'line': {'shape': 'hv', 'color': '#9aa5b1', 'width': 1.5, 'dash': 'dot'},
    'hoverinfo': 'skip',
    'meta': {'kind': 'front'},
    **theme.panel_axes(1),
  }


def _mark(
  one: pareto.Candidate,
  look: dict[str, str],
  symbol: str,
  known: Sequence[float],
  scale: float,
  deviations: tuple[float | None, float | None],
  labelled: bool,
) -> dict[str, Any]:
  size = _SIZES[0] + 2
  if one.accuracy is not None and max(known) > min(known):
    share = (one.accuracy - min(known)) / (max(known) - min(known))
    size = _SIZES[0] + share * (_SIZES[1] - _SIZES[0])
  bars = {'thickness': 1, 'width': 0, 'color': look['color'], 'type': 'data'}
  x_sd, y_sd = deviations
  label = ''
  if one.efficient and labelled:
    label = formatting.name(one.optimizer)
    if one.accuracy is not None:
      label += f', {100 * one.accuracy:.1f} %'
  return {
    'type': 'scatter',
    'mode': 'markers+text',
    'name': theme.text(f'{model_name(one)}, ')
    + theme.text(formatting.name(one.optimizer)),
    'x': [theme.digits(one.seconds / scale)],
    'y': [theme.digits(one.loss)],
    'error_x': {**bars, 'array': [x_sd / scale if x_sd else None]},
    'error_y': {**bars, 'array': [y_sd or None]},
    'marker': {
      'symbol': symbol if one.efficient else f'{symbol}-open',
      'size': round(size, 1),
      'color': look['color'],
      'opacity': 0.9,
      'line': {'width': 2, 'color': look['color']},
    },
    'text': [theme.text(label)],
    'textposition': 'top center',
    'textfont': {'size': 12},
    'cliponaxis': False,
    'meta': {
      'kind': 'efficient' if one.efficient else 'dominated',
      'optimizer': one.optimizer,
      'labels': ['' if one.accuracy is None else f'{100 * one.accuracy:.3f} %'],
    },
    **theme.panel_axes(1),
  }


def _hover(one: pareto.Candidate, unit: str) -> str:
  lines = [f'loss %{{y:.4f}}, %{{x:.4~g}} {unit}']
  if one.accuracy is not None:
    lines.append(f'mean accuracy {100 * one.accuracy:.2f} %')
  if one.dominated_by:
    names = '; '.join(
      formatting.cell_name(*entry) for entry in one.dominated_by[:3]
    )
    lines.append(theme.text(f'not better in anything than {names}'))
  else:
    lines.append('in the Pareto set')
  return '<br>'.join(lines) + '<extra>%{fullData.name}</extra>'


def _unit(seconds: float) -> tuple[float, str]:
  """Returns hours, or minutes and seconds where these would be far below."""
  if seconds >= 3600:
    return 3600.0, 'hours'
  return (60.0, 'minutes') if seconds >= 120 else (1.0, 'seconds')

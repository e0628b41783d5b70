"""Loss over the learning rate at several widths, for the page."""

from collections.abc import Sequence
import math
from typing import Any

import numpy as np

from steepest.eval.comparing import formatting
from steepest.eval.comparing.runs import Run
from steepest.eval.parametrization import transfer
from steepest.eval.plots import theme, transfer as transfer_plots, tuning

# From narrow to wide: dark to light for all kinds of colour vision.
_COLORS = ('#440154', '#3b528b', '#21918c', '#5ec962', '#b8b21c')


def own_result(runs: Sequence[Run]) -> dict[str, Any] | None:
  """Returns what transfer.analyse finds in a study's own trials.

  None where no cell was searched, over the learning rate alone, at two widths.
  """
  cells: dict[tuple[str, str, str], list[transfer.Trial]] = {}
  for run in runs:
    if run.stage != 'tune' or run.status not in ('finished', 'diverged'):
      continue
    kind = str(run.config['parametrization.kind'])
    cell = (run.architecture, run.optimizer, kind)
    cells.setdefault(cell, []).append(_trial(run, cell))
  kept = [
    trial
    for trials in cells.values()
    if len({t.width for t in trials}) > 1 and _over_rates(trials)
    for trial in trials
  ]
  return transfer.analyse(kept) if kept else None


def _trial(run: Run, cell: tuple[str, str, str]) -> transfer.Trial:
  summary = run.summary or {}
  losses = [summary[key] for key in ('eval_loss', 'train_loss')]
  found = [loss for loss in losses if loss is not None]
  env: dict[str, Any] = {'git_commit': '', 'device_kind': '', 'versions': {}}
  share = 'unclipped_fraction/hidden'
  last = run.rows[-1] if run.rows else {}
  return transfer.Trial(
    cell=cell,
    width=int(run.config['model.width']),
    base_width=int(run.config['parametrization.base_width']),
    seed=run.seed,
    lr=run.lr,
    loss=float(found[0]) if found and run.status == 'finished' else math.inf,
    unclipped=last[share] if share in last else None,
    seconds=float(summary['seconds']),
    env={**env, **run.env},
  )


def _over_rates(trials: Sequence[transfer.Trial]) -> bool:
  """Whether every width has several rates, and one trial a rate and seed."""
  keys = [(t.width, t.seed, t.lr) for t in trials]
  rates = [{t.lr for t in trials if t.width == w} for w, _, _ in keys]
  return len(set(keys)) == len(keys) and all(len(of) > 1 for of in rates)


def width_figure(result: dict[str, Any]) -> dict[str, Any]:
  """Draws a line a width, a panel a model and parametrization.

  Args:
    result: of transfer.analyse.

  Returns:
    Besides data and layout `limits`: the switch `transfer`, and for each
    optimizer the panels' heights.
  """
  cells = result['cells']
  panels = sorted({(c['model'], c['parametrization']) for c in cells})
  layout = theme.layout(
    [f'{formatting.name(model)}, {kind}' for model, kind in panels], 260
  )
  data: list[dict[str, Any]] = []
  colors = colors_of(result)
  for cell in cells:
    panel = panels.index((cell['model'], cell['parametrization'])) + 1
    data += _lines(cell, panel, colors)
  for panel in range(1, len(panels) + 1):
    layout[theme.axis('x', panel)] |= {
      'type': 'log',
      'title': theme.title('Peak learning rate'),
      **tuning.rate_ticks(_rates(cells)),
    }
    layout[theme.axis('y', panel)]['title'] = theme.title('Loss')
  return {
    'data': data,
    'layout': layout,
    'limits': {
      'switch': 'transfer',
      'of': {
        name: [transfer_plots.limits(cells, m, name) for m, _ in panels]
        for name in optimizers(result)
      },
    },
    'csv': {
      'x': 'learning rate',
      'y': 'loss (nats per token)',
      'error_y': 'standard error',
    },
  }


def _rates(cells: Sequence[dict[str, Any]]) -> list[float]:
  return [
    lr
    for cell in cells
    for width in cell['widths']
    for curve in width['curves']
    for lr in curve['lrs']
  ]


def optimizers(result: dict[str, Any]) -> list[str]:
  """Returns the optimizers of a transfer experiment."""
  return sorted({cell['optimizer'] for cell in result['cells']})


def _lines(
  cell: dict[str, Any], panel: int, colors: dict[int, str]
) -> list[dict[str, Any]]:
  traces: list[dict[str, Any]] = []
  for width in cell['widths']:
    color = colors[width['width']]
    x, y, error = transfer_plots.points(width['curves'])
    meta: dict[str, Any] = {
      'when': {'transfer': cell['optimizer']},
      'kind': f'width {width["width"]}',
    }
    name = f'width {width["width"]}'
    traces.append(
      {
        'type': 'scatter',
        'mode': 'lines+markers',
        'name': name,
        'legendgroup': name,
        'x': x,
        'y': theme.rounded(np.asarray(y)),
        'error_y': {
          'type': 'data',
          'array': theme.rounded(np.asarray(error)),
          'thickness': 1.2,
          'width': 3,
          'color': color,
        },
        'line': {'color': color, 'width': 2},
        'marker': {'size': 6, 'color': color},
        'hovertemplate': f'%{{y:.4f}} at lr %{{x:.3~g}}<extra>{name}</extra>',
        'meta': meta,
        **theme.panel_axes(panel),
      }
    )
    best, loss = width['log2_optimum']['mean'], width['best_loss']['mean']
    if best is not None and loss is not None:
      traces.append(
        {
          'type': 'scatter',
          'mode': 'markers',
          'name': f'{name}, best',
          'legendgroup': name,
          'x': [theme.digits(2**best)],
          'y': [theme.digits(loss)],
          'marker': {'symbol': 'star', 'size': 13, 'color': color},
          'hovertemplate': f'best %{{x:.3~g}}<extra>{name}</extra>',
          'meta': {**meta, 'kind': f'width {width["width"]}, best'},
          **theme.panel_axes(panel),
        }
      )
  return traces


def colors_of(result: dict[str, Any]) -> dict[int, str]:
  """Returns the colour of each width."""
  widths = sorted({w['width'] for c in result['cells'] for w in c['widths']})
  last = max(1, len(widths) - 1)
  return {
    width: _COLORS[round((len(_COLORS) - 1) * i / last)]
    for i, width in enumerate(widths)
  }

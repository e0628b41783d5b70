"""Loss over learning rate, a line a width; the best rate over the width."""

import math
import os
import pathlib
from typing import Any

import numpy as np

from steepest.eval.plots import theme

# Losses further above the best of any width than this share of the span of
# the widths' best ones are off the panel.
_HEADROOM = 0.6


def write(result: dict[str, Any], directory: pathlib.Path) -> None:
  """Writes transfer.svg, transfer.png, drift.svg and drift.png.

  Args:
    result: of transfer.analyse.
    directory: that exists.
  """
  import matplotlib

  matplotlib.use('agg')
  from matplotlib import pyplot

  style: Any = {
    # The same file for the same numbers.
    'svg.hashsalt': 'steepest',
    'font.size': 9,
    'axes.grid': True,
    'grid.color': '#e4e7eb',
    'axes.edgecolor': '#9aa5b1',
  }
  with matplotlib.rc_context(style):
    for name, draw in (('transfer', _curves), ('drift', _drift)):
      figure = draw(pyplot, result)
      for suffix in ('svg', 'png'):
        path = directory / f'{name}.{suffix}'
        temporary = directory / f'.{name}.{os.getpid()}.{suffix}'
        metadata = {'Date': None} if suffix == 'svg' else None
        figure.savefig(temporary, dpi=110, metadata=metadata)
        os.replace(temporary, path)
      pyplot.close(figure)


def _curves(pyplot: Any, result: dict[str, Any]) -> Any:
  """A row an optimizer, a column a model × parametrization."""
  cells = result['cells']
  rows = list(dict.fromkeys(c['optimizer'] for c in cells))
  columns = sorted({(c['model'], c['parametrization']) for c in cells})
  figure, axes = pyplot.subplots(
    len(rows),
    len(columns),
    figsize=(3.2 * len(columns), 2.7 * len(rows) + 0.5),
    squeeze=False,
    layout='constrained',
  )
  for cell in cells:
    i = rows.index(cell['optimizer'])
    j = columns.index((cell['model'], cell['parametrization']))
    axis = axes[i][j]
    colors = pyplot.get_cmap('viridis')(np.linspace(0, 0.9, 16))
    widths = cell['widths']
    for k, width in enumerate(widths):
      color = colors[round(15 * k / max(1, len(widths) - 1))]
      x, y, error = points(width['curves'])
      axis.errorbar(
        x,
        y,
        error,
        color=color,
        marker='o',
        markersize=3,
        linewidth=1.3,
        capsize=2,
        label=f'width {width["width"]}',
      )
      best = width['log2_optimum']['mean']
      loss = width['best_loss']['mean']
      if best is not None and loss is not None:
        axis.plot(2**best, loss, '*', color=color, markersize=9)
    axis.axvline(cell['proxy_lr'], color='#9aa5b1', linestyle=':', linewidth=1)
    axis.set_xscale('log', base=2)
    axis.set_title(
      f'{cell["model"]}, {cell["optimizer"]}, {cell["parametrization"]}',
      fontsize=9,
    )
    axis.set_ylim(limits(cells, cell['model'], cell['optimizer']))
    if i == len(rows) - 1:
      axis.set_xlabel('learning rate')
    if j == 0:
      axis.set_ylabel('validation loss')
  axes[0][0].legend(fontsize=7)
  return figure


def limits(
  cells: list[dict[str, Any]], model: str, optimizer: str
) -> tuple[float, float]:
  """Returns the losses that the panels of a model and optimizer show.

  Args:
    cells: of transfer.analyse.
    model: of the panels.
    optimizer: likewise.
  """
  best = [
    width['best_loss']['mean']
    for cell in cells
    if (cell['model'], cell['optimizer']) == (model, optimizer)
    for width in cell['widths']
    if width['best_loss']['mean'] is not None
  ]
  span = max(max(best) - min(best), 0.2) if best else 1.0
  low, high = (min(best), max(best)) if best else (0.0, 1.0)
  return low - 0.1 * span, high + _HEADROOM * span


def points(
  curves: list[dict[str, Any]],
) -> tuple[list[float], list[float], list[float]]:
  """Returns rates, losses and their standard errors over seeds.

  Where only some seeds tried a rate, the mean of theirs is moved by what
  these seeds differ from all seeds in at the rates that all tried.

  Args:
    curves: of one width, see transfer.analyse.
  """
  seeds = [
    {
      lr: loss
      for lr, loss in zip(curve['lrs'], curve['losses'])
      if loss is not None
    }
    for curve in curves
  ]
  common = set.intersection(*(set(seed) for seed in seeds))
  levels = [
    float(np.mean([seed[lr] for lr in common])) if common else 0.0
    for seed in seeds
  ]
  x = sorted(set().union(*seeds))
  y, error = [], []
  for lr in x:
    having = [i for i, seed in enumerate(seeds) if lr in seed]
    values = np.array([seeds[i][lr] for i in having])
    moved = np.mean(levels) - np.mean([levels[i] for i in having])
    y.append(float(values.mean() + moved))
    n = len(having)
    error.append(float(values.std(ddof=1) / math.sqrt(n)) if n > 1 else 0.0)
  return x, y, error


def _drift(pyplot: Any, result: dict[str, Any]) -> Any:
  """A panel an optimizer: the best rate over the base's, a line a cell."""
  cells = result['cells']
  names = list(dict.fromkeys(c['optimizer'] for c in cells))
  groups = sorted({(c['model'], c['parametrization']) for c in cells})
  looks = theme.styles(sorted({model for model, _ in groups}))
  figure, axes = pyplot.subplots(
    1,
    len(names),
    figsize=(3.6 * len(names), 3.2),
    squeeze=False,
    sharey=True,
    layout='constrained',
  )
  for cell in cells:
    axis = axes[0][names.index(cell['optimizer'])]
    found = [w for w in cell['widths'] if w['log2_optimum']['mean'] is not None]
    if not found:
      continue
    first = found[0]['log2_optimum']['mean']
    look = looks[cell['model']]
    axis.errorbar(
      [w['width'] for w in found],
      [w['log2_optimum']['mean'] - first for w in found],
      [w['log2_optimum']['error'] or 0.0 for w in found],
      color=look['color'],
      marker='o' if cell['model'] == groups[0][0] else 's',
      markersize=4,
      linestyle='-' if cell['parametrization'] == 'mup' else '--',
      capsize=2,
      label=f'{cell["model"]} {cell["parametrization"]}',
    )
    axis.set_xscale('log', base=2)
    axis.set_title(cell['optimizer'], fontsize=9)
    axis.set_xlabel('width')
  axes[0][0].set_ylabel('best rate over that of the base, log2')
  axes[0][0].legend(fontsize=7)
  return figure

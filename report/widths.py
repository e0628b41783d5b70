"""Whether the best learning rate stays where it is as models widen.

A cell is a model, an optimizer and a parametrization, with a curve of loss over
rate for each width and seed.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math
from typing import Any

import numpy as np
import pandas as pd

from steepest.report import statistics, tables, theme, words
from steepest.report.section import Cell, Column, Figure, Section, Switch, Table

# From narrow to wide: dark to light for all kinds of colour vision.
_COLORS = ('#440154', '#3b528b', '#21918c', '#5ec962', '#b8b21c')
# Losses further above the best of any width than this share of the span of
# the widths' best ones are off the panel.
_HEADROOM = 0.6
_KEYS = ['architecture', 'optimizer', 'parametrization']


@dataclasses.dataclass(frozen=True)
class Mean:
  """A mean over seeds: NaN, and no error, where it is not known."""

  value: float
  error: float
  seeds: int


@dataclasses.dataclass(frozen=True)
class Width:
  """One width of a cell.

  Attributes:
    width: of the residual stream.
    curves: loss by rate (rows) and seed (columns); infinite where it diverged.
    optimum: log2 of the best rate, `optimum` of each seed.
    loss: the lowest.
    cost: loss at the narrowest width's best rate above the lowest, in nats.
  """

  width: int
  curves: pd.DataFrame
  optimum: Mean
  loss: Mean
  cost: Mean


@dataclasses.dataclass(frozen=True)
class Transfer:
  """A cell over its widths.

  Attributes:
    architecture, optimizer, parametrization: of the cell.
    widths: rising.
    drift: slope of log2 of the best rate over log2 of the width.
    wider_is_better: at how many equal rates and seeds the next width has the
      lower loss, and of how many.
  """

  architecture: str
  optimizer: str
  parametrization: str
  widths: tuple[Width, ...]
  drift: Mean
  wider_is_better: tuple[int, int]


def transfers(found: tables.Tables) -> list[Transfer]:
  """Returns the cells that were searched over rates alone at two widths."""
  runs = found.runs
  trials = runs[
    (runs['stage'] == 'tune') & runs['status'].isin(['finished', 'diverged'])
  ]
  frame = pd.DataFrame(
    {
      'architecture': trials['architecture'],
      'optimizer': trials['optimizer'],
      'parametrization': trials['config.parametrization.kind'],
      'width': trials['config.model.width'].astype(int),
      'seed': trials['seed'],
      'lr': trials['lr'].astype(float),
      'loss': trials['loss'].astype(float),
    }
  )
  result = []
  for (architecture, optimizer, kind), of in frame.groupby(_KEYS, sort=True):
    rates = of.groupby('width')['lr'].nunique()
    repeated = of.duplicated(['width', 'seed', 'lr']).any()
    if len(rates) < 2 or rates.min() < 2 or repeated:
      continue
    curves = {
      int(width): at.pivot(index='lr', columns='seed', values='loss')
      for width, at in of.groupby('width')
    }
    result.append(_transfer(architecture, optimizer, kind, curves))
  return result


def _transfer(
  architecture: str, optimizer: str, kind: str, curves: dict[int, pd.DataFrame]
) -> Transfer:
  names = sorted(curves)
  narrowest = curves[names[0]]
  # Of the rates that all seeds tried, that of the lowest mean loss.
  proxy = float(narrowest.dropna().mean(axis=1).idxmin())
  optima = {
    width: {seed: optimum(curve[seed].dropna()) for seed in curve}
    for width, curve in curves.items()
  }
  drifts = []
  for seed in narrowest:
    known = [
      (math.log2(w), optima[w][seed])
      for w in names
      if seed in optima[w] and not math.isnan(optima[w][seed])
    ]
    if len(known) > 1:
      x, y = np.transpose(known)
      drifts.append(float(np.polyfit(x, y, 1)[0]))
  better = pairs = 0
  for narrow, wide in zip(names, names[1:]):
    a, b = curves[narrow].align(curves[wide], join='inner')
    told = a.notna() & b.notna() & (np.isfinite(a) | np.isfinite(b))
    better += int(((b < a) & told).sum().sum())
    pairs += int(told.sum().sum())
  return Transfer(
    architecture,
    optimizer,
    kind,
    tuple(
      Width(
        width,
        curve,
        _mean(optima[width].values()),
        _mean(curve.min()),
        _mean(curve.loc[proxy] - curve.min() if proxy in curve.index else []),
      )
      for width, curve in sorted(curves.items())
    ),
    _mean(drifts),
    (better, pairs),
  )


def optimum(losses: pd.Series) -> float:
  """Returns log2 of the best rate of a curve; NaN where every run diverged.

  The minimum of the parabola, in the logarithm of the rate, through the lowest
  loss and its neighbours; the lowest point itself where it lies at an end of
  what was tried or beside a run that diverged.

  Args:
    losses: by rate, rising.
  """
  losses = losses.sort_index()
  if not len(losses) or not np.isfinite(losses.min()):
    return math.nan
  x_R, y_R = np.log2(losses.index.to_numpy(float)), losses.to_numpy(float)
  best = int(y_R.argmin())
  around = slice(max(0, best - 1), best + 2)
  if len(x_R[around]) == 3 and np.isfinite(y_R[around]).all():
    a, b, _ = np.polyfit(x_R[around], y_R[around], 2)
    if a > 0:
      return float(-b / (2 * a))
  return float(x_R[best])


def _mean(values: Any) -> Mean:
  """Returns the mean of what is finite, and its standard error."""
  held = np.asarray(list(values), np.float64)
  held = held[np.isfinite(held)]
  if not held.size:
    return Mean(math.nan, math.nan, 0)
  mean, sd = statistics.sample(held)
  return Mean(mean, sd / math.sqrt(held.size), held.size)


def sections(comparison: tables.Comparison) -> list[Section]:
  """Returns the section of rates over widths."""
  cells = transfers(comparison.tables)
  if not cells:
    return []
  looks = theme.styles(comparison.tables.runs['optimizer'])
  return [
    Section(
      'widths',
      'The best rate over widths',
      [_curves(cells), _optima(cells, looks), _table(cells)],
    )
  ]


def _curves(cells: Sequence[Transfer]) -> Figure:
  """Draws a line a width, a panel a model and parametrization."""
  panels = sorted({(c.architecture, c.parametrization) for c in cells})
  layout = theme.layout([_name(*panel) for panel in panels], 260)
  optimizers = list(dict.fromkeys(c.optimizer for c in cells))
  colors = _colors({w.width for c in cells for w in c.widths})
  data: list[dict[str, Any]] = []
  limits: dict[str, list[list[float]]] = {}
  ticks: dict[str, dict[str, Any]] = {}
  for optimizer in optimizers:
    own = [c for c in cells if c.optimizer == optimizer]
    limits[optimizer] = [_limits(own, model) for model, _ in panels]
    rates = sorted(
      {float(r) for c in own for w in c.widths for r in w.curves.index}
    )
    ticks[optimizer] = {
      'title': {'text': 'Peak learning rate'},
      'tickvals': rates,
      'ticktext': [words.rate(rate) for rate in rates],
    }
    for cell in own:
      panel = panels.index((cell.architecture, cell.parametrization)) + 1
      for width in cell.widths:
        data += _lines(cell, width, panel, colors[width.width])
  for panel in range(1, len(panels) + 1):
    layout[theme.axis('x', panel)] |= {
      'type': 'log',
      'title': theme.title('Peak learning rate'),
      'tickangle': -45,
    }
    layout[theme.axis('y', panel)]['title'] = theme.title('Loss')
  return Figure(
    'transfer',
    'Loss over the learning rate at several widths',
    f'A line a width, from dark ({min(colors)}) to light ({max(colors)}): '
    'means over seeds with their standard errors. Stars: the best rate, by a '
    'parabola through the lowest loss and its neighbours. A rate carries over '
    'where the stars stand above one another.',
    {
      'data': data,
      'layout': layout,
      'limits': {'switch': 'transfer', 'of': limits},
      'xnames': {'switch': 'transfer', 'of': ticks},
      'csv': {
        'x': 'learning rate',
        'y': 'loss (nats per token)',
        'error_y': 'standard error',
      },
    },
    [Switch('transfer', 'Optimizer', {o: words.name(o) for o in optimizers})],
  )


def _lines(
  cell: Transfer, width: Width, panel: int, color: str
) -> list[dict[str, Any]]:
  mean, error = _level(width.curves)
  name = f'width {width.width}'
  when = {'transfer': cell.optimizer}
  common = {
    'type': 'scatter',
    'name': name,
    'legendgroup': name,
    **theme.panel(panel),
  }
  traces: list[dict[str, Any]] = [
    {
      **common,
      'mode': 'lines+markers',
      'x': theme.rounded(mean.index),
      'y': theme.rounded(mean),
      'error_y': theme.error(error, color),
      'line': {'color': color, 'width': 2},
      'marker': {'size': 6, 'color': color},
      'hovertemplate': f'%{{y:.4f}} at %{{x:.3~g}}<extra>{name}</extra>',
      'meta': {'kind': name, 'when': when},
    }
  ]
  if width.optimum.seeds and width.loss.seeds:
    traces.append(
      {
        **common,
        'mode': 'markers',
        'x': [theme.digits(2**width.optimum.value)],
        'y': [theme.digits(width.loss.value)],
        'marker': {'symbol': 'star', 'size': 13, 'color': color},
        'hovertemplate': f'best %{{x:.3~g}}<extra>{name}</extra>',
        'meta': {'kind': f'{name}, best', 'when': when},
      }
    )
  return traces


def _level(curves: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
  """Returns mean losses and their standard errors over seeds, by rate.

  Where only some seeds tried a rate, the mean of theirs is moved by what these
  seeds differ from all seeds in at the rates that all tried.
  """
  finite = curves.where(np.isfinite(curves))
  levels = finite.dropna().mean()
  shift = levels.mean() - finite.notna().apply(
    lambda row: levels[row].mean() if row.any() else math.nan, axis=1
  )
  mean = finite.mean(axis=1) + shift.fillna(0.0)
  error = finite.std(axis=1) / np.sqrt(finite.notna().sum(axis=1))
  known = mean.notna()
  return mean[known], error[known].fillna(0.0)


def _limits(cells: Sequence[Transfer], model: str) -> list[float]:
  """Returns the losses that the panels of a model show."""
  best = [
    width.loss.value
    for cell in cells
    if cell.architecture == model
    for width in cell.widths
    if width.loss.seeds
  ]
  if not best:
    return [0.0, 1.0]
  span = max(max(best) - min(best), 0.2)
  return [
    theme.digits(min(best) - 0.1 * span),
    theme.digits(max(best) + _HEADROOM * span),
  ]


def _optima(
  cells: Sequence[Transfer], looks: Mapping[str, Mapping[str, str]]
) -> Figure:
  """Draws the best rate over that of the base, a line an optimizer."""
  panels = sorted({(c.architecture, c.parametrization) for c in cells})
  layout = theme.layout([_name(*panel) for panel in panels], 220)
  widths = sorted({w.width for c in cells for w in c.widths})
  data = []
  for cell in cells:
    panel = panels.index((cell.architecture, cell.parametrization)) + 1
    known = [w for w in cell.widths if w.optimum.seeds]
    if not known:
      continue
    look = looks[cell.optimizer]
    data.append(
      theme.trace(
        cell.optimizer,
        panel,
        [w.width for w in known],
        [w.optimum.value - known[0].optimum.value for w in known],
        {'kind': 'best rate'},
        mode='lines+markers',
        error_y=theme.error((w.optimum.error for w in known), look['color']),
        line=theme.line(look),
        marker=theme.marker(look, 7),
        hovertemplate='%{y:+.2f} at width %{x}<extra>%{fullData.name}</extra>',
      )
    )
  for panel in range(1, len(panels) + 1):
    layout[theme.axis('x', panel)] |= {
      'type': 'log',
      'title': theme.title('Width'),
      'tickvals': widths,
      'ticktext': [str(width) for width in widths],
    }
    layout[theme.axis('y', panel)] |= {
      'title': theme.title('Best rate, doublings'),
      'zeroline': True,
      'zerolinecolor': theme.INK,
    }
  return Figure(
    'drift',
    'The best learning rate over the width',
    'Doublings of the best rate from that of the narrowest width, means over '
    'seeds with their standard errors: a rate carries over where the line '
    'stays at 0.',
    {
      'data': data,
      'layout': layout,
      'csv': {
        'x': 'width',
        'y': 'doublings of the best rate',
        'error_y': 'standard error',
      },
    },
    optimizers=theme.names(c.optimizer for c in cells),
  )


def _table(cells: Sequence[Transfer]) -> Table:
  """Returns best rates, their drift and what carrying the narrowest's costs."""
  widths = sorted({w.width for c in cells for w in c.widths})
  rows: list[Sequence[Cell | str] | str] = []
  title = None
  for cell in sorted(cells, key=lambda c: (c.architecture, c.parametrization)):
    if (name := _name(cell.architecture, cell.parametrization)) != title:
      rows.append(title := name)
    best = {w.width: w.optimum for w in cell.widths}
    better, pairs = cell.wider_is_better
    rows.append(
      [
        Cell(words.name(cell.optimizer), optimizer=cell.optimizer),
        *(
          words.rate(2 ** best[width].value)
          if width in best and best[width].seeds
          else words.MISSING
          for width in widths
        ),
        _shown(cell.drift, '+.2f'),
        _shown(cell.widths[-1].cost, '.4f'),
        f'{better} of {pairs}',
      ]
    )
  return Table(
    'Best rates over widths',
    [
      Column('Optimizer'),
      *(Column(f'Width {w}', number=True, over='Best rate') for w in widths),
      Column('Drift', 'doublings a doubling', True),
      Column('Cost at the widest', 'nats', True),
      Column('Wider is better', 'at equal rates', True),
    ],
    rows,
    note='Means over seeds ± standard error. Drift: slope of log₂ of the best '
    'rate over log₂ of the width. Cost: loss of the widest at the best rate of '
    'the narrowest, above its own best.',
  )


def _shown(mean: Mean, form: str) -> Cell:
  if not mean.seeds:
    return Cell(words.MISSING)
  note = ''
  if not math.isnan(mean.error):
    note = f'± {mean.error:{form.lstrip("+")}}'
  return Cell(f'{mean.value:{form}}'.replace('-', '−'), note, mean.value)


def _name(architecture: str, kind: str) -> str:
  return f'{words.name(architecture)}, {words.name(kind)}'


def _colors(widths: set[int]) -> dict[int, str]:
  """Returns the colour of each width."""
  ordered = sorted(widths)
  last = max(1, len(ordered) - 1)
  return {
    width: _COLORS[round((len(_COLORS) - 1) * i / last)]
    for i, width in enumerate(ordered)
  }

"""Whether the best learning rate stays put as models widen.

A cell is a model, an optimizer and a parametrization, with a curve of loss over
learning rate for each width and seed.
"""

import math
from typing import Any

import numpy as np
import pandas as pd

from steepest.report import section, tables, theme, words
from steepest.report.section import Cell, Column, Section

CELL = ['architecture', 'parametrization', 'optimizer']
# From narrow to wide: dark to light, for any colour vision.
_COLORS = ('#440154', '#3b528b', '#21918c', '#5ec962', '#b8b21c')
# Headroom above the highest of the widths' best losses, as a share of their
# span; higher losses are off the panel.
_HEADROOM = 0.6


def curves(found: tables.Tables) -> pd.DataFrame:
  """Returns the trials of cells searched over learning rates at two widths.

  Columns: architecture, parametrization, optimizer, width, seed, lr, loss
  (infinite if the run diverged). Cells whose trials of one width, seed and
  learning rate differ in anything else are left out.
  """
  runs = found.runs
  trials = runs[
    (runs['stage'] == 'tune') & runs['status'].isin(['finished', 'diverged'])
  ]
  frame = trials.rename(
    columns={
      'config.parametrization.kind': 'parametrization',
      'config.model.width': 'width',
    }
  )[[*CELL, 'width', 'seed', 'lr', 'loss']].astype(
    {'width': int, 'lr': float, 'loss': float}
  )
  rates = frame.groupby([*CELL, 'width'])['lr'].transform('nunique')
  frame = frame.assign(
    rates=rates,
    repeated=frame.duplicated([*CELL, 'width', 'seed', 'lr'], keep=False),
  )
  by_cell = frame.groupby(CELL)
  kept = (
    (by_cell['width'].transform('nunique') > 1)
    & (by_cell['rates'].transform('min') > 1)
    & ~by_cell['repeated'].transform('any')
  )
  return frame[kept].drop(columns=['rates', 'repeated'])


def optimum(
  losses: pd.Series, reach: int = 1
) -> tuple[float, np.ndarray | None]:
  """Returns log2 of a curve's best rate, and its gradient by the losses.

  The minimum of the least-squares parabola in the log learning rate through the
  lowest loss and `reach` neighbours either way. The lowest point itself,
  without a gradient, if it lies at an end of the range or beside a run that
  diverged; NaN if every run diverged.

  Args:
    losses: by learning rate.
    reach: number of neighbours.
  """
  losses = losses.sort_index()
  if not len(losses) or not np.isfinite(losses.min()):
    return math.nan, None
  x_R, y_R = np.log2(losses.index.to_numpy(float)), losses.to_numpy(float)
  best = int(y_R.argmin())
  around = slice(max(0, best - reach), best + reach + 1)
  x_N, y_N = x_R[around] - x_R[best], y_R[around]
  if 0 < best < len(y_R) - 1 and np.isfinite(y_N).all():
    inverse_3xN = np.linalg.pinv(np.vander(x_N, 3))
    a, b, _ = inverse_3xN @ y_N
    if a > 0:
      gradient_N = np.array([b / (2 * a**2), -1 / (2 * a), 0.0]) @ inverse_3xN
      return float(x_R[best] - b / (2 * a)), gradient_N
  return float(x_R[best]), None


def optima(found: pd.DataFrame) -> pd.DataFrame:
  """Returns a row per cell, width and seed.

  Columns: those of CELL, width, seed, best (log2 of the best rate), loss (the
  lowest), cost (loss at the narrowest width's best rate minus the lowest).

  Args:
    found: from `curves`.
  """
  rows = []
  for cell, of_cell in found.groupby(CELL):
    narrow = of_cell[of_cell['width'] == of_cell['width'].min()]
    by_rate = narrow.pivot(index='lr', columns='seed', values='loss')
    # The rate with the lowest mean loss, among those that all seeds tried.
    proxy = by_rate.dropna().mean(axis=1).idxmin()
    for (width, seed), of in of_cell.groupby(['width', 'seed']):
      losses = of.set_index('lr')['loss']
      lowest = losses.min()
      rows.append(
        dict(zip(CELL, cell, strict=True))
        | {
          'width': width,
          'seed': seed,
          'best': optimum(losses)[0],
          'loss': lowest,
          'cost': losses[proxy] - lowest if proxy in losses else math.nan,
        }
      )
  frame = pd.DataFrame(rows, columns=[*CELL, 'width', 'seed', *_MEASURED])
  return frame.replace(math.inf, math.nan)


_MEASURED = ('best', 'loss', 'cost')


def drifts(optima_: pd.DataFrame) -> pd.DataFrame:
  """Returns each cell's slope of log2 best rate over log2 width.

  Columns: mean over seeds, sem (its standard error).
  """
  known = optima_.dropna(subset='best')
  slopes = known.groupby([*CELL, 'seed']).apply(
    lambda of: (
      np.polyfit(np.log2(of['width']), of['best'], 1)[0]
      if len(of) > 1
      else math.nan
    ),
    include_groups=False,
  )
  return slopes.groupby(CELL).agg(['mean', 'sem'])


def sections(comparison: tables.Comparison) -> list[Section]:
  """Returns the section on learning rates over widths."""
  found = curves(comparison.tables)
  if not len(found):
    return []
  found['panel'] = [
    f'{words.name(model)}, {words.name(kind)}'
    for model, kind in zip(
      found['architecture'], found['parametrization'], strict=True
    )
  ]
  best = optima(found)
  means = best.groupby([*CELL, 'width'])[list(_MEASURED)].agg(['mean', 'sem'])
  blocks: list[section.Block] = [
    _curves(found, means),
    _table(found, best, means),
  ]
  return [Section('widths', 'The best learning rate over widths', blocks)]


def _curves(found: pd.DataFrame, means: pd.DataFrame) -> section.Figure:
  """Draws a line per width, a panel per model and parametrization."""
  panels = list(dict.fromkeys(found.sort_values(CELL)['panel']))
  optimizers = sorted(found['optimizer'].unique())
  sizes = sorted(found['width'].unique())
  shades = np.linspace(0, len(_COLORS) - 1, max(2, len(sizes))).round()
  colors = {w: _COLORS[int(i)] for w, i in zip(sizes, shades)}
  layout = theme.layout(
    panels,
    260,
    {'title': 'Peak learning rate', **theme.log_ticks(found['lr'])},
    {'title': 'Loss'},
  )
  data: list[dict[str, Any]] = []
  limits: dict[str, list[list[float]]] = {}
  for optimizer, own in found.groupby('optimizer'):
    limits[str(optimizer)] = [_limits(means, own, panel) for panel in panels]
    for (panel, width), of in own.groupby(['panel', 'width']):
      look = theme.PLAIN | {'color': colors[width]}
      cell = tuple(of.iloc[0][[*CELL, 'width']])
      at = panels.index(str(panel)) + 1
      data += _width(f'width {width}', at, of, means.loc[cell], look)
  names = {o: words.name(o) for o in optimizers}
  return section.Figure(
    'transfer',
    'Loss over the learning rate at several widths',
    f'One line per width, from dark ({sizes[0]}) to light ({sizes[-1]}): means '
    'over seeds with their standard errors. Stars: the best learning rate, by '
    'a parabola through the lowest loss and its neighbours. The learning rate '
    'transfers if the stars lie above one another.',
    {
      'data': data,
      'layout': layout,
      'limits': {'switch': 'transfer', 'of': limits},
      'csv': {
        'x': 'learning rate',
        'y': 'loss (nats per token)',
        'error_y': 'standard error',
      },
    },
    [section.Switch('transfer', 'Optimizer', names)],
  )


def _width(
  name: str, panel: int, of: pd.DataFrame, star: pd.Series, look: dict[str, Any]
) -> list[dict[str, Any]]:
  """Draws the line of a width and optimizer, with a star at its best rate."""
  mean, error = _level(of.pivot(index='lr', columns='seed', values='loss'))
  best = [2 ** star['best', 'mean']], [star['loss', 'mean']]
  drawn: list[tuple[str, Any, Any, dict[str, Any]]] = [
    (name, mean.index, mean, {'errors': {'error_y': error}}),
    (f'{name}, best', *best, {'mode': 'markers', 'size': 13}),
  ]
  traces = []
  for kind, x, y, style in drawn:
    trace = theme.trace(
      name,
      panel,
      x,
      y,
      kind,
      look,
      {'optimizer': None, 'when': {'transfer': of['optimizer'].iloc[0]}},
      hovertemplate=f'%{{y:.4f}} at %{{x:.3~g}}<extra>{kind}</extra>',
      **{'mode': 'lines+markers', **style},
    )
    if 'best' in kind:
      trace['marker']['symbol'] = 'star'
    traces.append(trace)
  return traces


def _level(by_rate: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
  """Returns mean losses and their standard errors over seeds, by rate.

  If only some seeds tried a rate, their mean is shifted by how these seeds
  differ from all seeds at the rates that all tried.
  """
  finite = by_rate.where(np.isfinite(by_rate))
  levels = finite.dropna().mean()
  tried = finite.notna().to_numpy()
  own = np.where(tried, levels.to_numpy(), np.nan)
  with np.errstate(invalid='ignore'):
    shift = levels.mean() - np.nansum(own, 1) / tried.sum(1)
  mean = finite.mean(axis=1) + pd.Series(shift, finite.index).fillna(0.0)
  known = mean.notna()
  return mean[known], finite.sem(axis=1)[known].fillna(0.0)


def _limits(means: pd.DataFrame, own: pd.DataFrame, panel: str) -> list[float]:
  """Returns the range of losses in an optimizer's panel."""
  cells = own[own['panel'] == panel][[*CELL, 'width']].drop_duplicates()
  best = means.loc[[tuple(cell) for cell in cells.to_numpy()]]['loss', 'mean']
  if not best.notna().any():
    return [0.0, 1.0]
  low, high = float(best.min()), float(best.max())
  span = max(high - low, 0.2)
  return [theme.digits(low - 0.1 * span), theme.digits(high + _HEADROOM * span)]


def _table(
  found: pd.DataFrame, best: pd.DataFrame, means: pd.DataFrame
) -> section.Table:
  """Returns best rates, their drift and the cost of keeping the narrowest's."""
  slopes = drifts(best)
  rows = []
  for cell, of in found.groupby(CELL):
    own = means.loc[cell]
    steps = of.pivot(index=['lr', 'seed'], columns='width', values='loss')
    changes = steps.diff(axis=1).iloc[:, 1:].stack()
    rates = {str(w): words.rate(2**b) for w, b in own['best', 'mean'].items()}
    rows.append(
      {
        'panel': of['panel'].iloc[0],
        'optimizer': cell[-1],
        **rates,
        'drift': _shown(slopes.loc[cell], '+.2f'),
        'cost': _shown(own['cost'].iloc[-1], '.4f'),
        'better': f'{(changes < 0).sum()} of {len(changes)}',
      }
    )
  sizes = map(str, sorted(found['width'].unique()))
  return section.Table.of(
    'Best learning rates over widths',
    pd.DataFrame(rows),
    {
      'optimizer': Column('Optimizer'),
      **{
        w: Column(f'Width {w}', '', True, 'Best learning rate') for w in sizes
      },
      'drift': Column('Drift', 'doublings per doubling', True),
      'cost': Column('Cost at the widest', 'nats', True),
      'better': Column('Wider is better', 'at equal learning rates', True),
    },
    heading='panel',
    note='Means over seeds ± standard error. Drift: slope of log₂ of the best '
    'learning rate over log₂ of the width. Cost: loss of the widest model at '
    'the narrowest one’s best learning rate, above its own lowest.',
  )


def _shown(of: pd.Series, form: str) -> Cell:
  error = of['sem']
  note = '' if math.isnan(error) else f'± {error:{form.lstrip("+")}}'
  return Cell(words.signed(of['mean'], form), note)

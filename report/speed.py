"""Times and costs: the timing pass, the trade-off, the way to AdamW's loss.

A time is compared only where it was measured to be comparable: by the timing
pass at the end of a study, in which the optimizers' steps alternate on one
machine, or by a throughput benchmark. Runs on a busy machine say little.
"""

from collections.abc import Sequence
import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pandas as pd

from steepest.report import section, statistics, tables, theme, words
from steepest.report.section import Cell, Column
from steepest.report.tables import Comparison, Tables

# Repeats of one optimizer's steps have to agree within this share.
AGREEMENT = 0.03
# The optimizer that others are measured against.
BASELINE = 'adamw'
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


@dataclasses.dataclass(frozen=True)
class Timing:
  """Seconds of a step of each optimizer, measured side by side.

  Attributes:
    seconds: optimizer → median over repeats.
    repeats: of the optimizer with the fewest.
    reason: why they decide nothing; '' where they may.
  """

  seconds: dict[str, float]
  repeats: int
  reason: str


def timing(tables_: Tables, group: str, optimizers: Sequence[str]) -> Timing:
  """Returns what the timing pass, or the benchmark, measured for a group."""
  rows = tables_.timing
  rows = rows[rows['group'].isin([group, ''])]
  rows = rows[rows['optimizer'].isin(optimizers)]
  if not len(rows):
    return Timing({}, 0, 'no timing pass')
  of = rows.groupby('optimizer')['seconds_per_step']
  seconds = {str(name): float(value) for name, value in of.median().items()}
  repeats = int(of.count().min())
  apart = {str(name): v for name, v in (of.max() / of.min() - 1).items()}
  worst = max(apart, key=lambda name: apart[name])
  lacking = [words.name(name) for name in optimizers if name not in seconds]
  reason = ''
  if rows['device'].nunique() > 1 or rows['commit'].nunique() > 1:
    reason = 'the steps were timed on unlike machines or commits'
  elif lacking:
    reason = f'the timing pass lacks {words.join(lacking)}'
  elif repeats < 2:
    reason = 'the timing pass has one repeat, which nothing confirms'
  elif apart[worst] > AGREEMENT:
    reason = (
      f'the repeats of {words.name(worst)} differ by {apart[worst]:.1%}, more '
      f'than {AGREEMENT:.0%}: the machine was busy'
    )
  return Timing(seconds, repeats, reason)


def fastest(found: Timing) -> tuple[str, str]:
  """Returns the optimizer with the fastest step, or '' and why there is none.

  It is faster than every other one by more than repeats may differ.
  """
  if found.reason or len(found.seconds) < 2:
    return '', found.reason or 'there is one optimizer to compare'
  ranked = sorted(found.seconds, key=lambda name: found.seconds[name])
  gap = found.seconds[ranked[1]] / found.seconds[ranked[0]] - 1
  if gap <= AGREEMENT:
    names = words.join(words.name(name) for name in sorted(ranked[:2]))
    return '', f'{names} differ by {gap:.1%}, within what repeats may differ'
  return ranked[0], ''


# The trade-off of time and loss.


def trade_off(comparison: Comparison) -> list[section.Section]:
  """Returns the figure of training time against loss."""
  marks = _marks(comparison)
  if not len(marks):
    return []
  unit = words.unit('seconds', marks['seconds'])
  layout = theme.layout(['Training time and loss'], 400)
  layout['xaxis']['title'] = theme.title(
    f'Training time of a run ({unit.label})'
  )
  layout['yaxis']['title'] = theme.title('Validation loss (nats per token)')
  times = marks['seconds'] / unit.scale
  if times.max() - times.min() < 1e-6 * times.max():
    # Plotly cannot label an axis of no width.
    layout['xaxis']['range'] = [0.9 * times.max(), 1.1 * times.max()]
  look = theme.styles(comparison.compared['optimizer'])
  groups = list(dict.fromkeys(marks['group']))
  data = [
    _mark(row, look[row['optimizer']], groups, unit.scale)
    for row in marks.to_dict('records')
  ]
  untimed = marks[~marks['timed']]
  caption = (
    'Means over seeds; bars are standard deviations over seeds. Open marks: '
    'another optimizer is shown to be faster and lower in loss. A label names '
    'a mean accuracy where it stands above chance and differs from another one.'
  )
  if len(untimed):
    caption += (
      ' Dotted marks: times of unlike moments or machines, which are shown '
      'and not compared.'
    )
  if len(groups) > 1:
    shapes = zip(itertools.cycle(_SYMBOLS), groups)
    caption += ' Shapes: ' + ', '.join(
      f'{shape.replace("-", " ")} {words.named(group)}'
      for shape, group in shapes
    )
    caption += '.'
  figure = section.Figure(
    'trade-off',
    'Training time and validation loss of each optimizer',
    caption,
    {
      'data': data,
      'layout': layout,
      'csv': {
        'x': layout['xaxis']['title']['text'],
        'y': layout['yaxis']['title']['text'],
        'error_x': 'sd of the time over seeds',
        'error_y': 'sd of the loss over seeds',
      },
    },
    optimizers={name: words.name(name) for name in marks['optimizer']},
  )
  title = 'What a lower loss takes'
  return [section.Section('trade-off', title, [figure], folded=False)]


def _marks(comparison: Comparison) -> pd.DataFrame:
  """Returns group, optimizer, seconds, loss and what is shown of each."""
  c = comparison.cells
  rows = []
  for group in comparison.groups:
    of = c[(c['group'] == group) & c['mean'].notna()]
    table = {
      key: of[of['column'] == key].set_index('optimizer') for key in _SEEN
    }
    losses, seconds, scores = (table[key] for key in _SEEN)
    names = [name for name in losses.index if name in seconds.index]
    timed = not timing(comparison.tables, group, names).reason
    shown = _told_apart(comparison, group, 'eval_loss')
    scored = {
      n for pair in _told_apart(comparison, group, 'accuracy') for n in pair
    }
    for name in names:
      behind = [
        other
        for other in names
        if timed
        and (other, name) in shown
        and seconds['mean'][other] < seconds['mean'][name] / (1 + AGREEMENT)
      ]
      accuracy = math.nan
      if name in scored and bool(scores['above_chance'][name]):
        accuracy = scores['mean'][name]
      rows.append(
        {
          'group': group,
          'optimizer': name,
          'seconds': seconds['mean'][name],
          'seconds_sd': seconds['sd'][name],
          'loss': losses['mean'][name],
          'loss_sd': losses['sd'][name],
          'accuracy': accuracy,
          'timed': timed,
          'behind': ', '.join(behind),
        }
      )
  return pd.DataFrame(rows)


_SEEN = ('eval_loss', 'seconds', 'accuracy')


def _told_apart(
  comparison: Comparison, group: str, column: str
) -> set[tuple[str, str]]:
  """Returns (better, worse) of every two that are shown to differ."""
  if comparison.reason(group, column).startswith('not ranked'):
    return set()
  p = comparison.pairs
  p = p[(p['group'] == group) & (p['column'] == column)]
  p = p[p['p_holm'] < statistics.LEVEL]
  sign = -1 if column == 'eval_loss' else 1
  return {
    (a, b) if sign * difference > 0 else (b, a)
    for a, b, difference in zip(
      p['first'], p['second'], p['difference'], strict=True
    )
  }


def _mark(
  row: dict[str, Any],
  look: dict[str, str],
  groups: Sequence[str],
  scale: float,
) -> dict[str, Any]:
  symbol = _SYMBOLS[groups.index(row['group']) % len(_SYMBOLS)]
  bars = {'thickness': 1, 'width': 0, 'color': look['color'], 'type': 'data'}
  label = words.name(row['optimizer'])
  if not math.isnan(row['accuracy']):
    label += f', {row["accuracy"]:.1%}'
  sd = [
    None if math.isnan(v) else v for v in (row['seconds_sd'], row['loss_sd'])
  ]
  return {
    'type': 'scatter',
    'mode': 'markers+text',
    'name': theme.text(f'{words.named(row["group"])}, {label}'),
    'x': [theme.digits(row['seconds'] / scale)],
    'y': [theme.digits(row['loss'])],
    'error_x': {**bars, 'array': [None if sd[0] is None else sd[0] / scale]},
    'error_y': {**bars, 'array': [sd[1]]},
    'marker': {
      'symbol': symbol
      + ('-open' if row['behind'] or not row['timed'] else '')
      + ('' if row['timed'] else '-dot'),
      'size': 13,
      'color': look['color'],
      'line': {'width': 2, 'color': look['color']},
    },
    'text': [theme.text(label)],
    'textposition': 'top center',
    'textfont': {'size': 12},
    'cliponaxis': False,
    'meta': {'kind': row['group'], 'optimizer': row['optimizer']},
    **theme.panel(1),
  }


# Time to the baseline's loss, and costs.


def sections(comparison: Comparison) -> list[section.Section]:
  """Returns what a run, its search and an optimizer's extra passes cost."""
  blocks: list[section.Block] = []
  if len(comparison.compared):
    blocks.append(_costs(comparison))
  reached = to_target(comparison)
  if len(reached):
    blocks += [
      'How long each optimizer takes to the final loss of AdamW’s run of the '
      'same seed. Where the learning rate decays, a loss on the way is one '
      'before the decay, so that a speed-up is a lower bound: a run planned to '
      'end there would take less.',
      _target_table(comparison, reached),
    ]
  if not blocks:
    return []
  return [section.Section('speed', 'Costs and time to target', blocks)]


def to_target(comparison: Comparison) -> pd.DataFrame:
  """Returns one row a run: where it reaches the baseline's final loss.

  Columns: group, optimizer, seed, tokens (NaN where it is not reached), share
  (of the run), speedup (tokens of the baseline's run over these), first
  (whether the first validation is below already: an upper bound), gap (final
  loss minus the target). The curve is the run's validation losses, made to fall
  by isotonic regression, and linear between two.
  """
  rows: list[dict[str, Any]] = []
  done = comparison.compared
  done = done[(done['status'] == 'finished') & done['loss'].notna()]
  points = comparison.tables.points
  if 'eval/loss' not in points:
    return pd.DataFrame(rows)
  points = points[points['eval/loss'].notna() & points['run'].isin(done['run'])]
  curves = dict(list(points.groupby('run')))
  for group, of in done.groupby('group', sort=False):
    base = of[of['optimizer'] == BASELINE].set_index('seed')
    for run in of[of['optimizer'] != BASELINE].to_dict('records'):
      if run['seed'] not in base.index:
        continue
      target = base['loss'][run['seed']]
      curve = curves.get(run['run'], points.iloc[:0])
      tokens_P = np.append(curve['tokens'], run['tokens'])
      losses_P = np.append(curve['eval/loss'], run['loss'])
      tokens = crossing(tokens_P, statistics.smoothed(losses_P), target)
      rows.append(
        {
          'group': group,
          'optimizer': run['optimizer'],
          'seed': run['seed'],
          'tokens': tokens,
          'share': tokens / run['tokens'],
          'speedup': base['tokens'][run['seed']] / tokens,
          'first': losses_P[0] <= target,
          'gap': run['loss'] - target,
        }
      )
  return pd.DataFrame(rows)


def crossing(x_P: np.ndarray, losses_P: np.ndarray, target: float) -> float:
  """Returns where a falling curve first is at `target`, between its points.

  Linear between two points; the first point's x where it is below already, NaN
  where the curve never is.

  Args:
    x_P: rising, such as tokens.
    losses_P: falling, see statistics.smoothed.
    target: loss.
  """
  below = np.flatnonzero(losses_P <= target)
  if not below.size:
    return math.nan
  i = int(below[0])
  if i == 0:
    return float(x_P[0])
  before, after = losses_P[i - 1], losses_P[i]
  share = (before - target) / (before - after)
  return float(x_P[i - 1] + share * (x_P[i] - x_P[i - 1]))


def _target_table(
  comparison: Comparison, reached: pd.DataFrame
) -> section.Table:
  rows: list[list[Cell | str] | str] = []
  for group, of_group in reached.groupby('group', sort=False):
    if reached['group'].nunique() > 1:
      rows.append(words.named(group))
    names = [BASELINE, *of_group['optimizer'].unique()]
    timed = timing(comparison.tables, group, names)
    for optimizer, of in of_group.groupby('optimizer'):
      head = Cell(words.name(optimizer), optimizer=optimizer)
      missed = of[of['tokens'].isna()]
      if len(missed):
        gap = words.unit('eval_loss').difference(missed['gap'].mean())
        text = (
          f'not reached by {len(missed)} of {words.plural(len(of), "seed")}'
        )
        rows.append([head, Cell(text, f'final loss {gap}'), '–', '–'])
        continue
      share = f'{of["share"].mean():.0%}'
      bound = 'at most' if of['first'].any() else ''
      tokens = _times(*statistics.ratio(of['speedup']))
      hours: Cell | str = Cell('–', hint=timed.reason)
      if not timed.reason:
        step = timed.seconds[BASELINE] / timed.seconds[optimizer]
        hours = _times(*statistics.ratio(of['speedup'] * step))
      rows.append([head, Cell(share, bound), tokens, hours])
  columns = [
    Column('Optimizer'),
    Column('Share of the run', number=True),
    Column('Fewer tokens', number=True),
    Column('Less time', number=True),
  ]
  note = 'Geometric means over seeds with 95 % intervals; 2× is half as much.'
  return section.Table('Time to AdamW’s loss', columns, rows, note=note)


def _times(mean: float, low: float, high: float) -> Cell:
  """Returns '1.25×' with its interval."""
  return Cell(f'{mean:.2f}×', words.interval(low, high, '.2f'), value=mean)


def _costs(comparison: Comparison) -> section.Table:
  """Returns what a run and its search take, and an optimizer's state."""
  done = comparison.compared
  keys = [
    key
    for key in ('tokens', 'flops', 'seconds')
    if key in done and key in comparison.tuning
  ]
  tuned = comparison.tuning.set_index(['group', 'optimizer'])
  means = done.groupby(['group', 'optimizer'], sort=False)[keys].mean()
  units = {key: words.unit(key, [*means[key], *tuned[key]]) for key in keys}
  rows: list[list[Cell | str] | str] = []
  for group, of in means.groupby('group', sort=False):
    if len(comparison.groups) > 1:
      rows.append(words.named(group))
    for (_, optimizer), run in of.iterrows():
      row: list[Cell | str] = [Cell(words.name(optimizer), optimizer=optimizer)]
      for key in keys:
        search = tuned[key].get((group, optimizer))
        row.append(units[key].number(run[key]))
        row.append(
          words.MISSING if tables.missing(search) else units[key].number(search)
        )
      row += _state(done, group, optimizer)
      rows.append(row)
  columns = [Column('Optimizer')]
  for key in keys:
    title = words.head(key)
    columns += [
      Column('A run', units[key].label, number=True, over=title),
      Column('Its search', units[key].label, number=True, over=title),
    ]
  columns += [
    Column('Extra passes', number=True),
    Column('Optimizer state', number=True),
  ]
  return section.Table(
    'Costs',
    columns,
    rows,
    note='A run: the mean over seeds. Its search: all trials together. Times '
    'are those of the runs and their machines: training steps, without '
    'compilation, evaluation and checkpoints. Extra passes: estimates of the '
    'curvature in a run.',
    style='wide',
  )


def _state(done: pd.DataFrame, group: str, optimizer: str) -> list[Cell | str]:
  of = done[(done['group'] == group) & (done['optimizer'] == optimizer)]
  cells: list[Cell | str] = []
  for key, written in (
    ('curvature_passes', lambda v: f'{v:,.0f}'),
    ('optimizer_state_bytes', words.byte_count),
  ):
    value = of[key].mean() if key in of else math.nan
    cells.append(words.MISSING if math.isnan(value) else written(value))
  return cells

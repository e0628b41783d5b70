"""Times: the timing pass, time against loss, time to AdamW's loss.

Times are compared only if measured for it: by the timing pass at the end of a
study, which alternates the optimizers' steps on one machine, or by a throughput
benchmark. Runs on a busy machine say little.
"""

from collections.abc import Sequence
import dataclasses
import math
from typing import Any

import numpy as np
import pandas as pd

from steepest.report import section, statistics, theme, words
from steepest.report.section import Cell, Column
from steepest.report.tables import Comparison, Tables

# Repeats of one optimizer's steps must agree within this share.
AGREEMENT = 0.03
# The optimizer that the others are measured against.
BASELINE = 'adamw'


@dataclasses.dataclass(frozen=True)
class Timing:
  """Seconds per step of each optimizer, measured side by side.

  Attributes:
    seconds: optimizer → median over repeats.
    repeats: of the optimizer with the fewest.
    reason: why they decide nothing; '' if they may.
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
    reason = 'the steps were timed on different machines or commits'
  elif lacking:
    reason = f'the timing pass lacks {words.join(lacking)}'
  elif repeats < 2:
    reason = 'the timing pass has only one repeat'
  elif apart[worst] > AGREEMENT:
    reason = (
      f'the repeats of {words.name(worst)} differ by {apart[worst]:.1%}, more '
      f'than {AGREEMENT:.0%}: the machine was busy'
    )
  return Timing(seconds, repeats, reason)


def fastest(found: Timing) -> tuple[str, str]:
  """Returns the optimizer with the fastest step, or '' and why there is none.

  It beats every other one by more than repeats may differ.
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
  titles = f'Training time of a run ({unit.label})', 'Validation loss'
  groups = list(marks['group'].unique())
  layout = theme.layout(
    [words.named(group) for group in groups],
    400 if len(groups) == 1 else 300,
    {'title': titles[0]},
    {'title': f'{titles[1]} (nats per token)'},
    narrowest=380,
    columns=2,
  )
  looks = theme.styles(comparison.compared['optimizer'])
  data = []
  for panel, group in enumerate(groups, 1):
    of = marks[marks['group'] == group]
    longest = of['seconds'].max() / unit.scale
    if np.ptp(of['seconds']) / unit.scale < 1e-6 * longest:
      # Plotly cannot label an axis of zero width.
      ends = [0.9 * longest, 1.1 * longest]
      layout[theme.axis('x', panel)]['range'] = ends
    data += [
      _mark(row, looks[row['optimizer']], panel, unit.scale)
      for row in of.to_dict('records')
    ]
  caption = (
    'Means over seeds; bars are standard deviations over seeds. Open marks: '
    'another optimizer is shown to be both faster and lower in loss. A label '
    'gives a mean accuracy that is above chance and differs from another one.'
  )
  if not marks['timed'].all():
    caption += (
      ' Dotted marks: times from different moments or machines, shown but not '
      'compared.'
    )
  csv = dict(zip('xy', titles, strict=True)) | {
    'error_x': 'sd of the time over seeds',
    'error_y': 'sd of the loss over seeds',
  }
  figure = section.Figure(
    'trade-off',
    'Training time and validation loss of each optimizer',
    caption,
    {'data': data, 'layout': layout, 'csv': csv},
    optimizers=theme.names(marks['optimizer']),
  )
  title = 'What a lower loss costs'
  return [section.Section('trade-off', title, [figure], folded=False)]


def _marks(comparison: Comparison) -> pd.DataFrame:
  """Returns group, optimizer, seconds, loss and the display of each."""
  parts = []
  for group in comparison.contests:
    of = comparison.cells
    of = of[(of['group'] == group) & of['mean'].notna()]
    wide = of.pivot(index='optimizer', columns='column', values=['mean', 'sd'])
    wide = wide.reindex(
      columns=pd.MultiIndex.from_product([['mean', 'sd'], _SEEN])
    )
    wide = wide.dropna(subset=[('mean', 'eval_loss'), ('mean', 'seconds')])
    names = list(wide.index)
    timed = not timing(comparison.tables, group, names).reason
    seconds = wide['mean', 'seconds']
    behind = {
      worse
      for better, worse in _told_apart(comparison, group, 'eval_loss')
      if {better, worse} <= set(names)
      and timed
      and seconds[better] < seconds[worse] / (1 + AGREEMENT)
    }
    apart = _told_apart(comparison, group, 'accuracy')
    above = of[(of['column'] == 'accuracy') & of['above_chance'].eq(True)]
    named = {n for pair in apart for n in pair} & set(above['optimizer'])
    parts.append(
      pd.DataFrame(
        {
          'group': group,
          'optimizer': names,
          'seconds': seconds.to_numpy(),
          'seconds_sd': wide['sd', 'seconds'].to_numpy(),
          'loss': wide['mean', 'eval_loss'].to_numpy(),
          'loss_sd': wide['sd', 'eval_loss'].to_numpy(),
          'accuracy': wide['mean', 'accuracy'].where(wide.index.isin(named)),
          'timed': timed,
          'behind': wide.index.isin(behind),
        }
      )
    )
  return pd.concat(parts) if parts else pd.DataFrame()


_SEEN = ('eval_loss', 'seconds', 'accuracy')


def _told_apart(
  comparison: Comparison, group: str, column: str
) -> set[tuple[str, str]]:
  """Returns (better, worse) for each pair shown to differ."""
  if comparison.refused(group):
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
  row: dict[str, Any], look: dict[str, str], panel: int, scale: float
) -> dict[str, Any]:
  label = words.name(row['optimizer'])
  if not math.isnan(row['accuracy']):
    label += f', {row["accuracy"]:.1%}'
  trace = theme.trace(
    row['optimizer'],
    panel,
    [row['seconds'] / scale],
    [row['loss']],
    row['group'],
    look,
    errors={
      'error_x': [row['seconds_sd'] / scale],
      'error_y': [row['loss_sd']],
    },
    size=13,
    name=theme.text(label),
    mode='markers+text',
    text=[theme.text(label)],
    textposition='top center',
    textfont={'size': 12},
    cliponaxis=False,
  )
  open_ = row['behind'] or not row['timed']
  symbol = f'circle{"-open" * open_}{"-dot" * (not row["timed"])}'
  line = {'width': 2, 'color': look['color']}
  trace['marker'] |= {'symbol': symbol, 'line': line}
  return trace


# Time to the baseline's loss.


def sections(comparison: Comparison) -> list[section.Section]:
  """Returns the section on time to the baseline's loss and on goodput."""
  found = []
  spent = _goodput(comparison.compared)
  if spent is not None:
    title = 'Where the time went'
    found.append(section.Section('goodput', title, [spent]))
  reached = to_target(comparison)
  if not len(reached):
    return found
  blocks = (
    'How long each optimizer takes to reach the final loss of AdamW’s run with '
    'the same seed. If the learning rate decays, a run reaches that loss '
    'before its decay ends, so the speed-up is a lower bound: a run planned to '
    'end there would take less.',
    _target_table(comparison, reached),
  )
  return [section.Section('speed', 'Time to AdamW’s loss', blocks), *found]


def _goodput(runs: pd.DataFrame) -> section.Table | None:
  """Returns the table of how runs' time divides; None if no run says."""
  names = [name for name in runs if name.startswith('goodput.')]
  if not names or not runs[names].notna().all(axis=1).any():
    return None
  shares = runs.groupby(['group', 'optimizer'], sort=False)[names].mean()
  words_of = lambda name: name.partition('.')[2].replace('_', ' ').capitalize()
  columns = {n: Column(words_of(n), number=True, form='.1%') for n in names}
  return section.Table.of(
    'Where the time went',
    shares.dropna().reset_index(),
    {'optimizer': Column('Optimizer')} | columns,
    heading='group',
    note='Shares of the time from a run’s first start to its end, means over '
    'seeds. Restarting: time outside of training, which includes start-up, and '
    'steps that had to be repeated.',
  )


def to_target(comparison: Comparison) -> pd.DataFrame:
  """Returns where each run reaches the baseline's final loss, one row per run.

  Columns: group, optimizer, seed, tokens (NaN if never reached), share (of the
  run), speedup (tokens of the baseline's run over these), first (whether the
  first validation is already below: an upper bound), gap (final loss minus the
  target). The curve is the run's validation losses, made monotone by isotonic
  regression and interpolated linearly.
  """
  rows: list[dict[str, Any]] = []
  done = comparison.compared
  done = done[(done['status'] == 'finished') & done['loss'].notna()]
  points = comparison.tables.points
  if 'eval/loss' not in points:
    points = points.assign(**{'eval/loss': math.nan})
  points = points[points['eval/loss'].notna()]
  curves = dict(list(points.groupby('run')))
  base = done[done['optimizer'] == BASELINE].set_index(['group', 'seed'])
  for run in done[done['optimizer'] != BASELINE].to_dict('records'):
    at = run['group'], run['seed']
    if run['run'] not in curves or at not in base.index:
      continue
    target, curve = base['loss'][at], curves[run['run']]
    losses_P = np.append(curve['eval/loss'], run['loss'])
    tokens = crossing(
      np.append(curve['tokens'], run['tokens']),
      statistics.smoothed(losses_P),
      target,
    )
    rows.append(
      {
        'group': run['group'],
        'optimizer': run['optimizer'],
        'seed': run['seed'],
        'tokens': tokens,
        'share': tokens / run['tokens'],
        'speedup': base['tokens'][at] / tokens,
        'first': losses_P[0] <= target,
        'gap': run['loss'] - target,
      }
    )
  return pd.DataFrame(rows, columns=_REACHED)


_REACHED = 'group optimizer seed tokens share speedup first gap'.split()


def crossing(x_P: np.ndarray, losses_P: np.ndarray, target: float) -> float:
  """Returns where a falling curve first reaches `target`.

  Linear between points; the first point's x if it is already below, NaN if the
  curve never gets there.

  Args:
    x_P: ascending, such as tokens.
    losses_P: non-increasing, see statistics.smoothed.
    target: loss.
  """
  below = np.flatnonzero(losses_P <= target)
  if not below.size:
    return math.nan
  i = int(below[0])
  if i == 0:
    return float(x_P[0])
  pair = [i, i - 1]
  return float(np.interp(target, losses_P[pair], x_P[pair]))


def _target_table(
  comparison: Comparison, reached: pd.DataFrame
) -> section.Table:
  rows = []
  for (group, name), of in reached.groupby(['group', 'optimizer'], sort=False):
    row = {'group': group, 'optimizer': name, 'tokens': None, 'hours': None}
    missed = int(of['tokens'].isna().sum())
    if missed:
      gap = words.unit('eval_loss').difference(of['gap'].mean())
      seeds = words.plural(len(of), 'seed')
      share = Cell(f'not reached by {missed} of {seeds}', f'final loss {gap}')
    else:
      bound = 'at most' if of['first'].any() else ''
      share = Cell(f'{of["share"].mean():.0%}', bound)
      row['tokens'] = _times(of['speedup'])
      timed = timing(comparison.tables, group, [BASELINE, name])
      row['hours'] = Cell(words.MISSING, hint=timed.reason)
      if not timed.reason:
        step = timed.seconds[BASELINE] / timed.seconds[name]
        row['hours'] = _times(of['speedup'] * step)
    rows.append(row | {'share': share})
  return section.Table.of(
    'Time to AdamW’s loss',
    pd.DataFrame(rows),
    {
      'optimizer': Column('Optimizer'),
      'share': Column('Share of the run', number=True),
      'tokens': Column('Fewer tokens', number=True),
      'hours': Column('Less time', number=True),
    },
    heading='group',
    note='Geometric means over seeds, 95 % intervals; 2× means half as much.',
  )


def _times(values: pd.Series) -> Cell:
  """Returns '1.25×' with its interval."""
  mean, low, high = statistics.ratio(values)
  return Cell(f'{mean:.2f}×', words.interval(low, high, '.2f'), value=mean)

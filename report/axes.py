"""What another value of an axis changes, and whether the ranking changes."""

from collections.abc import Iterator, Mapping, Sequence
import itertools
import math
from typing import Any

import numpy as np
import pandas as pd

from steepest.report import (
  differences,
  selection,
  statistics,
  tables,
  theme,
  words,
)
from steepest.report.section import (
  Block,
  Cell,
  Column,
  Fold,
  Section,
  Table,
)

# What changes with an axis by itself, so that tokens or epochs stay equal.
_FOLLOWS = {
  'epochs': ('data_fingerprint',),
  'batch_size': ('steps', 'schedule.warmup_steps', 'log_every'),
  'tokens': ('planned_tokens', 'steps', 'schedule.warmup_steps', 'log_every'),
  'width': ('model.num_heads', 'model.num_kv_heads', 'model.mlp_dim'),
}


def sections(comparison: tables.Comparison) -> list[Section]:
  """Returns the section of what the axes of the study change."""
  found = effects(comparison)
  if not len(found):
    return []
  known = found[found['reason'] == '']
  blocks: list[Block] = []
  if len(known):
    panels = [
      (
        title,
        frame.assign(
          label=[words.name(name) for name in frame['optimizer']],
          value=frame['difference'],
        ),
      )
      for title, frame in known.groupby('change', sort=False)
    ]
    blocks.append(
      differences.forest(
        'effects',
        panels,
        'Change of loss (nats per token)',
        'Change of the final validation loss, seed by seed, with its 95 % '
        'interval: left of the line the change helps. Full marks: beyond '
        'chance after Holm’s correction for the optimizers of the panel; open '
        'ones: not.',
        theme.styles(comparison.tables.runs['optimizer']),
      )
    )
  blocks.append(_table(found))
  crossed = interactions(comparison)
  if len(crossed):
    blocks.append(_crossed(crossed))
  return [Section('axes', 'What the axes of the study change', blocks)]


def effects(comparison: tables.Comparison) -> pd.DataFrame:
  """Returns what another value of an axis changes for each optimizer.

  Returns:
    One row a change and optimizer: change (as it is shown), axis, group (with
    the study's own value), other, optimizer, difference (final validation loss
    of `other` minus that of `group`), low, high, p, p_holm (for the optimizers
    of the change), n (seeds); reason: why they are not compared, or ''.
  """
  rows: list[dict[str, Any]] = []
  for change in _changes(comparison):
    found: list[dict[str, Any]] = []
    for optimizer, (own_S, other_S) in change['losses'].items():
      row = {
        k: change[k] for k in ('change', 'axis', 'group', 'other', 'reason')
      }
      row |= {'optimizer': optimizer, 'n': len(own_S)}
      if not change['reason']:
        row |= _numbers(statistics.paired(other_S, own_S))
      found.append(row)
    _correct(found)
    rows += found
  return pd.DataFrame(rows, columns=_EFFECTS)


def interactions(comparison: tables.Comparison) -> pd.DataFrame:
  """Returns whether an axis changes the difference between two optimizers.

  Returns:
    One row a change and pair: change, axis, group, other, first, second,
    before, after (first minus second on either side), difference (after minus
    before, paired by seed), low, high, p, p_holm (for the pairs of the change),
    n; order: 'kept' or 'swapped' where the difference counts on both sides,
    else 'not resolved'.
  """
  rows: list[dict[str, Any]] = []
  pairs = comparison.pairs
  pairs = pairs[pairs['column'] == 'eval_loss'].set_index(
    ['group', 'first', 'second']
  )
  for change in _changes(comparison):
    found: list[dict[str, Any]] = []
    if change['reason']:
      continue
    for a, b in itertools.combinations(change['losses'], 2):
      (own_a, other_a), (own_b, other_b) = (change['losses'][n] for n in (a, b))
      sides = [(change[side], a, b) for side in ('group', 'other')]
      if len(own_a) != len(own_b) or any(s not in pairs.index for s in sides):
        continue
      before, after = (pairs.loc[side] for side in sides)
      found.append(
        {
          **{k: change[k] for k in ('change', 'axis', 'group', 'other')},
          'first': a,
          'second': b,
          'before': float(before['difference']),
          'after': float(after['difference']),
          'order': _order(before, after),
          'n': len(own_a),
          **_numbers(statistics.paired(other_a - other_b, own_a - own_b)),
        }
      )
    _correct(found)
    rows += found
  return pd.DataFrame(rows, columns=_INTERACTIONS)


_NUMBERS = ['difference', 'low', 'high', 'p', 'p_holm', 'n']
_EFFECTS = [
  'change',
  'axis',
  'group',
  'other',
  'optimizer',
  *_NUMBERS,
  'reason',
]
_INTERACTIONS = [
  'change',
  'axis',
  'group',
  'other',
  'first',
  'second',
  'before',
  'after',
  *_NUMBERS,
  'order',
]


def _changes(comparison: tables.Comparison) -> Iterator[dict[str, Any]]:
  """Yields every two groups of a model that differ on one axis alone.

  The one with the study's own value comes first; other values are compared
  with nothing else.
  """
  finals = comparison.compared
  axes = comparison.tables.axes
  groups = {str(g): of for g, of in finals.groupby('group', sort=False)}
  firsts = {group: of.iloc[0] for group, of in groups.items()}
  for axis in axes:
    rest = ['architecture', *(f'axis.{a.name}' for a in axes if a != axis)]
    column = f'axis.{axis.name}'
    for a, b in itertools.permutations(groups, 2):
      own, other = firsts[a], firsts[b]
      if own[column] != axis.own or other[column] == axis.own:
        continue
      if any(own[key] != other[key] for key in rest):
        continue
      held = {x.name: own[f'axis.{x.name}'] for x in axes if x != axis}
      model = tables.group_label(str(own['architecture']), held)
      step = ' → '.join(_value(x[column]) for x in (own, other))
      yield {
        'change': f'{words.named(model)}: {axis.name.replace("_", " ")} {step}',
        'axis': axis.name,
        'group': a,
        'other': b,
        'losses': _losses(groups[a], groups[b]),
        'reason': _unlike(
          comparison.tables.runs, axis.name, groups[a], groups[b]
        ),
      }


def _value(value: object) -> str:
  """Returns a value of an axis, large numbers as counts."""
  if isinstance(value, int | np.integer) and value >= 10_000:
    return words.count(float(value))
  return str(value)


def _losses(
  own: pd.DataFrame, other: pd.DataFrame
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Returns optimizer → losses on both sides of the seeds that both have."""
  sides = [
    {
      str(name): of.set_index('seed')['eval_loss'].dropna()
      for name, of in runs[runs['status'] == 'finished'].groupby('optimizer')
    }
    for runs in (own, other)
  ]
  found = {}
  for name in sides[0]:
    if name in sides[1]:
      seeds = sides[0][name].index.intersection(sides[1][name].index)
      if len(seeds):
        found[name] = tuple(side[name][seeds].to_numpy(float) for side in sides)
  return found


def _unlike(
  runs: pd.DataFrame, axis: str, own: pd.DataFrame, other: pd.DataFrame
) -> str:
  """Says in what two groups differ that the axis does not change."""
  free = {*selection.IRRELEVANT}
  if axis in tables.AXIS_KEYS:
    free.add(tables.AXIS_KEYS[axis])
  if axis in _FOLLOWS:
    free |= {*_FOLLOWS[axis]}
  searched = selection.searched_keys(runs, pd.concat([own, other]))
  told = [
    column
    for column in own
    if column.startswith('config.')
    and not column.startswith(('config.study.', 'config.optimizer.'))
    and column.removeprefix('config.') not in free
    and column not in searched
  ]
  told += [f'config.optimizer.{key}' for key in selection.SHARED]
  told += [
    key for key in ('planned_tokens', 'data_fingerprint') if key not in free
  ]
  # Epochs are part of the data's fingerprint, so it cannot tell the corpus.
  if axis == 'epochs':
    told.append('config.data.source')
  told = [column for column in told if column in own]
  return selection.differences(other.iloc[0], own.iloc[0], told)


def _numbers(found: statistics.Differences) -> dict[str, float]:
  numbers = {'difference': float(found.value), 'p': math.nan}
  if found.n >= statistics.FEWEST_SEEDS:
    low, high = found.interval()
    numbers |= {'low': float(low), 'high': float(high), 'p': float(found.p)}
  return numbers


def _correct(rows: list[dict[str, Any]]) -> None:
  """Adds p_holm, corrected for the number of the rows."""
  p_M = [row['p'] if 'p' in row else math.nan for row in rows]
  for row, p in zip(rows, statistics.holm(p_M) if rows else (), strict=True):
    row['p_holm'] = float(p)


def _order(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
  sides = (before, after)
  if not all(side['p_holm'] < statistics.LEVEL for side in sides):
    return 'not resolved'
  same = (before['difference'] > 0) == (after['difference'] > 0)
  return 'kept' if same else 'swapped'


def _table(found: pd.DataFrame) -> Table:
  """Returns the effects as numbers."""
  rows: list[Sequence[Cell | str] | str] = []
  for title, frame in found.groupby('change', sort=False):
    rows.append(title)
    for row in frame.to_dict('records'):
      name = row['optimizer']
      rows.append(
        [
          Cell(words.name(name), optimizer=name),
          *_cells(row),
          str(row['n']),
          f'not compared: {row["reason"]}' if row['reason'] else '',
        ]
      )
  return Table(
    'Effects of the axes',
    [
      Column('Optimizer'),
      Column('Change of loss', 'nats', True),
      Column('95 % interval', 'nats', True),
      Column('p, corrected', number=True),
      Column('Seeds', number=True),
      Column('Remark'),
    ],
    rows,
    folded=True,
  )


def _crossed(found: pd.DataFrame) -> Fold:
  """Returns the interactions as a table."""
  rows: list[Sequence[Cell | str] | str] = []
  for title, frame in found.groupby('change', sort=False):
    rows.append(title)
    for row in frame.to_dict('records'):
      pair = f'{words.name(row["first"])} − {words.name(row["second"])}'
      rows.append(
        [
          pair,
          *(_signed(row[side]) for side in ('before', 'after')),
          *_cells(row),
          Cell(row['order'], style='best' if row['order'] == 'swapped' else ''),
        ]
      )
  table = Table(
    'Does an axis change who is ahead?',
    [
      Column('Optimizers'),
      Column('Before', 'nats', True, 'Difference of loss'),
      Column('After', 'nats', True, 'Difference of loss'),
      Column('Change', 'nats', True),
      Column('95 % interval', 'nats', True),
      Column('p, corrected', number=True),
      Column('Order'),
    ],
    rows,
    note='The order is kept or swapped where the difference between the two is '
    'beyond chance before and after; else it is not resolved.',
  )
  return Fold('Does an axis change who is ahead?', [table])


def _cells(row: Mapping[str, Any]) -> list[Cell | str]:
  counts = row['p_holm'] < statistics.LEVEL
  return [
    Cell(
      _signed(row['difference']),
      value=None if pd.isna(row['difference']) else row['difference'],
      style='best' if counts else '',
    ),
    words.interval(row['low'], row['high'], '+.4f'),
    words.p_value(row['p_holm']),
  ]


def _signed(value: float) -> str:
  if pd.isna(value):
    return words.MISSING
  return f'{value:+.4f}'.replace('-', '−')

"""How changing the value of an axis affects losses and their ranking."""

from collections.abc import Iterator, Mapping
import itertools
from typing import Any

import numpy as np
import pandas as pd

from steepest.report import (
  differences,
  section,
  selection,
  statistics,
  tables,
  theme,
  words,
)
from steepest.report.section import Column

# Keys that change along with an axis, so that tokens or epochs stay equal.
_FOLLOWS = {
  'epochs': ('data_fingerprint',),
  'batch_size': ('steps', 'schedule.warmup_steps', 'log_every'),
  'tokens': ('planned_tokens', 'steps', 'schedule.warmup_steps', 'log_every'),
  'width': ('model.num_heads', 'model.num_kv_heads', 'model.mlp_dim'),
}


def sections(comparison: tables.Comparison) -> list[section.Section]:
  """Returns the section on the effects of the study's axes."""
  found = effects(comparison)
  if not len(found):
    return []
  found = found.assign(
    counts=found['p_holm'] < statistics.LEVEL,
    remark=['not compared: ' * bool(why) + why for why in found['reason']],
    panel=found['change'],
    value=found['difference'],
    label=found['optimizer'].map(words.name),
  )
  known = found[found['reason'] == '']
  blocks: list[section.Block] = []
  if len(known):
    blocks.append(
      differences.forest(
        'effects',
        known,
        'Change of loss (nats per token)',
        'Change in final validation loss, paired by seed, with 95 % '
        'intervals; left of the line, the change helps. Filled marks are '
        'significant after Holm’s correction for the optimizers of the panel; '
        'open marks are not.',
        theme.styles(comparison.tables.runs['optimizer']),
      )
    )
  numbers = {
    'difference': Column('Change of loss', 'nats', True, '', '+.4f', 'counts'),
    'interval': Column('95 % interval', 'nats', True),
    'p_holm': Column('p, corrected', number=True),
  }
  blocks.append(
    section.Table.of(
      'Effects of the axes',
      differences.with_numbers(found),
      {
        'optimizer': Column('Optimizer'),
        **numbers,
        'n': Column('Seeds', number=True),
        'remark': Column('Remark'),
      },
      heading='change',
      folded=True,
    )
  )
  crossed = interactions(comparison)
  if len(crossed):
    blocks.append(_interaction_table(crossed, numbers))
  title = 'What the axes of the study change'
  return [section.Section('axes', title, blocks)]


def _interaction_table(
  crossed: pd.DataFrame, numbers: dict[str, Column]
) -> section.Table:
  """Returns the table of each axis's effect on two optimizers' difference."""
  names = (crossed[key].map(words.name) for key in ('first', 'second'))
  crossed = crossed.assign(
    pair=[' − '.join(pair) for pair in zip(*names, strict=True)],
    counts=crossed['p_holm'] < statistics.LEVEL,
    swapped=crossed['order'] == 'swapped',
  )
  side = 'nats', True, 'Difference of loss', '+.4f'
  return section.Table.of(
    'Does an axis change who is ahead?',
    differences.with_numbers(crossed),
    {
      'pair': Column('Optimizers'),
      'before': Column('Before', *side),
      'after': Column('After', *side),
      **numbers,
      'order': Column('Order', best='swapped'),
    },
    heading='change',
    note='The order is kept or swapped if the difference between the two is '
    'significant before and after; otherwise it is not resolved.',
    folded=True,
  )


def effects(comparison: tables.Comparison) -> pd.DataFrame:
  """Returns the effect of each change of an axis on each optimizer.

  Returns:
    One row per change and optimizer: change (as displayed), axis, group (with
    the study's own value), other, optimizer, difference (final validation loss
    of `other` minus that of `group`), low, high, p, p_holm (over the change's
    optimizers), n (seeds); reason: why they are not compared, or ''.
  """
  parts = []
  for change, own, other in _changes(comparison):
    rows = []
    for optimizer in own.columns.intersection(other.columns):
      both = pd.concat([other[optimizer], own[optimizer]], axis=1).dropna()
      if len(both):
        row = {**change, 'optimizer': optimizer, 'n': len(both)}
        if not change['reason']:
          row |= statistics.paired(*both.to_numpy().T).row()
        rows.append(row)
    parts.append(_corrected(rows))
  return pd.concat(parts) if parts else pd.DataFrame()


def interactions(comparison: tables.Comparison) -> pd.DataFrame:
  """Returns whether an axis changes the difference between two optimizers.

  Returns:
    One row per change and pair: change, axis, group, other, first, second,
    before, after (first minus second on either side), difference (after minus
    before, paired by seed), low, high, p, p_holm (over the change's pairs),
    n; order: 'kept' or 'swapped' where both sides are significant, else
    'not resolved'.
  """
  pairs = comparison.pairs
  pairs = pairs[pairs['column'] == 'eval_loss'].set_index(
    ['group', 'first', 'second']
  )
  parts = []
  for change, own, other in _changes(comparison):
    rows = []
    names = own.columns.intersection(other.columns)
    for a, b in itertools.combinations(names, 2):
      sides = [(change[side], a, b) for side in ('group', 'other')]
      moves_S = ((other[a] - other[b]) - (own[a] - own[b])).dropna().to_numpy()
      if change['reason'] or not moves_S.size:
        continue
      if any(side not in pairs.index for side in sides):
        continue
      before, after = (pairs.loc[side] for side in sides)
      rows.append(
        {
          **change,
          'first': a,
          'second': b,
          'before': before['difference'],
          'after': after['difference'],
          'order': _order(before, after),
          **statistics.paired(moves_S, np.zeros_like(moves_S)).row(),
        }
      )
    parts.append(_corrected(rows))
  columns = ['change', 'axis', 'group', 'other', 'first', 'second', *_NUMBERS]
  return pd.concat([pd.DataFrame(columns=columns), *parts])


_NUMBERS = ('difference', 'low', 'high', 'p', 'p_holm', 'n')


def _corrected(rows: list[dict[str, Any]]) -> pd.DataFrame:
  """Returns rows with p_holm, corrected over all of them."""
  if not rows:
    return pd.DataFrame()
  frame = pd.DataFrame(rows)
  frame = frame.reindex(columns=[*dict.fromkeys([*frame, *_NUMBERS])])
  return frame.assign(p_holm=statistics.holm(frame['p'].astype(float)))


def _changes(
  comparison: tables.Comparison,
) -> Iterator[tuple[dict[str, str], pd.DataFrame, pd.DataFrame]]:
  """Yields every two groups of a model that differ on one axis alone.

  The group with the study's own value comes first; every other value is
  compared with that one only. Each pair comes with the final losses of both
  sides: one row per seed, one column per optimizer.
  """
  axes = comparison.tables.axes
  runs = comparison.compared
  groups = {str(g): of for g, of in runs.groupby('group', sort=False)}
  firsts = {group: of.iloc[0] for group, of in groups.items()}
  losses = {
    group: of[of['status'] == 'finished'].pivot(
      index='seed', columns='optimizer', values='eval_loss'
    )
    for group, of in groups.items()
  }
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
      name = axis.name.replace('_', ' ')
      change = {
        'change': f'{words.named(model)}: {name} {step}',
        'axis': axis.name,
        'group': a,
        'other': b,
        'reason': _unlike(
          comparison.tables.runs, axis.name, groups[a], groups[b]
        ),
      }
      yield change, losses[a], losses[b]


def _value(value: object) -> str:
  """Returns an axis value as text, large numbers as counts."""
  if isinstance(value, int | np.integer) and value >= 10_000:
    return words.count(float(value))
  return str(value)


def _unlike(
  runs: pd.DataFrame, axis: str, own: pd.DataFrame, other: pd.DataFrame
) -> str:
  """Says how two groups differ apart from the axis."""
  free = [tables.AXIS_KEYS.get(axis, axis), *_FOLLOWS.get(axis, ())]
  searched = selection.searched_keys(runs, pd.concat([own, other]))
  told = selection.told(own, searched, free)
  # The data fingerprint covers epochs, so it cannot identify the corpus.
  if axis == 'epochs' and 'config.data.source' in own:
    told.append('config.data.source')
  return selection.differences(other.iloc[0], own.iloc[0], told)


def _order(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
  sides = (before, after)
  if not all(side['p_holm'] < statistics.LEVEL for side in sides):
    return 'not resolved'
  same = (before['difference'] > 0) == (after['difference'] > 0)
  return 'kept' if same else 'swapped'

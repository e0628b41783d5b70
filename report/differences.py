"""Differences of the final validation loss between optimizers."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from steepest.report import tables, theme, words
from steepest.report.section import (
  Alert,
  Block,
  Cell,
  Column,
  Figure,
  Section,
  Table,
)

# Optimizers up to which every pair has a row; of more, a matrix shows them.
_FEW = 4
# Blue where the row's optimizer has the lower loss, red where the higher.
_SCALE = [[0, '#2166ac'], [0.5, '#f4f4f4'], [1, '#b2182b']]


def sections(comparison: tables.Comparison) -> list[Section]:
  """Returns the section of differences of the final validation loss."""
  pairs = comparison.pairs
  pairs = pairs[pairs['column'] == 'eval_loss']
  groups = [g for g in comparison.groups if g in set(pairs['group'])]
  if not groups:
    return []
  blocks: list[Block] = []
  for group in groups:
    reason = comparison.reason(group, 'eval_loss')
    if _refused(comparison, group):
      blocks.append(
        Alert(
          f'{words.named(group)}: {reason}. No difference below is a claim.'
        )
      )
      unclaimed = pairs['group'] == group
      pairs = pairs.assign(p_holm=pairs['p_holm'].mask(unclaimed))
  sizes = [len(_names(pairs[pairs['group'] == g])) for g in groups]
  few = [g for g, n in zip(groups, sizes, strict=True) if n <= _FEW]
  many = [g for g, n in zip(groups, sizes, strict=True) if n > _FEW]
  if few:
    panels = [
      (words.named(group), rows(pairs[pairs['group'] == group]))
      for group in few
    ]
    blocks.append(
      forest(
        'differences',
        panels,
        'Difference of loss (nats per token)',
        'Differences of the final validation loss, seed by seed, each with its '
        '95 % interval: left of the line the first has the lower loss. Full '
        'marks: beyond chance after Holm’s correction for the number of pairs; '
        'open ones: not.',
      )
    )
  if many:
    blocks += [
      _leaders(comparison, pairs, many),
      _matrix(comparison, pairs, many),
    ]
  blocks.append(_table(comparison, pairs, groups))
  title = 'Differences between optimizers'
  return [Section('differences', title, blocks, folded=False)]


def _refused(comparison: tables.Comparison, group: str) -> bool:
  """Whether a group is not ranked, whatever its differences are."""
  rows = comparison.fairness
  unequal = rows[(rows['group'] == group) & rows['refuses'].astype(bool)]
  return bool(len(unequal)) and not comparison.insisted


def rows(pairs: pd.DataFrame) -> pd.DataFrame:
  """Returns what `forest` draws of pairs: label, value, low, high, p_holm."""
  labels = [
    f'{words.name(first)} − {words.name(second)}'
    for first, second in zip(pairs['first'], pairs['second'], strict=True)
  ]
  return pairs.assign(label=labels, value=pairs['difference'], optimizer='')


def forest(
  key: str,
  panels: Sequence[tuple[str, pd.DataFrame]],
  title: str,
  caption: str,
  looks: dict[str, dict[str, str]] | None = None,
) -> Figure:
  """Draws a row a difference, with its interval around it.

  Args:
    key: of the figure.
    panels: their titles and rows: label, value, low, high, p_holm and
      optimizer, '' where it is of none.
    title: of the horizontal axes.
    caption: of the figure.
    looks: of theme.styles, for rows of an optimizer.
  """
  most = max(len(frame) for _, frame in panels)
  longest = max(len(label) for _, f in panels for label in f['label'])
  layout = theme.layout([name for name, _ in panels], 24 * most + 30, columns=2)
  layout['margin']['l'] = 34 + 7 * min(longest, 34)
  data = []
  for number, (_, frame) in enumerate(panels, 1):
    layout[theme.axis('x', number)] |= {
      'title': theme.title(title),
      'zeroline': True,
      'rangemode': 'tozero',
      'zerolinecolor': theme.INK,
      'zerolinewidth': 1.5,
    }
    layout[theme.axis('y', number)] |= {
      'tickvals': list(range(len(frame))),
      'ticktext': [theme.text(label) for label in frame['label']],
      'range': [most - 0.4, -0.6],
      'showgrid': False,
      'fixedrange': True,
    }
    for place, row in enumerate(frame.to_dict('records')):
      data.append(_mark(place, row, looks or {}, number))
  return Figure(
    key,
    title,
    caption,
    {
      'data': data,
      'layout': layout,
      'csv': {'x': title.lower(), 'error_x': 'half of the interval of 95 %'},
    },
    optimizers=theme.names(
      name for _, frame in panels for name in frame['optimizer'] if name
    ),
  )


def _mark(
  place: int,
  row: dict[str, Any],
  looks: dict[str, dict[str, str]],
  number: int,
) -> dict[str, Any]:
  optimizer = str(row['optimizer'])
  look = looks[optimizer] if optimizer in looks else None
  color = theme.INK if look is None else look['color']
  symbol = 'circle' if look is None else look['marker']
  counts = bool(row['p_holm'] < 0.05)
  name = theme.text(row['label'])
  known = pd.notna(row['high'])
  half = theme.digits((row['high'] - row['low']) / 2) if known else None
  interval = ' ± %{error_x.array:.4f}' if known else ''
  return {
    'type': 'scatter',
    'mode': 'markers',
    'name': name,
    'x': [theme.digits(row['value'])],
    'y': [place],
    'error_x': {
      'type': 'data',
      'array': [half],
      'thickness': 1.8,
      'width': 4,
      'color': color,
    },
    'marker': {
      'symbol': symbol if counts else f'{symbol}-open',
      'size': 9,
      'color': color,
      'line': {'width': 2, 'color': color},
    },
    'hovertemplate': f'%{{x:+.4f}}{interval}, corrected p '
    f'{words.p_value(row["p_holm"])}<extra>{name}</extra>',
    'meta': {
      'kind': 'beyond chance' if counts else 'within chance',
      **({'optimizer': optimizer} if optimizer else {}),
    },
    **theme.panel(number),
  }


def _names(pairs: pd.DataFrame) -> list[str]:
  return sorted({*pairs['first'], *pairs['second']})


def _ordered(comparison: tables.Comparison, pairs: pd.DataFrame) -> list[str]:
  """Returns a group's optimizers, lowest mean loss first."""
  cells = comparison.cells
  held = cells[
    (cells['column'] == 'eval_loss') & cells['group'].isin(pairs['group'])
  ].sort_values('mean')
  names = set(_names(pairs))
  return [name for name in held['optimizer'] if name in names]


def _against(pairs: pd.DataFrame, leader: str) -> pd.DataFrame:
  """Returns every other optimizer minus `leader`, one row each."""
  first = pairs[pairs['second'] == leader].assign(
    optimizer=lambda f: f['first']
  )
  second = pairs[pairs['first'] == leader].assign(
    optimizer=lambda f: f['second'],
    difference=lambda f: -f['difference'],
    low=lambda f: -f['high'],
    high=lambda f: -f['low'],
  )
  # `low` above is already turned where `high` is worked out.
  second['high'] = -pairs.loc[second.index, 'low']
  return pd.concat([first, second]).sort_values('difference')


def _leaders(
  comparison: tables.Comparison, pairs: pd.DataFrame, groups: Sequence[str]
) -> Figure:
  """Draws every optimizer against the one of the lowest mean loss."""
  panels = []
  for group in groups:
    of_group = pairs[pairs['group'] == group]
    leader = _ordered(comparison, of_group)[0]
    frame = _against(of_group, leader)
    frame = frame.assign(
      label=[words.name(name) for name in frame['optimizer']],
      value=frame['difference'],
    )
    title = f'{words.named(group)}: loss above {words.name(leader)}'
    panels.append((title, frame))
  return forest(
    'differences',
    panels,
    'Difference of loss (nats per token)',
    'Final validation loss of each optimizer minus that of the one with the '
    'lowest mean, seed by seed, with 95 % intervals. Full marks: beyond chance '
    'after Holm’s correction for all pairs of the group; open ones: not.',
    theme.styles(comparison.tables.runs['optimizer']),
  )


def _matrix(
  comparison: tables.Comparison, pairs: pd.DataFrame, groups: Sequence[str]
) -> Figure:
  """Draws all pairs as a matrix, a panel a group."""
  orders = [
    _ordered(comparison, pairs[pairs['group'] == group]) for group in groups
  ]
  most = max(len(order) for order in orders)
  layout = theme.layout(
    [words.named(g) for g in groups], 24 * most, narrowest=420, columns=2
  )
  layout['margin']['l'] = 150
  layout['margin']['b'] = 120
  data = []
  for number, (group, order) in enumerate(zip(groups, orders, strict=True), 1):
    of_group = pairs[pairs['group'] == group]
    ticks = [theme.text(words.name(name)) for name in order]
    data.append(_cells(of_group, order, group) | theme.panel(number))
    for letter in ('x', 'y'):
      layout[theme.axis(letter, number)] |= {
        'tickvals': list(range(len(order))),
        'ticktext': ticks,
        'showgrid': False,
        'fixedrange': True,
      }
    layout[theme.axis('y', number)]['range'] = [len(order) - 0.5, -0.5]
    layout[theme.axis('x', number)]['tickangle'] = -60
  return Figure(
    'matrix',
    'Differences of the final validation loss between all optimizers',
    'Loss of the row’s optimizer minus that of the column’s, lowest mean loss '
    'first: blue where the row’s is lower, red where it is higher. ●: beyond '
    'chance after Holm’s correction for all pairs of the group. Point at a '
    'cell for its numbers.',
    {'data': data, 'layout': layout, 'csv': {'z': 'difference of loss'}},
  )


def _cells(
  pairs: pd.DataFrame, order: Sequence[str], group: str
) -> dict[str, Any]:
  """Returns the cells of a matrix: values, marks and texts to point at."""
  signed = _both_ways(pairs)
  values, p_holm = (
    signed.pivot(index='first', columns='second', values=name)
    .reindex(index=order, columns=order)
    .to_numpy(float)
    for name in ('difference', 'p_holm')
  )
  hover = [
    [
      f'{theme.text(words.name(row))} − {theme.text(words.name(column))}: '
      f'{values[i, j]:+.4f}, corrected p {words.p_value(p_holm[i, j])}'
      for j, column in enumerate(order)
    ]
    for i, row in enumerate(order)
  ]
  # A few far off would leave the others without a colour.
  top = float(pairs['difference'].abs().quantile(0.9)) or 1.0
  return {
    'type': 'heatmap',
    'name': theme.text(words.named(group)),
    'z': [theme.rounded(row) for row in values],
    'text': np.where(p_holm < 0.05, '●', '').tolist(),
    'customdata': hover,
    'texttemplate': '%{text}',
    'textfont': {'size': 9},
    'hovertemplate': '%{customdata}<extra></extra>',
    'zmin': -top,
    'zmax': top,
    'colorscale': _SCALE,
    'showscale': False,
    'xgap': 1,
    'ygap': 1,
    'meta': {'kind': 'matrix', 'rows': order, 'columns': order},
  }


def _both_ways(pairs: pd.DataFrame) -> pd.DataFrame:
  """Returns the pairs and each of them the other way round."""
  turned = pairs.rename(columns={'first': 'second', 'second': 'first'})
  return pd.concat([pairs, turned.assign(difference=-turned['difference'])])


def _table(
  comparison: tables.Comparison, pairs: pd.DataFrame, groups: Sequence[str]
) -> Table:
  """Returns the pairs with their numbers."""
  shown: list[Sequence[Cell | str] | str] = []
  for group in groups:
    shown.append(words.named(group))
    for pair in pairs[pairs['group'] == group].to_dict('records'):
      counts = pair['p_holm'] < 0.05
      shown.append(
        [
          f'{words.name(pair["first"])} − {words.name(pair["second"])}',
          Cell(
            words.unit('eval_loss')
            .difference(pair['difference'])
            .split('\u00a0')[0],
            value=float(pair['difference']),
            style='best' if counts else '',
          ),
          words.interval(pair['low'], pair['high'], '+.4f'),
          words.p_value(pair['p']),
          words.p_value(pair['p_holm']),
          words.interval(pair['detectable'], pair['detectable'], '.4f').split(
            ' '
          )[0],
          str(int(pair['n'])),
        ]
      )
  return Table(
    'All pairs of optimizers',
    [
      Column('Pair'),
      Column('Difference', 'nats', True),
      Column('95 % interval', 'nats', True),
      Column('p', number=True),
      Column('p, corrected', number=True),
      Column('Seen with 80 % chance', 'nats', True),
      Column('Seeds', number=True),
    ],
    shown,
    note='Intervals are those of one comparison alone; corrected p-values hold '
    'for all pairs of a group. The last but one column is the difference that '
    'as many seeds would have shown with 80 % chance.',
    folded=True,
  )

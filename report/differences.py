"""Differences of the final validation loss between optimizers."""

from collections.abc import Mapping

import pandas as pd

from steepest.report import section, statistics, tables, theme, words
from steepest.report.section import Block, Column, Note, Section

# Most optimizers for a row per pair; beyond, only pairs with the best one.
_FEW = 4
_AXIS = 'Difference of loss (nats per token)'


def sections(comparison: tables.Comparison) -> list[Section]:
  """Returns the section of differences of the final validation loss."""
  pairs = comparison.pairs
  pairs = pairs[pairs['column'] == 'eval_loss']
  refused = [g for g in comparison.groups if comparison.refused(g)]
  pairs = pairs.assign(
    p_holm=pairs['p_holm'].mask(pairs['group'].isin(refused)),
    panel=pairs['group'].map(words.named),
    value=pairs['difference'],
    label=[
      f'{words.name(first)} − {words.name(second)}'
      for first, second in zip(pairs['first'], pairs['second'], strict=True)
    ],
    optimizer='',
  )
  pairs['counts'] = pairs['p_holm'] < statistics.LEVEL
  if not len(pairs):
    return []
  shown = set(pairs['group'])
  blocks = _warnings(comparison, [g for g in refused if g in shown])
  sizes = pairs.groupby('group')['first'].transform('nunique') + 1
  few, many = pairs[sizes <= _FEW], pairs[sizes > _FEW]
  if len(few):
    blocks.append(
      forest(
        'differences',
        few,
        _AXIS,
        'Differences in final validation loss, paired by seed, with 95 % '
        'intervals; left of the line, the first optimizer has the lower loss. '
        'Filled marks are significant after Holm’s correction for the number '
        'of pairs; open marks are not.',
      )
    )
  if len(many):
    cells = comparison.cells
    best = cells[cells['column'] == 'eval_loss'].sort_values('mean')
    blocks.append(
      forest(
        'leaders',
        pd.concat(
          _against(of, best[best['group'] == group]['optimizer'].iloc[0])
          for group, of in many.groupby('group', sort=False)
        ),
        _AXIS,
        'Final validation loss of each optimizer minus that of the one with '
        'the lowest mean, paired by seed, with 95 % intervals. Filled marks '
        'are significant after Holm’s correction for all pairs of the group; '
        'open marks are not.',
        theme.styles(comparison.tables.runs['optimizer']),
      )
    )
  blocks.append(_table(pairs))
  title = 'Differences between optimizers'
  return [Section('differences', title, blocks, folded=False)]


def _warnings(comparison: tables.Comparison, refused: list[str]) -> list[Block]:
  """Returns a note for each reason why groups are not compared."""
  reasons: dict[str, list[str]] = {}
  for group in refused:
    reason = comparison.reason(group, 'eval_loss')
    reasons.setdefault(reason, []).append(words.named(group))
  return [
    Note(
      f'{" · ".join(of)}: {reason}. No difference below is a claim.', 'warning'
    )
    for reason, of in reasons.items()
  ]


def forest(
  key: str,
  frame: pd.DataFrame,
  title: str,
  caption: str,
  looks: Mapping[str, Mapping[str, str]] | None = None,
  form: str = '.4f',
) -> section.Figure:
  """Draws one row per difference, with its interval.

  Args:
    key: of the figure.
    frame: panel (its title), label, value, low, high, counts (whether beyond
      chance), p_holm and optimizer ('' for none).
    title: of the horizontal axes.
    caption: of the figure.
    looks: from theme.styles, for rows with an optimizer.
    form: format of a difference.
  """
  panels = dict(list(frame.groupby('panel', sort=False)))
  most = max(len(of) for of in panels.values())
  layout = theme.layout(
    list(map(str, panels)),
    24 * most + 30,
    {
      'title': title,
      'zeroline': True,
      'rangemode': 'tozero',
      'zerolinecolor': theme.INK,
      'zerolinewidth': 1.5,
    },
    {'range': [most - 0.4, -0.6], 'showgrid': False, 'fixedrange': True},
    columns=2,
  )
  layout['margin']['l'] = 34 + 7 * min(frame['label'].str.len().max(), 34)
  data = []
  for number, of in enumerate(panels.values(), 1):
    layout[theme.axis('y', number)] |= {
      'tickvals': list(range(len(of))),
      'ticktext': [theme.text(label) for label in of['label']],
    }
    for place, row in enumerate(of.to_dict('records')):
      name = str(row['optimizer'])
      look = (looks or {}).get(name, theme.PLAIN)
      text = theme.text(row['label'])
      trace = theme.trace(
        name,
        number,
        [row['value']],
        [place],
        'significant' if row['counts'] else 'not significant',
        look,
        errors={'error_x': [(row['high'] - row['low']) / 2]},
        size=9,
        name=text,
        hovertemplate=f'%{{x:+{form}}} ± %{{error_x.array:{form}}}, corrected '
        f'p {words.p_value(row["p_holm"])}<extra>{text}</extra>',
      )
      trace['marker']['line'] = {'width': 2, 'color': look['color']}
      trace['marker']['symbol'] += '' if row['counts'] else '-open'
      data.append(trace)
  csv = {'x': title.lower(), 'error_x': 'half of the 95 % interval'}
  return section.Figure(
    key,
    title,
    caption,
    {'data': data, 'layout': layout, 'csv': csv},
    optimizers=theme.names(name for name in frame['optimizer'] if name),
  )


def both_ways(pairs: pd.DataFrame) -> pd.DataFrame:
  """Returns each pair in both orders."""
  turned = pairs.rename(columns={'first': 'second', 'second': 'first'})
  signs = {'difference': -pairs['difference']}
  signs |= {'low': -pairs['high'], 'high': -pairs['low']}
  return pd.concat([pairs, turned.assign(**signs)], ignore_index=True)


def _against(pairs: pd.DataFrame, leader: str) -> pd.DataFrame:
  """Returns every other optimizer minus `leader`, as `forest` draws them."""
  rows = both_ways(pairs)
  rows = rows[rows['second'] == leader].sort_values('difference')
  return rows.assign(
    panel=rows['panel'] + f': loss above {words.name(leader)}',
    value=rows['difference'],
    label=rows['first'].map(words.name),
    optimizer=rows['first'],
  )


def _table(pairs: pd.DataFrame) -> section.Table:
  """Returns the pairs with their numbers."""
  return section.Table.of(
    'All pairs of optimizers',
    with_numbers(pairs),
    {
      'label': Column('Pair'),
      'difference': Column('Difference', 'nats', True, '', '+.4f', 'counts'),
      'interval': Column('95 % interval', 'nats', True),
      'p': Column('p', number=True),
      'p_holm': Column('p, corrected', number=True),
      'detectable': Column('Detectable difference', 'nats', True, form='.4f'),
      'n': Column('Seeds', number=True),
    },
    heading='group',
    note='Each interval is for one comparison alone; p-values are corrected '
    'for all pairs of a group. The detectable difference is the one that this '
    'number of seeds would have shown with a probability of 80 %.',
    folded=True,
  )


def with_numbers(frame: pd.DataFrame) -> pd.DataFrame:
  """Returns rows with interval and p-values in words."""
  ends = zip(frame['low'], frame['high'], strict=True)
  p = {k: frame[k].map(words.p_value) for k in ('p', 'p_holm') if k in frame}
  return frame.assign(
    interval=[words.interval(*pair, '+.4f') for pair in ends], **p
  )

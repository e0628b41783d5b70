"""How often seeds diverge: counts, compared by Fisher's exact test."""

from collections.abc import Mapping
import math
from typing import Any

import pandas as pd

from steepest.report import section, statistics, words
from steepest.report.section import Column
from steepest.report.tables import Comparison

# What the rows of `pairs` have as their column.
COLUMN = 'diverged'


def pairs(runs: pd.DataFrame, withheld: bool) -> pd.DataFrame:
  """Returns first, second, difference, p, p_holm, n of every two optimizers.

  `difference` is between the shares of seeds that diverged; p_holm is corrected
  for all pairs. No rows where every seed finished.

  Args:
    runs: the compared ones of a group, each ended.
    withheld: whether nothing is claimed of the group: p is NaN.
  """
  bad = (
    (runs['status'] == 'diverged')
    .groupby(runs['optimizer'])
    .agg(['sum', 'size'])
  )
  if not bad['sum'].any():
    return pd.DataFrame()
  first_M, second_M = statistics.pairs(len(bad))
  rows = []
  for i, j in zip(first_M, second_M, strict=True):
    (a, n), (b, m) = (map(int, bad.iloc[k]) for k in (i, j))
    rows.append(
      {
        'column': COLUMN,
        'first': bad.index[i],
        'second': bad.index[j],
        'difference': a / n - b / m,
        'p': statistics.divergences((a, n), (b, m)),
        'n': min(n, m),
      }
    )
  found = pd.DataFrame(rows)
  if withheld or not rows:
    return found.assign(p=math.nan, p_holm=math.nan)
  return found.assign(p_holm=statistics.holm(found['p']))


def counts(comparison: Comparison, group: str) -> dict[str, str]:
  """Returns optimizer → '2 of 4', of those with a seed that diverged."""
  runs = comparison.compared
  runs = runs[runs['group'] == group]
  return {
    str(name): f'{(of == "diverged").sum()} of {len(of)}'
    for name, of in runs.groupby('optimizer')['status']
    if (of == 'diverged').any()
  }


def sentence(comparison: Comparison, group: str) -> str:
  """Says which optimizers diverged, and which do so more often; ''."""
  found = counts(comparison, group)
  if not found:
    return ''
  listed = [f'{words.name(name)} in {n}' for name, n in found.items()]
  text = f'Seeds that diverged: {words.join(listed)}'
  rows = _pairs(comparison, group)
  if rows['p'].isna().all():
    return f'{text}; not compared, as losses are not.'
  shown = rows[rows['p_holm'] < statistics.LEVEL]
  by_worse: dict[str, list[str]] = {}
  for row in shown.to_dict('records'):
    worse, other = row['first'], row['second']
    if row['difference'] < 0:
      worse, other = other, worse
    by_worse.setdefault(worse, []).append(words.name(other))
  if not by_worse:
    return f'{text}; no optimizer is shown to diverge more often than another.'
  said = [
    f'{words.name(name)} diverges more often than {words.join(others)}'
    for name, others in by_worse.items()
  ]
  p = words.p_equals(shown['p_holm'].max())
  return f'{text}; {words.join(said)} ({p}).'


def _pairs(comparison: Comparison, group: str) -> pd.DataFrame:
  rows = comparison.pairs
  return rows[(rows['group'] == group) & (rows['column'] == COLUMN)]


def blocks(comparison: Comparison) -> list[section.Block]:
  """Returns a sentence a group, and the table of pairs behind them."""
  said = {g: sentence(comparison, g) for g in comparison.groups}
  found: list[section.Block] = [
    f'{words.named(group)}: {text}' if len(said) > 1 else text
    for group, text in said.items()
    if text
  ]
  return [*found, _table(comparison)] if found else []


def _table(comparison: Comparison) -> section.Table:
  rows: list[list[section.Cell | str] | str] = []
  for group in comparison.groups:
    known = counts(comparison, group)
    held = _pairs(comparison, group)
    held = held[held['first'].isin(known) | held['second'].isin(known)]
    if len(held):
      rows.append(words.named(group))
    rows += [_row(row, known) for row in held.to_dict('records')]
  return section.Table(
    'How often seeds diverged',
    [
      Column('Pair'),
      Column('Diverged'),
      Column('p', number=True),
      Column('p, corrected', number=True),
    ],
    rows,
    note='Fisher’s exact test; corrected for all pairs of the group (Holm).',
    folded=True,
  )


def _row(
  row: Mapping[str, Any], known: Mapping[str, str]
) -> list[section.Cell | str]:
  sides = row['first'], row['second']
  return [
    ' and '.join(map(words.name, sides)),
    ', '.join(known[name] if name in known else 'none' for name in sides),
    words.p_value(row['p']),
    words.p_value(row['p_holm']),
  ]

"""How often seeds diverge: counts, compared by Fisher's exact test."""

import itertools
import math

import pandas as pd

from steepest.report import section, statistics, words
from steepest.report.section import Column
from steepest.report.tables import Comparison

# Value of `column` in the rows of `pairs`.
COLUMN = 'diverged'


def pairs(runs: pd.DataFrame, withheld: bool) -> pd.DataFrame:
  """Returns first, second, difference, p, p_holm, n of every two optimizers.

  `difference` is between the shares of seeds that diverged; p_holm is corrected
  for all pairs. No rows where every seed finished.

  Args:
    runs: compared runs of a group, all ended.
    withheld: whether nothing is claimed about the group; p is then NaN.
  """
  bad = _counts(runs)
  if not any(n for n, _ in bad.values()) or len(bad) < 2:
    return pd.DataFrame()
  found = pd.DataFrame(
    {
      'column': COLUMN,
      'first': a,
      'second': b,
      'difference': bad[a][0] / bad[a][1] - bad[b][0] / bad[b][1],
      'p': math.nan if withheld else statistics.divergences(bad[a], bad[b]),
      'n': min(bad[a][1], bad[b][1]),
    }
    for a, b in itertools.combinations(bad, 2)
  )
  return found.assign(p_holm=statistics.holm(found['p']))


def _counts(runs: pd.DataFrame) -> dict[str, tuple[int, int]]:
  """Returns optimizer → (diverged seeds, all seeds)."""
  return {
    str(name): (int((of == 'diverged').sum()), len(of))
    for name, of in runs.groupby('optimizer')['status']
  }


def sentence(comparison: Comparison, group: str) -> str:
  """Says which optimizers diverged, and which more often; '' for none."""
  runs, rows = comparison.compared, comparison.pairs
  bad = _counts(runs[runs['group'] == group])
  listed = [
    f'{words.name(name)} in {n} of {of}' for name, (n, of) in bad.items() if n
  ]
  if not listed:
    return ''
  text = f'Seeds that diverged: {words.join(listed)}'
  rows = rows[(rows['group'] == group) & (rows['column'] == COLUMN)]
  if rows['p'].isna().all():
    return f'{text}; not compared, as losses are not.'
  shown = rows[rows['p_holm'] < statistics.LEVEL]
  by_worse: dict[str, list[str]] = {}
  for row in shown.to_dict('records'):
    sides = row['first'], row['second']
    worse, other = sides if row['difference'] > 0 else sides[::-1]
    by_worse.setdefault(worse, []).append(words.name(other))
  if not by_worse:
    return f'{text}; no optimizer is shown to diverge more often than another.'
  said = [
    f'{words.name(name)} diverges more often than {words.join(others)}'
    for name, others in by_worse.items()
  ]
  p = words.p_equals(shown['p_holm'].max())
  return f'{text}; {words.join(said)} ({p}).'


def blocks(comparison: Comparison) -> list[section.Block]:
  """Returns a sentence per group, and the table of pairs behind them."""
  said = {g: sentence(comparison, g) for g in comparison.groups}
  found: list[section.Block] = [
    f'{words.named(group)}: {text}' for group, text in said.items() if text
  ]
  rows = comparison.pairs
  # Pairs with equal shares tell nothing.
  rows = rows[(rows['column'] == COLUMN) & (rows['difference'] != 0)]
  if not len(rows):
    return found
  names = (rows[side].map(words.name) for side in ('first', 'second'))
  frame = rows.assign(
    pair=[' − '.join(both) for both in zip(*names, strict=True)],
    points=100 * rows['difference'],
    p=rows['p'].map(words.p_value),
    p_holm=rows['p_holm'].map(words.p_value),
  )
  columns = {
    'pair': Column('Pair'),
    'points': Column('Share of diverged seeds', 'points', True, form='+.0f'),
    'p': Column('p', number=True),
    'p_holm': Column('p, corrected', number=True),
  }
  table = section.Table.of(
    'How often seeds diverged',
    frame,
    columns,
    heading='group',
    note='Fisher’s exact test; corrected for all pairs of the group (Holm).',
    folded=True,
  )
  return [*found, table]

"""The answer: a sentence or two for each group, and the table behind them."""

from collections.abc import Mapping, Sequence
import math
from typing import Any

import pandas as pd
from rich.console import Console

from steepest.report import (
  divergences,
  fairness,
  scaling,
  section,
  verdicts,
  words,
)
from steepest.report.section import Cell, Column
from steepest.report.tables import Comparison

# Columns of the table; scores by benchmark have a section of their own.
_COLUMNS = (
  'eval_loss',
  'train_loss',
  verdicts.ACCURACY,
  'seconds',
  'tokens_per_second',
  'flops',
)
_INSISTED = (
  'Ranked on request, although the search was unequal: no claim below is fair.'
)
_NOTE = (
  '± is the standard deviation over seeds; for accuracies, the standard error '
  'over seeds and questions. ● is significantly better than every other '
  'optimizer.'
)


def answers(comparison: Comparison) -> list[section.Answer]:
  """Returns the answers at the top: of each model's sizes, of each contest."""
  return scaling.answers(comparison) + [
    section.Answer(
      words.named(group),
      _answer(comparison, group),
      *fairness.answer(comparison, [group]),
    )
    for group in comparison.contests
  ]


def _answer(comparison: Comparison, group: str) -> str:
  """Returns who has the lowest loss, and who wins the other columns."""
  text = _lowest_loss(comparison, group)
  v = comparison.verdicts
  # Training time and tokens per second are the same measurement.
  rest = ~v['column'].isin(['eval_loss', 'tokens_per_second'])
  won = v[(v['group'] == group) & (v['winner'] != '') & rest]
  parts = [
    f'{words.name(str(name))} in {words.join(map(words.column, of["column"]))}'
    for name, of in won.groupby('winner', sort=False)
  ]
  if parts:
    text += f' Significantly best elsewhere: {words.join(parts)}.'
  return text


def _lowest_loss(comparison: Comparison, group: str) -> str:
  winner = comparison.winner(group, 'eval_loss')
  if not winner:
    return (
      f'No winner in validation loss: {comparison.reason(group, "eval_loss")}.'
    )
  c, v = (
    of[(of['group'] == group) & (of['column'] == 'eval_loss')]
    for of in (comparison.cells, comparison.verdicts)
  )
  means = c.set_index('optimizer')['mean'].dropna().sort_values()
  following = means.drop(winner).index[0]
  unit = words.unit('eval_loss')
  gap = unit.difference(means[following] - means[winner]).removeprefix('+')
  n = int(c.set_index('optimizer').loc[winner, 'n'])
  return (
    f'{words.name(winner)} ends with the lowest validation loss, '
    f'{unit.text(means[winner])}, {gap} below {words.name(following)} '
    f'({words.p_equals(v["p"].iloc[0])}, {words.plural(n, "seed")}).'
  )


def sections(comparison: Comparison) -> list[section.Section]:
  """Returns the section of results."""
  blocks: list[section.Block] = []
  if comparison.insisted and comparison.fairness['refuses'].any():
    blocks.append(section.Note(_INSISTED, 'warning'))
  if comparison.groups:
    blocks.append(table(comparison, _COLUMNS))
  else:
    blocks.append('No final run has ended yet.')
  blocks += map(section.Note, without_mup(comparison))
  blocks += divergences.blocks(comparison)
  v = comparison.verdicts
  unclaimed = v[v['reason'] != ''].groupby(['group', 'reason'], sort=False)
  listed = unclaimed['column'].agg(
    lambda of: words.capitalized(words.join(map(words.column, of)))
  )
  if len(listed):
    frame = listed.reset_index()
    frame['group'] = frame['group'].map(words.named)
    # Groups with the same reason share a row.
    by = ['column', 'reason']
    frame = frame.groupby(by, sort=False)['group'].agg(' · '.join).reset_index()
    heads = {'group': 'Group', 'column': 'Columns', 'reason': 'Reason'}
    blocks.append(
      section.Table.of(
        'Why no winner is claimed',
        frame,
        {key: Column(title) for key, title in heads.items()},
        folded=True,
        style='words',
      )
    )
  return [section.Section('results', 'Results', blocks, folded=False)]


def without_mup(comparison: Comparison) -> list[str]:
  """Returns a sentence for each optimizer without a known µP rule."""
  runs = comparison.tables.runs
  if 'env.optimizer.has_mup_rule' not in runs:
    return []
  lacking = runs[runs['env.optimizer.has_mup_rule'].isin([False])]
  return [
    f'No µP rule is known for {words.name(name)}: its learning rate is the '
    'same at every width.'
    for name in sorted(lacking['optimizer'].unique())
  ]


def table(comparison: Comparison, keys: Sequence[str]) -> section.Table:
  """Returns a row for each optimizer of each group, a column for each key."""
  cells = comparison.cells
  known = set(cells[cells['mean'].notna()]['column'])
  means = cells.groupby('column')['mean']
  units = {k: words.unit(k, means.get_group(k)) for k in keys if k in known}
  rows = []
  for group in comparison.groups:
    of_group = cells[cells['group'] == group]
    for optimizer, of in of_group.groupby('optimizer'):
      own = of.set_index('column')
      bad = int(own['diverged'].iloc[0])
      note, style = (f'{bad} diverged', 'bad') if bad else ('', '')
      seeds = Cell(str(own['seeds'].iloc[0]), note, style=style)
      row = {'group': group, 'optimizer': optimizer, 'seeds': seeds}
      for key, unit in units.items():
        wins = comparison.winner(group, key) == optimizer
        row[key] = _cell(unit, own.loc[key], wins) if key in own.index else None
      rows.append(row)
  return section.Table.of(
    'Results',
    pd.DataFrame(rows),
    {
      'optimizer': Column('Optimizer'),
      'seeds': Column('Seeds', number=True),
      **{k: Column(words.head(k), of.label, True) for k, of in units.items()},
    },
    heading='group',
    note=f'Means over seeds. {_NOTE} docs/comparison.md defines each number.',
    style='wide',
  )


def _cell(unit: words.Unit, row: Mapping[str, Any], wins: bool) -> Cell | None:
  if pd.isna(row['mean']):
    return None
  error = row['sd'] if math.isnan(row['chance']) else row['stderr']
  # Counts differ only by rounding.
  note = f'± {unit.number(error)}' if error > 1e-9 * row['mean'] else ''
  style = 'best' if wins else ''
  return Cell(unit.number(row['mean']), note, float(row['mean']), style=style)


def plain_table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
  """Returns heads and rows: the results as text, with every score."""
  keys = [
    *_COLUMNS[:2],
    *(k for k in comparison.verdicts['column'].unique() if k not in _COLUMNS),
    *_COLUMNS[2:],
  ]
  held = table(comparison, keys)
  heads = [
    f'{column.title} ({column.unit})' if column.unit else column.title
    for column in held.columns
  ]
  subject, rows = '', []
  for row in held.rows:
    if isinstance(row, str):
      subject = row
    else:
      first, *rest = map(_plain, row)
      rows.append([f'{subject} {first}', *rest])
  return heads, rows


def _plain(cell: Cell | str) -> str:
  if isinstance(cell, str):
    return cell
  mark = '● ' if cell.style == 'best' else ''
  return mark + ' '.join(filter(None, (cell.text, cell.note)))


def plain_notes(comparison: Comparison) -> list[str]:
  """Returns the lines below the plain-text table."""
  said = [
    (words.named(group), divergences.sentence(comparison, group))
    for group in comparison.groups
  ]
  diverged = [f'{group}: {text}' for group, text in said if text]
  return [*without_mup(comparison), *diverged, _NOTE]


def print_table(comparison: Comparison, console: Console) -> None:
  """Prints the results, benchmark scores included, and the answers."""
  lines = []
  if comparison.insisted and comparison.fairness['refuses'].any():
    console.print(_INSISTED, markup=False)
  words.print_table(console, *plain_table(comparison))
  for answer in answers(comparison):
    lines += [f'{answer.subject}: {answer.text}', f'  {answer.fairness}']
  lines += [
    f'  not compared: {run}: {reason}'
    for run, reason in comparison.left_out[['run', 'reason']].to_numpy()
  ]
  for line in [*lines, *plain_notes(comparison)]:
    console.print(line, markup=False)

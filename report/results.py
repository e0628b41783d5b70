"""The answer: a sentence or two for each group, and the table behind them."""

from collections.abc import Sequence
import math
from typing import Any

import pandas as pd
from rich.console import Console

from steepest.report import divergences, fairness, section, verdicts, words
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
  'Ranked although the search was unequal, as was asked: no claim below is a '
  'fair one.'
)


def answers(comparison: Comparison) -> list[section.Answer]:
  """Returns what is said of each group before anything else."""
  return [
    section.Answer(
      words.named(group),
      _answer(comparison, group),
      not (refusal := fairness.refusal(comparison.fairness, group)),
      _fairness(comparison, group, refusal),
    )
    for group in comparison.groups
  ]


def _answer(comparison: Comparison, group: str) -> str:
  """Returns who has the lowest loss, and who wins what else."""
  winner = comparison.winner(group, 'eval_loss')
  text = (
    f'No winner in validation loss: {comparison.reason(group, "eval_loss")}.'
  )
  if winner:
    text = _lowest_loss(comparison, group, winner)
  others: dict[str, list[str]] = {}
  v = comparison.verdicts
  for _, row in v[(v['group'] == group) & (v['winner'] != '')].iterrows():
    # Training time and tokens per second are one measurement.
    if row['column'] not in ('eval_loss', 'tokens_per_second'):
      others.setdefault(row['winner'], []).append(words.column(row['column']))
  if others:
    parts = [
      f'{words.name(name)} in {words.join(columns)}'
      for name, columns in others.items()
    ]
    text += f' Best beyond chance elsewhere: {words.join(parts)}.'
  return text


def _lowest_loss(comparison: Comparison, group: str, winner: str) -> str:
  c = comparison.cells
  of = c[(c['group'] == group) & (c['column'] == 'eval_loss')]
  of = of[of['mean'].notna()].sort_values('mean')
  unit = words.unit('eval_loss')
  mean = of.set_index('optimizer')['mean']
  following = next(name for name in of['optimizer'] if name != winner)
  v = comparison.verdicts
  p = v[(v['group'] == group) & (v['column'] == 'eval_loss')]['p'].iloc[0]
  gap = unit.difference(mean[following] - mean[winner]).removeprefix('+')
  n = int(of.set_index('optimizer').loc[winner, 'n'])
  return (
    f'{words.name(winner)} ends with the lowest validation loss, '
    f'{unit.text(mean[winner])}, {gap} below {words.name(following)} '
    f'(p = {words.p_value(p)}, {words.plural(n, "seed")}).'.replace('= <', '<')
  )


def _fairness(comparison: Comparison, group: str, refusal: str) -> str:
  if refusal:
    return f'Unequal search: {refusal}.'
  tuned = comparison.tuning
  tuned = tuned[tuned['group'] == group]
  if not len(tuned):
    return 'Nothing was searched.'
  trials = int(tuned['planned'].iloc[0])
  notes = comparison.fairness
  notes = notes[(notes['group'] == group) & (notes['subject'] == 'memories')]
  hand = ' Memories were set by hand and are unlike.' if len(notes) else ''
  return (
    f'{words.plural(trials, "trial")} of equal length for each optimizer, over '
    f'equal spans of rates; the best ones lie inside what was tried.{hand}'
  )


def sections(comparison: Comparison) -> list[section.Section]:
  """Returns the section of results."""
  blocks: list[section.Block] = []
  if comparison.insisted and comparison.fairness['refuses'].any():
    blocks.append(section.Alert(_INSISTED))
  if comparison.groups:
    blocks.append(table(comparison, _COLUMNS))
  else:
    blocks.append('No final run has ended yet.')
  blocks += map(section.Note, without_mup(comparison))
  blocks += divergences.blocks(comparison)
  reasons = _reasons(comparison)
  if len(reasons.rows):
    blocks.append(reasons)
  return [section.Section('results', 'Results', blocks, folded=False)]


def without_mup(comparison: Comparison) -> list[str]:
  """Says for which optimizers no µP rule is known, a sentence each."""
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
  keys = [
    key for key in keys if cells[cells['column'] == key]['mean'].notna().any()
  ]
  units = {k: words.unit(k, cells[cells['column'] == k]['mean']) for k in keys}
  columns = [Column('Optimizer'), Column('Seeds', number=True)]
  columns += [
    Column(words.head(key), units[key].label, number=True) for key in keys
  ]
  rows: list[list[Cell | str] | str] = []
  for group in comparison.groups:
    of = cells[cells['group'] == group]
    if len(comparison.groups) > 1:
      rows.append(words.named(group))
    for optimizer in sorted(of['optimizer'].unique()):
      own = of[of['optimizer'] == optimizer].set_index('column')
      row: list[Cell | str] = [
        Cell(words.name(optimizer), optimizer=optimizer),
        _seeds(own.iloc[0]),
      ]
      for key in keys:
        wins = comparison.winner(group, key) == optimizer
        cell = own.loc[key] if key in own.index else None
        row.append(_cell(units[key], cell, wins))
      rows.append(row)
  return section.Table(
    'Results',
    columns,
    rows,
    note='Means over seeds, ± the standard deviation over seeds, of accuracies '
    'the standard error over seeds and questions. Bold: better than every '
    'other optimizer, beyond chance. docs/comparison.md defines each number.',
    style='wide',
  )


def _seeds(row: Any) -> Cell:
  if not row['diverged']:
    return Cell(str(row['seeds']))
  return Cell(str(row['seeds']), f'{row["diverged"]} diverged', style='bad')


def _cell(unit: words.Unit, row: Any, wins: bool) -> Cell:
  if row is None or pd.isna(row['mean']):
    return Cell(words.MISSING)
  error = row['sd'] if math.isnan(row['chance']) else row['stderr']
  note = f'± {unit.number(error)}' if error > 0 else ''
  return Cell(
    unit.number(row['mean']),
    note,
    value=float(row['mean']),
    style='best' if wins else '',
  )


def _reasons(comparison: Comparison) -> section.Table:
  """Returns why columns have no winner, equal reasons in one row."""
  v = comparison.verdicts
  rows = [
    [words.named(group), words.capitalized(_listed(of['column'])), why]
    for (group, why), of in v[v['reason'] != ''].groupby(
      ['group', 'reason'], sort=False
    )
  ]
  return section.Table(
    'Why no winner is claimed',
    [Column('Group'), Column('Columns'), Column('Reason')],
    rows,
    folded=True,
    style='words',
  )


def _listed(columns: pd.Series) -> str:
  return words.join(words.column(column) for column in columns)


def plain_table(
  comparison: Comparison,
) -> tuple[list[str], list[list[str]], str]:
  """Returns heads, rows and a note: the results as text, with every score."""
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
  subject = words.named(comparison.groups[0]) if comparison.groups else ''
  rows = []
  for row in held.rows:
    if isinstance(row, str):
      subject = row
      continue
    texts = [_plain(cell) for cell in row]
    rows.append([f'{subject} {texts[0]}', *texts[1:]])
  return (
    heads,
    rows,
    (
      '± is the standard deviation over seeds, of accuracies the standard '
      'error over seeds and questions; ● better than every other optimizer, '
      'beyond chance.'
    ),
  )


def print_table(comparison: Comparison, console: Console) -> None:
  """Prints the results, every benchmark's among them, and the answers."""
  if comparison.insisted and comparison.fairness['refuses'].any():
    console.print(_INSISTED, markup=False)
  heads, rows, note = plain_table(comparison)
  words.print_table(console, heads, rows)
  for said in without_mup(comparison):
    console.print(said, markup=False)
  for answer in answers(comparison):
    console.print(f'{answer.subject}: {answer.text}', markup=False)
    console.print(f'  {answer.fairness}', markup=False)
  for group in comparison.groups:
    if said := divergences.sentence(comparison, group):
      console.print(f'{words.named(group)}: {said}', markup=False)
  for _, row in comparison.left_out.iterrows():
    console.print(
      f'  not compared: {row["run"]}: {row["reason"]}', markup=False
    )
  console.print(note, style='dim')


def _plain(cell: Cell | str) -> str:
  if isinstance(cell, str):
    return cell
  mark = '● ' if cell.style == 'best' else ''
  return mark + ' '.join(filter(None, (cell.text, cell.note)))

"""The report's tables for a terminal of 100 columns."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from steepest.eval.comparing import formatting
from steepest.eval.comparing.comparison import Cell, Column, Comparison, Group
from steepest.eval.report import details, words

# Characters of a benchmark's number, and of the cell's name and seeds.
_NUMBER = 10
_CELL = 18


def print_table(comparison: Comparison, console: Console) -> None:
  """Prints losses and costs, then accuracies, then the answers."""
  kept = [c for c in comparison.columns if c.kind != 'benchmark']
  scored = [c for c in comparison.columns if c.kind == 'benchmark']
  blocks = [kept] if kept else []
  blocks += _split(scored, console.width)
  for block in blocks:
    console.print(_table(comparison, block))
  for group in comparison.groups:
    console.print(escape(words.headline(group)))
    for run, remark in details.excluded(group):
      console.print(escape(f'  not compared: {run.name}: {remark}'))
    for line in group.warnings:
      console.print(escape(f'  note: {line}'))
  for line in words.unequal_budgets(comparison):
    console.print(escape(f'unequal tuning budgets: {line}'))
  console.print(
    '± is the standard deviation over seeds, for accuracies (%) the standard '
    'error; ● best by more than that spread, ○ best in number only.',
    style='dim',
  )


def _split(columns: Sequence[Column], width: int) -> list[list[Column]]:
  """Splits columns into tables that fit into `width`."""
  blocks: list[list[Column]] = []
  room = 0
  for column in columns:
    needs = 2 + max(_NUMBER, *map(len, _head(column).split('\n')))
    if needs > room:
      blocks.append([])
      room = width - _CELL
    blocks[-1].append(column)
    room -= needs
  return blocks


def _head(column: Column) -> str:
  """Returns a column's name in lines: narrow heads leave room for numbers."""
  if column.kind != 'benchmark':
    return formatting.column_name(column).replace(' ', '\n')
  task = formatting.name(column.task).replace('ARC-', 'ARC-\n')
  for separator in ' _':
    task = task.replace(separator, '\n')
  return f'{task}\n{column.metric}'


def _table(comparison: Comparison, columns: Sequence[Column]) -> Table:
  table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, header_style='bold')
  # Names of cells on axes are long.
  table.add_column('Cell', no_wrap=not comparison.axes)
  table.add_column('n', justify='right')
  for column in columns:
    table.add_column(escape(_head(column)), justify='right', no_wrap=True)
  for group in comparison.groups:
    for cell in group.cells:
      table.add_row(
        escape(
          formatting.cell_name(
            cell.architecture, cell.optimizer, group.axes_label
          )
        ),
        str(len(cell.runs)),
        *(_value(cell, column, group) for column in columns),
      )
    table.add_section()
  return table


def _value(cell: Cell, column: Column, group: Group) -> str:
  mean = cell.value(column.key)
  if mean is None:
    return 'diverged' if not cell.runs else '–'
  text = formatting.number(column, mean)
  if column.kind == 'benchmark':
    text += f' ±{formatting.number(column, cell.scores[column.key].error)}'
  elif column.kind == 'loss' and cell.spreads[column.key].sd is not None:
    sd = cell.spreads[column.key].sd or 0.0
    text += f' ±{formatting.deviation(column, sd, mean)}'
  verdict = group.verdict(column.key)
  if verdict is None or cell.optimizer not in verdict.leaders:
    return text
  if verdict.conclusion == 'wins':
    return f'[bold]●{text}[/bold]'
  if verdict.conclusion in ('partly', 'tie', 'unknown'):
    return f'○{text}'
  return text

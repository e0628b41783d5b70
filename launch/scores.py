"""The table of what a model scored, for the commands that score one."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from steepest.eval.evaluation import Results


def show(results: 'Results') -> None:
  """Prints a table of what a model scored, and what to know of it."""
  from rich.table import Table

  from steepest.data.terminal import Console
  from steepest.eval import tasks as tasks_lib

  info, metrics = results.info, results.metrics
  grouped = {
    name
    for group in metrics
    if group in tasks_lib.GROUPS
    for name in tasks_lib.GROUPS[group]
  }
  table = Table('task', 'metric', 'value', 'n', 'chance')
  for task, values in metrics.items():
    if task in grouped:
      continue
    chance = f'{info["chance"][task]:.3f}' if task in info['chance'] else ''
    for name, value in values.items():
      if name == 'n' or name.endswith('_stderr'):
        continue
      error = values[f'{name}_stderr']
      text = f'{value:.4g}' + ('' if error is None else f' ± {error:.2g}')
      of = chance if name.startswith('acc') else ''
      table.add_row(task, name, text, str(values['n']), of)
  if metrics:
    Console().print(table)
  notes = [f'{info["requests"]} requests, {info["seconds"]:.1f} s']
  if grouped:
    notes.append('subjects of groups are in results.json')
  if info['shots']:
    counts = sorted(set(info['shots'].values()))
    names = 'all tasks' if len(info['shots']) == len(info['tasks']) else 'some'
    notes.append(f'{", ".join(map(str, counts))} shots in {names}')
  if info['limit']:
    notes.append(f'limit {info["limit"]}: {info["limit_rule"]}')
  if info['truncated']:
    notes.append(f'{info["truncated"]} requests lost their start')
  for note in notes:
    print(note)

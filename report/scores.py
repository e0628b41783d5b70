"""Benchmark scores at the end of training, beside chance and the loss."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from steepest.report import section, tables, theme, verdicts, words
from steepest.report.section import Cell, Column

# Share of a benchmark's row that the optimizers' marks span.
_SPREAD = 0.7


def sections(comparison: tables.Comparison) -> list[section.Section]:
  """Returns the section of scores at the end of training."""
  cells = comparison.cells
  held = cells[cells['column'].str.contains('/') & cells['mean'].notna()]
  if not len(held):
    return []
  names = ordered(held['column'].unique())
  accuracies = [name for name in names if not name.endswith('/perplexity')]
  blocks: list[section.Block] = [_questions(comparison.tables.scores, names)]
  if accuracies:
    blocks.append(_figure(comparison, held, accuracies))
  blocks.append(_table(comparison, held, names))
  return [section.Section('scores', 'Benchmarks', blocks)]


def ordered(columns: Sequence[str]) -> list[str]:
  """Returns 'task/metric' of the outermost tasks, in eval/tasks.py's order."""
  pairs = [column.rpartition('/')[::2] for column in columns]
  frame = pd.DataFrame(pairs, columns=['task', 'metric'])
  return ['/'.join(pair) for pair in verdicts.outermost(frame)]


def _questions(scores: pd.DataFrame, names: Sequence[str]) -> str:
  """Says how many questions were scored, in words."""
  held = scores[(scores['task'] + '/' + scores['metric']).isin(names)]
  listed = words.join(
    f'{words.name(str(task))} '
    + words.join((f'{n:,}' for n in sorted(set(of))), 'or')
    for task, of in held.groupby('task', sort=False)['n']
  )
  limits = sorted({int(n) for n in held['limit'].dropna() if n})
  if limits:
    most = words.join((f'{n:,}' for n in limits), 'or')
    listed += (
      f'. Limited to {most} questions a task: these are not the scores of the '
      'whole benchmarks'
    )
  return f'Questions scored: {listed}.'


def _figure(
  comparison: tables.Comparison, held: pd.DataFrame, names: Sequence[str]
) -> section.Figure:
  """Draws accuracies with standard errors and chance, one panel per group.

  Each row is a benchmark, in which the optimizers' marks are stacked.
  """
  held = held[held['column'].isin(names)]
  groups = [g for g in comparison.groups if g in set(held['group'])]
  optimizers = sorted(set(held['optimizer']))
  looks = theme.styles(comparison.tables.runs['optimizer'])
  row = max(34, 14 + 9 * len(optimizers))
  labels = [theme.text(words.column(n)).rsplit(' ', 1) for n in names]
  layout = theme.layout(
    [words.named(g) for g in groups],
    row * len(names),
    {'title': 'Accuracy (%)'},
    {
      'tickvals': list(range(len(names))),
      'ticktext': ['<br>'.join(label) for label in labels],
      'showgrid': False,
      'range': [len(names) - 0.5, -0.5],
      'fixedrange': True,
    },
    columns=2,
  )
  layout['margin']['l'] = 110
  places = held['column'].map({name: i for i, name in enumerate(names)})
  count = len(optimizers)
  offsets = held['optimizer'].map(
    {name: (i + 0.5) / count - 0.5 for i, name in enumerate(optimizers)}
  )
  held = held.assign(place=places, y=places + _SPREAD * offsets)
  data: list[dict[str, Any]] = []
  for panel, group in enumerate(groups, 1):
    of_group = held[held['group'] == group].sort_values('place')
    for name, of in of_group.groupby('optimizer'):
      data.append(
        theme.trace(
          str(name),
          panel,
          100 * of['mean'],
          of['y'],
          'score',
          looks[str(name)],
          {'labels': list(of['column'])},
          errors={'error_x': 100 * of['stderr']},
          text=[theme.text(words.head(column)) for column in of['column']],
          hovertemplate='%{text}<br>%{x:.1f} ± %{error_x.array:.1f} %'
          '<extra>%{fullData.name}</extra>',
        )
      )
    data.append(_guessing(of_group, panel))
  return section.Figure(
    'scores',
    'Benchmark accuracies with standard errors',
    'Mean over seeds, zero-shot unless the name says otherwise; whiskers are '
    'one standard error either way, dotted lines the accuracy of guessing.',
    {
      'data': data,
      'layout': layout,
      'csv': {'x': 'accuracy (%)', 'error_x': 'standard error (points)'},
    },
    optimizers=theme.names(optimizers),
  )


def _guessing(of_group: pd.DataFrame, panel: int) -> dict[str, Any]:
  """Draws chance accuracy across each benchmark's row."""
  chance = of_group.drop_duplicates('column').dropna(subset='chance')
  return theme.chance(
    [100 * c for c in chance['chance'] for _ in range(3)],
    [
      None if end is None else place + end
      for place in chance['place']
      for end in (-0.44, 0.44, None)
    ],
    panel,
  )


def _table(
  comparison: tables.Comparison, held: pd.DataFrame, names: Sequence[str]
) -> section.Table:
  """Returns mean ± standard error, one row per optimizer."""

  def cell(row: Any) -> Cell:
    unit = words.unit(row['column'])
    won = comparison.winner(row['group'], row['column']) == row['optimizer']
    return Cell(
      unit.number(row['mean']),
      f'± {unit.number(row["stderr"])}',
      row['mean'],
      style='best' if won else '',
    )

  held = held[held['column'].isin(names)]
  held = held.assign(cell=[cell(row) for row in held.to_dict('records')])
  wide = held.pivot(
    index=['group', 'optimizer'], columns='column', values='cell'
  ).reindex(pd.Index(comparison.groups), level='group')
  heads = {
    name: Column(
      words.name(name.rpartition('/')[0]),
      ', '.join(
        filter(None, (name.rpartition('/')[2], words.unit(name).label))
      ),
      True,
    )
    for name in names
  }
  return section.Table.of(
    'Scores of every optimizer',
    wide.reset_index(),
    {'optimizer': Column('Optimizer'), **heads},
    heading='group',
    note='Mean over seeds ± standard error; seeds share their questions. ● is '
    'significantly better than every other optimizer of its group, after '
    'correction for their number.',
    style='wide',
  )

"""The report in short, for pasting into a pull request."""

from collections.abc import Sequence
import html
import re

from steepest.eval.comparing import (
  claims,
  costs as costs_lib,
  findings,
  formatting,
  statistics,
)
from steepest.eval.comparing.comparison import Cell, Column, Comparison, Group
from steepest.eval.report import details, words

_UNITS = ('tokens', 'flops', 'seconds')


def text(
  comparison: Comparison,
  answers: Sequence[claims.Answer],
  origin: Sequence[tuple[str, str]],
) -> str:
  """Returns report.md: answers, tables, what was left out, where it is from."""
  lines = ['# Optimizer comparison', '']
  lines += [f'* {_plain(words.headline(g))}' for g in comparison.groups]
  for group in comparison.groups:
    lines += _group(group, comparison.columns)
  lines += _searches(comparison)
  lines += _claims(answers)
  lines += ['', '## Where it is from', '']
  lines += [f'* {name}: {_plain(value)}' for name, value in origin]
  lines.append(
    '* ± is the standard deviation over seeds, for accuracies (%) the standard '
    'error; ● best by more than the rule asks, ○ best in number only.'
  )
  return '\n'.join(lines) + '\n'


def _group(group: Group, columns: Sequence[Column]) -> list[str]:
  lines = ['', f'## {_plain(formatting.group_name(group))}', '']
  shown = [c for c in columns if any(_has(cell, c) for cell in group.cells)]
  if shown:
    heads = ['optimizer', 'seeds']
    heads += [formatting.column_name(c) for c in shown]
    rows = [
      [
        formatting.name(cell.optimizer),
        str(len(cell.runs)),
        *(_value(group, cell, column) for column in shown),
      ]
      for cell in group.cells
    ]
    lines += _table(heads, rows)
  lines += _pairs(group) + _costs(group)
  excluded = details.excluded(group)
  if excluded:
    lines += ['', 'Not compared:', '']
    lines += [
      f'* `{_code(run.name)}`: {_plain(remark)}' for run, remark in excluded
    ]
  if group.warnings:
    lines += ['', *(f'* {_plain(line)}' for line in group.warnings)]
  return lines


def _has(cell: Cell, column: Column) -> bool:
  return cell.value(column.key) is not None


def _value(group: Group, cell: Cell, column: Column) -> str:
  mean = cell.value(column.key)
  if mean is None:
    return 'diverged' if not cell.runs else '–'
  shown = formatting.number(column, mean)
  if column.kind == 'benchmark':
    error = cell.scores[column.key].error
    shown += f' ± {formatting.number(column, error)}'
  elif column.kind != 'count' and cell.spreads[column.key].sd is not None:
    sd = cell.spreads[column.key].sd or 0.0
    shown += f' ± {formatting.deviation(column, sd, mean)}'
  verdict = group.verdict(column.key)
  if verdict is not None and cell.optimizer in verdict.leaders:
    if verdict.conclusion == 'wins':
      return f'●{shown}'
    if verdict.conclusion in ('partly', 'tie', 'unknown'):
      return f'○{shown}'
  return shown


def _pairs(group: Group) -> list[str]:
  """Returns the table of differences of the final validation loss."""
  if 'eval_loss' not in group.pairs:
    return []
  rows = [
    [
      f'{formatting.name(pair.first)} − {formatting.name(pair.second)}',
      *_difference(pair.difference),
    ]
    for pair in group.pairs['eval_loss']
  ]
  heads = ['validation loss', 'difference', '95 % interval', 'p (Holm)']
  return ['', *_table([*heads, 'counts'], rows)]


def _difference(d: statistics.Difference) -> list[str]:
  interval = '–'
  if d.low is not None and d.high is not None:
    interval = f'{d.low:+.4f} … {d.high:+.4f}'
  counts = {True: 'yes', False: 'no', None: 'unknown'}[d.exceeds]
  return [
    f'{d.value:+.4f}',
    interval,
    formatting.p_value(d.p_holm),
    counts,
  ]


def _costs(group: Group) -> list[str]:
  """Returns the table of hours with tuning and speed-ups to the target."""
  if not any(cost.run for cost in group.costs):
    return []
  found = {target.optimizer: target for target in group.targets}
  rows = []
  for cost in group.costs:
    speeds = []
    for unit in _UNITS:
      target = found[cost.optimizer] if cost.optimizer in found else None
      if target is None or unit not in target.speedups:
        speeds.append('–')
        continue
      ratio = target.speedups[unit]
      shown = f'{ratio.value:.2f} ×'
      if ratio.low is not None and ratio.high is not None:
        shown += f' ({ratio.low:.2f} … {ratio.high:.2f})'
      speeds.append(shown)
    rows.append(
      [
        formatting.name(cost.optimizer),
        _seconds(cost.run),
        _seconds(cost.tuning),
        *speeds,
      ]
    )
  heads = ['optimizer', 'time of a run', 'time of its search']
  heads += [
    f'speed-up to AdamW’s loss, {unit}' for unit in ('tokens', 'FLOPs', 'time')
  ]
  return ['', *_table(heads, rows)]


def _seconds(cost: costs_lib.Cost | None) -> str:
  return '–' if cost is None else formatting.duration(cost.seconds)


def _searches(comparison: Comparison) -> list[str]:
  if not comparison.curves:
    return []
  rows = [
    [
      formatting.cell_name(curve.architecture, curve.optimizer, ''),
      f'{curve.layers} × {curve.width}',
      str(curve.trials),
      formatting.count(curve.spent),
      '–' if curve.best is None else formatting.rate(curve.best),
      '–' if curve.fitted is None else formatting.rate(curve.fitted),
      {True: 'yes', False: 'no, at the edge', None: '–'}[curve.inside],
    ]
    for curve in comparison.curves
  ]
  heads = ['search', 'proxy', 'trials', 'tokens', 'best rate', 'parabola']
  lines = ['', '## Tuning', '', *_table([*heads, 'inside'], rows)]
  for line in words.unequal_budgets(comparison):
    lines += ['', f'Unequal budgets: {_plain(line)}.']
  return lines


def _claims(answers: Sequence[claims.Answer]) -> list[str]:
  if all(a.conclusion == findings.UNTESTED for a in answers):
    return []
  rows = [[answer.statement, answer.conclusion] for answer in answers]
  title = f'## Claims of {claims.SOURCE}'
  return ['', title, '', *_table(['claim', 'found here'], rows)]


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
  lines = [heads, ['---'] * len(heads), *rows]
  return [f'| {" | ".join(map(_plain, line))} |' for line in lines]


def _plain(value: str) -> str:
  """Returns text that is no markup and cannot leave its cell."""
  one_line = ' '.join(value.split())
  escaped = html.escape(one_line, quote=False)
  return re.sub(r'([\\`*_\[\]|])', r'\\\1', escaped)


def _code(value: str) -> str:
  """Returns text for between back-ticks."""
  return ' '.join(value.split()).replace('`', 'ˋ')

"""Paired differences as a page, a terminal's table and a report's section."""

from collections.abc import Sequence
import dataclasses
import datetime
import json
import math
import os
import pathlib
import shlex
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape as escape_markup
from rich.table import Table

from steepest.eval.comparing import formatting, pairs as pairs_lib, statistics
from steepest.eval.comparing.comparison import Comparison, Group
from steepest.eval.plots import theme
from steepest.eval.report import page
from steepest.eval.report.page import escape

_RULES = (
  'A and B answered the same questions: documents and their files were checked '
  'to be equal. Accuracies are in %, differences in points. A − B is the mean '
  'of the differences question by question, its standard error s/√n of them. '
  'That is smaller than for two models on unlike questions, since what is hard '
  'is hard for both.',
  'The interval of 95 % and p are those of Student’s t for paired differences. '
  'Only A, only B: questions that one of them alone has right; p (signs) is '
  'that of these two counts alone, McNemar’s exact test.',
  'p (all) is corrected for the number of lines (Holm): a difference is marked '
  '● where it is below 0.05.',
  'A group is the mean over all of its questions. Differences of perplexity '
  'are tested as mean log-likelihoods of a word and written as the ratio of '
  'A’s to B’s. Training another seed of either would add a spread that no '
  'number of questions shows.',
)
_HEADS = (
  'A',
  'B',
  'A − B',
  '± error',
  '95 %',
  'Only A',
  'Only B',
  'p',
  'p (signs)',
  'p (all)',
)


def write(
  pairing: pairs_lib.Pairing,
  out_dir: str | os.PathLike[str],
  command: Sequence[str],
) -> pathlib.Path:
  """Writes compare.html and compare.json; returns the page's path."""
  out = pathlib.Path(out_dir)
  out.mkdir(parents=True, exist_ok=True)
  date = datetime.datetime.now(datetime.UTC).strftime('%Y-%m-%d %H:%M UTC')
  line = shlex.join(command)
  content = {
    'command': line,
    'date': date,
    'models': [
      {'directory': str(e.path), 'info': e.info}
      for e in (pairing.first, pairing.second)
    ],
    'pairs': [dataclasses.asdict(pair) for pair in pairing.pairs],
    'notes': pairing.notes,
    'rules': list(_RULES),
  }
  page.replace(out / 'compare.json', json.dumps(content, indent=1))
  return page.write_page(
    out / 'compare.html',
    title='Two models on the same questions',
    subtitle=''.join(
      f'{letter}: <code>{escape(e.model)}</code> '
      f'<small>{escape(e.path)}</small><br>'
      for letter, e in zip('AB', (pairing.first, pairing.second))
    ),
    headline=f'<ul class="answer"><li>{escape(summary(pairing))}</li></ul>',
    sections=_sections(pairing),
    footer=f'<p>Command: <code>{escape(line)}</code></p>'
    f'<p>Date: {escape(date)}</p>',
    figures={'differences': _figure(pairing)},
  )


def summary(pairing: pairs_lib.Pairing) -> str:
  """Says in a sentence which model is better at what."""
  clauses = []
  for letter, sign in (('A', 1), ('B', -1)):
    names = [
      _name(p) for p in pairing.pairs if _holds(p) and sign * p.test.value > 0
    ]
    if names:
      clauses.append(f'{letter} is better on {", ".join(names)}')
  rest = sum(not _holds(p) for p in pairing.pairs)
  if not clauses:
    return 'No difference is shown on any task.'
  text = '; '.join(clauses)
  return (
    f'{text}; no difference shown on {rest} others.' if rest else f'{text}.'
  )


def print_table(pairing: pairs_lib.Pairing, console: Console) -> None:
  """Prints the differences for a terminal of 100 columns."""
  table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, header_style='bold')
  for head in ('Task', 'n', *_HEADS):
    if head not in ('Only A', 'Only B', 'p (signs)'):
      table.add_column(head, justify='left' if head == 'Task' else 'right')
  for pair in pairing.pairs:
    values = dict(zip(_HEADS, _values(pair)))
    for head in ('Only A', 'Only B', 'p (signs)'):
      del values[head]
    mark = '●' if _holds(pair) else ''
    table.add_row(
      escape_markup(f'{mark}{_name(pair)}'),
      f'{pair.questions:,}',
      *values.values(),
    )
  console.print(table)
  for letter, e in zip('AB', (pairing.first, pairing.second)):
    console.print(escape_markup(f'{letter}: {e.model} ({e.path})'))
  console.print(escape_markup(summary(pairing)))
  for note in pairing.notes:
    console.print(escape_markup(f'note: {note}'))


def study_section(comparison: Comparison) -> list[page.Section]:
  """Returns the section of differences between a report's optimizers."""
  parts = []
  for i, group in enumerate(comparison.groups):
    table = _study_table(group, ('architectures', i, 'pairs'))
    if table:
      name = formatting.group_name(group)
      label = f'{name}: differences of accuracies'
      body = page.scroll(table, label)
      parts.append(page.fold(name, body, len(comparison.groups) < 3))
  if not parts:
    return []
  parts.append(
    '<p class="caption">Difference in points (first minus second) ± standard '
    'error, over the questions’ differences averaged over seeds and, with '
    'several seeds, over the seeds’ differences too; p from the normal '
    'distribution, corrected for all pairs of a benchmark (Holm). Bold: it '
    'counts. † predictions.jsonl is missing, so the questions could not be '
    'paired.</p>'
  )
  title = 'Benchmarks, question by question'
  return [page.Section('questions', title, parts)]


def _study_table(group: Group, path: tuple[object, ...]) -> str:
  """Returns a row a pair of optimizers, a column a benchmark."""
  keys = [
    v.column.key
    for v in group.verdicts
    if v.column.kind == 'benchmark'
    and v.column.metric != 'perplexity'
    and v.column.key in group.pairs
  ]
  if 'accuracy' in group.pairs:
    keys.append('accuracy')
  two = dict.fromkeys((p.first, p.second) for k in keys for p in group.pairs[k])
  rows = []
  for first, second in two:
    cells = [f'{formatting.name(first)} − {formatting.name(second)}']
    for key in keys:
      found = [
        (i, pair.difference)
        for i, pair in enumerate(group.pairs[key])
        if (pair.first, pair.second) == (first, second)
      ]
      cells.append(
        _study_value(found[0][1], (*path, key, found[0][0])) if found else '–'
      )
    rows.append([escape(cells[0]), *cells[1:]])
  if not rows:
    return ''
  heads = [f'#{escape(formatting.score_name(key))}' for key in keys]
  return page.table(['Optimizers', *heads], rows, 'pairs')


def _study_value(d: statistics.Difference, path: tuple[object, ...]) -> str:
  value = page.data(d.value, f'{100 * d.value:+.1f}', *path, 'value', scale=100)
  if d.error is None:
    return value
  if d.exceeds:
    value = f'<strong>{value}</strong>'
  mark = '' if d.rule == 'questions, paired' else ' †'
  error = page.data(d.error, f'{100 * d.error:.1f}', *path, 'error', scale=100)
  p = page.data(d.p_holm, formatting.p_value(d.p_holm), *path, 'p_holm')
  return f'{value}<small>± {error}, p {p}{mark}</small>'


def _sections(pairing: pairs_lib.Pairing) -> list[page.Section]:
  heads = ''.join(f'<th class="num">{escape(head)}</th>' for head in _HEADS)
  rows = []
  for pair in pairing.pairs:
    mark = '<i class="mark">●</i>' if _holds(pair) else ''
    values = ''.join(f'<td class="num">{escape(v)}</td>' for v in _values(pair))
    rows.append(
      f'<tr><th scope="row">{mark}{escape(_name(pair))}</th>'
      f'<td class="num">{pair.questions:,}</td>{values}</tr>'
    )
  notes = ''.join(f'<p class="warning">{escape(n)}</p>' for n in pairing.notes)
  rules = ''.join(f'<li>{escape(rule)}</li>' for rule in _RULES)
  table = (
    '<table class="pairs"><thead><tr><th>Task</th><th class="num">Questions'
    f'</th>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
  )
  plot = page.figure(
    'differences',
    'Differences of accuracies',
    'Accuracy of A minus that of B with the interval of 95 %. Right of the '
    'line A is better.',
  )
  return [
    page.Section(
      'differences-table',
      'Differences',
      [notes, plot, page.scroll(table, 'Differences')],
    ),
    page.Section('rules', 'Rules', [f'<ul class="rules">{rules}</ul>']),
  ]


def _name(pair: pairs_lib.Pair) -> str:
  return f'{formatting.name(pair.task)} {pair.metric}'


def _holds(pair: pairs_lib.Pair) -> bool:
  return pair.p_all is not None and pair.p_all < 1 - statistics.CONFIDENCE


def _values(pair: pairs_lib.Pair) -> tuple[str, ...]:
  """Returns what stands under _HEADS."""
  t = pair.test
  ratio = pair.metric == 'perplexity'

  def own(value: float) -> str:
    return f'{value:.3g}' if ratio else f'{100 * value:.1f}'

  def change(value: float | None) -> str:
    if value is None:
      return '–'
    return f'× {math.exp(-value):.3f}' if ratio else f'{100 * value:+.1f}'

  error = '–' if t.error is None else f'{(1 if ratio else 100) * t.error:.1f}'
  if ratio and t.error is not None:
    error = f'{t.error:.3f} nats'
  # A ratio falls as the log-likelihood rises.
  ends = (t.high, t.low) if ratio else (t.low, t.high)
  return (
    own(pair.first),
    own(pair.second),
    change(t.value),
    error,
    f'{change(ends[0])} … {change(ends[1])}',
    '' if ratio else f'{t.first_only:,}',
    '' if ratio else f'{t.second_only:,}',
    formatting.p_value(t.p),
    formatting.p_value(t.p_signs),
    formatting.p_value(pair.p_all),
  )


def _figure(pairing: pairs_lib.Pairing) -> dict[str, Any]:
  shown = [p for p in pairing.pairs if p.metric != 'perplexity'][::-1]
  layout = theme.layout([''], 28 * max(len(shown), 2))
  layout['margin'] |= {'t': 12, 'l': 132}
  layout['xaxis'] |= {
    'title': theme.title('A − B (points)'),
    'zeroline': True,
    'zerolinecolor': theme.INK,
  }
  layout['yaxis'] |= {
    'tickvals': list(range(len(shown))),
    'ticktext': [theme.text(_name(p)) for p in shown],
    'range': [-0.6, len(shown) - 0.4],
  }
  reach = [
    None if p.test.high is None else 100 * (p.test.high - p.test.value)
    for p in shown
  ]
  trace = {
    'type': 'scatter',
    'mode': 'markers',
    'x': [theme.digits(100 * p.test.value) for p in shown],
    'y': list(range(len(shown))),
    'error_x': {
      'type': 'data',
      'array': reach,
      'thickness': 1.6,
      'width': 5,
      'color': theme.INK,
    },
    'marker': {
      'size': 9,
      'color': [theme.INK if _holds(p) else '#ffffff' for p in shown],
      'line': {'color': theme.INK, 'width': 1.6},
    },
    'text': [theme.text(_name(p)) for p in shown],
    'hovertemplate': '%{text}: %{x:+.1f} ± %{error_x.array:.1f}<extra></extra>',
    'meta': {'kind': 'difference', 'labels': [_name(p) for p in shown]},
    **theme.panel_axes(1),
  }
  return {
    'data': [trace],
    'layout': layout,
    'csv': {
      'x': 'A − B (points)',
      'y': None,
      'error_x': 'half of the interval of 95 %',
    },
  }

"""The report's tables as HTML; every text from outside is escaped."""

from collections.abc import Iterable, Sequence

from steepest.eval.comparing import accuracy, formatting, tuning
from steepest.eval.comparing.comparison import Cell, Column, Comparison, Group
from steepest.eval.comparing.runs import Run
from steepest.eval.plots import theme
from steepest.eval.report import page
from steepest.eval.report.page import data, escape, swatch

_UNITS = {'loss': 'nats per token', 'benchmark': '%'}
_GROUPS = {
  'loss': 'Loss at the end',
  'speed': 'Cost',
  'count': 'Cost',
  'benchmark': 'Benchmark accuracy (%)',
}


def headline(comparison: Comparison) -> str:
  """Returns the table of cells."""
  columns = comparison.columns
  look = theme.styles([cell.optimizer for cell in comparison.cells])
  spans: list[tuple[str, int]] = []
  for column in columns:
    title = _GROUPS[column.kind]
    if spans and spans[-1][0] == title:
      spans[-1] = (title, spans[-1][1] + 1)
    else:
      spans.append((title, 1))
  upper = ''.join(
    f'<th colspan="{n}" class="group">{title}</th>' for title, n in spans
  )
  starts = {sum(n for _, n in spans[:i]) for i in range(len(spans))}
  lower = ''.join(
    f'<th class="num{" first" if i in starts else ""}">{_column_head(c)}</th>'
    for i, c in enumerate(columns)
  )
  body = ''.join(
    _group_rows(group, columns, look, starts, i)
    for i, group in enumerate(comparison.groups)
  )
  return (
    '<table class="headline"><thead><tr><th rowspan="2">Optimizer</th>'
    f'<th rowspan="2" class="num">Seeds</th>{upper}</tr><tr>{lower}</tr>'
    f'</thead>{body}</table>'
  )


def _column_head(column: Column) -> str:
  if column.kind == 'benchmark':
    return (
      f'{escape(formatting.name(column.task))}'
      f'<small>{escape(column.metric)}</small>'
    )
  title = escape(formatting.name(column.key).removesuffix(' loss'))
  unit = f'<small>{_UNITS["loss"]}</small>' if column.kind == 'loss' else ''
  return title + unit


def _group_rows(
  group: Group,
  columns: Sequence[Column],
  look: dict[str, dict[str, str]],
  starts: set[int],
  index: int,
) -> str:
  rows = [
    f'<tbody><tr class="architecture"><th colspan="{len(columns) + 2}" '
    f'scope="rowgroup">{escape(formatting.group_name(group))} '
    f'{_shape(group)}</th></tr>'
  ]
  for j, cell in enumerate(group.cells):
    name = escape(formatting.name(cell.optimizer))
    head = f'<th scope="row">{swatch(cell.optimizer, look)} {name}</th>'
    if not cell.runs:
      text = escape(diverged_text(cell.diverged))
      rows.append(
        f'<tr>{head}<td class="num">0</td><td colspan="{len(columns)}" '
        f'class="diverged">{text}</td></tr>'
      )
      continue
    mark = ''
    if cell.diverged:
      title = escape(diverged_text(cell.diverged))
      mark = f'<small title="{title}">{len(cell.diverged)} diverged</small>'
    values = ''.join(
      _value(cell, column, group, i in starts, (index, j))
      for i, column in enumerate(columns)
    )
    rows.append(
      f'<tr>{head}<td class="num">{len(cell.runs)}{mark}</td>{values}</tr>'
    )
  return ''.join(rows) + '</tbody>'


def _shape(group: Group) -> str:
  equal = group.selection.equal
  if not equal:
    return ''
  tokens = formatting.count(float(equal['tokens']))
  return (
    f'<small>{escape(equal["model.num_layers"])} layers, width '
    f'{escape(equal["model.width"])}, context '
    f'{escape(equal["model.context"])}, {tokens} tokens</small>'
  )


def diverged_text(runs: Iterable[Run]) -> str:
  """Returns 'seed 1 diverged at step 120, …'."""
  return ', '.join(
    f'seed {run.seed} diverged at step {tuning.diverged_step(run)}'
    for run in runs
  )


def _value(
  cell: Cell, column: Column, group: Group, first: bool, path: tuple[int, int]
) -> str:
  edge = ' first' if first else ''
  mean = cell.value(column.key)
  if mean is None:
    return f'<td class="num none{edge}">–</td>'
  benchmark = column.kind == 'benchmark'
  part = 'scores' if benchmark else 'values'
  own = ('architectures', path[0], 'cells', path[1], part, column.key)
  scale = 100 if benchmark and column.metric != 'perplexity' else 1
  text = formatting.number(column, mean)
  shown = data(mean, text, *own, 'mean', scale=scale)
  spread, title = '', ''
  if benchmark:
    score = cell.scores[column.key]
    error = formatting.number(column, score.error)
    spread = data(score.error, error, *own, 'error', scale=scale)
    title = f'{score.questions:,} questions'
  else:
    sd = cell.spreads[column.key].sd
    if column.kind != 'count' and sd is not None:
      text = formatting.deviation(column, sd, mean)
      if column.key == 'seconds':
        # In the unit of the mean, so that the number stands by itself.
        text += f' {formatting.duration(mean).split()[1]}'
      spread = data(sd, text, *own, 'sd')
    if column.key == 'flops':
      summary = cell.runs[0].summary
      assert summary is not None
      title = f'including {int(summary["curvature_passes"]):,} curvature passes'
  verdict = group.verdict(column.key)
  mark = ''
  style = ''
  if verdict is not None and cell.optimizer in verdict.leaders:
    if verdict.conclusion == 'wins':
      style, mark = ' best', '<i class="mark">●</i>'
    elif verdict.conclusion in ('partly', 'tie', 'unknown'):
      style, mark = ' ahead', '<i class="mark">○</i>'
  plus = f'<small>± {spread}</small>' if spread else ''
  hint = f' title="{escape(title)}"' if title else ''
  return f'<td class="num{style}{edge}"{hint}>{mark}{shown}{plus}</td>'


def by_source(group: Group, index: int) -> str:
  """Returns the table of validation losses by source; '' where there are none.

  Nats per token and bits per byte, means over seeds.

  Args:
    group: whose cells to show.
    index: of the group in report.json.
  """
  if not any(source.source for source in group.sources):
    return ''
  names = [cell.optimizer for cell in group.cells if cell.runs]
  look = theme.styles(names)
  heads = [
    f'#{escape(source.source or "all")}<small>{escape(source.unit)}</small>'
    for source in group.sources
  ]
  rows = []
  for name in names:
    row = [f'{swatch(name, look)} {escape(formatting.name(name))}']
    for i, source in enumerate(group.sources):
      if name not in source.means:
        row.append('–')
        continue
      own = ('architectures', index, 'sources', i, 'means', name)
      mean, sd = source.means[name].mean, source.means[name].sd
      text = data(mean, f'{mean:.4f}', *own, 'mean')
      if sd is not None:
        text += f'<small>± {data(sd, f"{sd:.4f}", *own, "sd")}</small>'
      row.append(text)
    rows.append(row)
  return page.table(['Optimizer', *heads], rows, 'sources')


def questions(comparison: Comparison) -> str:
  """Says how many questions were scored, in words."""
  counts: dict[str, set[int]] = {}
  for cell in comparison.cells:
    for key, score in cell.scores.items():
      task = formatting.name(key.rpartition('/')[0])
      counts.setdefault(task, set()).add(score.questions)
  if not counts:
    return ''
  runs = [run for cell in comparison.cells for run in cell.runs]
  listed = ', '.join(
    f'{escape(task)} {" or ".join(f"{n:,}" for n in sorted(numbers))}'
    for task, numbers in counts.items()
  )
  limited = [
    f'{info["limit_rule"]}, N = {info["limit"]:,}'
    for info in accuracy.infos(runs)
    if info['limit']
  ]
  remark = (
    f' <strong>Limited</strong>: {escape("; ".join(dict.fromkeys(limited)))}. '
    'The numbers are not those of the full benchmarks.'
    if limited
    else ' Every question of the files read was scored.'
  )
  return f'Questions scored: {listed}.{remark}'

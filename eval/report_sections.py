"""The sections of the report: figures and tables with what explains them."""

from typing import Any

from steepest.eval import plots_curves
from steepest.eval import plots_loss
from steepest.eval import plots_runs
from steepest.eval import plots_training
from steepest.eval import report_details
from steepest.eval import report_names
from steepest.eval import report_page
from steepest.eval import report_tables
from steepest.eval import report_words
from steepest.eval.comparison import Comparison
from steepest.eval.comparison import Group
from steepest.eval.report_page import escape

# Parts of the runs' course that the figures show, as shares.
_SPANS = (('0,1', 'all'), ('0.25,1', 'last 75 %'), ('0.75,1', 'last 25 %'))


def results(comparison: Comparison) -> report_page.Section:
  """Returns the table of cells and who wins what."""
  parts = []
  if comparison.columns:
    table = report_tables.headline(comparison)
    parts += [
      report_page.scroll(table, 'Results of every optimizer'),
      '<p class="note">● best, and better than every other optimizer by more '
      'than the rule below asks; ○ best in number only. Losses and cost: mean '
      '± standard deviation over seeds. Accuracies: mean ± standard error; '
      'seeds share their questions, see <a href="#rules">the rules</a>. '
      f'{report_tables.questions(comparison)}</p>',
    ]
  else:
    parts.append('<p>No final run has finished yet.</p>')
  # Of many groups the verdicts would bury what follows.
  few = len(comparison.groups) < 3
  parts += [_verdicts(group, few) for group in comparison.groups]
  return report_page.Section('results', 'Results', parts)


def _verdicts(group: Group, open_: bool) -> str:
  if not group.verdicts:
    return ''
  rows = []
  for statement in report_words.statements(group):
    style = 'badge won' if statement.won else 'badge'
    rows.append(
      f'<tr><td>{escape(statement.subject)}</td>'
      f'<td class="{style}">{escape(statement.badge)}</td>'
      f'<td>{escape(statement.text)}</td></tr>'
    )
  name = escape(report_names.group_name(group))
  warnings = ''.join(
    f'<p class="warning">{name}: {escape(line)}</p>' for line in group.warnings
  )
  title = f'{report_names.group_name(group)}: which optimizer wins, by enough?'
  table = (
    '<table class="verdicts"><thead><tr><th>Column</th><th>Winner</th>'
    f'<th>Why</th></tr></thead><tbody>{"".join(rows)}</tbody></table>'
  )
  shown = ' open' if open_ else ''
  return (
    f'{warnings}<details{shown}><summary>{escape(title)}</summary>'
    f'{report_page.scroll(table, title)}</details>'
  )


def _legend(comparison: Comparison) -> str:
  """Returns the buttons of optimizers and seeds of the drawn runs."""
  runs = [r for g in comparison.groups for r in plots_runs.shown_runs(g)]
  names = dict.fromkeys(sorted({run.optimizer for run in runs}))
  return report_page.legend(
    {name: report_names.name(name) for name in names},
    sorted({run.seed for run in runs}),
  )


def _x_switches(figures: dict[str, Any], key: str) -> str:
  titles = figures[key]['titles']
  return report_page.switch(
    'x', 'against', list(titles.items())
  ) + report_page.switch('span', 'part', _SPANS)


def losses(
  comparison: Comparison, figures: dict[str, Any]
) -> list[report_page.Section]:
  """Returns the section of loss curves."""
  if 'loss' not in figures:
    return []
  parts = [
    '<div class="controls">',
    report_page.switch(
      'kind', 'Loss', [('eval', 'Validation'), ('train', 'Training')]
    ),
    _x_switches(figures, 'loss'),
    '</div>',
    report_page.figure(
      'loss',
      'Loss against tokens, FLOPs or training time',
      'A line per run; point at one for its place on all three axes. What is '
      'chosen here, by buttons or by dragging, holds for all figures of a '
      'run’s course; double-click to return. Training loss: running mean over '
      f'{plots_loss.SMOOTHING:.0%} of the run on top of the logged values. '
      'Training time leaves out compilation, evaluation and checkpoints and '
      'holds the curvature passes, FLOPs hold them too. × marks the last loss '
      'of a diverged run; runs under way are paler.',
      _legend(comparison),
    ),
    *(
      _source_table(group, i, len(comparison.groups) < 3)
      for i, group in enumerate(comparison.groups)
    ),
  ]
  title = 'Loss against tokens, FLOPs and time'
  return [report_page.Section('losses', title, parts)]


def _source_table(group: Group, index: int, few: bool) -> str:
  table = report_tables.by_source(group, index)
  if not table:
    return ''
  title = f'{report_names.group_name(group)}: validation loss by source'
  return report_page.fold(title, report_page.scroll(table, title), few)


def scores(
  comparison: Comparison, figures: dict[str, Any]
) -> list[report_page.Section]:
  """Returns the sections of benchmark accuracies, at the end and before."""
  sections = []
  if 'scores' in figures:
    names = sorted({c.optimizer for c in comparison.cells if c.scores})
    plot = report_page.figure(
      'scores',
      'Benchmark accuracies with standard errors',
      'Accuracy, zero-shot unless the name says otherwise, mean over seeds; '
      'whiskers are one standard error either way, dotted lines the accuracy '
      'of guessing.',
      report_page.legend({name: report_names.name(name) for name in names}),
    )
    sections.append(report_page.Section('benchmarks', 'Benchmarks', [plot]))
  if 'score-curves' in figures:
    options = [
      (f'{task}/{metric}', f'{report_names.name(task)} {metric}')
      for task, metric in plots_curves.list_columns(comparison)
    ]
    parts = [
      '<div class="controls">',
      report_page.switch('column', 'Benchmark', options),
      _x_switches(figures, 'score-curves'),
      '</div>',
      report_page.figure(
        'score-curves',
        'Benchmark accuracy during training',
        'A thin line per seed, a thick one their mean, dotted the accuracy of '
        'guessing.',
        _legend(comparison),
      ),
    ]
    title = 'Benchmarks during training'
    sections.append(report_page.Section('score-course', title, parts))
  return sections


def training(
  comparison: Comparison, figures: dict[str, Any]
) -> list[report_page.Section]:
  """Returns the section of norms and sizes during training."""
  if 'training' not in figures:
    return []
  quantities = plots_training.list_quantities(comparison)
  parts = [
    '<div class="controls">',
    report_page.switch('quantity', 'Show', quantities),
    _x_switches(figures, 'training'),
    '</div>',
    report_page.figure(
      'training',
      'Gradient norm, update size and more during training',
      'As logged. Gradient norm: of all parameters, before clipping. Update '
      'size: root mean square of the change of a parameter in a step. '
      'Unclipped fraction: coordinates whose update an optimizer with a bound '
      'does not clip. A part behind the name: of these parameters alone.',
      _legend(comparison),
    ),
  ]
  return [report_page.Section('course', 'Inside the training', parts)]


def tuning(
  comparison: Comparison, figures: dict[str, Any]
) -> list[report_page.Section]:
  """Returns the section of the searches."""
  if not comparison.curves:
    return []
  parts = [
    ''.join(
      f'<p class="warning">Unequal tuning budgets: {escape(line)}. A range '
      'is extended while its best rate lies at an edge; pruned trials count '
      'as far as they came.</p>'
      for line in report_words.unequal_budgets(comparison)
    )
    or '<p>Every optimizer of an architecture had the same tuning budget.</p>'
  ]
  if 'lr' in figures:
    names = sorted({curve.optimizer for curve in comparison.curves})
    parts.append(
      report_page.figure(
        'lr',
        'Loss of the proxy against the learning rate',
        'A ring marks the learning rate of the final runs (of the best trial '
        'while there are none), a diamond the lowest point of the parabola; '
        'at the upper edge, × a trial that diverged, ▾ one that was pruned. '
        'Where a rate has several trials, they are pale marks behind it.',
        report_page.legend({name: report_names.name(name) for name in names}),
      )
    )
  parts += [
    report_page.scroll(report_details.tuned(comparison), 'Searches'),
    '<p class="note">Proxy and target: layers × width. Under <code>mup</code> '
    'the learning rate goes to the target as it stands, the parametrization '
    'carries it over the width. Parabola: its minimum in the logarithm of the '
    'learning rate, fitted by least squares to the trials within a factor of '
    'four of the best, with how many they are and the root mean square of '
    'their distances to it in nats. Inside what was tried: a lower and a '
    'higher rate were tried than the best. Behind a rate, ×: diverged; ▾: '
    'pruned, that is ended early with a training loss above the median of the '
    'finished trials at the same step.</p>',
  ]
  return [report_page.Section('tuning', 'How it was tuned', parts)]


def fairness(comparison: Comparison) -> report_page.Section:
  """Returns the section of what was held equal, and of what was left out."""
  rules = ''.join(f'<li>{escape(rule)}</li>' for rule in report_words.RULES)
  parts = [
    '<p>A run that differs from the others in what has to be equal is left '
    'out and listed below. Models are not ranked against one another.</p>',
    report_page.scroll(report_details.fairness_rules(), 'What is equal'),
    report_details.fairness_keys(),
    f'<h3 id="rules">Rules</h3><ul class="rules">{rules}</ul>',
  ]
  for i, group in enumerate(comparison.groups):
    name = escape(report_names.group_name(group))
    seeds = ', '.join(str(seed) for seed in group.selection.seeds) or 'none'
    parts.append(f'<h3>{name}: seeds {seeds} compared</h3>')
    excluded = report_details.excluded(group)
    if excluded:
      parts.append('<p>Not in the table:</p>')
      parts.append(report_details.run_list(excluded))
    else:
      parts.append('<p>Every final run is in the table.</p>')
    table = report_details.budgets(group, ('architectures', i))
    if table:
      parts.append(report_page.scroll(table, f'Tuning budgets, {i}'))
    if group.selection.equal:
      parts.append(
        '<details><summary>What all compared runs share</summary>'
        f'<div class="columns">{report_details.equal_values(group)}</div>'
        '</details>'
      )
  table = report_details.all_runs(comparison)
  parts.append(
    '<details><summary>All final runs that ended</summary>'
    f'{report_page.scroll(table, "All final runs")}</details>'
  )
  return report_page.Section('fairness', 'Fairness', parts)

"""The sections of the report: figures and tables with what explains them."""

from typing import Any

from steepest.eval.comparing import formatting
from steepest.eval.comparing.comparison import Comparison, Group
from steepest.eval.plots import (
  course,
  curves,
  layers as layer_plots,
  loss,
  training as training_plots,
)
from steepest.eval.report import details, page, tables, words
from steepest.eval.report.page import escape

# Parts of the runs' course that the figures show, as shares.
_SPANS = (('0,1', 'all'), ('0.25,1', 'last 75 %'), ('0.75,1', 'last 25 %'))


def results(comparison: Comparison) -> page.Section:
  """Returns the table of cells and who wins what."""
  parts = []
  if comparison.columns:
    table = tables.headline(comparison)
    parts += [
      page.scroll(table, 'Results of every optimizer'),
      '<p class="note">● best, and better than every other optimizer by more '
      'than the rule below asks; ○ best in number only. Losses and cost: mean '
      '± standard deviation over seeds. Accuracies: mean ± standard error; '
      'seeds share their questions, see <a href="#rules">the rules</a>. '
      f'{tables.questions(comparison)}</p>',
    ]
  else:
    parts.append('<p>No final run has finished yet.</p>')
  # Of many groups the verdicts would bury what follows.
  few = len(comparison.groups) < 3
  parts += [_verdicts(group, few) for group in comparison.groups]
  return page.Section('results', 'Results', parts)


def _verdicts(group: Group, open_: bool) -> str:
  if not group.verdicts:
    return ''
  rows = []
  for statement in words.statements(group):
    style = 'badge won' if statement.won else 'badge'
    rows.append(
      f'<tr><td>{escape(statement.subject)}</td>'
      f'<td class="{style}">{escape(statement.badge)}</td>'
      f'<td>{escape(statement.text)}</td></tr>'
    )
  name = escape(formatting.group_name(group))
  warnings = ''.join(
    f'<p class="warning">{name}: {escape(line)}</p>' for line in group.warnings
  )
  title = f'{formatting.group_name(group)}: which optimizer wins, by enough?'
  table = (
    '<table class="verdicts"><thead><tr><th>Column</th><th>Winner</th>'
    f'<th>Why</th></tr></thead><tbody>{"".join(rows)}</tbody></table>'
  )
  shown = ' open' if open_ else ''
  return (
    f'{warnings}<details{shown}><summary>{escape(title)}</summary>'
    f'{page.scroll(table, title)}</details>'
  )


def _legend(comparison: Comparison) -> str:
  """Returns the buttons of optimizers and seeds of the drawn runs."""
  runs = [r for g in comparison.groups for r in course.shown_runs(g)]
  names = dict.fromkeys(sorted({run.optimizer for run in runs}))
  return page.legend(
    {name: formatting.name(name) for name in names},
    sorted({run.seed for run in runs}),
  )


def _x_switches(figures: dict[str, Any], key: str) -> str:
  titles = figures[key]['titles']
  return page.switch('x', 'against', list(titles.items())) + page.switch(
    'span', 'part', _SPANS
  )


def losses(
  comparison: Comparison, figures: dict[str, Any]
) -> list[page.Section]:
  """Returns the section of loss curves."""
  if 'loss' not in figures:
    return []
  parts = [
    '<div class="controls">',
    page.switch(
      'kind', 'Loss', [('eval', 'Validation'), ('train', 'Training')]
    ),
    _x_switches(figures, 'loss'),
    '</div>',
    page.figure(
      'loss',
      'Loss against tokens, FLOPs or training time',
      'A line per run; point at one for its place on all three axes. What is '
      'chosen here, by buttons or by dragging, holds for all figures of a '
      'run’s course; double-click to return. Training loss: running mean over '
      f'{loss.SMOOTHING:.0%} of the run on top of the logged values. '
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
  return [page.Section('losses', title, parts)]


def _source_table(group: Group, index: int, few: bool) -> str:
  table = tables.by_source(group, index)
  if not table:
    return ''
  title = f'{formatting.group_name(group)}: validation loss by source'
  return page.fold(title, page.scroll(table, title), few)


def scores(
  comparison: Comparison, figures: dict[str, Any]
) -> list[page.Section]:
  """Returns the sections of benchmark accuracies, at the end and before."""
  sections = []
  if 'scores' in figures:
    names = sorted({c.optimizer for c in comparison.cells if c.scores})
    plot = page.figure(
      'scores',
      'Benchmark accuracies with standard errors',
      'Accuracy, zero-shot unless the name says otherwise, mean over seeds; '
      'whiskers are one standard error either way, dotted lines the accuracy '
      'of guessing.',
      page.legend({name: formatting.name(name) for name in names}),
    )
    sections.append(page.Section('benchmarks', 'Benchmarks', [plot]))
  if 'score-curves' in figures:
    options = [
      (f'{task}/{metric}', f'{formatting.name(task)} {metric}')
      for task, metric in curves.list_columns(comparison)
    ]
    parts = [
      '<div class="controls">',
      page.switch('column', 'Benchmark', options),
      _x_switches(figures, 'score-curves'),
      '</div>',
      page.figure(
        'score-curves',
        'Benchmark accuracy during training',
        'A thin line per seed, a thick one their mean, dotted the accuracy of '
        'guessing.',
        _legend(comparison),
      ),
    ]
    title = 'Benchmarks during training'
    sections.append(page.Section('score-course', title, parts))
  return sections


def training(
  comparison: Comparison, figures: dict[str, Any]
) -> list[page.Section]:
  """Returns the section of norms and sizes during training."""
  if 'training' not in figures:
    return []
  quantities = training_plots.list_quantities(comparison)
  parts = [
    '<div class="controls">',
    page.switch('quantity', 'Show', quantities),
    _x_switches(figures, 'training'),
    '</div>',
    page.figure(
      'training',
      'Gradient norm, update size and more during training',
      'As logged. Gradient norm: of all parameters, before clipping. Update '
      'size: root mean square of the change of a parameter in a step. '
      'Unclipped fraction: coordinates whose update an optimizer with a bound '
      'does not clip. A part behind the name: of these parameters alone.',
      _legend(comparison),
    ),
    *_layers(comparison, figures),
  ]
  return [page.Section('course', 'Inside the training', parts)]


def _layers(comparison: Comparison, figures: dict[str, Any]) -> list[str]:
  if 'layers' not in figures:
    return []
  quantities = layer_plots.list_quantities(comparison)
  return [
    '<div class="controls">',
    page.switch('layer_quantity', 'Show', quantities),
    '</div>',
    page.figure(
      'layers',
      'Gradient norm and update size over the depth',
      'Averages over the logged steps of finished runs, mean of the seeds ± '
      'their standard deviation; from the input of the model to its output.',
      _legend(comparison),
    ),
  ]


def tuning(
  comparison: Comparison, figures: dict[str, Any]
) -> list[page.Section]:
  """Returns the section of the searches."""
  if not comparison.curves:
    return []
  parts = [
    ''.join(
      f'<p class="warning">Unequal tuning budgets: {escape(line)}. A range '
      'is extended while its best rate lies at an edge; pruned trials count '
      'as far as they came.</p>'
      for line in words.unequal_budgets(comparison)
    )
    or '<p>Every optimizer of an architecture had the same tuning budget.</p>'
  ]
  if 'lr' in figures:
    names = sorted({curve.optimizer for curve in comparison.curves})
    parts.append(
      page.figure(
        'lr',
        'Loss of the proxy against the learning rate',
        'A ring marks the learning rate of the final runs (of the best trial '
        'while there are none), a diamond the lowest point of the parabola; '
        'at the upper edge, × a trial that diverged, ▾ one that was pruned. '
        'Where a rate has several trials, they are pale marks behind it.',
        page.legend({name: formatting.name(name) for name in names}),
      )
    )
  parts += [
    page.scroll(details.tuned(comparison), 'Searches'),
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
  return [page.Section('tuning', 'How it was tuned', parts)]


def fairness(comparison: Comparison) -> page.Section:
  """Returns the section of what was held equal, and of what was left out."""
  rules = ''.join(f'<li>{escape(rule)}</li>' for rule in words.RULES)
  parts = [
    '<p>A run that differs from the others in what has to be equal is left '
    'out and listed below. Models are not ranked against one another.</p>',
    page.scroll(details.fairness_rules(), 'What is equal'),
    details.fairness_keys(),
    f'<h3 id="rules">Rules</h3><ul class="rules">{rules}</ul>',
  ]
  for i, group in enumerate(comparison.groups):
    name = escape(formatting.group_name(group))
    seeds = ', '.join(str(seed) for seed in group.selection.seeds) or 'none'
    parts.append(f'<h3>{name}: seeds {seeds} compared</h3>')
    excluded = details.excluded(group)
    if excluded:
      parts.append('<p>Not in the table:</p>')
      parts.append(details.run_list(excluded))
    else:
      parts.append('<p>Every final run is in the table.</p>')
    table = details.budgets(group, ('architectures', i))
    if table:
      parts.append(page.scroll(table, f'Tuning budgets, {i}'))
    if group.selection.equal:
      parts.append(
        '<details><summary>What all compared runs share</summary>'
        f'<div class="columns">{details.equal_values(group)}</div>'
        '</details>'
      )
  table = details.all_runs(comparison)
  parts.append(
    '<details><summary>All final runs that ended</summary>'
    f'{page.scroll(table, "All final runs")}</details>'
  )
  return page.Section('fairness', 'Fairness', parts)

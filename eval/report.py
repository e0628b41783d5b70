"""Writes a comparison as one HTML file that needs no network, and as JSON."""

from collections.abc import Sequence
import datetime
import json
import os
import pathlib
import shlex
from typing import Any

from steepest.eval import plots_curves
from steepest.eval import plots_layout
from steepest.eval import plots_loss
from steepest.eval import report_details
from steepest.eval import report_json
from steepest.eval import report_names
from steepest.eval import report_page
from steepest.eval import report_pairs
from steepest.eval import report_tables
from steepest.eval import report_words
from steepest.eval.comparison import Comparison
from steepest.eval.comparison import Group
from steepest.eval.report_tables import escape
from steepest.eval.report_terminal import print_table as print_table
from steepest.eval.runs import Run


def write(
  comparison: Comparison,
  out_dir: str | os.PathLike[str],
  command: str | Sequence[str],
) -> pathlib.Path:
  """Writes report.html and report.json.

  Args:
    comparison: what to show.
    out_dir: directory for both files; created if missing.
    command: what was run, for the footer: a line or its words.

  Returns:
    The path of report.html.
  """
  line = command if isinstance(command, str) else shlex.join(command)
  date = datetime.datetime.now(datetime.UTC).strftime('%Y-%m-%d %H:%M UTC')
  out = pathlib.Path(out_dir)
  out.mkdir(parents=True, exist_ok=True)
  content = {'command': line, 'date': date, **report_json.to_dict(comparison)}
  report_page.replace(
    out / 'report.json', json.dumps(content, indent=1, allow_nan=False)
  )
  figures = content['figures']
  return report_page.write_page(
    out / 'report.html',
    title='Optimizer comparison',
    subtitle=_subtitle(comparison),
    headline=_answers(comparison),
    sections=_sections(comparison, figures),
    footer=_footer(comparison, line, date),
    figures=figures,
  )


def _subtitle(comparison: Comparison) -> str:
  finals = [run for run in comparison.runs if run.stage == 'final']
  compared = sum(len(cell.runs) for cell in comparison.cells)
  optimizers = sorted({cell.optimizer for cell in comparison.cells})
  names = ', '.join(report_names.name(name) for name in optimizers)
  tuned = len(comparison.runs) - len(finals)
  return escape(
    f'{names or "No optimizer"} compared on {compared} of {len(finals)} final '
    f'runs, tuned on {tuned} trials.'
  )


def _answers(comparison: Comparison) -> str:
  items = ''.join(
    f'<li>{escape(report_words.headline(group))}</li>'
    for group in comparison.groups
  )
  return f'<ul class="answer">{items}</ul>'


def _sections(comparison: Comparison, figures: dict[str, Any]) -> list[str]:
  parts = ['<section><h2>Results</h2>']
  if comparison.columns:
    parts += [
      f'<div class="scroll">{report_tables.headline(comparison)}</div>',
      '<p class="note">● best, and better than every other optimizer by more '
      'than the rule below asks; ○ best in number only. Losses and cost: mean '
      '± standard deviation over seeds. Accuracies: mean ± standard error; '
      'seeds share their questions, see <a href="#rules">the rules</a>. '
      f'{report_tables.questions(comparison)}</p>',
    ]
  else:
    parts.append('<p>No final run has finished yet.</p>')
  parts += [_verdicts(group) for group in comparison.groups]
  parts.append('</section>')
  parts += _loss_section(comparison, figures)
  parts += _score_section(figures)
  parts += _curve_section(comparison, figures)
  parts += report_pairs.study_section(comparison)
  parts += _tuning_section(comparison, figures)
  parts += _fairness_section(comparison)
  return parts


def _verdicts(group: Group) -> str:
  rows = []
  for statement in report_words.statements(group):
    style = 'badge won' if statement.won else 'badge'
    rows.append(
      f'<tr><td>{escape(statement.subject)}</td>'
      f'<td class="{style}">{escape(statement.badge)}</td>'
      f'<td>{escape(statement.text)}</td></tr>'
    )
  warnings = ''.join(
    f'<p class="warning">{escape(line)}</p>' for line in group.warnings
  )
  name = escape(report_names.name(group.architecture))
  return (
    f'<h3>{name}: which optimizer wins, and by enough?</h3>{warnings}'
    '<div class="scroll"><table class="verdicts"><thead><tr><th>Column</th>'
    '<th>Winner</th><th>Why</th></tr></thead>'
    f'<tbody>{"".join(rows)}</tbody></table></div>'
  )


def _switch(name: str, options: Sequence[tuple[str, str]]) -> str:
  buttons = ''.join(
    f'<button type="button" data-value="{escape(value)}">{escape(label)}'
    '</button>'
    for value, label in options
  )
  return f'<span class="switch" data-name="{name}">{buttons}</span>'


def _loss_section(comparison: Comparison, figures: dict[str, Any]) -> list[str]:
  if 'loss-tokens' not in figures:
    return []
  return [
    '<section><h2>Loss against tokens and time</h2><div class="controls">',
    _switch('kind', [('eval', 'Validation'), ('train', 'Training')]),
    _switch('range', [(z, z.capitalize()) for z in plots_loss.ZOOMS]),
    '</div>',
    *(_chips(comparison, group) for group in comparison.groups),
    '<h3>Against tokens</h3><div class="plot" id="loss-tokens"></div>',
    '<h3>Against training time</h3><div class="plot" id="loss-seconds"></div>'
    '<p class="caption">A line per run; click a seed or an optimizer above to '
    'hide it, drag to zoom, double-click to return. Training loss: running '
    f'mean over {plots_loss.SMOOTHING:.0%} of the run on top of the logged '
    'values. Training time '
    'leaves out compilation, evaluation and checkpoints and holds the '
    'curvature passes. × marks the last loss of a diverged run; runs under '
    'way are paler.</p>',
    *(_source_table(group) for group in comparison.groups),
    '</section>',
  ]


def _source_table(group: Group) -> str:
  table = report_tables.by_source(group)
  if not table:
    return ''
  name = escape(report_names.name(group.architecture))
  return (
    f'<h3>{name}: validation loss at the end, by source</h3>'
    f'<div class="scroll">{table}</div>'
  )


def _chips(comparison: Comparison, group: Group) -> str:
  runs = plots_loss.shown_runs(group)
  every = [r for g in comparison.groups for r in plots_loss.shown_runs(g)]
  look = plots_layout.styles([run.optimizer for run in every])
  sets = []
  for optimizer in dict.fromkeys(run.optimizer for run in runs):
    own = [run for run in runs if run.optimizer == optimizer]
    label = (
      f'{report_tables.swatch(optimizer, look)}'
      f'{escape(report_names.name(optimizer))}'
    )
    chips = ''.join(_chip([run], f'seed {run.seed}', '') for run in own)
    sets.append(f'<span class="set">{_chip(own, label, " all")}{chips}</span>')
  name = escape(report_names.name(group.architecture))
  return (
    f'<div class="chips"><span class="label">{name}</span>{"".join(sets)}</div>'
  )


def _chip(runs: Sequence[Run], label: str, style: str) -> str:
  names = escape(json.dumps([run.name for run in runs]))
  return (
    f'<button type="button" class="chip{style}" aria-pressed="true" '
    f'data-runs="{names}">{label}</button>'
  )


def _score_section(figures: dict[str, Any]) -> list[str]:
  if 'scores' not in figures:
    return []
  return [
    '<section><h2>Benchmarks</h2><div class="plot" id="scores"></div>'
    '<p class="caption">Accuracy, zero-shot unless the name says otherwise, '
    'mean over seeds; whiskers are one standard error either way, dotted '
    'lines the accuracy of guessing.</p>'
    '</section>'
  ]


def _curve_section(
  comparison: Comparison, figures: dict[str, Any]
) -> list[str]:
  if 'score-curves' not in figures:
    return []
  options = [
    (f'{task}/{metric}', f'{report_names.name(task)} {metric}')
    for task, metric in plots_curves.list_columns(comparison)
  ]
  return [
    '<section><h2>Benchmarks during training</h2><div class="controls">',
    _switch('column', options),
    '</div><div class="plot" id="score-curves"></div>'
    '<p class="caption">Accuracy against tokens: a thin line per seed, a thick '
    'one their mean, dotted the accuracy of guessing; the buttons above the '
    'losses hide runs here too.</p></section>',
  ]


def _tuning_section(
  comparison: Comparison, figures: dict[str, Any]
) -> list[str]:
  if not comparison.curves:
    return []
  plot = '<div class="plot" id="lr"></div>' if 'lr' in figures else ''
  budgets = (
    ''.join(
      f'<p class="warning">Unequal tuning budgets: {escape(line)}. A range '
      'is extended while its best rate lies at an edge; pruned trials count '
      'as far as they came.</p>'
      for line in report_words.unequal_budgets(comparison)
    )
    or '<p>Every optimizer of an architecture had the same tuning budget.</p>'
  )
  return [
    f'<section><h2>How it was tuned</h2>{budgets}{plot}',
    '<p class="caption">A ring marks the learning rate of the final runs (of '
    'the best trial while there are none), a diamond the lowest point of the '
    'parabola; at the upper edge, × a trial that diverged, ▾ one that was '
    'pruned.</p>',
    f'<div class="scroll">{report_details.tuned(comparison)}</div>',
    '<p class="note">Proxy and target: layers × width. Under <code>mup</code> '
    'the learning rate goes to the target as it stands, the parametrization '
    'carries it over the width. Parabola: its minimum in the logarithm of the '
    'learning rate, fitted by least squares to the trials within a factor of '
    'four of the best, with how many they are and the root mean square of '
    'their distances to it in nats. Inside what was tried: a lower and a '
    'higher rate were tried than the best. Behind a rate, ×: diverged; ▾: '
    'pruned, that is ended early with a training loss above the median of the '
    'finished trials at the same step.</p></section>',
  ]


def _fairness_section(comparison: Comparison) -> list[str]:
  parts = [
    '<section><h2>Fairness</h2>',
    report_details.fairness_rule(),
    '<h3 id="rules">Rules</h3><ul class="rules">',
    *(f'<li>{escape(rule)}</li>' for rule in report_words.RULES),
    '</ul>',
  ]
  for group in comparison.groups:
    name = escape(report_names.name(group.architecture))
    seeds = ', '.join(str(seed) for seed in group.selection.seeds) or 'none'
    parts.append(f'<h3>{name}: seeds {seeds} compared</h3>')
    excluded = report_details.excluded(group)
    if excluded:
      parts.append('<p>Not in the table:</p>')
      parts.append(report_details.run_list(excluded))
    else:
      parts.append('<p>Every final run is in the table.</p>')
    if group.selection.equal:
      parts.append(
        '<details><summary>What all compared runs share</summary>'
        f'<div class="columns">{report_details.equal_values(group)}</div>'
        '</details>'
      )
  parts.append(
    '<details><summary>All final runs that ended</summary><div class="scroll">'
    f'{report_details.all_runs(comparison)}</div></details></section>'
  )
  return parts


def _footer(comparison: Comparison, command: str, date: str) -> str:
  def distinct(key: str) -> str:
    values = {str(r.env[key]) for r in comparison.runs if key in r.env}
    return ', '.join(sorted(values)) or 'not recorded'

  devices = {
    f'{len(r.env["devices"])} × {r.env["device_kind"]}'
    for r in comparison.runs
    if 'devices' in r.env and 'device_kind' in r.env
  }
  versions: dict[str, set[str]] = {}
  for run in comparison.runs:
    if 'versions' in run.env:
      for package, version in run.env['versions'].items():
        versions.setdefault(package, set()).add(str(version))
  listed = ', '.join(
    f'{package} {"/".join(sorted(values))}'
    for package, values in sorted(versions.items())
  )
  lines = (
    ('Command', f'<code>{escape(command)}</code>'),
    ('Date', escape(date)),
    ('Commit of the runs', f'<code>{escape(distinct("git_commit"))}</code>'),
    ('Devices', escape(', '.join(sorted(devices)) or 'not recorded')),
    ('Python', escape(distinct('python'))),
    ('Versions', escape(listed or 'not recorded')),
  )
  return ''.join(f'<p>{name}: {value}</p>' for name, value in lines)

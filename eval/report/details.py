"""The report's tables of what lies behind the numbers, as HTML."""

from collections.abc import Callable, Iterable, Sequence
import json
import math
from typing import Any

from steepest.eval.comparing import fairness, formatting, rules, tuning
from steepest.eval.comparing.comparison import Comparison, Group
from steepest.eval.comparing.runs import Run
from steepest.eval.plots import theme
from steepest.eval.report import page
from steepest.eval.report.page import data, escape, swatch

# Beyond, only the lowest and highest rate are listed.
_MOST_RATES = 9


def tuned(comparison: Comparison) -> str:
  """Returns the table of searches."""
  if not comparison.curves:
    return ''
  heads = (
    'Cell',
    'Proxy',
    'Target',
    'Search',
    'Rates tried',
    'Trials',
    'Tokens per trial',
    'Tokens in all',
    'Best',
    'Parabola',
    'Used',
    'Inside what was tried',
    'Extended',
    'Other settings',
  )
  look = theme.styles([c.optimizer for c in comparison.curves])
  rows = ''.join(
    _tuned_row(curve, look, ('tuning', i))
    for i, curve in enumerate(comparison.curves)
  )
  head = ''.join(f'<th>{h}</th>' for h in heads)
  return (
    f'<table class="tuned"><thead><tr>{head}</tr></thead>'
    f'<tbody>{rows}</tbody></table>'
  )


def _tuned_row(
  curve: tuning.Curve,
  look: dict[str, dict[str, str]],
  path: tuple[object, ...],
) -> str:
  rates = [
    formatting.rate(p.lr)
    + ('×' if p.diverged_at is not None else '')
    + ('▾' if p.pruned_at is not None else '')
    for p in curve.points
  ]
  if len(rates) > _MOST_RATES:
    rates = [f'{rates[0]} to {rates[-1]} ({len(rates)} rates)']
  trials = f'{curve.trials}'
  if curve.pruned:
    trials += f' ({curve.pruned} pruned)'
  diverged = sum(p.diverged_at is not None for p in curve.points)
  if diverged:
    trials += f' ({diverged} diverged)'
  if curve.unfinished:
    trials += f' ({curve.unfinished} under way)'
  target = '–'
  if curve.target_width is not None:
    target = f'{curve.target_layers} × {curve.target_width}'
  proxy = f'{curve.layers} × {curve.width}'
  if curve.parameters is not None:
    proxy += f' ({formatting.count(curve.parameters)})'
  cells = (
    f'{swatch(curve.optimizer, look)} '
    f'{escape(formatting.name(curve.architecture))}, '
    f'{escape(formatting.name(curve.optimizer))}',
    escape(proxy),
    f'{escape(target)} <small>{escape(curve.parametrization)}</small>',
    _search(curve),
    escape(', '.join(rates)),
    escape(trials),
    data(curve.tokens, formatting.count(curve.tokens), *path, 'tokens'),
    data(curve.spent, formatting.count(curve.spent), *path, 'spent'),
    _rate(curve.best, *path, 'best') + _others(curve),
    _fit(curve, path),
    _chosen(curve, path),
    _inside(curve),
    _extended(curve),
    f'<small>{escape(_settings(curve))}</small>',
  )
  return '<tr>' + ''.join(f'<td>{cell}</td>' for cell in cells) + '</tr>'


def _rate(lr: float | None, *path: object) -> str:
  return '–' if lr is None else data(lr, formatting.rate(lr), *path)


def _search(curve: tuning.Curve) -> str:
  names = ['lr', *(key.rpartition('.')[2] for key in curve.searched)]
  kind = curve.search or 'not recorded'
  return f'{escape(kind)} <small>{escape(", ".join(names))}</small>'


def _others(curve: tuning.Curve) -> str:
  """Returns what the best trial has of what was searched beside lr."""
  if not curve.values:
    return ''
  listed = ', '.join(
    f'{key.rpartition(".")[2]}\u00a0{json.dumps(value)}'
    for key, value in curve.values.items()
  )
  return f' <small>{escape(listed)}</small>'


def _inside(curve: tuning.Curve) -> str:
  """Returns how far the best rate is from the edges of what was tried."""
  if curve.best is None:
    return '–'
  if not curve.inside:
    return '<strong>no, at the edge</strong>'
  below = sum(point.lr < curve.best for point in curve.points)
  above = len(curve.points) - 1 - below
  return f'yes <small>{below} lower, {above} higher</small>'


def _fit(curve: tuning.Curve, path: tuple[object, ...]) -> str:
  if curve.fit is None:
    return '–'
  fit = curve.fit
  return (
    f'{_rate(fit.lr, *path, "fit", "lr")} <small>{fit.points} points, residual '
    f'{round(fit.residual, 6):.2g}</small>'
  )


def _chosen(curve: tuning.Curve, path: tuple[object, ...]) -> str:
  shown = _rate(curve.chosen, *path, 'chosen')
  if curve.chosen is None or curve.best is None:
    return shown
  if math.isclose(curve.chosen, curve.best, rel_tol=1e-6):
    return shown
  if curve.fitted and math.isclose(curve.chosen, curve.fitted, rel_tol=1e-5):
    return f'{shown} <small>of the parabola</small>'
  return f'<strong>{shown}, not the best</strong>'


def _extended(curve: tuning.Curve) -> str:
  if curve.extended is None:
    return 'not recorded'
  if not curve.extended:
    return 'no'
  return f'by {", ".join(formatting.rate(lr) for lr in curve.extended)}'


def _settings(curve: tuning.Curve) -> str:
  """Returns the settings that were not searched, in symbols."""
  symbols = {'betas': 'β', 'eps': 'ε', 'weight_decay': 'decay'}
  if curve.optimizer == 'sophia':
    symbols |= {'rho': 'ρ', 'hessian_every': 'curvature every'}
    known = curve.settings
    if 'hessian_subset' in known and known['hessian_subset'] > 1:
      symbols['hessian_subset'] = 'on one sequence of'
  return ', '.join(
    f'{symbol}\u00a0{json.dumps(curve.settings[key])}'
    for key, symbol in symbols.items()
    if key in curve.settings
  )


def equal_values(group: Group) -> str:
  """Returns the table of what all compared runs share."""
  items = ''.join(
    f'<tr><th>{escape(key)}</th><td>{escape(json.dumps(value))}</td></tr>'
    for key, value in group.selection.equal.items()
  )
  return f'<table class="values"><tbody>{items}</tbody></table>'


def excluded(group: Group) -> list[tuple[Run, str]]:
  """Returns the final runs that are not compared, and why, in words."""
  selection = group.selection
  entries = [(e.run, '; '.join(e.reasons)) for e in selection.left_out]
  entries += [
    (run, f'diverged at step {tuning.diverged_step(run)}')
    for run in selection.diverged
  ]
  entries += [
    (run, f'unfinished, step {run.steps_done} of {run.config["steps"]}')
    for run in selection.unfinished
  ]
  return entries


def run_list(runs: Iterable[tuple[Run, str]]) -> str:
  """Returns a list of runs with a remark each."""
  items = ''.join(
    f'<li><code>{escape(run.name)}</code> '
    f'<span>{escape(formatting.name(run.architecture))}, '
    f'{escape(formatting.name(run.optimizer))}, seed {run.seed}</span>: '
    f'{escape(remark)}</li>'
    for run, remark in runs
  )
  return f'<ul class="runs">{items}</ul>'


def all_runs(comparison: Comparison) -> str:
  """Returns the table of every final run that ended, compared or not."""
  heads = (
    'Run',
    'Status',
    'Learning rate',
    'Steps',
    'Training loss',
    'Validation loss',
    'By source',
    'Bits per byte',
    'By source',
    'Training time',
    'Compile / evaluate / save',
    'Tokens/s',
    'MFU',
    'FLOPs',
    'Curvature passes',
    'Peak memory',
  )
  rows = ''.join(
    _run_row(run, ('runs', i))
    for i, run in enumerate(comparison.runs)
    if run.stage == 'final' and run.summary is not None
  )
  head = ''.join(f'<th>{h}</th>' for h in heads)
  return f'<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'


def _run_row(run: Run, path: tuple[object, ...]) -> str:
  s = run.summary
  assert s is not None

  def shown(key: str, write: Callable[[Any], str], scale: float = 1) -> str:
    value = s[key] if key in s else None
    text = '–' if value is None else write(value)
    return data(value, text, *path, 'summary', key, scale=scale)

  def sources(key: str) -> str:
    held = s[key] if key in s and s[key] else {}
    return ', '.join(
      f'{escape(name)} '
      + data(value, f'{value:.4f}', *path, 'summary', key, name)
      for name, value in held.items()
    )

  status = run.status
  if status == 'diverged':
    status += f' at step {tuning.diverged_step(run)}'
  for key, what in (
    ('skipped_updates', 'updates skipped'),
    ('rollbacks', 'rollbacks'),
  ):
    if key in s and s[key]:
      status += f', {s[key]} {what}'
  cells = (
    f'<code>{escape(run.name)}</code>',
    escape(status),
    _rate(run.lr, *path, 'lr'),
    shown('steps', '{:,}'.format),
    shown('train_loss', '{:.4f}'.format),
    shown('eval_loss', '{:.4f}'.format),
    sources('eval_loss_by_source'),
    shown('eval_bits_per_byte', '{:.4f}'.format),
    sources('eval_bits_per_byte_by_source'),
    shown('seconds', formatting.duration),
    ' / '.join(
      shown(f'{key}_seconds', formatting.duration)
      for key in ('compile', 'eval', 'checkpoint')
    ),
    shown('tokens_per_second', '{:,.0f}'.format),
    shown('mfu', '{:.1%}'.format, scale=100),
    shown('flops', formatting.scientific),
    shown('curvature_passes', '{:,}'.format),
    shown('peak_memory_bytes', formatting.byte_count),
  )
  return '<tr>' + ''.join(f'<td>{cell}</td>' for cell in cells) + '</tr>'


def fairness_rules() -> str:
  """Returns the table of what has to be equal and what may differ."""
  heads = (
    'What',
    'Told by',
    'Between optimizers',
    'Along an axis',
    'Otherwise',
  )
  rows = [
    [
      escape(cell)
      for cell in (
        rule.subject,
        rule.told_by,
        rule.group,
        rule.axis,
        rule.otherwise,
      )
    ]
    for rule in rules.RULES
  ]
  return page.table(heads, rows, 'fairness')


def budgets(group: Group, path: tuple[object, ...]) -> str:
  """Returns the table of each cell's tuning: budget, grid, choice, edges."""
  heads = (
    'Optimizer',
    'Search',
    '#Planned trials',
    '#Added at an edge',
    '#Tokens of a trial',
    'Quantity',
    'Tried',
    '#Chosen',
    'Steps to the edges',
  )
  body = []
  for i, budget in enumerate(group.budgets):
    own = (*path, 'budgets', i)
    for j, tried in enumerate(budget.tried):
      first = j == 0
      name = escape(formatting.name(budget.optimizer))
      tokens = budget.tokens_per_trial
      # At the edge of what was tried the optimum may lie beyond.
      edge = '–'
      if tried.below is not None and tried.above is not None:
        edge = f'{tried.below} below, {tried.above} above'
        if 0 in (tried.below, tried.above):
          edge = f'<strong>{edge}</strong>'
      body.append(
        (
          name if first else '',
          escape(budget.search or 'not recorded') if first else '',
          data(budget.planned, str(budget.planned), *own, 'planned')
          if first
          else '',
          str(budget.extended) if first else '',
          data(tokens, formatting.count(tokens), *own, 'tokens_per_trial')
          if first
          else '',
          escape(tried.name),
          escape(_span(tried.values)),
          _rate(tried.chosen, *own, 'tried', j, 'chosen'),
          edge,
        )
      )
  return page.table(heads, body, 'budgets') if body else ''


def _span(values: Sequence[float]) -> str:
  shown = [formatting.rate(value) for value in values]
  if len(shown) > _MOST_RATES:
    return f'{shown[0]} to {shown[-1]} ({len(shown)} values)'
  return ', '.join(shown)


def fairness_keys() -> str:
  """Says by which keys of the configuration compared runs may differ."""
  free = ', '.join(f'<code>{escape(k)}</code>' for k in fairness.COMPARED)
  irrelevant = ', '.join(
    f'<code>{escape(k)}</code>' for k in fairness.IRRELEVANT if k != 'seed'
  )
  return (
    '<details><summary>By key</summary><p>Every configuration value, the '
    'fingerprint of the data and the set of seeds are equal, except the '
    f'optimizer’s own settings ({free}) and what does not touch the result '
    f'({irrelevant}).</p></details>'
  )

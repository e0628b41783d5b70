"""The report's sections of differences, trade-offs, costs, sensitivity."""

from collections.abc import Callable
from typing import Any

from steepest.eval.comparing import fairness, formatting, groups as groups_lib
from steepest.eval.comparing.comparison import Comparison, Group
from steepest.eval.report import numbers, page
from steepest.eval.report.page import data, escape, figure

_Table = Callable[[Group, numbers.Path], str]


def legend(comparison: Comparison) -> str:
  """Returns the buttons of all optimizers."""
  names = sorted(
    {cell.optimizer for cell in comparison.cells}
    or {curve.optimizer for curve in comparison.curves}
  )
  return page.legend({n: formatting.name(n) for n in names})


def few(comparison: Comparison) -> bool:
  """Whether tables of every group may stand open below one another."""
  return len(comparison.groups) < 3


def _tables(comparison: Comparison, table: _Table, title: str) -> list[str]:
  """Returns a table of every group that has one."""
  parts = []
  for i, group in enumerate(comparison.groups):
    found = table(group, ('architectures', i))
    if found:
      label = f'{formatting.group_name(group)}: {title}'
      body = page.scroll(found, label)
      parts.append(page.fold(label, body, few(comparison)))
  return parts


def trade_off(
  comparison: Comparison, figures: dict[str, Any]
) -> list[page.Section]:
  """Returns the section of time against loss and accuracy."""
  if 'pareto' not in figures:
    return []
  symbols = figures['pareto']['symbols']
  marks = ', '.join(
    f'{symbol.replace("-", " ")} {escape(model)}'
    for model, symbol in symbols.items()
  )
  lines = [
    line for line in (comparison.pareto_warning, _unsteady(comparison)) if line
  ]
  warning = ''.join(
    f'<p class="warning">Compare these times with care: {escape(line)}.</p>'
    for line in lines
  )
  plot = figure(
    'pareto',
    'Training time against loss and accuracy',
    'Left and down is better; a larger mark has a higher mean accuracy over '
    f'the benchmarks. Shapes: {marks}. Full marks are in the Pareto set: no '
    'other cell is as good in time, loss and accuracy and better in one; open '
    'ones are beaten. Dotted: the front of time and loss alone. By means; bars '
    'are the standard deviation over seeds, so neighbours may change places.',
    legend(comparison),
  )
  title = 'Hours, loss and accuracy'
  parts = [warning, plot, _candidates(comparison)]
  return [page.Section('trade-off', title, parts)]


def _unsteady(comparison: Comparison) -> str:
  runs = [run for cell in comparison.cells for run in cell.runs]
  return fairness.unsteady(runs)


def _candidates(comparison: Comparison) -> str:
  heads = (
    'Cell',
    '#Training time',
    '#with its search',
    '#Validation loss',
    '#Mean accuracy',
    'Pareto set',
  )
  rows = []
  for i, one in enumerate(comparison.pareto):
    own = ('pareto', i)
    label = groups_lib.label(one.axes)
    with_search = one.seconds_with_tuning
    shown = '' if one.accuracy is None else f'{100 * one.accuracy:.2f} %'
    above = '; '.join(formatting.cell_name(*e) for e in one.dominated_by[:3])
    rows.append(
      (
        escape(formatting.cell_name(one.architecture, one.optimizer, label)),
        data(one.seconds, formatting.duration(one.seconds), *own, 'seconds'),
        data(
          with_search,
          '' if with_search is None else formatting.duration(with_search),
          *own,
          'seconds_with_tuning',
        ),
        data(one.loss, f'{one.loss:.4f}', *own, 'loss'),
        data(one.accuracy, shown, *own, 'accuracy', scale=100),
        '<strong>yes</strong>'
        if one.efficient
        else f'no <small>beaten by {escape(above)}</small>',
      )
    )
  table = page.table(heads, rows, 'candidates')
  return (
    '<details><summary>The numbers of the trade-off</summary>'
    f'{page.scroll(table, "Trade-off")}</details>'
  )


def differences(
  comparison: Comparison, figures: dict[str, Any]
) -> list[page.Section]:
  """Returns the section of paired differences over seeds."""
  parts = []
  if 'differences' in figures:
    parts.append(
      figure(
        'differences',
        'Paired differences of the validation loss',
        'First minus second, seed by seed, with the 95 % interval of each '
        'alone; left of the line the first is better. Full: the difference '
        'counts after Holm’s correction for all pairs of the panel.',
      )
    )
  for i, group in enumerate(comparison.groups):
    table = numbers.differences(group, ('architectures', i))
    if table:
      name = formatting.group_name(group)
      parts.append(page.fold(name, table, few(comparison)))
  if not parts:
    return []
  return [page.Section('pairs', 'Differences, seed by seed', parts)]


def speed(comparison: Comparison) -> list[page.Section]:
  """Returns the section of speed-ups and costs, the search's included."""
  parts = _tables(
    comparison,
    numbers.to_target,
    'what it takes to AdamW’s final loss',
  )
  if parts:
    parts.append(
      '<p class="note">Speed-up: what AdamW’s run spends over what this '
      'optimizer needs for AdamW’s final loss of the same seed; geometric mean '
      'over seeds with the 95 % interval. The loss on the way is that of a '
      'learning rate that has not decayed yet, so these are lower bounds. With '
      'its search: both with what their tuning cost added.</p>'
    )
  lines = numbers.scaling_words(comparison)
  fitted = numbers.scalings(comparison)
  if lines:
    parts.append('<h3>Speed-up through a fitted curve of the baseline</h3>')
    parts += [f'<p>{escape(line)}</p>' for line in lines]
  if fitted:
    parts.append(page.scroll(fitted, 'Fitted speed-ups'))
  parts += _tables(comparison, numbers.costs, 'costs')
  parts += _tables(comparison, numbers.overheads, 'extra cost of a step')
  if not parts:
    return []
  return [page.Section('speed', 'Speed-up and cost', parts)]


def agreement(comparison: Comparison) -> list[page.Section]:
  """Returns the section of whether losses and scores have the same order."""
  parts = _tables(comparison, numbers.agreements, 'order by loss and by score')
  if not parts:
    return []
  parts.append(
    '<p class="note">τ is 1 where a lower final loss always comes with a '
    'better score, −1 where always with a worse one. With so few optimizers '
    'even perfect agreement has the smallest p shown.</p>'
  )
  title = 'Do loss and benchmarks agree?'
  return [page.Section('agreement', title, parts)]


def sensitivities(
  comparison: Comparison, figures: dict[str, Any]
) -> list[page.Section]:
  """Returns the section of losses off the best hyperparameters."""
  if not comparison.sensitivities:
    return []
  parts = []
  if 'sensitivity' in figures:
    parts.append(
      figure(
        'sensitivity',
        'Loss off the best value',
        'Loss of the proxy at a quarter to four times the best value, above '
        'its lowest; all else as in the best trial. × diverged; no bar: not '
        'tried.',
        legend(comparison),
      )
    )
  parts += [
    page.scroll(_off_best(comparison), 'Sensitivity'),
    '<p class="note">Rate sensitivity: how far the loss is above its best on '
    'average over the range, of the same width for all optimizers of a model '
    '(arXiv 2309.14322).</p>',
  ]
  title = 'Sensitivity to hyperparameters'
  return [page.Section('off-best', title, parts)]


def _off_best(comparison: Comparison) -> str:
  """Returns the table of losses off the best values."""
  heads = (
    'Search',
    'Quantity',
    '#Best',
    '#¼ ×',
    '#½ ×',
    '#2 ×',
    '#4 ×',
    '#Rate sensitivity<small>nats</small>',
    'over',
    '#Diverged',
  )
  rows = []
  for i, one in enumerate(comparison.sensitivities):
    own = ('sensitivities', i)
    rates = one.rates
    rows.append(
      (
        escape(formatting.cell_name(one.architecture, one.optimizer, one.axes)),
        escape(one.name),
        data(one.best, formatting.rate(one.best), *own, 'best'),
        *(
          escape(off.status)
          if off.increase is None
          else data(
            off.increase, f'+{off.increase:.4f}', *own, 'offs', j, 'increase'
          )
          + ('<small>interpolated</small>' * (off.status == 'interpolated'))
          for j, off in enumerate(one.offs)
        ),
        '–'
        if rates is None
        else data(rates.value, f'{rates.value:.4f}', *own, 'rates', 'value'),
        '–'
        if rates is None
        else escape(
          f'{formatting.rate(rates.low)} to {formatting.rate(rates.high)}'
        ),
        f'{data(one.diverged, str(one.diverged), *own, "diverged")} of '
        f'{data(one.trials, str(one.trials), *own, "trials")}',
      )
    )
  return page.table(heads, rows, 'sensitivity')

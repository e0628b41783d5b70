"""The report's sections of transfer over widths and of a paper's claims."""

from collections.abc import Mapping, Sequence
from typing import Any

from steepest.eval.comparing import claims, findings as findings_lib, formatting
from steepest.eval.plots import widths
from steepest.eval.report import page
from steepest.eval.report.page import data, escape, figure


def transfer(result: Mapping[str, Any] | None, own: bool) -> list[page.Section]:
  """Returns the section of whether learning rates carry over to wider models.

  Args:
    result: of transfer.analyse; None where there is none.
    own: whether it is of the study's own trials.
  """
  if result is None:
    return []
  cells = dict(result)
  options = [(n, formatting.name(n)) for n in widths.optimizers(cells)]
  lines = ''.join(
    '<span class="key"><svg class="swatch" width="26" height="10" '
    f'aria-hidden="true"><line x1="1" y1="5" x2="25" y2="5" stroke="{color}" '
    f'stroke-width="3"/></svg>width {width}</span>'
    for width, color in widths.colors_of(cells).items()
  )
  source = 'the trials of this study' if own else 'an experiment of its own'
  parts = [
    f'<p>From {source}: {result["runs"]} runs, '
    f'{result["hours_of_one_process"]:.2f} hours of one process.</p>',
    '<div class="controls">',
    page.switch('transfer', 'Optimizer', options),
    '</div>',
    figure(
      'transfer',
      'Loss over the learning rate at several widths',
      'Means over seeds ± standard error; stars are the lowest points of '
      'parabolas. Rates carry over where they lie above one another.',
      f'<div class="chips">{lines}</div>',
    ),
    page.scroll(_rates(cells), 'Transfer'),
  ]
  title = 'Do learning rates carry over?'
  return [page.Section('widths', title, parts)]


def _rates(result: dict[str, Any]) -> str:
  """Returns the table of best rates at each width."""
  heads = (
    'Cell',
    'Best rate at each width',
    '#Drift<small>factors of two an octave</small>',
    '#Cost of the narrow rate<small>nats, widest</small>',
    '#Wider is better',
  )
  rows = []
  for i, cell in enumerate(result['cells']):
    at = ('transfer', 'cells', i)
    drift = cell['drift_steps_per_octave']
    cost = cell['widths'][-1]['penalty_of_proxy_lr']
    wider = cell['wider_is_better']
    rates = ', '.join(
      f'{w["width"]}: {_power(w["log2_optimum"]["mean"])}'
      for w in cell['widths']
    )
    rows.append(
      (
        escape(
          f'{formatting.cell_name(cell["model"], cell["optimizer"], "")}, '
          f'{cell["parametrization"]}'
        ),
        escape(rates),
        _spread(drift, '+.2f', (*at, 'drift_steps_per_octave')),
        _spread(
          cost,
          '.3f',
          (*at, 'widths', len(cell['widths']) - 1, 'penalty_of_proxy_lr'),
        ),
        f'{wider["better"]} of {wider["pairs"]}',
      )
    )
  return page.table(heads, rows, 'transfer')


def _power(log2: float | None) -> str:
  return '–' if log2 is None else formatting.rate(2**log2)


def _spread(found: dict[str, Any], form: str, path: tuple[object, ...]) -> str:
  mean, error = found['mean'], found['error']
  if mean is None:
    return '–'
  text = data(mean, f'{mean:{form}}', *path, 'mean')
  if error is None:
    return text
  shown = data(error, f'{error:{form.lstrip("+")}}', *path, 'error')
  return f'{text}<small>± {shown}</small>'


def claims_section(
  answers: Sequence[claims.Answer],
) -> list[page.Section]:
  """Returns the section of a paper's claims against what was found."""
  tested = [a for a in answers if a.conclusion != findings_lib.UNTESTED]
  if not tested:
    return []
  heads = ('Claim', 'Found', 'What it rests on')
  rows = []
  for i, answer in enumerate(answers):
    bold = answer.conclusion in (findings_lib.FOUND, findings_lib.CONTRADICTED)
    mark = escape(answer.conclusion)
    rows.append(
      (
        escape(answer.statement),
        f'<strong>{mark}</strong>' if bold else mark,
        ''.join(
          f'<p>{_finding(one, ("claims", i, "findings", j))}</p>'
          for j, one in enumerate(answer.findings)
        ),
      )
    )
  intro = (
    f'<p>Claims of {escape(claims.SOURCE)}, which trained far larger models, '
    'on these runs. “Not resolvable”: the difference does not exceed what the '
    'seeds’ spread allows at this scale.</p>'
  )
  table = page.table(heads, rows, 'claims')
  title = 'Claims and what was found'
  parts = [intro, page.scroll(table, title)]
  return [page.Section('claims', title, parts)]


def _finding(one: findings_lib.Finding, path: tuple[object, ...]) -> str:
  text = f'{escape(formatting.named(one.where))}: {escape(one.conclusion)}'
  if one.value is not None:
    shown = data(one.value, f'{one.value:+.4g}', *path, 'value')
    text += (
      f'; {escape(formatting.named(one.quantity))} {shown} {escape(one.unit)}'
    )
    if one.low is not None and one.high is not None:
      low = data(one.low, f'{one.low:.4g}', *path, 'low')
      high = data(one.high, f'{one.high:.4g}', *path, 'high')
      text += f' ({low} … {high})'
    if one.p is not None:
      text += f', p {data(one.p, formatting.p_value(one.p), *path, "p")}'
  return (
    f'{text}. {escape(formatting.named(one.remark))}' if one.remark else text
  )

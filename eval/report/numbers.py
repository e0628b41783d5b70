"""The report's tables of differences, costs and speed-ups, as HTML."""

from collections.abc import Sequence

from steepest.eval.comparing import (
  costs as costs_lib,
  formatting,
  groups as groups_lib,
  statistics,
  targets,
  verdicts,
)
from steepest.eval.comparing.comparison import Comparison, Group
from steepest.eval.report import page
from steepest.eval.report.page import data, escape

Path = tuple[object, ...]
_UNITS = {'tokens': 'Tokens', 'flops': 'FLOPs', 'seconds': 'Training time'}
_DIFFERENCE = (
  'Optimizers',
  '#Difference',
  '#95 % interval',
  '#Needed',
  '#p',
  '#p, corrected',
  'Rule',
)


def differences(group: Group, path: Path) -> str:
  """Returns the tables of paired differences of a group.

  Args:
    group: whose pairs to show.
    path: of the group in report.json.
  """
  first: list[str] = []
  rest: list[str] = []
  for key, title in (
    ('eval_loss', 'Validation loss (nats per token)'),
    ('train_loss', 'Training loss (nats per token)'),
    ('accuracy', 'Mean accuracy (points)'),
    ('seconds', 'Training time (s)'),
  ):
    pairs = group.pairs[key] if key in group.pairs else []
    if not pairs:
      continue
    scale = 100 if key == 'accuracy' else 1
    form = '+.4f' if key.endswith('_loss') else '+.2f'
    table = _pairs(pairs, scale, form, (*path, 'pairs', key))
    label = f'{formatting.group_name(group)}: {title}'
    block = f'<h4>{escape(title)}</h4>{page.scroll(table, label)}'
    (rest if first else first).append(block)
  for i, source in enumerate(group.sources):
    if source.pairs:
      title = f'{source.source or "all sources"} ({source.unit})'
      table = _pairs(source.pairs, 1, '+.4f', (*path, 'sources', i, 'pairs'))
      rest.append(f'<h4>{escape(title)}</h4>{page.scroll(table, title)}')
  more = ''
  if rest:
    more = (
      '<details><summary>Differences in training loss, accuracy, time, and by '
      f'source</summary>{"".join(rest)}</details>'
    )
  return ''.join(first) + more


def _pairs(
  pairs: Sequence[verdicts.Pair], scale: float, form: str, path: Path
) -> str:
  rows = []
  for i, pair in enumerate(pairs):
    names = (formatting.name(pair.first), formatting.name(pair.second))
    own = (*path, i)
    # Sources hold the pairs as they are, groups with the difference in line.
    own = (*own, 'difference') if 'sources' in path else own
    rows.append(
      (
        escape(' − '.join(names)),
        *difference_cells(pair.difference, scale, form, own),
      )
    )
  return page.table(_DIFFERENCE, rows, 'differences')


def difference_cells(
  d: statistics.Difference, scale: float, form: str, path: Path
) -> tuple[str, ...]:
  """Returns the cells of a difference: value, interval, limit, p, rule."""

  def shown(key: str, sign: bool = True) -> str:
    value = getattr(d, key)
    if value is None:
      return '–'
    text = f'{scale * value:{form if sign else form.lstrip("+")}}'
    return data(value, text, *path, key, scale=scale)

  value = shown('value')
  if d.exceeds:
    value = f'<strong>{value}</strong>'
  return (
    value,
    '–' if d.low is None else f'{shown("low")} … {shown("high")}',
    shown('limit', sign=False),
    data(d.p, formatting.p_value(d.p), *path, 'p'),
    data(d.p_holm, formatting.p_value(d.p_holm), *path, 'p_holm'),
    escape(d.rule),
  )


def to_target(group: Group, path: Path) -> str:
  """Returns the table of speed-ups to the baseline's final loss."""
  if not group.targets:
    return ''
  heads = ['Optimizer', '#Final loss above target']
  heads += [
    f'#Speed-up, {title}<small>{of}</small>'
    for of in ('run', 'with its search')
    for title in _UNITS.values()
  ]
  heads.append('Reached')
  rows = []
  for i, found in enumerate(group.targets):
    own = (*path, 'targets', i)
    rows.append(
      (
        escape(formatting.name(found.optimizer)),
        data(found.gap, f'{found.gap:+.4f}', *own, 'gap'),
        *(_ratio(found.speedups.get(u), (*own, 'speedups', u)) for u in _UNITS),
        *(
          _factor(found.with_tuning.get(u), (*own, 'with_tuning', u))
          for u in _UNITS
        ),
        escape(_reached(found)),
      )
    )
  return page.table(heads, rows, 'targets')


def _ratio(found: statistics.Ratio | None, path: Path) -> str:
  if found is None:
    return '–'
  text = data(found.value, f'{found.value:.2f} ×', *path, 'value')
  if found.low is None or found.high is None:
    return text
  low = data(found.low, f'{found.low:.2f}', *path, 'low')
  high = data(found.high, f'{found.high:.2f}', *path, 'high')
  return f'{text}<small>{low} … {high}</small>'


def _factor(value: float | None, path: Path) -> str:
  return '–' if value is None else data(value, f'{value:.2f} ×', *path)


def _reached(found: targets.ToTarget) -> str:
  if found.reason:
    return found.reason
  late = sum(r.status == 'by the first validation' for r in found.reaches)
  text = f'by all {len(found.reaches)} seeds'
  return f'{text}, {late} before the first validation' if late else text


def costs(group: Group, path: Path) -> str:
  """Returns the table of what runs and searches cost."""
  if not any(cost.run for cost in group.costs):
    return ''
  heads = ['Optimizer']
  parts = (('run', 'one run'), ('tuning', 'search'), ('total', 'together'))
  for title in _UNITS.values():
    heads += [f'#{title}<small>{words}</small>' for _, words in parts]
  rows = []
  for i, cost in enumerate(group.costs):
    cells = [escape(formatting.name(cost.optimizer))]
    for unit in _UNITS:
      for part, _ in parts:
        held = getattr(cost, part)
        value = None if held is None else getattr(held, unit)
        own = (*path, 'costs', i, part, unit)
        cells.append(data(value, _amount(unit, value), *own))
    rows.append(cells)
  return page.table(heads, rows, 'costs')


def _amount(unit: str, value: float | None) -> str:
  if value is None:
    return '–'
  if unit == 'seconds':
    return formatting.duration(value)
  if unit == 'flops':
    return formatting.scientific(value)
  return formatting.count(value)


def overheads(group: Group, path: Path) -> str:
  """Returns the table of what optimizers add to the baseline's step."""
  if not group.overheads:
    return ''
  heads = (
    'Optimizer',
    '#Curvature passes<small>a run</small>',
    '#FLOPs',
    '#Training time',
    '#Optimizer state',
    '#Peak memory',
  )
  rows = [
    _overhead(found, (*path, 'overheads', i))
    for i, found in enumerate(group.overheads)
  ]
  return page.table(heads, rows, 'overheads')


def _overhead(found: costs_lib.Overhead, path: Path) -> tuple[str, ...]:
  flops = '–'
  if found.flops is not None:
    flops = data(found.flops, f'{found.flops:+.1%}', *path, 'flops', scale=100)
  state = found.state_bytes
  memory = found.peak_memory_bytes
  return (
    f'{escape(formatting.name(found.optimizer))} <small>against '
    f'{escape(formatting.name(found.baseline))}</small>',
    data(
      found.curvature_passes,
      f'{found.curvature_passes:,.0f}',
      *path,
      'curvature_passes',
    ),
    flops,
    _ratio(found.seconds, (*path, 'seconds')),
    '–'
    if state is None
    else data(state, formatting.byte_count(state), *path, 'state_bytes'),
    '–'
    if memory is None
    else data(
      memory, formatting.byte_count(memory), *path, 'peak_memory_bytes'
    ),
  )


def agreements(group: Group, path: Path) -> str:
  """Returns the table of rank correlations of loss and scores."""
  if not group.agreements:
    return ''
  heads = (
    'Benchmark',
    '#Kendall’s τ',
    '#p',
    '#Smallest p<small>of so few</small>',
    '#Pairs that agree',
    '#Pairs that do not',
  )
  rows = []
  for i, found in enumerate(group.agreements):
    own = (*path, 'agreements', i)
    tau = '–'
    if found.tau is not None:
      tau = data(found.tau, f'{found.tau:+.2f}', *own, 'tau')
    rows.append(
      (
        escape(formatting.score_name(found.key)),
        tau,
        data(found.p, formatting.p_value(found.p), *own, 'p'),
        data(
          found.smallest_p,
          formatting.p_value(found.smallest_p),
          *own,
          'smallest_p',
        ),
        data(found.concordant, str(found.concordant), *own, 'concordant'),
        data(found.discordant, str(found.discordant), *own, 'discordant'),
      )
    )
  return page.table(heads, rows, 'agreements')


def scalings(comparison: Comparison) -> str:
  """Returns the table of speed-ups through a fitted baseline curve."""
  rows = []
  for i, scaling in enumerate(comparison.scalings):
    model = formatting.model_name(
      scaling.architecture, groups_lib.label(scaling.axes)
    )
    for j, found in enumerate(scaling.speedups):
      own = ('scalings', i, 'speedups', j)
      text = escape(found.reason)
      if found.speedup is not None:
        text = data(found.speedup, f'{found.speedup:.2f} ×', *own, 'speedup')
        if found.low is not None and found.high is not None:
          low = data(found.low, f'{found.low:.2f}', *own, 'low')
          high = data(found.high, f'{found.high:.2f}', *own, 'high')
          text += f'<small>{low} … {high}</small>'
        if found.extrapolated:
          text += '<small>extrapolated</small>'
      rows.append(
        (
          escape(f'{model}: {formatting.name(found.optimizer)}'),
          data(found.tokens, formatting.count(found.tokens), *own, 'tokens'),
          data(found.loss, f'{found.loss:.4f}', *own, 'loss'),
          text,
        )
      )
  if not rows:
    return ''
  heads = ('Cell', '#Tokens', '#Final loss', '#Fitted speed-up')
  return page.table(heads, rows, 'scalings')


def scaling_words(comparison: Comparison) -> list[str]:
  """Says for each model what curve was fitted, or why none was."""
  lines = []
  for scaling in comparison.scalings:
    model = formatting.model_name(
      scaling.architecture, groups_lib.label(scaling.axes)
    )
    base = formatting.name(scaling.baseline)
    if scaling.fit is None:
      reason = formatting.named(scaling.reason)
      lines.append(f'{model}: no curve of {base}: {reason}.')
      continue
    fit = scaling.fit
    lines.append(
      f'{model}: {base} follows L(D) = {fit.floor:.3f} + '
      f'{fit.coefficient:.3g}·D^−{fit.alpha:.3f} over {len(fit.budgets)} '
      f'budgets, {fit.residual:.4f} nats off on average.'
    )
  return lines

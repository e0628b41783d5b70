"""Shows what a study takes, and what half of each budget saves and costs."""

from collections.abc import Sequence
import math

from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from steepest.tuning import budget, certainty, space
from steepest.tuning.budget import Part
from steepest.tuning.certainty import Spread

_BAR = 16


def show(
  config: ConfigDict,
  found: Sequence[Part],
  chip: str,
  devices: int,
  spread: Spread,
  console: Console,
) -> None:
  """Prints the parts, the whole, and what half of each budget does.

  Args:
    config: of the study.
    found: its parts.
    chip: name of the accelerator.
    devices: how many of them.
    spread: of runs that there are.
    console: to print to.
  """
  console.print(_parts(found))
  tune, train = (budget.hours(found, kind) for kind in ('tune', 'train'))
  total = tune + train
  targets = sum(part.runs for part in found if part.kind == 'train')
  lines = [
    f'{_number(total)} {chip}-hours: {_number(tune)} for tuning '
    f'({tune / total:.1%}) and {_number(train)} for {targets} target runs '
    f'({train / total:.1%}); {_number(total / devices / 24)} days on {devices} '
    f'chip{"s" * (devices > 1)}',
  ]
  lines.append(
    'not counted: rates that are added while the best is at an edge (up to '
    f'{config.study.max_extensions} trials a search), validation, benchmarks'
  )
  for line in lines:
    console.print(line, soft_wrap=True)
  console.print(_halvings(config, tune, train, spread))
  console.print(
    'a difference of two optimizers is known to ± t · s / √seeds (95 %, '
    f'Student, paired by seed), s = {spread.sd:.3g} nats; '
    + _on_rates(spread)
    + f'; from {spread.source}',
    soft_wrap=True,
  )


def _on_rates(spread: Spread) -> str:
  if spread.curvature is None:
    return 'what a coarser grid costs is not known'
  return (
    'rates a factor r apart cost a · ln² r / 12 on average, '
    f'a = {spread.curvature:.3g} nats'
  )


def _parts(found: Sequence[Part]) -> Table:
  heads = ('part', 'runs', 'tokens', 'chips', 'memory', 'step', 'chip-hours')
  table = Table(*heads, 'share', '', box=None, pad_edge=False)
  for column in table.columns[1:8]:
    column.justify = 'right'
  total = sum(part.hours for part in found)
  most = max(part.hours for part in found)
  for part in found:
    plan, share = part.plan, part.hours / total
    fits = '' if plan.fits else ' too much'
    table.add_row(
      f'{part.kind} {part.cell}',
      str(part.runs),
      _tokens(part.tokens),
      str(plan.setting.devices),
      f'{plan.peak / 2**30:.3g} of {plan.capacity / 2**30:.3g} GiB{fits}',
      f'{plan.step_seconds:.3g} s',
      _number(part.hours),
      f'{share:.1%}',
      '█' * round(_BAR * part.hours / most),
    )
  return table


def _halvings(
  config: ConfigDict, tune: float, train: float, spread: Spread
) -> Table:
  table = Table(
    'budget',
    'now',
    'then',
    'chip-hours',
    'in certainty',
    box=None,
    pad_edge=False,
  )
  table.columns[3].justify = 'right'
  study, seeds = config.study, config.study.seeds
  count = len(study.optimizers.split(','))
  width = lambda n: _known(certainty.half_width(spread, n, count), n)
  trials, ratio = _trials(config)
  # Every second rate.
  half = math.ceil(trials / 2)
  table.add_row(
    'trials a search',
    str(trials),
    str(half),
    _number(tune * (half / trials - 1)),
    f'rates off by {_nats(certainty.missed(spread, ratio))} on average, then '
    f'by {_nats(certainty.missed(spread, ratio**2))}',
  )
  tokens = config.batch_size * config.model.context
  table.add_row(
    'tokens a trial',
    _tokens(config.steps * tokens),
    _tokens(config.steps * tokens / 2),
    _number(-tune / 2),
    'not known: study.axis_tokens with study.retune=tokens measures how far '
    'the best rate moves',
  )
  # Of one seed there is no half.
  other = math.ceil(seeds / 2) if seeds > 1 else 2
  table.add_row(
    'seeds',
    str(seeds),
    str(other),
    ('+' if other > seeds else '') + _number(train * (other / seeds - 1)),
    f'{width(seeds)}, then {width(other)}',
  )
  table.add_row(
    'tokens a target',
    _tokens(study.target_steps * tokens),
    _tokens(study.target_steps * tokens / 2),
    _number(-train / 2),
    'an answer for half the tokens; as sure as before if the spread stays',
  )
  return table


def _trials(config: ConfigDict) -> tuple[int, float]:
  """Returns the most trials of a search and the factor between its rates."""
  most, ratio = 0, 1.0
  for optimizer in config.study.optimizers.split(','):
    dimensions = space.dimensions(config, optimizer)
    low, high = dimensions[0].bounds
    if config.study.search == 'grid':
      count = math.prod(len(d.values) for d in dimensions)
      gaps = len(dimensions[0].values) - 1
    else:
      count = gaps = config.study.trials
    most = max(most, count)
    ratio = max(ratio, math.exp((high - low) / gaps))
  return most, ratio


def _nats(value: float | None) -> str:
  return 'an unknown amount' if value is None else f'{value:.2g} nats'


def _known(value: float | None, seeds: int) -> str:
  if value is None:
    return 'one seed tells nothing of chance'
  # Of two seeds the spread is pooled, which may look surer than three do.
  held = ' if all optimizers spread alike' if seeds == 2 else ''
  return f'differences known to ± {value:.2g} nats{held}'


def _number(value: float) -> str:
  return f'{value:,.0f}' if abs(value) >= 100 else f'{value:.3g}'


def _tokens(count: float) -> str:
  return f'{count / 1e9:.3g} G' if count >= 1e8 else f'{count / 1e6:.3g} M'

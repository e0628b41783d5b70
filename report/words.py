"""Formatting of names and numbers, and the report as plain text."""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import html
import math
import re
from typing import Any

import jinja2
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

MISSING = '–'
# Keeps a number and its unit on one line.
_SPACE = '\u00a0'

_CONTESTANTS = {
  'gpt2': 'GPT-2',
  'llama': 'LLaMA',
  'adafactor': 'Adafactor',
  'adamh': 'AdamH',
  'adamw': 'AdamW',
  'ademamix': 'AdEMAMix',
  'adopt': 'ADOPT',
  'cautious_adamw': 'Cautious AdamW',
  'cautious_lion': 'Cautious Lion',
  'dion': 'Dion',
  'kron': 'PSGD Kron',
  'lion': 'Lion',
  'mars': 'MARS',
  'muon': 'Muon',
  'muonh': 'MuonH',
  'nadamw': 'NAdamW',
  'normuon': 'NorMuon',
  'prodigy': 'Prodigy',
  'schedule_free': 'Schedule-Free AdamW',
  'scion': 'Scion',
  'signum': 'Signum',
  'soap': 'SOAP',
  'sophia': 'Sophia',
}
_NAMES = {
  **_CONTESTANTS,
  'arc_easy': 'ARC-Easy',
  'arc_challenge': 'ARC-Challenge',
  'hellaswag': 'HellaSwag',
  'mmlu': 'MMLU',
  'mmlu_continuation': 'MMLU (continuations)',
  'mmlu_5shot': 'MMLU, 5-shot',
  'lambada_openai': 'LAMBADA',
  'piqa': 'PIQA',
  'winogrande': 'WinoGrande',
  'boolq': 'BoolQ',
  'openbookqa': 'OpenBookQA',
  'sciq': 'SciQ',
  'accuracy': 'mean accuracy',
  'train_loss': 'training loss',
  'eval_loss': 'validation loss',
  'eval_bits_per_byte': 'bits per byte',
  'tokens_per_second': 'tokens per second',
  'seconds': 'training time',
  'flops': 'FLOPs',
  'parameters': 'parameters',
  'lr': 'learning rate',
  'b1': 'β₁',
  'b2': 'β₂',
  'b3': 'β₃',
  'b1_half_life': 'half-life of β₁',
  'b2_half_life': 'half-life of β₂',
  'b3_half_life': 'half-life of β₃',
  'decay_timescale': 'timescale of decay',
  'warmup': 'warm-up',
  'clip_norm': 'largest gradient norm',
  'eps': 'ε',
  'rho': 'ρ',
  'weight_decay': 'weight decay',
  'batch_size': 'batch size',
  'mup': 'µP',
  'sp': 'standard parametrization',
}


# Optimizer → the label in its own file, for the runs at hand.
_LABELS: dict[str, str] = {}


def take_labels(labels: Mapping[str, str]) -> None:
  """Makes `name` use these labels for optimizers that it does not know."""
  _LABELS.clear()
  _LABELS.update(labels)


def name(key: str) -> str:
  """Returns the usual spelling of a name from a config or a file."""
  return ({key: key} | _LABELS | _NAMES)[key]


def named(text: str) -> str:
  """Returns a sentence with models and optimizers in their usual spelling."""
  return re.sub(r'\w+', lambda word: _CONTESTANTS.get(word[0], word[0]), text)


def column(key: str) -> str:
  """Returns a column's name in a sentence: 'ARC-Easy acc_norm'."""
  task, slash, metric = key.rpartition('/')
  return f'{name(task)} {metric}' if slash else name(key)


def head(key: str) -> str:
  """Returns the head of a column."""
  return capitalized(column(key))


def capitalized(text: str) -> str:
  """Returns a text with its first letter capitalized, the rest unchanged."""
  # A capital Greek letter is another symbol.
  return text[:1].upper() + text[1:] if text[:1].isascii() else text


def join(items: Iterable[str], last: str = 'and') -> str:
  """Returns 'a', 'a and b' or 'a, b and c'."""
  listed = list(items)
  if len(listed) < 2:
    return ''.join(listed)
  return f'{", ".join(listed[:-1])} {last} {listed[-1]}'


def plural(n: int, noun: str) -> str:
  """Returns '1 seed' or '3 seeds'."""
  return f'{n:,} {noun}{"s" * (n != 1)}'


@dataclasses.dataclass(frozen=True)
class Unit:
  """The format of all numbers in a column.

  Attributes:
    label: 's', '%' …; '' for a number without a unit.
    scale: divisor of values.
    form: format of the quotient; 'scientific' for powers of ten.
    step: unit of a difference of two values if it is not `label`.
  """

  label: str
  scale: float
  form: str
  step: str = ''

  def number(self, value: float | None) -> str:
    """Returns a value without its unit; a dash if missing."""
    if value is None or math.isnan(value):
      return MISSING
    if self.form == 'scientific':
      return scientific(value / self.scale)
    return f'{value / self.scale:{self.form}}'

  def text(self, value: float | None) -> str:
    """Returns a value with its unit."""
    return self._with(self.number(value), self.label)

  def change(self, value: float | None) -> str:
    """Returns a difference of two values with its sign, without its unit."""
    if value is None or math.isnan(value):
      return MISSING
    return ('−' if value < 0 else '+') + self.number(abs(value))

  def difference(self, value: float | None) -> str:
    """Returns a difference of two values with its sign and its unit."""
    return self._with(self.change(value), self.step or self.label)

  def interval(self, low: float | None, high: float | None) -> str:
    """Returns the ends of a difference's interval, their unit once."""
    if low is None or high is None or math.isnan(low) or math.isnan(high):
      return MISSING
    return f'{self.change(low)} to {self.difference(high)}'

  def _with(self, number: str, label: str) -> str:
    if not label or number == MISSING:
      return number
    return f'{number}{_SPACE}{label}'


_PLAIN = Unit('', 1.0, '.3g')
_NATS = Unit('', 1.0, '.4f', 'nats')
_SHARE = Unit('%', 0.01, '.1f', 'points')
_KNOWN = {
  'train_loss': _NATS,
  'eval_loss': _NATS,
  'eval_bits_per_byte': Unit('', 1.0, '.4f', 'bits per byte'),
  'accuracy': _SHARE,
  'flops': Unit('', 1.0, 'scientific', 'FLOPs'),
}
# A column's unit is the first whose least value its largest number reaches.
_COUNTS = (
  *(
    (least, Unit(label, scale, form))
    for label, scale in (('T', 1e12), ('B', 1e9), ('M', 1e6), ('k', 1e3))
    for least, form in ((10 * scale, '.1f'), (scale, '.2f'))
  ),
  (0, Unit('', 1.0, ',.0f')),
)
_BY_SIZE = {
  'seconds': (
    (7200, Unit('h', 3600, '.2f')),
    (120, Unit('min', 60, '.2f')),
    (10, Unit('s', 1.0, '.1f')),
    (0, Unit('s', 1.0, '.2f')),
  ),
  'tokens_per_second': (
    (100, Unit('', 1.0, ',.0f', 'tokens/s')),
    (0, Unit('', 1.0, '.1f', 'tokens/s')),
  ),
  'parameters': _COUNTS,
  'tokens': _COUNTS,
}


def unit(key: str, values: Iterable[float | None] = ()) -> Unit:
  """Returns the unit of a column.

  Args:
    key: as in summary.json, or 'task/metric'.
    values: of the column; the largest determines the unit.
  """
  if key in _BY_SIZE:
    known = [abs(v) for v in values if v is not None and math.isfinite(v)]
    largest = max(known, default=0.0)
    return next(of for least, of in _BY_SIZE[key] if largest >= least)
  if '/' in key and not key.endswith('/perplexity'):
    return _SHARE
  return _KNOWN[key] if key in _KNOWN else _PLAIN


def duration(seconds: float) -> str:
  """Returns seconds as '85.3 s', '12.42 min' or '3.42 h'."""
  return unit('seconds', [seconds]).text(seconds)


def count(value: float) -> str:
  """Returns a count as '950', '12.3 k', '124.4 M' or '2.70 B'."""
  return unit('tokens', [value]).text(value)


def scientific(value: float) -> str:
  """Returns three significant digits, such as '2.93 × 10¹⁵'."""
  if value == 0 or not math.isfinite(value):
    return f'{value:g}'
  mantissa, _, exponent = f'{value:.2e}'.partition('e')
  return f'{mantissa} × {power(int(exponent))}'


def power(exponent: int) -> str:
  """Returns a power of ten, such as '10¹⁵'."""
  superscript = str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹')
  return f'10{str(exponent).translate(superscript)}'


def signed(value: float | None, form: str) -> str:
  """Returns a number with a true minus sign; a dash if missing."""
  if value is None or math.isnan(value):
    return MISSING
  return f'{value:{form}}'.replace('-', '−')


def rate(lr: float | None) -> str:
  """Returns a learning rate as '0.0012' or '3e-05'."""
  return MISSING if lr is None or math.isnan(lr) else f'{lr:.3g}'


def p_value(value: float | None) -> str:
  """Returns a p-value as '0.012' or '< 0.0001'."""
  if value is None or math.isnan(value):
    return MISSING
  return '< 0.0001' if value < 1e-4 else f'{value:.2g}'


def p_equals(value: float) -> str:
  """Returns 'p = 0.012' or 'p < 0.0001'."""
  text = f'p = {p_value(value)}'.replace('= <', '<')
  return text.replace(' ', _SPACE)


def interval(low: float | None, high: float | None, form: str) -> str:
  """Returns '0.12 to 0.34', each end in the format `form`."""
  ends = signed(low, form), signed(high, form)
  return MISSING if MISSING in ends else ' to '.join(ends)


def print_table(
  console: Console,
  heads: Sequence[str],
  rows: Sequence[Sequence[str]],
  fixed: int = 1,
) -> None:
  """Prints a table, in several pieces if the console is too narrow.

  Args:
    console: to print on.
    heads: a name for each column.
    rows: a text for each column, never interpreted as markup.
    fixed: columns on the left that every piece repeats.
  """
  widths = [
    max(len(line) for text in texts for line in text.split('\n')) + 2
    for texts in zip([_narrow(h) for h in heads], *rows, strict=True)
  ]
  pieces: list[list[int]] = []
  room = 0
  for i in range(fixed, len(heads)):
    if not pieces or widths[i] > room:
      pieces.append(list(range(fixed)))
      room = console.width - sum(widths[:fixed])
    pieces[-1].append(i)
    room -= widths[i]
  for piece in pieces:
    table = Table(
      box=box.SIMPLE_HEAD, collapse_padding=True, header_style='bold'
    )
    for i in piece:
      table.add_column(
        Text(_narrow(heads[i])),
        justify='right' if i else 'left',
        no_wrap=True,
      )
    for row in rows:
      table.add_row(*(Text(row[i]) for i in piece))
    console.print(table)


def _narrow(text: str) -> str:
  """Breaks a head into lines: narrow heads leave room for the numbers."""
  return text.replace('ARC-', 'ARC-\n').replace(' ', '\n')


def markdown(value: object) -> str:
  """Escapes text so that it is no markup and cannot leave its table cell."""
  escaped = html.escape(' '.join(str(value).split()), quote=False)
  return re.sub(r'([\\`*_\[\]|])', r'\\\1', escaped)


def render(template: str, **values: Any) -> str:
  """Returns a Markdown template of report/templates/, filled in."""
  environment = jinja2.Environment(
    loader=jinja2.PackageLoader('steepest.report'),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    # Markdown, not HTML: templates say `|md` where text comes from files.
    autoescape=False,
  )
  environment.filters |= {'md': markdown, 'p': p_value}
  return environment.get_template(template).render(**values)

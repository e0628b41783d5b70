"""How names and numbers are written."""

import math
import re

from steepest.eval.comparing.comparison import Column, Group

_CONTESTANTS = {
  'gpt2': 'GPT-2',
  'llama': 'LLaMA',
  'adafactor': 'Adafactor',
  'adamw': 'AdamW',
  'ademamix': 'AdEMAMix',
  'adopt': 'ADOPT',
  'cautious_adamw': 'Cautious AdamW',
  'cautious_lion': 'Cautious Lion',
  'lion': 'Lion',
  'muon': 'Muon',
  'nadamw': 'NAdamW',
  'prodigy': 'Prodigy',
  'schedule_free': 'Schedule-Free AdamW',
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
  'mmlu_continuation': 'MMLU (cont.)',
  'mmlu_5shot': 'MMLU, 5-shot',
  'lambada_openai': 'LAMBADA',
  'piqa': 'PIQA',
  'winogrande': 'WinoGrande',
  'boolq': 'BoolQ',
  'openbookqa': 'OpenBookQA',
  'sciq': 'SciQ',
  'acc': 'acc',
  'acc_norm': 'acc_norm',
  'train_loss': 'Training loss',
  'eval_loss': 'Validation loss',
  'eval_bits_per_byte': 'Bits per byte',
  'tokens_per_second': 'Tokens/s',
  'seconds': 'Training time',
  'flops': 'FLOPs',
  'parameters': 'Parameters',
}


def name(key: str) -> str:
  """Returns the usual spelling of a name out of a config or a file."""
  return _NAMES[key] if key in _NAMES else key


def named(text: str) -> str:
  """Returns a sentence with models and optimizers in their usual spelling."""
  return re.sub(r'\w+', lambda word: _CONTESTANTS.get(word[0], word[0]), text)


def column_name(column: Column) -> str:
  """Returns what a column is called in a sentence."""
  if column.kind == 'benchmark':
    return f'{name(column.task)} {column.metric}'
  return name(column.key)


def number(column: Column, value: float) -> str:
  """Returns `value` as the tables show it, without its unit."""
  if column.kind == 'loss':
    return f'{value:.4f}'
  if column.kind == 'benchmark':
    if column.metric == 'perplexity':
      return f'{value:.3g}'
    return f'{100 * value:.1f}'
  if column.key == 'tokens_per_second':
    return f'{value:,.0f}' if value >= 100 else f'{value:.1f}'
  if column.key == 'seconds':
    return duration(value)
  if column.key == 'parameters':
    return count(value)
  return scientific(value)


def deviation(column: Column, value: float, beside: float) -> str:
  """Returns a spread in the unit that `number` gives `beside`."""
  if column.key == 'tokens_per_second' and beside >= 100:
    return f'{value:,.0f}'
  if column.key != 'seconds':
    return number(column, value)
  scale, _, digits = _time_unit(beside)
  return f'{value / scale:.{digits}f}'


def duration(seconds: float) -> str:
  """Returns seconds as '85.3 s', '12.42 min' or '3.42 h'."""
  scale, unit, digits = _time_unit(seconds)
  return f'{seconds / scale:.{digits}f}\u00a0{unit}'


def count(value: float) -> str:
  """Returns a count as '950', '12.3 k', '124.4 M' or '2.70 B'."""
  for scale, unit in ((1e12, 'T'), (1e9, 'B'), (1e6, 'M'), (1e3, 'k')):
    if abs(value) >= scale:
      scaled = value / scale
      return f'{scaled:.{2 if scaled < 10 else 1}f}\u00a0{unit}'
  return f'{value:,.0f}'


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


def rate(lr: float) -> str:
  """Returns a learning rate as '0.0012' or '3e-05'."""
  return f'{lr:.3g}'


def _time_unit(seconds: float) -> tuple[float, str, int]:
  """Returns the unit's seconds, its name and the decimals to show."""
  if abs(seconds) < 120:
    return 1.0, 's', 2 if abs(seconds) < 10 else 1
  return (60.0, 'min', 2) if abs(seconds) < 7200 else (3600.0, 'h', 2)


def group_name(group: Group) -> str:
  """Returns what a group of compared runs is called."""
  return model_name(group.architecture, group.axes_label)


def model_name(architecture: str, axes: str) -> str:
  """Returns such as 'GPT-2, epochs 4'."""
  return f'{name(architecture)}, {axes}' if axes else name(architecture)


def cell_name(architecture: str, optimizer: str, axes: str) -> str:
  """Returns such as 'GPT-2 Lion, epochs 4'."""
  text = f'{name(architecture)} {name(optimizer)}'
  return f'{text}, {axes}' if axes else text


def axis_value(value: object) -> str:
  """Returns a value of an axis, large numbers as counts."""
  if isinstance(value, int) and value >= 10_000:
    return count(value)
  return str(value)


def score_name(key: str) -> str:
  """Returns what 'task/metric', or the mean over benchmarks, is called."""
  if key == 'accuracy':
    return 'Mean accuracy'
  task, _, metric = key.rpartition('/')
  return f'{name(task)} {metric}'


def p_value(value: float | None) -> str:
  """Returns a p-value as '0.012' or '< 0.0001'."""
  if value is None:
    return '–'
  return '< 0.0001' if value < 1e-4 else f'{value:.2g}'


def byte_count(value: float) -> str:
  """Returns bytes as '1.50 MiB'."""
  for scale, unit in ((2**30, 'GiB'), (2**20, 'MiB'), (2**10, 'KiB')):
    if value >= scale:
      return f'{value / scale:.2f}\u00a0{unit}'
  return f'{value:.0f}\u00a0B'

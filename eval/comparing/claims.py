"""What a paper claims beside what a comparison found, as one page."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

from steepest.eval.comparing import findings, formatting, rate_findings
from steepest.eval.comparing.comparison import Comparison
from steepest.eval.comparing.findings import Finding

SOURCE = 'arXiv 2507.08472'


@dataclasses.dataclass(frozen=True)
class Answer:
  """A claim and what was found.

  Attributes:
    key: its name.
    statement: the claim in words.
    conclusion: of findings.overall.
    findings: what it rests on.
  """

  key: str
  statement: str
  conclusion: str
  findings: tuple[Finding, ...]


def evaluate(
  comparison: Comparison, transfer: Mapping[str, Any] | None = None
) -> list[Answer]:
  """Tests the claims of arXiv 2507.08472 on a comparison.

  Args:
    comparison: with AdamW, Lion and Sophia on gpt2 and llama; what it lacks is
      'not tested'.
    transfer: transfer.json of launch.transfer, for the claim about widths.
  """
  listed: list[tuple[str, str, list[Finding]]] = [
    (
      'sophia-lowest-loss',
      'Sophia ends with the lowest validation loss.',
      findings.best(comparison, 'eval_loss', 'sophia'),
    ),
    (
      'sophia-lowest-training-loss',
      'Sophia ends with the lowest training loss.',
      findings.best(comparison, 'train_loss', 'sophia'),
    ),
    (
      'sophia-most-in-multi-epoch-gpt',
      'Sophia’s lead is largest where GPT reads its data several times.',
      findings.axis_change(comparison, 'epochs', 'sophia', ('gpt2',)),
    ),
    (
      'lion-fewest-hours',
      'Lion takes the fewest hours for the same tokens.',
      findings.best(comparison, 'seconds', 'lion'),
    ),
    (
      'lion-first-at-target',
      'Lion is the first at a given loss (AdamW’s final one).',
      findings.hours_to_target(comparison, 'lion'),
    ),
    (
      'adamw-best-downstream',
      'AdamW has the best benchmark scores, on average over them.',
      findings.best(comparison, 'accuracy', 'adamw'),
    ),
    (
      'epochs-help-downstream',
      'Reading a smaller corpus several times raises benchmark scores.',
      findings.axis_scores(comparison, 'epochs', findings.AMONG),
    ),
    (
      'llama-with-lion',
      'LLaMA does best with Lion.',
      findings.best(comparison, 'eval_loss', 'lion', ('llama',)),
    ),
    (
      'llama-twice-the-rate',
      'LLaMA’s best learning rate is about twice GPT-2’s.',
      rate_findings.rate_ratio(comparison, 'llama', 'gpt2', 2.0),
    ),
    (
      'rates-transfer',
      'Learning rates found on narrow models hold for wide ones under µP.',
      rate_findings.transfers(transfer),
    ),
  ]
  return [
    Answer(key, statement, findings.overall(found), tuple(found))
    for key, statement, found in listed
  ]


def claims_page(
  comparison: Comparison, transfer: Mapping[str, Any] | None = None
) -> str:
  """Returns the page as Markdown: a table of claims, then what each rests on.

  Args:
    comparison: as `evaluate`.
    transfer: as `evaluate`.
  """
  answers = evaluate(comparison, transfer)
  lines = [
    f'# The claims of {SOURCE} beside what was found',
    '',
    *_scale(comparison),
    '',
    '| claim | found here |',
    '|---|---|',
    *(f'| {a.statement} | **{a.conclusion}** |' for a in answers),
    '',
    'Found: the difference exceeds what the spread over seeds allows '
    '(Student’s t at 95 %; accuracies: two standard errors, paired by '
    'question), corrected for the pairs that were compared (Holm). '
    'Contradicted: the opposite does. Not resolvable: neither does at this '
    'scale and with as many seeds, which does not show that there is no '
    'difference. Intervals are of each comparison alone; p-values are '
    'corrected within a group, not for the number of groups.',
  ]
  for answer in answers:
    lines += ['', f'## {answer.statement}', '', *_table(answer.findings)]
  return '\n'.join(lines) + '\n'


def _scale(comparison: Comparison) -> list[str]:
  """Returns what the runs were, a line for each group."""
  lines = []
  for group in comparison.groups:
    if not group.selection.equal:
      continue
    parameters = [c.value('parameters') for c in group.cells]
    sizes = {formatting.count(p) for p in parameters if p is not None}
    tokens = formatting.count(float(group.selection.equal['tokens']))
    names = ', '.join(formatting.name(c.optimizer) for c in group.cells)
    seeds = len(group.selection.seeds)
    place = _place(findings.where(group))
    size = f'{" or ".join(sorted(sizes))} parameters, ' if sizes else ''
    lines.append(f'* {place}: {size}{tokens} tokens, {seeds} seeds, {names}.')
  return lines or ['No final run has finished.']


def _table(found: Sequence[Finding]) -> list[str]:
  rows = [
    '| where | found here | effect | interval | p | n | remark |',
    '|---|---|---|---|---|---|---|',
  ]
  for one in found:
    value = (
      '–' if one.value is None else f'{_number(one, one.value)} {one.unit}'
    )
    interval = '–'
    if one.low is not None and one.high is not None:
      interval = f'{_number(one, one.low)} to {_number(one, one.high)}'
    p = '–' if one.p is None else f'{one.p:.2g}'
    effect = f'{one.quantity}: {value}' if one.quantity else '–'
    rows.append(
      f'| {_place(one.where)} | {one.conclusion} | {_escape(effect)} | '
      f'{interval} | {p} | {one.n or "–"} | {_escape(one.remark)} |'
    )
  return rows


def _number(one: Finding, value: float) -> str:
  if one.unit == findings.NATS:
    return f'{value:+.4f}'
  if one.unit == findings.TIMES:
    return f'{value:.2f}'
  return f'{value:+.2f}'


def _place(text: str) -> str:
  head, comma, rest = text.partition(',')
  return _escape(formatting.name(head) + comma + rest)


def _escape(text: str) -> str:
  """Returns text that cannot leave its cell of a Markdown table."""
  return text.replace('|', '\\|').replace('<', '&lt;').replace('\n', ' ')

"""The report's verdicts and rules as plain sentences."""

from collections.abc import Sequence
import dataclasses

from steepest.eval.comparing import fairness, formatting, statistics, tuning
from steepest.eval.comparing.comparison import Cell, Comparison, Group, Verdict

_BEST = {True: 'lowest', False: 'highest'}
_BADGES = {
  'tie': 'no difference shown',
  'chance': 'no difference shown',
  'unknown': 'one seed, no claim',
  'equal': 'equal',
  'alone': 'nothing to compare',
  'incomparable': 'not compared',
}


@dataclasses.dataclass(frozen=True)
class Statement:
  """A verdict in words.

  Attributes:
    subject: the column.
    badge: the verdict in a few words.
    won: whether the badge names a winner that holds against every other.
    text: the reasons.
  """

  subject: str
  badge: str
  won: bool
  text: str


def statements(group: Group) -> list[Statement]:
  """Returns a statement for every verdict of an architecture."""
  cells = {cell.optimizer: cell for cell in group.cells}
  return [_statement(verdict, cells) for verdict in group.verdicts]


def headline(group: Group) -> str:
  """Returns the answer for an architecture in one sentence."""
  name = formatting.group_name(group)
  verdict = group.verdict('eval_loss') or group.verdict('train_loss')
  if group.refusal and len(group.selection.cells) > 1:
    return f'{name}: not ranked, {formatting.named(group.refusal)}.'
  if verdict is None or verdict.best is None:
    return f'{name}: no finished runs to compare yet.'
  loss = formatting.column_name(verdict.column).lower()
  best = formatting.name(verdict.best)
  if verdict.conclusion == 'alone':
    return f'{name}: only {best} has finished, so nothing is compared yet.'
  if verdict.conclusion == 'wins':
    answer = f'{best} ends with the lowest {loss}, beyond the seed spread'
  elif verdict.conclusion == 'partly':
    close = [o for o, d in verdict.differences.items() if not d.exceeds]
    answer = (
      f'{best} has the lowest {loss}, not to be told from '
      f'{_join([formatting.name(o) for o in close])} within the seed spread'
    )
  elif verdict.conclusion == 'unknown':
    answer = f'{best} has the lowest {loss}, on one seed, so without a claim'
  else:
    answer = f'no difference in {loss} exceeds the seed spread'
  return f'{name}: {answer}{_fastest(group)}.'


def _fastest(group: Group) -> str:
  verdict = group.verdict('seconds')
  if verdict is None or verdict.conclusion not in ('wins', 'partly'):
    return ''
  if fairness.unsteady([run for cell in group.cells for run in cell.runs]):
    return ''
  assert verdict.best is not None
  text = f'; {formatting.name(verdict.best)} takes the least training time'
  if verdict.conclusion == 'wins':
    return text
  close = [o for o, d in verdict.differences.items() if not d.exceeds]
  others = _join([formatting.name(o) for o in close])
  return f'{text}, not to be told from {others}'


def _statement(verdict: Verdict, cells: dict[str, Cell]) -> Statement:
  subject = formatting.column_name(verdict.column)
  if verdict.best is None:
    text = f'Not compared: {formatting.named(verdict.reason)}.'
    return Statement(subject, _BADGES['incomparable'], False, text)
  best = formatting.name(verdict.best)
  won = verdict.conclusion == 'wins'
  if won:
    badge = _join([formatting.name(name) for name in verdict.leaders])
  elif verdict.conclusion == 'partly':
    close = [o for o, d in verdict.differences.items() if not d.exceeds]
    badge = ' or '.join([best, *(formatting.name(o) for o in close)])
  else:
    badge = _BADGES[verdict.conclusion]
  text = f'{_opening(verdict, cells[verdict.best])} {_reasons(verdict, cells)}'
  return Statement(subject, badge, won, text.strip())


def _opening(verdict: Verdict, best: Cell) -> str:
  column = verdict.column
  mean = best.value(column.key)
  assert mean is not None and verdict.best is not None
  name = formatting.name(verdict.best)
  value = formatting.number(column, mean)
  if column.kind == 'benchmark':
    score = best.scores[column.key]
    error = formatting.number(column, score.error)
    percent = '' if column.metric == 'perplexity' else ' %'
    value = f'{value} ± {error}{percent}'
  elif best.spreads[column.key].sd is not None and column.kind != 'count':
    sd = best.spreads[column.key].sd or 0.0
    value = f'{value} ± {formatting.deviation(column, sd, mean)}'
  if verdict.conclusion == 'alone':
    return f'{name} alone has it: {value}.'
  if verdict.conclusion == 'equal':
    return f'The same for all: {value}.'
  if column.kind == 'count':
    name = _join([formatting.name(leader) for leader in verdict.leaders])
  return f'{_BEST[bool(column.lower_is_better)].capitalize()}: {name}, {value}.'


def _reasons(verdict: Verdict, cells: dict[str, Cell]) -> str:
  if verdict.conclusion in ('alone', 'equal'):
    return ''
  if verdict.conclusion == 'chance':
    assert verdict.best is not None
    chance = cells[verdict.best].scores[verdict.column.key].chance or 0.0
    return (
      'No optimizer is more than two standard errors above chance '
      f'({100 * chance:.1f} %).'
    )
  spread = (
    'two standard errors'
    if verdict.column.kind == 'benchmark'
    else 'the seed spread'
  )
  beyond: list[str] = []
  within: list[str] = []
  unknown: list[str] = []
  for other, difference in verdict.differences.items():
    clause = _clause(verdict, other, difference, cells)
    if difference.exceeds is None:
      unknown.append(clause)
    else:
      (beyond if difference.exceeds else within).append(clause)
  if verdict.column.kind == 'count':
    return f'That is {_join(beyond)}.'
  parts = []
  if beyond:
    parts.append(f'Beyond {spread}: {_join(beyond)}.')
  if within:
    parts.append(f'Within {spread}: {_join(within)}.')
  if unknown:
    parts.append(f'By {_join(unknown)}; with one seed the spread is unknown.')
  return ' '.join(parts)


def _clause(
  verdict: Verdict,
  other: str,
  difference: statistics.Difference,
  cells: dict[str, Cell],
) -> str:
  """Returns such as '0.0213 to AdamW (needs 0.0090)'."""
  column = verdict.column
  beside = cells[other].value(column.key) or 0.0
  to = formatting.name(other)
  amount = abs(difference.value)
  if column.kind == 'count':
    return f'{100 * amount / beside:.1f} % fewer than {to}'
  shown = formatting.deviation(column, amount, beside)
  unit = ''
  if column.kind == 'benchmark' and column.metric != 'perplexity':
    unit = ' points'
  elif column.key == 'seconds':
    unit = f' {formatting.duration(beside).split()[1]}'
  elif column.key == 'tokens_per_second':
    unit = ' tokens/s'
  remarks = []
  if column.kind == 'speed' and beside:
    remarks.append(f'{100 * amount / beside:.1f} %')
  if difference.limit is not None:
    limit = formatting.deviation(column, difference.limit, beside)
    remarks.append(f'needs {limit}')
  remark = f' ({"; ".join(remarks)})' if remarks else ''
  return f'{shown}{unit} to {to}{remark}'


def unequal_budgets(comparison: Comparison) -> list[str]:
  """Says where the optimizers of an architecture were not tuned alike."""
  lines = []
  for architecture, of_all in tuning.budgets(comparison.curves).items():
    if len(set(of_all.values())) > 1:
      listed = _join(
        [
          f'{formatting.name(optimizer)} had {trials} trials of '
          f'{formatting.count(tokens)} tokens in all'
          for optimizer, (trials, tokens) in of_all.items()
        ]
      )
      lines.append(f'{formatting.name(architecture)}: {listed}')
  return lines


def _join(words: Sequence[str]) -> str:
  if len(words) < 2:
    return ''.join(words)
  return f'{", ".join(words[:-1])} and {words[-1]}'


def origin(
  comparison: Comparison, command: str, date: str
) -> list[tuple[str, str]]:
  """Returns where the numbers are from, as names and values."""

  def distinct(key: str) -> str:
    values = {r.env[key] for r in comparison.runs if key in r.env} - {None}
    return ', '.join(sorted(map(str, values))) or 'not recorded'

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
  seconds = sum(
    float(r.summary['seconds']) for r in comparison.runs if r.summary
  )
  return [
    ('Command', command),
    ('Date', date),
    ('Commit of the runs', distinct('git_commit')),
    ('Devices', ', '.join(sorted(devices)) or 'not recorded'),
    ('Time in training steps of all runs', formatting.duration(seconds)),
    ('Python', distinct('python')),
    ('Versions', listed or 'not recorded'),
  ]


RULES = (
  'Losses, times and speeds: mean ± standard deviation (n − 1) over seeds. '
  'Every optimizer runs the same seeds, and a seed fixes initial weights and '
  'data order, so differences are taken seed by seed.',
  'A difference counts when it is larger than t · s / √n with three seeds or '
  'more (s: standard deviation of the paired differences, t: the quantile of '
  'Student’s t with n − 1 degrees of freedom). With two seeds, t · s · √(2/n) '
  'with s the standard deviation within optimizers, pooled over all optimizers '
  'of the group, and t at the pooled degrees of freedom. With one seed nothing '
  'is claimed.',
  'All pairs of optimizers in a column are compared at once, so the level of '
  't is corrected for their number (Holm 1979): the chance of even one '
  'difference that is none stays below 5 % in a column. Columns and groups '
  'are not corrected for one another. Intervals of 95 % are those of a '
  'comparison alone.',
  'Accuracies: mean over seeds ± standard error √(mean of the seeds’ squared '
  'question errors + sd²/n). All seeds answer the same questions, so the '
  'question error (binomial, from results.json) is not divided by the number '
  'of seeds; sd²/n adds the variation between seeds.',
  'A difference of accuracies counts when it is larger than two standard '
  'errors, more after the correction: question by question where '
  'predictions.jsonl is at hand (√(s²/Q + sd²/n); s over the Q questions’ '
  'differences averaged over seeds, sd between the seeds’ differences), else '
  '√(error² + error²).',
  'Where the best accuracy is not more than two standard errors above chance, '
  'no difference is shown, whatever the numbers.',
  'FLOPs are counted, not measured: forward and backward passes and the '
  'curvature passes of the optimizer. Training time includes the curvature '
  'passes; compilation, evaluation and checkpoints are apart. Times and speeds '
  'are compared only where devices, processes, cores, mesh, micro-batches and '
  'rematerialisation are equal, and hold for that machine.',
)

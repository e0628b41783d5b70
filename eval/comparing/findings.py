"""Statements about optimizers, tested on a comparison.

Each function looks at one kind of statement and returns a finding for every
group, optimizer or pair that it speaks of. A finding is 'found' or
'contradicted' only where a difference exceeds what the seeds' spread, corrected
for the comparisons made at once, allows; everything else is 'not resolvable' at
the scale of the runs, or 'not tested' by them.
"""

from collections.abc import Sequence
import dataclasses
import itertools
from typing import Any

from steepest.eval.comparing import fairness, statistics, targets, verdicts
from steepest.eval.comparing.comparison import Comparison, Group

FOUND = 'found'
CONTRADICTED = 'contradicted'
UNRESOLVED = 'not resolvable'
UNTESTED = 'not tested'

# Those that the paper compares; what else a study has is not asked.
AMONG = ('adamw', 'lion', 'sophia')

NATS = 'nats'
POINTS = 'points'
TIMES = '×'
STEPS = 'factors of two'


@dataclasses.dataclass(frozen=True)
class Finding:
  """A statement about one group, pair or optimizer, tested.

  Attributes:
    where: what it is about, in words.
    conclusion: FOUND, CONTRADICTED, UNRESOLVED or UNTESTED.
    quantity: what `value` is.
    value: the effect; None where nothing was measured.
    low, high: its interval, of this comparison alone.
    p: two-sided, corrected for the comparisons made at once; None where the
      interval decides.
    n: seeds, or what else the interval is over; 0 where nothing was measured.
    unit: NATS, POINTS, TIMES, STEPS or '%'.
    remark: what else to know; ''.
  """

  where: str
  conclusion: str
  quantity: str = ''
  value: float | None = None
  low: float | None = None
  high: float | None = None
  p: float | None = None
  n: int = 0
  unit: str = NATS
  remark: str = ''


def overall(findings: Sequence[Finding]) -> str:
  """Returns one conclusion of several: 'mixed' where they speak against."""
  tested = {f.conclusion for f in findings} - {UNTESTED}
  if not tested:
    return UNTESTED
  if {FOUND, CONTRADICTED} <= tested:
    return 'mixed'
  for conclusion in (CONTRADICTED, FOUND):
    if conclusion in tested:
      return conclusion if len(tested) == 1 else f'{conclusion} in part'
  return UNRESOLVED


def where(group: Group) -> str:
  """Returns a group's model and axis values."""
  label = group.axes_label
  return f'{group.architecture}, {label}' if label else group.architecture


def best(
  comparison: Comparison,
  key: str,
  optimizer: str,
  architectures: Sequence[str] = (),
) -> list[Finding]:
  """Tests 'the optimizer is best' of AMONG, in each group.

  Found where it is better than every other one, contradicted where one is
  better than it.

  Args:
    comparison: whose groups are tested.
    key: 'eval_loss', 'train_loss' or 'seconds' (less is better), or 'accuracy'.
    optimizer: optimizer.name.
    architectures: that the statement is about; (): all.
  """
  groups = [
    group
    for group in comparison.groups
    if not architectures or group.architecture in architectures
  ]
  return [_best(group, key, optimizer) for group in groups]


def _best(group: Group, key: str, optimizer: str) -> Finding:
  higher = key == 'accuracy'
  pairs = group.pairs[key] if key in group.pairs else []
  differences = {
    name: d
    for name, d in verdicts.against(pairs, optimizer).items()
    if name in AMONG
  }
  if not differences:
    return Finding(
      where(group), UNTESTED, remark=f'no {optimizer} beside another optimizer'
    )
  if higher:
    differences = {k: d.reversed() for k, d in differences.items()}
  # Now less than zero speaks for the optimizer; the closest rival decides.
  rival = max(differences, key=lambda name: differences[name].value)
  d = differences[rival]
  conclusion = UNRESOLVED
  if all(one.exceeds and one.value < 0 for one in differences.values()):
    conclusion = FOUND
  elif any(one.exceeds and one.value > 0 for one in differences.values()):
    conclusion = CONTRADICTED
  remark = _obstacle(group, key)
  if remark:
    conclusion = UNRESOLVED
  return _of_difference(
    where(group),
    conclusion,
    f'{optimizer} − {rival}',
    d.reversed() if higher else d,
    len(group.selection.seeds),
    {'accuracy': POINTS, 'seconds': 's'}.get(key, NATS),
    remark or _smallest(d, key, conclusion),
  )


def _obstacle(group: Group, key: str) -> str:
  """Says what speaks against any conclusion; ''."""
  if key == 'seconds':
    verdict = group.verdict('seconds')
    unlike = verdict.reason if verdict is not None else ''
    return unlike or _busy(group)
  if group.refusal:
    return f'not ranked: {group.refusal}'
  scores = [cell.accuracy for cell in group.cells]
  if key == 'accuracy' and not any(s and s.above_chance for s in scores):
    return 'no optimizer is above chance by two standard errors'
  return ''


def _busy(group: Group) -> str:
  return fairness.unsteady([run for cell in group.cells for run in cell.runs])


def _smallest(d: statistics.Difference, key: str, conclusion: str) -> str:
  if conclusion != UNRESOLVED:
    return ''
  if d.limit is None:
    return 'one seed: the spread is unknown'
  shown = {
    'accuracy': f'{100 * d.limit:.2f} points',
    'seconds': f'{d.limit:.3g} s',
  }.get(key, f'{d.limit:.4f} nats')
  return f'{shown} would have counted'


def _of_difference(
  place: str,
  conclusion: str,
  quantity: str,
  d: statistics.Difference,
  n: int,
  unit: str,
  remark: str,
) -> Finding:
  scale = 100.0 if unit == POINTS else 1.0
  return Finding(
    place,
    conclusion,
    quantity,
    scale * d.value,
    None if d.low is None else scale * d.low,
    None if d.high is None else scale * d.high,
    d.p_holm,
    n,
    unit,
    remark,
  )


def axis_change(
  comparison: Comparison,
  axis: str,
  optimizer: str,
  architectures: Sequence[str],
) -> list[Finding]:
  """Tests 'another value of the axis moves the ranking to the optimizer'.

  Found where its loss falls more than every other one's from the study's own
  value to a higher one, contradicted where one's falls more than its.
  """
  found = []
  for key, of in itertools.groupby(
    [
      i
      for i in comparison.interactions
      if i.axis == axis
      and i.architecture in architectures
      and optimizer in (i.first, i.second)
      and {i.first, i.second} <= set(AMONG)
      and i.value > i.reference
    ],
    lambda i: (i.architecture, str(i.others), i.reference, i.value),
  ):
    changes = {
      (i.second if i.first == optimizer else i.first): (
        i.change if i.first == optimizer else i.change.reversed()
      )
      for i in of
    }
    rival = max(changes, key=lambda name: changes[name].value)
    d = changes[rival]
    conclusion = UNRESOLVED
    if all(c.exceeds and c.value < 0 for c in changes.values()):
      conclusion = FOUND
    elif any(c.exceeds and c.value > 0 for c in changes.values()):
      conclusion = CONTRADICTED
    refusals = [
      group.refusal
      for group in comparison.groups
      if group.architecture == key[0] and group.refusal
    ]
    if refusals:
      conclusion = UNRESOLVED
    found.append(
      _of_difference(
        f'{key[0]}, {axis} {key[2]} → {key[3]}',
        conclusion,
        f'change of ({optimizer} − {rival})',
        d,
        _seeds(comparison, key[0], axis, key[3], optimizer),
        NATS,
        f'not ranked: {refusals[0]}'
        if refusals
        else _smallest(d, 'eval_loss', conclusion),
      )
    )
  if not found:
    return [Finding(', '.join(architectures), UNTESTED, remark=_missing(axis))]
  return found


def axis_scores(
  comparison: Comparison, axis: str, optimizers: Sequence[str] = ()
) -> list[Finding]:
  """Tests 'a higher value of the axis raises the mean accuracy'."""
  found = []
  for effect in comparison.effects:
    d = effect.accuracy
    if (
      effect.axis != axis
      or d is None
      or not effect.value > effect.reference
      or (optimizers and effect.optimizer not in optimizers)
    ):
      continue
    conclusion = UNRESOLVED
    if d.exceeds:
      conclusion = FOUND if d.value > 0 else CONTRADICTED
    remark = _smallest(d, 'accuracy', conclusion)
    scores = [
      cell.accuracy
      for cell in comparison.cells
      if (cell.architecture, cell.optimizer)
      == (effect.architecture, effect.optimizer)
    ]
    if not any(score and score.above_chance for score in scores):
      conclusion, remark = UNRESOLVED, 'nowhere above chance by two errors'
    found.append(
      _of_difference(
        f'{effect.architecture}, {effect.optimizer}',
        conclusion,
        f'mean accuracy, {axis} {effect.reference} → {effect.value}',
        d,
        len(effect.seeds),
        POINTS,
        remark,
      )
    )
  return found or [Finding('every model', UNTESTED, remark=_missing(axis))]


def _missing(axis: str) -> str:
  return f'no two finished groups differ in {axis} alone'


def _seeds(
  comparison: Comparison, architecture: str, axis: str, value: Any, name: str
) -> int:
  held = [
    len(e.seeds)
    for e in comparison.effects
    if (e.architecture, e.axis, e.value, e.optimizer)
    == (architecture, axis, value, name)
  ]
  return held[0] if held else 0


def hours_to_target(comparison: Comparison, optimizer: str) -> list[Finding]:
  """Tests 'the optimizer is the first at AdamW's final loss', in hours."""
  found = []
  for group in comparison.groups:
    one = next((t for t in group.targets if t.optimizer == optimizer), None)
    place = where(group)
    if one is None:
      remark = f'no {optimizer} beside the baseline'
      found.append(Finding(place, UNTESTED, remark=remark))
    elif one.reason:
      pair = verdicts.against(group.pairs['eval_loss'], optimizer)
      d = pair[one.baseline]
      behind = bool(d.exceeds and d.value > 0 and not group.refusal)
      found.append(
        _of_difference(
          place,
          CONTRADICTED if behind else UNRESOLVED,
          f'final loss, {optimizer} − {one.baseline}',
          d,
          len(one.reaches),
          NATS,
          one.reason,
        )
      )
    elif 'seconds' not in one.speedups:
      found.append(
        Finding(place, UNTESTED, remark='the runs had unlike machines')
      )
    else:
      found.append(_first(group, one))
  return found


def _first(group: Group, one: targets.ToTarget) -> Finding:
  ratio = one.speedups['seconds']
  conclusion = UNRESOLVED
  if ratio.low is not None and ratio.high is not None:
    if ratio.high < 1:
      conclusion = CONTRADICTED
    elif ratio.low > 1:
      conclusion = FOUND
  remark = 'lower bound: losses on the way are before the decay'
  ahead = [
    other.optimizer
    for other in group.targets
    if other is not one
    and other.optimizer in AMONG
    and 'seconds' in other.speedups
    and other.speedups['seconds'].value > ratio.value
  ]
  if conclusion == FOUND and ahead:
    conclusion = UNRESOLVED
    remark = f'{", ".join(ahead)} got there in fewer hours'
  busy = _busy(group)
  if group.refusal or busy:
    conclusion = UNRESOLVED
    remark = f'not ranked: {group.refusal}' if group.refusal else busy
  return Finding(
    where(group),
    conclusion,
    f'{one.baseline}’s seconds over {one.optimizer}’s',
    ratio.value,
    ratio.low,
    ratio.high,
    ratio.p,
    ratio.n,
    TIMES,
    remark if one.decayed or conclusion == UNRESOLVED else '',
  )

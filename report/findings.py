"""Statements about optimizers and their learning rates, tested on runs.

Each test looks at one kind of statement and returns a finding for every group,
model or optimizer that it speaks of.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import math
from typing import Any

import numpy as np
import pandas as pd

from steepest.report import speed, statistics, tables, verdicts, words

SEEN = 'seen at this scale'
OPPOSITE = 'opposite seen at this scale'
UNRESOLVED = 'not resolved'
UNTESTED = 'not tested'

# Those that the paper compares; a study's other optimizers are not asked.
AMONG = ('adamw', 'lion', 'sophia')
# Final losses in about the same range: within this share of the lowest.
SAME_RANGE = 0.02


@dataclasses.dataclass(frozen=True)
class Finding:
  """A claim about one group, pair or optimizer, tested.

  Attributes:
    where: what it is about, in words.
    conclusion: SEEN, OPPOSITE, UNRESOLVED or UNTESTED.
    effect: what was measured, with its value and unit, in words; ''.
    interval: 95 % of this comparison alone, in words; ''.
    p: two-sided, corrected for the comparisons made at once; NaN where an
      interval decides.
    n: seeds; 0 where nothing was measured.
    remark: why it is not resolved, or what else to know; ''.
    size: of the models, and their tokens per parameter; ''.
    tuned: what was; ''.
  """

  where: str
  conclusion: str
  effect: str = ''
  interval: str = ''
  p: float = math.nan
  n: int = 0
  remark: str = ''
  size: str = ''
  tuned: str = ''


# What groups are.


def described(comparison: tables.Comparison, group: str) -> str:
  """Returns a line about a group: its scale, seeds and optimizers."""
  runs = comparison.compared[comparison.compared['group'] == group]
  seeds = words.plural(runs['seed'].nunique(), 'seed')
  names = words.join(words.name(o) for o in dict.fromkeys(runs['optimizer']))
  scale = ', '.join(_scale(comparison, group).values())
  return f'{words.named(group)}: {scale}; {seeds}; {names}.'


def _scale(comparison: tables.Comparison, group: str) -> dict[str, Any]:
  """Returns `size` and `tuned` of a group's findings."""
  runs = comparison.compared[comparison.compared['group'] == group]
  tuning = comparison.tuning
  rows = tuning[(tuning['group'] == group) & tuning['optimizer'].isin(AMONG)]
  names = dict.fromkeys(
    name
    for searched in rows['searched'].dropna()
    for name in json.loads(searched)
  )
  size = size_of(runs[runs['optimizer'].isin(AMONG)])
  return {'size': size, 'tuned': f'{spelled(list(names))} tuned'}


def size_of(runs: pd.DataFrame) -> str:
  """Returns parameters and tokens per parameter, or widths, in words."""
  if 'parameters' not in runs or not runs['parameters'].notna().any():
    column = 'config.model.width'
    known = runs[column].dropna() if column in runs else ()
    widths = [f'{width:.0f}' for width in sorted(set(known))]
    return f'width {_range(widths)}' if widths else 'size not recorded'
  sizes = [words.count(n) for n in sorted(runs['parameters'].dropna().unique())]
  ratios = sorted(set((runs['planned_tokens'] / runs['parameters']).dropna()))
  tokens = _range([f'{ratio:.2g}' for ratio in ratios])
  return f'{_range(sizes)} parameters, {tokens} tokens per parameter'


def _range(texts: Sequence[str]) -> str:
  return texts[0] if texts[0] == texts[-1] else f'{texts[0]} to {texts[-1]}'


def spelled(names: Sequence[str]) -> str:
  """Returns the names of hyperparameters: 'learning rate alone'."""
  text = words.join(words.name(name) for name in names)
  return f'{text} alone' if len(names) == 1 else text or 'nothing'


def _groups(
  comparison: tables.Comparison, architectures: Sequence[str] = ()
) -> list[str]:
  runs = comparison.compared
  return [
    group
    for group in comparison.groups
    if not architectures
    or set(runs[runs['group'] == group]['architecture']) <= set(architectures)
  ]


def _refusal(comparison: tables.Comparison, group: str) -> str:
  """Says why losses and scores of a group are not ranked; ''."""
  of = comparison.fairness
  of = of[(of['group'] == group) & of['refuses'].astype(bool)]
  if comparison.insisted or not len(of):
    return ''
  return f'not ranked: {words.join(dict.fromkeys(of["subject"]))}'


# Claims that an optimizer is the best.


def best(
  comparison: tables.Comparison,
  column: str,
  optimizer: str,
  architectures: Sequence[str] = (),
) -> list[Finding]:
  """Tests 'the optimizer is the best of AMONG', in each group.

  Seen where it beats every other one, the opposite where one beats it.

  Args:
    comparison: whose groups are tested.
    column: a loss, or 'accuracy'.
    optimizer: optimizer.name.
    architectures: that the claim is about; (): all.
  """
  return [
    _best_in(comparison, group, column, optimizer)
    for group in _groups(comparison, architectures)
  ] or [untested('every model', 'no final run has finished')]


def _best_in(
  comparison: tables.Comparison, group: str, column: str, optimizer: str
) -> Finding:
  sign = -1 if column == 'accuracy' else 1
  rows = _duels(comparison, group, column, optimizer)
  place = words.named(group)
  if not len(rows):
    return untested(place, comparison.reason(group, column))
  worse = sign * rows['difference']
  counts = rows['p_holm'] < statistics.LEVEL
  rival = rows.loc[worse.idxmax()]
  conclusion = UNRESOLVED
  remark = _refusal(comparison, group)
  if not remark:
    sound = _sound(comparison, group, column)
    if optimizer in sound and bool((counts & (worse < 0)).all()):
      conclusion = SEEN
    elif bool((counts & (worse > 0) & rows['second'].isin(sound)).any()):
      conclusion = OPPOSITE
    else:
      remark = comparison.reason(group, column)
  return _measured(comparison, group, column, rival, conclusion, remark)


def _sound(comparison: tables.Comparison, group: str, column: str) -> set[str]:
  """Returns the optimizers that may be called the best of a column.

  None of their seeds diverged, and their scores stand above guessing.
  """
  cells = comparison.cells
  of = cells[(cells['group'] == group) & (cells['column'] == column)]
  of = of[of['diverged'] == 0]
  if column == verdicts.ACCURACY:
    of = of[of['above_chance'].fillna(False).astype(bool)]
  return set(of['optimizer'])


def _duels(
  comparison: tables.Comparison, group: str, column: str, optimizer: str
) -> pd.DataFrame:
  """Returns the pairs of an optimizer among AMONG, as it minus another."""
  rows = comparison.pairs
  rows = rows[(rows['group'] == group) & (rows['column'] == column)]
  rows = rows[rows['first'].isin(AMONG) & rows['second'].isin(AMONG)]
  as_first = rows[rows['first'] == optimizer]
  turned = rows[rows['second'] == optimizer].rename(
    columns={'first': 'second', 'second': 'first'}
  )
  turned = turned.assign(
    difference=-turned['difference'], low=-turned['high'], high=-turned['low']
  )
  return pd.concat([as_first, turned], ignore_index=True)


def _measured(
  comparison: tables.Comparison,
  group: str,
  column: str,
  row: Mapping[str, Any],
  conclusion: str,
  remark: str,
) -> Finding:
  unit = words.unit(column, [row['difference']])
  return Finding(
    words.named(group),
    conclusion,
    f'{words.name(row["first"])} − {words.name(row["second"])}: '
    f'{unit.difference(row["difference"])}',
    unit.interval(row['low'], row['high']),
    float(row['p_holm']),
    int(row['n']),
    words.named(remark),
    **_scale(comparison, group),
  )


def untested(where: str, remark: str) -> Finding:
  return Finding(where, UNTESTED, remark=words.named(remark))


def fewest_hours(
  comparison: tables.Comparison, optimizer: str
) -> list[Finding]:
  """Tests 'the optimizer's steps take the least time', in each group."""
  found = []
  for group in _groups(comparison):
    runs = comparison.compared
    present = set(runs[runs['group'] == group]['optimizer'])
    names = [name for name in AMONG if name in present]
    timed = speed.timing(comparison.tables, group, names)
    if optimizer not in timed.seconds or len(timed.seconds) < 2:
      why = timed.reason or f'no {optimizer} beside another optimizer'
      found.append(untested(words.named(group), why))
      continue
    own = timed.seconds.pop(optimizer)
    rival = min(timed.seconds, key=lambda name: timed.seconds[name])
    ratio = own / timed.seconds[rival]
    decided, why = UNRESOLVED, timed.reason
    if not why and 1 / ratio - 1 > speed.AGREEMENT:
      decided = SEEN
    elif not why and ratio - 1 > speed.AGREEMENT:
      decided = OPPOSITE
    elif not why:
      why = f'repeats may differ by {speed.AGREEMENT:.0%}, too'
    found.append(
      Finding(
        words.named(group),
        decided,
        f'{words.name(optimizer)}’s seconds of a step over '
        f'{words.name(rival)}’s: {ratio:.3f}',
        n=timed.repeats,
        remark=words.named(why),
        **_scale(comparison, group),
      )
    )
  return found or [untested('every model', 'no final run has finished')]


# Claims of equivalence.


def within(low: float, high: float, band: tuple[float, float]) -> str:
  """Returns what an interval says of 'the value lies in the band'."""
  if band[0] <= low and high <= band[1]:
    return SEEN
  return OPPOSITE if high < band[0] or low > band[1] else UNRESOLVED


def same_range(comparison: tables.Comparison) -> list[Finding]:
  """Tests 'all three end in about the same range', in each group."""
  found = []
  for group in _groups(comparison):
    rows = comparison.pairs
    rows = rows[(rows['group'] == group) & (rows['column'] == 'eval_loss')]
    rows = rows[rows['first'].isin(AMONG) & rows['second'].isin(AMONG)]
    if len(rows) < len(AMONG):
      remark = f'not all of {words.join(map(words.name, AMONG))} have finished'
      found.append(untested(words.named(group), remark))
      continue
    cells = comparison.cells
    cells = cells[(cells['group'] == group) & (cells['column'] == 'eval_loss')]
    lowest = cells[cells['optimizer'].isin(AMONG)]['mean'].min()
    band = (-SAME_RANGE * lowest, SAME_RANGE * lowest)
    widest = rows.loc[rows['difference'].abs().idxmax()]
    said = {
      within(low, high, band)
      for low, high in zip(rows['low'], rows['high'], strict=True)
    }
    remark = _refusal(comparison, group)
    if not {*AMONG} <= _sound(comparison, group, 'eval_loss'):
      remark = remark or 'seeds diverged'
    conclusion = UNRESOLVED
    if not remark and OPPOSITE in said:
      conclusion = OPPOSITE
    elif not remark and said == {SEEN}:
      conclusion = SEEN
    remark = remark or f'band ±{band[1]:.4f} nats'
    row = dict(widest) | {'p_holm': math.nan}
    found.append(
      _measured(comparison, group, 'eval_loss', row, conclusion, remark)
    )
  return found or [untested('every model', 'no final run has finished')]


# Claims about time.


def first_at_target(comparison: tables.Comparison) -> list[Finding]:
  """Tests 'Lion is the first at AdamW’s final loss', in hours.

  Losses on the way are those before the learning rate has fallen, so that a
  time is rather too long.
  """
  return [
    _first_in(comparison, group, 'lion', 'adamw')
    for group in _groups(comparison)
  ] or [untested('every model', 'no final run has finished')]


def _first_in(
  comparison: tables.Comparison, group: str, optimizer: str, baseline: str
) -> Finding:
  rows = _duels(comparison, group, 'eval_loss', optimizer)
  rows = rows[rows['second'] == baseline]
  if not len(rows):
    both = words.join(map(words.name, (optimizer, baseline)))
    return untested(words.named(group), f'not both of {both} have finished')
  steps = {
    name: _steps_to(comparison, group, name, baseline)
    for name in AMONG
    if name != baseline
  }
  late = int(steps[optimizer].isna().sum())
  refusal = _refusal(comparison, group)
  if late:
    row = rows.iloc[0]
    behind = row['p_holm'] < statistics.LEVEL and row['difference'] > 0
    seeds = words.plural(len(steps[optimizer]), 'seed')
    return _measured(
      comparison,
      group,
      'eval_loss',
      row,
      OPPOSITE if behind and not refusal else UNRESOLVED,
      refusal or f'in {late} of {seeds} it does not reach that loss',
    )
  timed = speed.timing(comparison.tables, group, [optimizer, baseline])
  seconds, reason = timed.seconds, timed.reason
  if optimizer not in seconds or baseline not in seconds:
    return untested(words.named(group), reason)
  whole = _planned_steps(comparison, group, baseline) * seconds[baseline]
  ratios = {
    name: statistics.ratio(whole / (of * seconds[name]))
    for name, of in steps.items()
    if name in seconds and len(of) and not of.isna().any()
  }
  value, low, high = ratios[optimizer]
  conclusion, remark = UNRESOLVED, refusal or reason
  if not remark and high < 1:
    conclusion = OPPOSITE
  elif not remark and low > 1:
    ahead = [name for name, of in ratios.items() if of[0] > value]
    conclusion = UNRESOLVED if ahead else SEEN
    remark = f'{words.join(ahead)} is there sooner' if ahead else ''
  names = words.name(baseline), words.name(optimizer)
  return Finding(
    words.named(group),
    conclusion,
    f'{names[0]}’s hours over {names[1]}’s: {value:.2f}',
    words.interval(low, high, '.2f'),
    n=len(steps[optimizer]),
    remark=words.named(remark),
    **_scale(comparison, group),
  )


def _planned_steps(
  comparison: tables.Comparison, group: str, optimizer: str
) -> int:
  runs = comparison.compared
  of = runs[(runs['group'] == group) & (runs['optimizer'] == optimizer)]
  return int(of['planned_steps'].iloc[0])


def _steps_to(
  comparison: tables.Comparison, group: str, optimizer: str, baseline: str
) -> pd.Series:
  """Returns by seed the steps to the baseline's final loss, NaN: not there."""
  runs = comparison.compared
  runs = runs[(runs['group'] == group)]
  targets = runs[runs['optimizer'] == baseline].set_index('seed')['eval_loss']
  points = comparison.tables.points
  found = {}
  for run in runs[runs['optimizer'] == optimizer].to_dict('records'):
    if run['seed'] in targets.index and 'eval/loss' in points:
      of = points[points['run'] == run['run']]
      reached = of[of['eval/loss'] <= targets[run['seed']]]
      steps = float(reached['step'].iloc[0]) + 1 if len(reached) else math.nan
      found[run['seed']] = steps
  return pd.Series(found, dtype=float)


# Claims about an axis: paired over seeds, since a seed fixes weights and data.


def _by_seed(
  comparison: tables.Comparison, axis: str, architecture: str
) -> dict[tuple[Any, str], pd.DataFrame]:
  """Returns (value on the axis, optimizer) → finished runs, by seed.

  Of runs that differ in nothing else than the axis and the optimizer.
  """
  axes = {a.name: a for a in comparison.tables.axes}
  if axis not in axes:
    return {}
  runs = comparison.compared
  runs = runs[(runs['architecture'] == architecture)]
  runs = runs[(runs['status'] == 'finished') & runs['optimizer'].isin(AMONG)]
  for other in axes.values():
    if other.name != axis:
      runs = runs[runs[f'axis.{other.name}'] == other.own]
  return {
    key: of.set_index('seed')
    for key, of in runs.groupby([f'axis.{axis}', 'optimizer'])
  }


def multi_epoch_lead(comparison: tables.Comparison) -> list[Finding]:
  """Tests 'more epochs move the ranking of GPT-2 towards Sophia'."""
  by = _by_seed(comparison, 'epochs', 'gpt2')
  few, many = _ends(by)
  loss = {key: of['eval_loss'].astype(float) for key, of in by.items()}
  rows = {}
  for rival in AMONG[:-1]:
    keys = [(v, o) for v in (many, few) for o in ('sophia', rival)]
    if few != many and all(key in loss for key in keys):
      a, b, c, d = (loss[key] for key in keys)
      values_S = ((a - b) - (c - d)).dropna().to_numpy()
      rows[rival] = statistics.paired(values_S, np.zeros_like(values_S))
  if not rows:
    missing = 'Sophia and a rival have not run one and several epochs'
    return [untested('GPT-2', missing)]
  ps = statistics.holm([float(d.p) for d in rows.values()])
  enough = min(d.n for d in rows.values()) >= statistics.FEWEST_SEEDS
  counts = (ps < statistics.LEVEL) & enough
  effects = np.array([float(d.value) for d in rows.values()])
  groups = _groups(comparison, ('gpt2',))
  remark = next(filter(None, (_refusal(comparison, g) for g in groups)), '')
  conclusion = UNRESOLVED
  if not remark and bool((counts & (effects < 0)).all()):
    conclusion = SEEN
  elif not remark and bool((counts & (effects > 0)).any()):
    conclusion = OPPOSITE
  least = int(effects.argmax())
  rival = list(rows)[least]
  return [
    _of_difference(
      f'GPT-2, {few} to {many} epochs',
      conclusion,
      f'change of (Sophia − {words.name(rival)})',
      words.unit('eval_loss'),
      rows[rival],
      float(ps[least]),
      remark,
      _scale(comparison, groups[0]),
    )
  ]


def _ends(by: Mapping[tuple[Any, str], pd.DataFrame]) -> tuple[Any, Any]:
  values = sorted({value for value, _ in by}) or [None]
  return values[0], values[-1]


def epochs_and_scores(comparison: tables.Comparison) -> list[Finding]:
  """Tests 'more epochs raise the mean accuracy', for each model."""
  found = []
  for architecture in dict.fromkeys(comparison.compared['architecture']):
    by = _by_seed(comparison, 'epochs', architecture)
    few, many = _ends(by)
    for optimizer in AMONG:
      ends = [(v, optimizer) for v in (few, many) if (v, optimizer) in by]
      if len(set(ends)) == 2:
        found.append(_scores_of(comparison, [by[key] for key in ends]))
  missing = 'no two finished groups with scores differ in epochs alone'
  return [f for f in found if f] or [untested('every model', missing)]


def _scores_of(
  comparison: tables.Comparison, ends: Sequence[pd.DataFrame]
) -> Finding | None:
  """Tests that the second runs score better; None where scores are missing."""
  runs = pd.concat(
    [of.reset_index().assign(optimizer=str(i)) for i, of in enumerate(ends)]
  )
  scores = comparison.tables.scores
  scores = scores[scores['run'].isin(runs['run'])]
  column = verdicts.mean_column(comparison.tables, runs, scores)
  if column is None or len(column.values) < 2:
    return None
  d = verdicts.difference(column, '1', '0')
  if d is None:
    return None
  first, last = (of.iloc[0] for of in ends)
  remark, conclusion = '', UNRESOLVED
  if not any(verdicts.above_chance(column, name) for name in column.values):
    remark = 'no mean accuracy is above guessing'
  elif d.n >= statistics.FEWEST_SEEDS and d.p < statistics.LEVEL:
    conclusion = SEEN if d.value > 0 else OPPOSITE
  architecture, optimizer = map(
    words.name, (last['architecture'], ends[1]['optimizer'].iloc[0])
  )
  epochs = f'{first["axis.epochs"]} to {last["axis.epochs"]} epochs'
  return _of_difference(
    f'{architecture} {optimizer}',
    conclusion,
    f'mean accuracy, {epochs}',
    words.unit('accuracy'),
    d,
    float(d.p),
    remark,
    _scale(comparison, last['group']),
  )


def _of_difference(
  where: str,
  conclusion: str,
  quantity: str,
  unit: words.Unit,
  d: statistics.Differences,
  p: float,
  remark: str,
  scale: Mapping[str, Any],
) -> Finding:
  enough = d.n >= statistics.FEWEST_SEEDS
  if not enough:
    remark = remark or f'{words.plural(d.n, "seed")} show nothing'
  low, high = map(float, d.interval())
  return Finding(
    where,
    conclusion,
    f'{quantity}: {unit.difference(float(d.value))}',
    unit.interval(low, high) if enough else '',
    p if enough else math.nan,
    d.n,
    words.named(remark),
    **scale,
  )

"""Statements about optimizers and their learning rates, tested on runs.

Each test covers one kind of statement and returns a finding for every group,
model or optimizer that it concerns.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import math
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from steepest.report import (
  axes,
  differences,
  speed,
  statistics,
  tables,
  verdicts,
  widths,
  words,
)

SEEN = 'seen at this scale'
OPPOSITE = 'opposite seen at this scale'
UNRESOLVED = 'not resolved'
UNTESTED = 'not tested'

# The optimizers that the paper compares; a study's others are not tested.
AMONG = ('adamw', 'lion', 'sophia')
# Final losses are in the same range within this share of the lowest.
SAME_RANGE = 0.02
# 'About twice': within a factor of √2 of 2.
ABOUT_TWICE = (2**0.5, 2**1.5)
# A learning rate transfers if the best one moves by less than a factor of two
# (log2).
SAME_RATE = (-1.0, 1.0)


@dataclasses.dataclass(frozen=True)
class Finding:
  """A claim about one group, pair or optimizer, tested.

  Attributes:
    where: its subject, in words.
    conclusion: SEEN, OPPOSITE, UNRESOLVED or UNTESTED.
    effect: what was measured, with its value and unit, in words; ''.
    interval: 95 %, uncorrected, in words; ''.
    p: two-sided, corrected for all simultaneous comparisons; NaN where an
      interval decides.
    n: seeds; 0 where nothing was measured.
    remark: why it is not resolved, or a caveat; ''.
    size: of the models, and their tokens per parameter; ''.
    tuned: which hyperparameters were tuned; ''.
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


def _untested(where: str, remark: str) -> Finding:
  return Finding(where, UNTESTED, remark=words.named(remark))


def within(low: float, high: float, band: tuple[float, float]) -> str:
  """Returns the conclusion of an interval on 'the value lies in the band'."""
  if band[0] <= low and high <= band[1]:
    return SEEN
  return OPPOSITE if high < band[0] or low > band[1] else UNRESOLVED


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
  runs, tuning = (
    of[(of['group'] == group) & of['optimizer'].isin(AMONG)]
    for of in (comparison.compared, comparison.tuning)
  )
  searched = tuning['searched'].dropna()
  names = dict.fromkeys(n for of in searched for n in json.loads(of))
  return {'size': _size(runs), 'tuned': _tuned(list(names))}


def _size(runs: pd.DataFrame) -> str:
  """Returns parameters and tokens per parameter, or widths, in words."""
  if 'parameters' not in runs or not runs['parameters'].notna().any():
    column = 'config.model.width'
    known = runs[column].dropna() if column in runs else ()
    sizes = [f'{width:.0f}' for width in sorted(set(known))]
    return f'width {_range(sizes)}' if sizes else 'size not recorded'
  sizes = [words.count(n) for n in sorted(runs['parameters'].dropna().unique())]
  ratios = sorted(set((runs['planned_tokens'] / runs['parameters']).dropna()))
  tokens = _range([f'{ratio:.2g}' for ratio in ratios])
  return f'{_range(sizes)} parameters, {tokens} tokens per parameter'


def _range(texts: Sequence[str]) -> str:
  return texts[0] if texts[0] == texts[-1] else f'{texts[0]} to {texts[-1]}'


def _tuned(names: Sequence[str]) -> str:
  """Says which hyperparameters were tuned: 'learning rate alone tuned'."""
  text = words.join(words.name(name) for name in names)
  return (
    f'{text} alone tuned' if len(names) == 1 else f'{text or "nothing"} tuned'
  )


def _in_each_group(
  comparison: tables.Comparison, test: Any, architecture: str = ''
) -> list[Finding]:
  """Returns `test(group)` for each group of one model, or of all."""
  runs = comparison.compared
  models = dict(zip(runs['group'], runs['architecture'], strict=True))
  return [
    test(group)
    for group in comparison.groups
    if architecture in ('', models[group])
  ] or [_untested('every model', 'no final run has finished')]


def _refusal(comparison: tables.Comparison, group: str) -> str:
  """Says why losses and scores of a group are not ranked; ''."""
  if not comparison.refused(group):
    return ''
  of = comparison.fairness
  of = of[(of['group'] == group) & of['refuses']]
  return f'not ranked: {words.join(dict.fromkeys(of["subject"]))}'


def _duels(
  comparison: tables.Comparison, group: str, column: str
) -> pd.DataFrame:
  """Returns the pairs of optimizers in AMONG, each in both orders."""
  rows = comparison.pairs
  rows = rows[(rows['group'] == group) & (rows['column'] == column)]
  rows = rows[rows['first'].isin(AMONG) & rows['second'].isin(AMONG)]
  return differences.both_ways(rows)


def _sound(comparison: tables.Comparison, group: str, column: str) -> set[str]:
  """Returns the optimizers that may be called the best in a column.

  None of their seeds diverged, and their scores are above chance.
  """
  cells = comparison.cells
  of = cells[(cells['group'] == group) & (cells['column'] == column)]
  of = of[of['diverged'] == 0]
  if column == verdicts.ACCURACY:
    of = of[of['above_chance'].fillna(False).astype(bool)]
  return set(of['optimizer'])


def _measured(
  comparison: tables.Comparison,
  row: Mapping[str, Any],
  conclusion: str,
  remark: str,
) -> Finding:
  """Returns the finding for a row of `pairs`."""
  unit = words.unit(row['column'], [row['difference']])
  return Finding(
    words.named(row['group']),
    conclusion,
    f'{words.name(row["first"])} − {words.name(row["second"])}: '
    f'{unit.difference(row["difference"])}',
    unit.interval(row['low'], row['high']),
    float(row['p_holm']),
    int(row['n']),
    words.named(remark),
    **_scale(comparison, row['group']),
  )


# Claims about losses and scores at the end.


def best(
  comparison: tables.Comparison,
  column: str,
  optimizer: str,
  architecture: str = '',
) -> list[Finding]:
  """Tests 'the optimizer is the best of AMONG', in each group.

  Seen if it beats every other one, the opposite if any beats it.

  Args:
    comparison: whose groups are tested.
    column: a loss, or 'accuracy'.
    optimizer: optimizer.name.
    architecture: the model claimed about; '': all.
  """
  sign = -1 if column == verdicts.ACCURACY else 1

  def test(group: str) -> Finding:
    rows = _duels(comparison, group, column)
    rows = rows[rows['first'] == optimizer]
    if not len(rows):
      return _untested(words.named(group), comparison.reason(group, column))
    worse = sign * rows['difference']
    counts = rows['p_holm'] < statistics.LEVEL
    sound = _sound(comparison, group, column)
    conclusion, remark = UNRESOLVED, _refusal(comparison, group)
    if not remark and optimizer in sound and (counts & (worse < 0)).all():
      conclusion = SEEN
    elif (
      not remark and (counts & (worse > 0) & rows['second'].isin(sound)).any()
    ):
      conclusion = OPPOSITE
    else:
      remark = remark or comparison.reason(group, column)
    rival = rows.loc[worse.idxmax()].to_dict()
    return _measured(comparison, rival, conclusion, remark)

  return _in_each_group(comparison, test, architecture)


def same_range(comparison: tables.Comparison) -> list[Finding]:
  """Tests 'all three end in about the same range', in each group."""

  def test(group: str) -> Finding:
    rows = _duels(comparison, group, 'eval_loss')
    rows = rows[rows['first'] < rows['second']]
    if len(rows) < len(AMONG):
      remark = f'not all of {words.join(map(words.name, AMONG))} have finished'
      return _untested(words.named(group), remark)
    cells = comparison.cells
    cells = cells[(cells['group'] == group) & (cells['column'] == 'eval_loss')]
    reach = SAME_RANGE * cells[cells['optimizer'].isin(AMONG)]['mean'].min()
    said = {
      within(low, high, (-reach, reach))
      for low, high in zip(rows['low'], rows['high'], strict=True)
    }
    remark = _refusal(comparison, group)
    if not {*AMONG} <= _sound(comparison, group, 'eval_loss'):
      remark = remark or 'seeds diverged'
    conclusion = UNRESOLVED
    if not remark and (OPPOSITE in said or said == {SEEN}):
      conclusion = OPPOSITE if OPPOSITE in said else SEEN
    widest = rows.loc[rows['difference'].abs().idxmax()].to_dict()
    remark = remark or f'band ±{reach:.4f} nats'
    row = widest | {'p_holm': math.nan}
    return _measured(comparison, row, conclusion, remark)

  return _in_each_group(comparison, test)


def multi_epoch_lead(comparison: tables.Comparison) -> list[Finding]:
  """Tests 'more epochs move the ranking of GPT-2 towards Sophia'."""
  rows = axes.interactions(comparison)
  runs = comparison.compared
  gpt2 = set(runs[runs['architecture'] == 'gpt2']['group'])
  rows = rows[(rows['axis'] == 'epochs') & rows['group'].isin(gpt2)]
  # How much more the change adds to Sophia's loss than to the rival's.
  rows = differences.both_ways(rows)
  rows = rows[(rows['first'] == 'sophia') & rows['second'].isin(AMONG)]
  found = []
  for change, of in rows.groupby('change', sort=False):
    sides = of['group'].iloc[0], of['other'].iloc[0]
    counts = of['p_holm'] < statistics.LEVEL
    remark = next(filter(None, (_refusal(comparison, g) for g in sides)), '')
    conclusion = UNRESOLVED
    if not remark and (counts & (of['difference'] < 0)).all():
      conclusion = SEEN
    elif not remark and (counts & (of['difference'] > 0)).any():
      conclusion = OPPOSITE
    least = of.loc[of['difference'].idxmax()].to_dict()
    least |= {'column': 'eval_loss', 'group': sides[0]}
    finding = _measured(comparison, least, conclusion, remark)
    effect = f'change of {finding.effect}'
    found.append(dataclasses.replace(finding, where=change, effect=effect))
  missing = 'Sophia and a rival have not run one and several epochs'
  return found or [_untested('GPT-2', missing)]


# Claims about time.


def fewest_hours(comparison: tables.Comparison) -> list[Finding]:
  """Tests 'Lion's steps take the least time', in each group."""

  def test(group: str) -> Finding:
    runs = comparison.compared
    names = set(runs[runs['group'] == group]['optimizer']) & set(AMONG)
    timed = speed.timing(comparison.tables, group, sorted(names))
    if 'lion' not in timed.seconds or len(timed.seconds) < 2:
      why = timed.reason or 'no runs of Lion and another optimizer'
      return _untested(words.named(group), why)
    others = {k: s for k, s in timed.seconds.items() if k != 'lion'}
    rival = min(others, key=lambda name: others[name])
    ratio = timed.seconds['lion'] / others[rival]
    conclusion, why = UNRESOLVED, timed.reason
    if not why:
      size = max(ratio, 1 / ratio) - 1
      if size > speed.AGREEMENT:
        conclusion = SEEN if ratio < 1 else OPPOSITE
      else:
        why = f'repeats may also differ by {speed.AGREEMENT:.0%}'
    return Finding(
      words.named(group),
      conclusion,
      f'Lion’s seconds per step over {words.name(rival)}’s: {ratio:.3f}',
      n=timed.repeats,
      remark=words.named(why),
      **_scale(comparison, group),
    )

  return _in_each_group(comparison, test)


# Claims about learning rates.


def twice_the_rate(comparison: tables.Comparison) -> list[Finding]:
  """Tests 'LLaMA’s best rate is about twice GPT-2’s', for each optimizer.

  Compares the vertices of parabolas through the trials. Trials have one seed,
  so their losses are assumed to vary as the final runs' do over seeds, which
  tends to overstate the error.
  """
  found = []
  runs = comparison.tables.runs
  for optimizer in AMONG:
    place = f'LLaMA over GPT-2, {words.name(optimizer)}'
    of = runs[runs['optimizer'] == optimizer]
    names = _varied(of)
    both = [_vertex(of[of['architecture'] == a]) for a in ('llama', 'gpt2')]
    if len(names) > 1:
      why = f'the search varied {words.join(map(words.name, names))} at once'
      found.append(_untested(place, why))
      continue
    if None in both:
      why = 'no parabola fits around the best learning rate of a search'
      found.append(_untested(place, why))
      continue
    (a, error_a), (b, error_b) = (v for v in both if v is not None)
    reach = stats.norm.isf(statistics.LEVEL / 2) * math.hypot(error_a, error_b)
    low, high = 2 ** (a - b - reach), 2 ** (a - b + reach)
    known = not math.isnan(reach)
    found.append(
      Finding(
        place,
        within(low, high, ABOUT_TWICE) if known else UNRESOLVED,
        f'ratio of the best learning rates: {2 ** (a - b):.2f}',
        words.interval(low, high, '.2f') if known else '',
        n=1,
        remark='one seed of trials, with the noise of the final runs'
        if known
        else 'one seed: the noise of a loss is unknown',
        size=_size(of[of['stage'] == 'final']),
        tuned=_tuned(names),
      )
    )
  return found


def _varied(runs: pd.DataFrame) -> list[str]:
  """Returns the hyperparameters that the trials vary, lr first."""
  kinds = ['architecture', 'optimizer', 'config.model.width', 'cell']
  trials = runs[runs['stage'] == 'tune']
  found = {'lr': None}
  for _, of in trials.groupby([k for k in kinds if k in trials]):
    held = pd.DataFrame(map(tables.hyperparameters, of.to_dict('records')))
    found |= {name: None for name in held if held[name].nunique() > 1}
  return list(found)


def _vertex(runs: pd.DataFrame) -> tuple[float, float] | None:
  """Returns log2 of the best learning rate and its standard error, or None.

  Args:
    runs: of one model and optimizer: trials, and final runs for the noise.
  """
  trials = runs[(runs['stage'] == 'tune') & np.isfinite(runs['loss'])]
  if trials['cell'].nunique() > 1:
    trials = trials[trials['cell'] == trials['cell'].mode()[0]]
  value, gradient_N = widths.optimum(trials.groupby('lr')['loss'].min(), 2)
  if gradient_N is None:
    return None
  finals = runs[(runs['stage'] == 'final') & (runs['status'] == 'finished')]
  variances = finals.groupby('group')['loss'].var()
  noise = math.sqrt(variances.mean()) if variances.notna().any() else math.nan
  return value, noise * float(np.linalg.norm(gradient_N))


def rates_transfer(comparison: tables.Comparison) -> list[Finding]:
  """Tests 'the best rate stays where it is as models get wider' under µP.

  Compares the narrowest with the widest model of a study over widths; standard
  errors are pooled over its cells.
  """
  missing = [_untested('every model', 'no study over widths')]
  runs = comparison.tables.runs
  if 'config.parametrization.kind' not in runs:
    return missing
  optima = widths.optima(widths.curves(comparison.tables))
  optima = optima[optima['parametrization'] == 'mup']
  shifts = {}
  for cell, of in optima.groupby(['architecture', 'optimizer']):
    by_width = of.pivot(index='seed', columns='width', values='best')
    ends = by_width.columns[[0, -1]]
    moved_S = (by_width[ends[1]] - by_width[ends[0]]).dropna().to_numpy()
    if moved_S.size:
      shifts[cell] = (ends, moved_S)
  freedom = sum(len(s) - 1 for _, s in shifts.values())
  squares = sum(((s - s.mean()) ** 2).sum() for _, s in shifts.values())
  found = []
  for (model, optimizer), (ends, moved_S) in shifts.items():
    shift, n = float(moved_S.mean()), moved_S.size
    conclusion, interval = UNRESOLVED, ''
    if freedom:
      error = math.sqrt(squares / freedom / n)
      reach = float(statistics.quantile(statistics.LEVEL, freedom)) * error
      conclusion = within(shift - reach, shift + reach, SAME_RATE)
      interval = words.interval(shift - reach, shift + reach, '+.2f')
    found.append(
      Finding(
        f'{words.name(model)} {words.name(optimizer)}',
        conclusion,
        f'shift of the best rate from width {ends[0]} to {ends[1]}: '
        f'{words.signed(shift, "+.2f")} factors of two',
        interval,
        n=n,
        remark='' if freedom else 'one seed: the noise is unknown',
        size=_size(runs[runs['config.parametrization.kind'] == 'mup']),
        tuned=_tuned(_varied(runs)),
      )
    )
  return found or missing

"""Times, and what they are worth: costs, time to a target loss, the trade-off.

A time is compared only where it was measured to be comparable: by the timing
pass at the end of a study, in which the optimizers' steps alternate on one
machine, or by a throughput benchmark. Runs on a busy machine say little.
"""

import dataclasses

from steepest.report import words
from steepest.report.tables import Tables

# Repeats of one optimizer's steps have to agree within this share.
AGREEMENT = 0.03


@dataclasses.dataclass(frozen=True)
class Timing:
  """Seconds of a step of each optimizer, measured side by side.

  Attributes:
    seconds: optimizer → median over repeats.
    repeats: of the optimizer with the fewest.
    reason: why they decide nothing; '' where they may.
  """

  seconds: dict[str, float]
  repeats: int
  reason: str


def timing(tables: Tables, group: str, optimizers: list[str]) -> Timing:
  """Returns what the timing pass measured for a group."""
  rows = tables.timing
  rows = rows[
    rows['group'].isin([group, '']) & rows['optimizer'].isin(optimizers)
  ]
  if not len(rows):
    return Timing({}, 0, 'no timing pass')
  of = rows.groupby('optimizer')['seconds_per_step']
  seconds = {str(k): float(v) for k, v in of.median().items()}
  repeats = int(of.count().min())
  lacking = [words.name(o) for o in optimizers if o not in seconds]
  spread = {str(k): v for k, v in (of.max() / of.min() - 1).items()}
  worst = max(spread, key=lambda name: spread[name])
  reason = ''
  if rows['device'].nunique() > 1 or rows['commit'].nunique() > 1:
    reason = 'the steps were timed on unlike machines or commits'
  elif lacking:
    reason = f'the timing pass lacks {words.join(lacking)}'
  elif repeats < 2:
    reason = 'the timing pass has one repeat, which nothing confirms'
  elif spread[worst] > AGREEMENT:
    reason = (
      f'the repeats of {words.name(worst)} differ by {spread[worst]:.1%}, more '
      f'than {AGREEMENT:.0%}: the machine was busy'
    )
  return Timing(seconds, repeats, reason)


def fastest(found: Timing) -> tuple[str, str]:
  """Returns the optimizer with the fastest step, or '' and why there is none.

  It is faster than every other one by more than repeats may differ.
  """
  if found.reason or len(found.seconds) < 2:
    return '', found.reason or 'there is one optimizer'
  first, second = sorted(found.seconds.values())[:2]
  if second / first - 1 <= AGREEMENT:
    return (
      '',
      f'the fastest two differ by {second / first - 1:.1%}, as repeats do',
    )
  return min(found.seconds, key=lambda name: found.seconds[name]), ''

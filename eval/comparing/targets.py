"""Tokens, operations and hours until a run has the baseline's final loss."""

from collections.abc import Sequence
import dataclasses
import math

import numpy as np
from scipy import optimize

from steepest.eval.comparing import costs, statistics
from steepest.eval.comparing.cells import Cell
from steepest.eval.comparing.runs import Run

UNITS = ('tokens', 'flops', 'seconds')


@dataclasses.dataclass(frozen=True)
class Reach:
  """When one run has the loss that the baseline of its seed ends with.

  Attributes:
    seed: of both runs.
    target: the baseline's final validation loss, in nats per token.
    tokens, flops, seconds: until then; None where `status` is 'not reached',
      and flops where the run lacks them.
    status: 'reached', 'by the first validation' (an upper bound) or 'not
      reached'.
    gap: final loss minus the target.
    validations: points of the curve.
  """

  seed: int
  target: float
  tokens: float | None
  flops: float | None
  seconds: float | None
  status: str
  gap: float
  validations: int


@dataclasses.dataclass(frozen=True)
class ToTarget:
  """What an optimizer needs for the baseline's final loss.

  Attributes:
    optimizer: optimizer.name.
    baseline: whose loss is the target.
    reaches: one for each seed.
    speedups: 'tokens', 'flops', 'seconds' -> what the baseline spends over what
      this optimizer needs, paired by seed; without the units that a seed lacks.
    with_tuning: the same, the search of either added; without those unknown.
    decayed: whether the learning rate decays within the runs. The losses on the
      way are then those before the decay, so a run that is planned to end at
      the target needs less: the speed-ups are lower bounds.
    reason: why there are no speed-ups; '' where there are.
  """

  optimizer: str
  baseline: str
  reaches: tuple[Reach, ...]
  speedups: dict[str, statistics.Ratio]
  with_tuning: dict[str, float]
  decayed: bool
  reason: str

  @property
  def gap(self) -> float:
    """Mean over seeds of the final loss minus the target, in nats."""
    return math.fsum(one.gap for one in self.reaches) / len(self.reaches)


def smoothed(losses_P: np.ndarray) -> np.ndarray:
  """Returns the closest curve that never rises (isotonic regression).

  Args:
    losses_P: validation losses in the order of training.
  """
  return optimize.isotonic_regression(losses_P, increasing=False).x


def crossing(
  x_P: np.ndarray, losses_P: np.ndarray, target: float
) -> float | None:
  """Returns where a falling curve first is at `target`, between its points.

  Linear between two points; the first point's x where it is below already.
  None where the curve never is.

  Args:
    x_P: rising, such as tokens.
    losses_P: falling, see `smoothed`.
    target: loss.
  """
  below = np.flatnonzero(losses_P <= target)
  if below.size == 0:
    return None
  i = int(below[0])
  if i == 0:
    return float(x_P[0])
  before, after = losses_P[i - 1], losses_P[i]
  share = (before - target) / (before - after)
  return float(x_P[i - 1] + share * (x_P[i] - x_P[i - 1]))


def reach(run: Run, target: float) -> Reach:
  """Finds where a finished run has `target` on its smoothed curve."""
  assert run.summary is not None
  tokens_P, losses_P = run.series('eval/loss', 'tokens')
  seconds_P, _ = run.series('eval/loss', 'seconds')
  final = float(run.summary['eval_loss'])
  if not tokens_P.size or tokens_P[-1] < run.summary['tokens']:
    # The last validation belongs to the curve where it was not logged as a row.
    tokens_P = np.append(tokens_P, run.summary['tokens'])
    seconds_P = np.append(seconds_P, run.summary['seconds'])
    losses_P = np.append(losses_P, final)
  curve_P = smoothed(losses_P)
  tokens = crossing(tokens_P, curve_P, target)
  status = 'not reached'
  if tokens is not None:
    first = curve_P[0] <= target
    status = 'by the first validation' if first else 'reached'
  flops = run.summary['flops'] if 'flops' in run.summary else None
  share = None if tokens is None else tokens / run.summary['tokens']
  return Reach(
    seed=run.seed,
    target=target,
    tokens=tokens,
    flops=flops * share if flops is not None and share is not None else None,
    seconds=crossing(seconds_P, curve_P, target),
    status=status,
    gap=final - target,
    validations=int(losses_P.size),
  )


def decays(run: Run) -> bool:
  """Whether the learning rate of a run falls before its end."""
  return bool(
    run.config['schedule.kind'] != 'constant'
    and run.config['schedule.final_fraction'] < 1
  )


def to_targets(
  cells: Sequence[Cell], tuning: Sequence[costs.CellCost], same_speed: bool
) -> list[ToTarget]:
  """Returns what each optimizer of a group needs for the baseline's final loss.

  Args:
    cells: of the group, all with the same seeds.
    tuning: their costs.
    same_speed: whether all runs had the same machine and mesh.
  """
  have = {c.optimizer: c for c in cells if 'eval_loss' in c.per_seed}
  name = costs.baseline(have)
  if name is None:
    return []
  base = have[name]
  units = UNITS if same_speed else UNITS[:2]
  found = {
    other: tuple(
      reach(run, target)
      for run, target in zip(cell.runs, base.per_seed['eval_loss'])
    )
    for other, cell in have.items()
    if other != name
  }
  ratios = {
    unit: {
      other: tuple(
        of / getattr(one, unit) for one, of in zip(reaches, _totals(base, unit))
      )
      for other, reaches in found.items()
      if _known(reaches, unit) and _totals(base, unit)
    }
    for unit in units
  }
  searches = {cost.optimizer: cost.tuning for cost in tuning}
  return [
    ToTarget(
      optimizer=other,
      baseline=name,
      reaches=reaches,
      speedups={
        unit: statistics.ratio(of, other)
        for unit, of in ratios.items()
        if other in of
      },
      with_tuning=_with_tuning(
        base, reaches, searches[name], searches[other], units
      ),
      decayed=any(decays(run) for run in have[other].runs),
      reason=_reason(reaches),
    )
    for other, reaches in found.items()
  ]


def _known(reaches: Sequence[Reach], unit: str) -> bool:
  return all(getattr(one, unit) for one in reaches)


def _totals(base: Cell, unit: str) -> tuple[float, ...]:
  if unit in base.per_seed:
    return base.per_seed[unit]
  held = [(run.summary or {}).get(unit) for run in base.runs]
  known = tuple(float(value) for value in held if value is not None)
  return known if len(known) == len(held) else ()


def _with_tuning(
  base: Cell,
  reaches: Sequence[Reach],
  own: costs.Cost | None,
  other: costs.Cost | None,
  units: Sequence[str],
) -> dict[str, float]:
  """Returns (run + search) of the baseline over (to target + search)."""
  result = {}
  for unit in units:
    totals = _totals(base, unit)
    if own is None or other is None or not totals:
      continue
    searches = getattr(own, unit), getattr(other, unit)
    if None in searches or not _known(reaches, unit):
      continue
    run = sum(totals) / len(totals)
    needed = sum(getattr(one, unit) for one in reaches) / len(reaches)
    result[unit] = (run + searches[0]) / (needed + searches[1])
  return result


def _reason(reaches: Sequence[Reach]) -> str:
  missed = [one for one in reaches if one.status == 'not reached']
  if not missed:
    return ''
  gap = math.fsum(one.gap for one in missed) / len(missed)
  return (
    f'{len(missed)} of {len(reaches)} seeds do not reach it; their final loss '
    f'is {gap:.4f} nats above'
  )

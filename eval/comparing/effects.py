"""What an axis changes for each optimizer, and whether the ranking changes."""

from collections.abc import Sequence
import dataclasses
import itertools
import json
from typing import Any

from steepest.eval.comparing import (
  accuracy,
  groups as groups_lib,
  statistics,
  verdicts,
)
from steepest.eval.comparing.cells import Cell
from steepest.eval.comparing.groups import Axis


@dataclasses.dataclass(frozen=True)
class Level:
  """A group as a level of its axes.

  Attributes:
    architecture: model.name.
    axes: axis -> value.
    cells: of the group.
    equal: what its runs share, key -> value.
    pairs: differences of the final validation losses within the group.
  """

  architecture: str
  axes: dict[str, Any]
  cells: Sequence[Cell]
  equal: dict[str, Any]
  pairs: Sequence[verdicts.Pair]


@dataclasses.dataclass(frozen=True)
class AxisEffect:
  """What another value of an axis changes for one optimizer.

  Attributes:
    axis: its name.
    architecture: model.name.
    others: values of the other axes, equal on both sides.
    optimizer: optimizer.name.
    reference: the value that is compared with, the study's own.
    value: the other one.
    seeds: that both sides have.
    loss: final validation loss at `value` minus that at `reference`, paired by
      seed, corrected for the optimizers of the model; None where not available.
    accuracy: the same of the mean accuracy, paired by question and seed; None
      without scores of the same questions on both sides.
    reason: why there is no `loss`; '' where there is.
  """

  axis: str
  architecture: str
  others: dict[str, Any]
  optimizer: str
  reference: Any
  value: Any
  seeds: tuple[int, ...]
  loss: statistics.Difference | None
  accuracy: statistics.Difference | None
  reason: str


@dataclasses.dataclass(frozen=True)
class Interaction:
  """Whether an axis changes the difference between two optimizers.

  Attributes:
    axis, architecture, others, reference, value: as in AxisEffect.
    first, second: optimizers.
    change: (first - second at `value`) - (first - second at `reference`) of the
      final validation loss, paired by seed, corrected for all pairs of
      optimizers.
    at_reference, at_value: first - second on either side.
    order: 'kept' or 'swapped', where the difference counts on both sides; else
      'not resolved'.
  """

  axis: str
  architecture: str
  others: dict[str, Any]
  reference: Any
  value: Any
  first: str
  second: str
  change: statistics.Difference
  at_reference: statistics.Difference
  at_value: statistics.Difference
  order: str


def compare(
  levels: Sequence[Level], axes: Sequence[Axis]
) -> tuple[list[AxisEffect], list[Interaction]]:
  """Compares every two groups of a model that differ on one axis alone.

  The one with the study's own value is the reference; values that the study's
  own does not meet are compared with nothing.
  """
  effects: list[AxisEffect] = []
  interactions: list[Interaction] = []
  for axis in axes:
    for base, other in itertools.permutations(levels, 2):
      if not _differ_on(axis, base, other):
        continue
      reason = _unlike(axis, base, other)
      common = _Common(axis, base, other)
      effects += _effects(common, reason)
      if not reason:
        interactions += _interactions(common)
  return effects, interactions


@dataclasses.dataclass(frozen=True)
class _Common:
  """Two levels and what their effects have in common."""

  axis: Axis
  base: Level
  other: Level

  @property
  def fields(self) -> dict[str, Any]:
    name = self.axis.name
    others = {k: v for k, v in self.base.axes.items() if k != name}
    return {
      'axis': name,
      'architecture': self.base.architecture,
      'others': others,
      'reference': self.base.axes[name],
      'value': self.other.axes[name],
    }

  def changes(self) -> dict[str, tuple[tuple[int, ...], tuple[float, ...]]]:
    """Returns optimizer -> shared seeds and the change of each one's loss."""
    found = {}
    for name, (a, b) in self.both().items():
      of_a, of_b = _by_seed(a), _by_seed(b)
      seeds = tuple(sorted(of_a.keys() & of_b.keys()))
      if seeds:
        found[name] = seeds, tuple(of_b[s] - of_a[s] for s in seeds)
    return found

  def both(self) -> dict[str, tuple[Cell, Cell]]:
    """Returns optimizer -> its cells on both sides, where they have a loss."""
    own = {c.optimizer: c for c in self.base.cells}
    return {
      c.optimizer: (own[c.optimizer], c)
      for c in self.other.cells
      if c.optimizer in own
      and 'eval_loss' in c.per_seed
      and 'eval_loss' in own[c.optimizer].per_seed
    }


def _differ_on(axis: Axis, base: Level, other: Level) -> bool:
  return (
    base.architecture == other.architecture
    and base.axes[axis.name] == axis.own
    and other.axes[axis.name] != axis.own
    and all(
      base.axes[name] == other.axes[name]
      for name in base.axes
      if name != axis.name
    )
  )


def _unlike(axis: Axis, base: Level, other: Level) -> str:
  """Says in what two levels differ that the axis does not change."""
  free = groups_lib.follows(axis.name)
  keys = [*base.equal, *(k for k in other.equal if k not in base.equal)]
  found = []
  for key in keys:
    a, b = (
      json.dumps(level.equal[key]) if key in level.equal else 'absent'
      for level in (base, other)
    )
    if key not in free and a != b:
      found.append(f'{key} is {b}, not {a}')
  # Epochs are part of the data's fingerprint, so it cannot tell the corpus.
  here, there = (
    {run.config['data.source'] for cell in level.cells for run in cell.runs}
    for level in (base, other)
  )
  if axis.name == 'epochs' and here and there and here != there:
    found.append(f'data.source is {sorted(there)}, not {sorted(here)}')
  return '; '.join(found)


def _by_seed(cell: Cell) -> dict[int, float]:
  losses = cell.per_seed['eval_loss']
  return {run.seed: loss for run, loss in zip(cell.runs, losses)}


def _effects(common: _Common, reason: str) -> list[AxisEffect]:
  changes = common.changes()
  values = {name: of for name, (_, of) in changes.items()}
  losses = statistics.correct(
    {name: statistics.mean_difference(values, name) for name in values}
  )
  both = common.both()
  scores = {
    name: score
    for name, (seeds, _) in changes.items()
    if not reason and (score := _accuracy(*both[name], seeds)) is not None
  }
  scores = statistics.correct(scores)
  result = []
  for name in both:
    seeds = changes[name][0] if name in changes else ()
    why = reason or ('' if seeds else 'no seed has finished on both sides')
    result.append(
      AxisEffect(
        **common.fields,
        optimizer=name,
        seeds=seeds,
        loss=None if why else losses[name],
        accuracy=scores[name] if name in scores else None,
        reason=why,
      )
    )
  return result


def _accuracy(
  base: Cell, other: Cell, seeds: tuple[int, ...]
) -> statistics.Difference | None:
  metrics = verdicts.shared_metrics([base, other])
  first, second = (
    [run for run in cell.runs if run.seed in seeds] for cell in (other, base)
  )
  if not metrics or any(
    accuracy.unlike_questions([*first, *second], task, metric)
    for task, metric in metrics
  ):
    return None
  return accuracy.average_difference(first, second, metrics)


def _interactions(common: _Common) -> list[Interaction]:
  # All optimizers of a group have the same seeds.
  changes = {name: of for name, (_, of) in common.changes().items()}
  found = statistics.correct(
    {
      (a, b): statistics.seed_difference(changes, a, b)
      for a, b in itertools.combinations(changes, 2)
    }
  )
  sides = [
    {(p.first, p.second): p.difference for p in level.pairs}
    for level in (common.base, common.other)
  ]
  return [
    Interaction(
      **common.fields,
      first=a,
      second=b,
      change=change,
      at_reference=sides[0][a, b],
      at_value=sides[1][a, b],
      order=_order(sides[0][a, b], sides[1][a, b]),
    )
    for (a, b), change in found.items()
    if (a, b) in sides[0] and (a, b) in sides[1]
  ]


def _order(a: statistics.Difference, b: statistics.Difference) -> str:
  if not (a.exceeds and b.exceeds):
    return 'not resolved'
  return 'kept' if (a.value > 0) == (b.value > 0) else 'swapped'

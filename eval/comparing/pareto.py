"""Which cells no other beats in training time, loss and accuracy at once."""

from collections.abc import Sequence
import dataclasses
from typing import Any

from steepest.eval.comparing import fairness, groups
from steepest.eval.comparing.cells import Cell
from steepest.eval.comparing.costs import Cost


@dataclasses.dataclass(frozen=True)
class Candidate:
  """A cell in the trade-off.

  Attributes:
    architecture: model.name.
    optimizer: optimizer.name.
    axes: values of the group's axes.
    seconds: of training, mean over seeds.
    seconds_with_tuning: with the search's added; None where unknown.
    loss: final validation loss, mean over seeds, in nats per token.
    accuracy: mean over the benchmarks and seeds; None without any.
    dominated_by: (architecture, optimizer, axes in words) of those that are as
      good in everything and better in something; () in the Pareto set.
  """

  architecture: str
  optimizer: str
  axes: dict[str, Any]
  seconds: float
  seconds_with_tuning: float | None
  loss: float
  accuracy: float | None
  dominated_by: tuple[tuple[str, str, str], ...]

  @property
  def efficient(self) -> bool:
    """Whether it is in the Pareto set."""
    return not self.dominated_by


def dominates(first: Sequence[float], second: Sequence[float]) -> bool:
  """Whether `first` is nowhere higher than `second` and somewhere lower."""
  pairs = list(zip(first, second, strict=True))
  return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def dominators(points: Sequence[Sequence[float]]) -> list[list[int]]:
  """Returns for each point the indices of those that dominate it.

  Args:
    points: of equally many numbers each; less is better.
  """
  return [
    [i for i, other in enumerate(points) if dominates(other, point)]
    for point in points
  ]


def candidates(
  cells: Sequence[tuple[Cell, Cost | None]],
) -> tuple[list[Candidate], str]:
  """Returns every cell in the trade-off of time, loss and accuracy.

  The accuracy counts where every cell has one.

  Args:
    cells: with what a final run and the search cost together.

  Returns:
    The cells, and why their times are not comparable; '' where they are.
  """
  have = [
    (cell, total)
    for cell, total in cells
    if 'seconds' in cell.spreads and 'eval_loss' in cell.spreads
  ]
  scored = all(cell.accuracy is not None for cell, _ in have)
  points = []
  for cell, _ in have:
    point = [cell.spreads['seconds'].mean, cell.spreads['eval_loss'].mean]
    if scored and cell.accuracy is not None:
      point.append(-cell.accuracy.mean)
    points.append(point)
  names = [
    (cell.architecture, cell.optimizer, groups.label(cell.axes))
    for cell, _ in have
  ]
  found = [
    Candidate(
      architecture=cell.architecture,
      optimizer=cell.optimizer,
      axes=cell.axes,
      seconds=cell.spreads['seconds'].mean,
      seconds_with_tuning=None if total is None else total.seconds,
      loss=cell.spreads['eval_loss'].mean,
      accuracy=cell.accuracy.mean if cell.accuracy else None,
      dominated_by=tuple(names[i] for i in above),
    )
    for (cell, total), above in zip(have, dominators(points), strict=True)
  ]
  setups = {fairness.speed_setup(r) for cell, _ in have for r in cell.runs}
  unlike = 'training times are of unlike machines, meshes or micro-batches'
  return found, unlike if len(setups) > 1 else ''

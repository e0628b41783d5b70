"""Which targets of a study share their first steps.

Targets with the schedule wsd that differ in nothing but their token budget are
equal up to where the shorter one's decay begins. The longest is the trunk: it
keeps a checkpoint there, and the others branch off (training/branches.py).
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import NamedTuple

from ml_collections import ConfigDict
import numpy as np

from steepest.optimizers import build
from steepest.tuning import axes, cells
from steepest.tuning.cells import Cell


class Branch(NamedTuple):
  """Whose targets a cell's targets branch off, and after which step."""

  trunk: Cell
  steps: int


def branches(config: ConfigDict) -> dict[Cell, Branch]:
  """Returns the cells of a study whose targets are branches.

  There are none where a longer run has other steps from the start: with
  several epochs, whose order depends on the number of windows; with an
  optimizer that depends on the length of the run; where token budgets are
  tuned apart; without checkpoints.

  Raises:
    ValueError: as `cells.cells`.
  """
  groups: dict[Cell, list[Cell]] = {}
  for cell in cells.cells(config):
    rest = tuple((name, v) for name, v in cell.point if name != 'tokens')
    groups.setdefault(dataclasses.replace(cell, point=rest), []).append(cell)
  apart = bool(axes.retuned(config, (('tokens', 1),)))
  found: dict[Cell, Branch] = {}
  for group in groups.values():
    if len(group) > 1 and config.checkpoint_every and not apart:
      found.update(_branches(config, group))
  return found


def points(branches: Mapping[Cell, Branch], cell: Cell) -> list[int]:
  """Returns the steps at which others branch off a cell's targets."""
  return sorted({b.steps for b in branches.values() if b.trunk == cell})


def decay_start(run: ConfigDict) -> int:
  """Returns the steps that a run with wsd does before its rate can fall.

  As optimizers/schedules.py has it, in float32; the step after them still has
  the full rate.
  """
  share = np.float32(1) - np.float32(run.schedule.decay_fraction)
  return int(np.floor(np.float32(run.steps) * share))


def _branches(config: ConfigDict, group: Sequence[Cell]) -> dict[Cell, Branch]:
  """Returns the branches among cells that differ in their tokens alone."""
  runs = {cell: cells.target_config(config, cell, {}, 0) for cell in group}
  trunk = max(group, key=lambda cell: runs[cell].steps)
  run = runs[trunk]
  if run.schedule.kind != 'wsd' or run.data.epochs > 1:
    return {}
  if hasattr(build.find(trunk.optimizer), 'DEPENDS_ON_STEPS'):
    return {}
  starts = {cell: decay_start(runs[cell]) for cell in group if cell != trunk}
  return {
    cell: Branch(trunk, start)
    for cell, start in starts.items()
    if 0 < start < runs[cell].steps
  }

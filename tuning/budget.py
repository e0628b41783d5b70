"""What a study takes on accelerators that are not here, part by part."""

from collections.abc import Callable, Sequence
import dataclasses
import json

from ml_collections import ConfigDict

from steepest.training import chips, planner
from steepest.tuning import cells, plans, search
from steepest.tuning.cells import Cell

# Keys that change neither a step's time nor its memory.
_FREE = ('data', 'seed', 'steps', 'schedule', 'stage')


@dataclasses.dataclass(frozen=True)
class Part:
  """The trials or the targets of a cell.

  Attributes:
    cell: it.
    kind: 'tune' or 'train'.
    runs: how many.
    tokens: of a run.
    steps: of a run.
    plan: of a step.
  """

  cell: Cell
  kind: str
  runs: int
  tokens: int
  steps: int
  plan: planner.Plan

  @property
  def hours(self) -> float:
    """Chip-hours of all its runs."""
    chips = self.runs * self.plan.setting.devices
    return chips * self.steps * self.plan.step_seconds / 3600


def parts(
  config: ConfigDict,
  chip: chips.Chip,
  devices: int,
  on_part: Callable[[str], None] = lambda name: None,
) -> list[Part]:
  """Returns the parts of a study, searches first.

  A trial runs on as few of the chips as hold it, a target on all. Trials by
  which a search is extended are not counted.

  Args:
    config: of the study.
    chip: what it runs on.
    devices: how many of them.
    on_part: called with what is being planned.

  Raises:
    ValueError: the configuration does not fit together, or the mesh not the
      chips.
  """
  if not config.data.source and not config.model.vocab_size:
    # The tokenizer is yet to be made.
    config = ConfigDict(config.to_dict())
    config.model.vocab_size = config.study.vocab_size
  planners: dict[str, planner.Planner] = {}

  def planned(run: ConfigDict) -> planner.Planner:
    kept = {k: v for k, v in run.to_dict().items() if k not in _FREE}
    key = json.dumps(kept)
    if key not in planners:
      planners[key] = plans.make_planner(run, chip)
    return planners[key]

  found = []
  all_cells = cells.cells(config)
  for cell in dict.fromkeys(cells.search_of(config, c) for c in all_cells):
    on_part(f'tune {cell}')
    run = cells.trial_config(config, cell, {})
    plan = _smallest(planned(run), run, devices)
    count = len(search.first_names(config, cell.optimizer))
    found.append(_part(cell, 'tune', count, run, plan))
  for cell in all_cells:
    on_part(f'train {cell}')
    run = cells.target_config(config, cell, {}, 0)
    plan = planned(run).plan(plans.setting(run, devices))
    found.append(_part(cell, 'train', config.study.seeds, run, plan))
  return found


def _part(
  cell: Cell,
  kind: str,
  count: int,
  run: ConfigDict,
  plan: planner.Plan,
) -> Part:
  tokens = run.steps * run.batch_size * run.model.context
  return Part(cell, kind, count, tokens, run.steps, plan)


def _smallest(
  found: planner.Planner, run: ConfigDict, most: int
) -> planner.Plan:
  """Returns the plan on the fewest chips that hold a run, or else on one."""
  devices, plan = 1, found.plan(plans.setting(run, 1))
  first = plan
  while not plan.fits and 2 * devices <= most:
    devices *= 2
    run = ConfigDict(run.to_dict())
    run.mesh.fsdp = devices
    try:
      plan = found.plan(plans.setting(run, devices))
    except ValueError:
      # The batch does not divide.
      break
  return plan if plan.fits else first


def hours(found: Sequence[Part], kind: str) -> float:
  """Returns the chip-hours of a kind of parts."""
  return sum(part.hours for part in found if part.kind == kind)

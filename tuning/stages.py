"""Plans the runs of a study: searches, then targets (tuning/plan.py)."""

from collections.abc import Sequence
import dataclasses
import math

from ml_collections import ConfigDict
from rich.table import Table

from steepest.training import chips
from steepest.tuning import cells, plan as plan_lib, search
from steepest.tuning.cells import Cell

# Keys that a step's plan reads, besides the data's vocabulary. Points of a
# study that differ only in others, such as tokens, share a plan.
_OF_STEP = (
  *('model', 'optimizer', 'parametrization', 'dtype', 'mesh'),
  *('batch_size', 'microbatches'),
)


@dataclasses.dataclass(frozen=True)
class Stage:
  """The trials or the targets of a cell.

  Attributes:
    cell: model, optimizer and point of the study's axes.
    kind: 'tune' or 'train'.
    runs: number of runs.
    steps: of a run.
    plan: of a step.
    search: cell whose trials come first; None for trials.
  """

  cell: Cell
  kind: str
  runs: int
  steps: int
  plan: plan_lib.StepPlan
  search: Cell | None = None

  @property
  def hours(self) -> float:
    """Chip-hours of all its runs."""
    return self.runs * self.plan.devices * self.plan.hours(self.steps)


def of_study(
  config: ConfigDict, chip: chips.Chip, devices: int, machine: int = 0
) -> list[Stage]:
  """Returns the stages of a study, searches first.

  A run takes the chips of its mesh, as in `cells.devices`. Trials that extend a
  search are not counted.

  Args:
    config: of the study.
    chip: that it runs on.
    devices: number of chips.
    machine: chips that data=-1 fills in a target's mesh, at most; 0: those of
      one machine.

  Raises:
    ValueError: the configuration is inconsistent, or the mesh does not fit the
      chips.
  """
  machine = machine or min(devices, chip.host)
  if not config.data.source and not config.model.vocab_size:
    # The tokenizer does not exist yet.
    config = ConfigDict(config.to_dict())
    config.model.vocab_size = config.study.vocab_size
  found = []
  every = cells.cells(config)
  plans: dict[tuple[str, int, int], plan_lib.StepPlan] = {}

  def of_step(run: ConfigDict, most: int) -> plan_lib.StepPlan:
    count = cells.devices(run.mesh, most)
    if count > most:
      raise ValueError(
        f'mesh: {dict(run.mesh)} needs {count} devices of one machine, which '
        f'has {most}'
      )
    read = ConfigDict({k: run[k] for k in _OF_STEP}).to_json()
    key = read, plan_lib.vocab_size(run), count
    if key not in plans:
      plans[key] = plan_lib.plan(run, chip, count)
    return plans[key]

  for cell in dict.fromkeys(cells.search_of(config, c) for c in every):
    run = cells.trial_config(config, cell, {}, 0)
    count = search.count(config, cell.optimizer) * config.study.trial_seeds
    step = of_step(run, min(machine, chip.host))
    found.append(Stage(cell, 'tune', count, run.steps, step))
  for cell in every:
    run = cells.target_config(config, cell, {}, 0)
    step = of_step(run, machine)
    of = cells.search_of(config, cell)
    found.append(Stage(cell, 'train', config.study.seeds, run.steps, step, of))
  return found


def summary(
  found: Sequence[Stage], chip: str, devices: int, price: float = 0.0
) -> str:
  """Returns the total cost of a study, in words.

  Args:
    found: its stages.
    chip: name of the chip.
    devices: number of chips.
    price: dollars per chip-hour; 0: unknown.
  """
  of = lambda kind: sum(stage.hours for stage in found if stage.kind == kind)
  tune, train = of('tune'), of('train')
  total, runs = tune + train, sum(stage.runs for stage in found)
  if math.isnan(total):
    return f'{runs} runs; no MFU of {chip} is known, so no hours are'
  far = [f'\nat {stage.plan.basis}' for stage in found if stage.plan.far]
  return (
    f'{runs} runs, {_number(total)} {chip}-hours: {_number(tune)} for tuning '
    f'({tune / total:.1%}) and {_number(train)} for targets '
    f'({train / total:.1%}); {_number(total / devices / 24)} days on '
    f'{devices} chip{"s" * (devices > 1)}{plan_lib.cost(total, price)}'
    + ''.join(far[:1])
  )


def table(found: Sequence[Stage]) -> Table:
  """Returns a row for each stage."""
  heads = ('stage', 'runs', 'tokens', 'chips', 'memory', 'checkpoint', 'step')
  shown = Table(*heads, 'chip-hours', box=None, pad_edge=False)
  for column in shown.columns[1:]:
    column.justify = 'right'
  for stage in found:
    step = stage.plan
    fits = '' if step.fits else ' too much'
    shown.add_row(
      f'{stage.kind} {stage.cell}',
      str(stage.runs),
      _tokens(stage.steps * step.tokens),
      str(step.devices),
      f'{step.peak / 2**30:.3g} of {step.capacity / 2**30:.3g} GiB{fits}',
      f'{step.checkpoint / 2**30:.3g} GiB',
      f'{step.seconds:.3g} s' if step.mfu else '–',
      _number(stage.hours) if step.mfu else '–',
    )
  return shown


def _number(value: float) -> str:
  return f'{value:,.0f}' if abs(value) >= 100 else f'{value:.3g}'


def _tokens(count: float) -> str:
  return f'{count / 1e9:.3g} G' if count >= 1e8 else f'{count / 1e6:.3g} M'

"""What a cell costs: its runs, its search, an optimizer's extra passes."""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses

from steepest.eval.comparing import statistics
from steepest.eval.comparing.cells import Cell
from steepest.eval.comparing.runs import Run

_BASELINE = 'adamw'


@dataclasses.dataclass(frozen=True)
class Cost:
  """Tokens, floating-point operations and seconds of training.

  Attributes:
    tokens: read by training steps.
    flops: counted, curvature passes included; None where a run lacks them.
    seconds: of training steps; compilation, evaluation and checkpoints apart.
  """

  tokens: float
  flops: float | None
  seconds: float

  def __add__(self, other: 'Cost') -> 'Cost':
    flops = None
    if self.flops is not None and other.flops is not None:
      flops = self.flops + other.flops
    return Cost(self.tokens + other.tokens, flops, self.seconds + other.seconds)

  @property
  def hours(self) -> float:
    return self.seconds / 3600


@dataclasses.dataclass(frozen=True)
class CellCost:
  """What a cell's final runs and the search behind them cost.

  Attributes:
    optimizer: optimizer.name.
    run: one final run, the mean over seeds; None while there is none.
    tuning: all trials that ended, pruned and diverged ones as far as they came;
      None without trials.
    total: one final run and the search; None where either is missing.
  """

  optimizer: str
  run: Cost | None
  tuning: Cost | None
  total: Cost | None


@dataclasses.dataclass(frozen=True)
class Overhead:
  """What an optimizer adds to a step, against the baseline's on equal tokens.

  Attributes:
    optimizer: optimizer.name.
    baseline: what it is compared with.
    curvature_passes: of a run, beyond one gradient a step; mean over seeds.
    flops: operations over the baseline's, minus 1.
    seconds: training seconds over the baseline's, paired by seed; None where
      machines are unlike.
    state_bytes: of the optimizer's state; None where not recorded.
    state_bytes_baseline: likewise.
    peak_memory_bytes: of the device; None where it does not tell.
  """

  optimizer: str
  baseline: str
  curvature_passes: float
  flops: float | None
  seconds: statistics.Ratio | None
  state_bytes: float | None
  state_bytes_baseline: float | None
  peak_memory_bytes: float | None


def baseline(names: Iterable[str]) -> str | None:
  """Returns the optimizer that others are measured against: AdamW."""
  return _BASELINE if _BASELINE in names else None


def spent(runs: Sequence[Run]) -> Cost | None:
  """Returns what runs that ended have cost together; None without one."""
  held = [run.summary for run in runs if run.summary is not None]
  if not held:
    return None
  flops = [s['flops'] if 'flops' in s else None for s in held]
  known = [float(value) for value in flops if value is not None]
  # A run that diverged may have recorded none: the others' rate.
  tokens = sum(s['tokens'] for s, f in zip(held, flops) if f is not None)
  total = sum(s['tokens'] for s in held)
  return Cost(
    tokens=float(total),
    flops=sum(known) * total / tokens if tokens else None,
    seconds=float(sum(s['seconds'] for s in held)),
  )


def cell_cost(cell: Cell, trials: Sequence[Run]) -> CellCost:
  """Returns the costs of a cell.

  Args:
    cell: whose runs are final ones.
    trials: of the search that gave it its hyperparameters.
  """
  run = spent(cell.runs)
  if run is not None:
    n = len(cell.runs)
    flops = None if run.flops is None else run.flops / n
    run = Cost(run.tokens / n, flops, run.seconds / n)
  tuning = spent(trials)
  total = run + tuning if run is not None and tuning is not None else None
  return CellCost(cell.optimizer, run, tuning, total)


def overheads(cells: Sequence[Cell], same_speed: bool) -> list[Overhead]:
  """Returns what each optimizer adds to the baseline's step.

  Args:
    cells: of a group, so on equal tokens.
    same_speed: whether all runs had the same machine and mesh.
  """
  have = {cell.optimizer: cell for cell in cells if cell.runs}
  name = baseline(have)
  if name is None:
    return []
  seconds = _seconds(have, name) if same_speed else {}
  base = have[name]
  result = []
  for other, cell in have.items():
    if other == name:
      continue
    flops, own = base.value('flops'), cell.value('flops')
    result.append(
      Overhead(
        optimizer=other,
        baseline=name,
        curvature_passes=_mean(cell, 'curvature_passes') or 0.0,
        flops=own / flops - 1 if own and flops else None,
        seconds=statistics.ratio(seconds, other) if other in seconds else None,
        state_bytes=_mean(cell, 'optimizer_state_bytes'),
        state_bytes_baseline=_mean(base, 'optimizer_state_bytes'),
        peak_memory_bytes=_mean(cell, 'peak_memory_bytes'),
      )
    )
  return result


def _seconds(
  cells: Mapping[str, Cell], name: str
) -> dict[str, tuple[float, ...]]:
  base = cells[name].per_seed['seconds']
  return {
    other: tuple(a / b for a, b in zip(cell.per_seed['seconds'], base))
    for other, cell in cells.items()
    if other != name and all(base)
  }


def _mean(cell: Cell, key: str) -> float | None:
  values = [(run.summary or {}).get(key) for run in cell.runs]
  known = [float(value) for value in values if value is not None]
  return sum(known) / len(known) if len(known) == len(values) else None

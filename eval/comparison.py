"""Runs on disk -> cells, their statistics, and who wins what.

A cell is an architecture with an optimizer; its runs differ in the seed. Cells
are compared within an architecture, over the same seeds, seed by seed.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses

from steepest.eval import accuracy
from steepest.eval import fairness
from steepest.eval import statistics
from steepest.eval import tuning
from steepest.eval.runs import Run
from steepest.eval.runs import load_runs as load_runs


@dataclasses.dataclass(frozen=True)
class Column:
  """A quantity of the table.

  Attributes:
    key: key of summary.json, or 'task/metric'.
    kind: 'loss', 'speed' (depends on the machine), 'count' (exact) or
      'benchmark'.
    lower_is_better: None where it is no contest.
  """

  key: str
  kind: str
  lower_is_better: bool | None

  @property
  def task(self) -> str:
    return self.key.rpartition('/')[0]

  @property
  def metric(self) -> str:
    return self.key.rpartition('/')[2]


COLUMNS = (
  Column('train_loss', 'loss', True),
  Column('eval_loss', 'loss', True),
  Column('tokens_per_second', 'speed', False),
  Column('seconds', 'speed', True),
  Column('flops', 'count', True),
  Column('parameters', 'count', None),
)


@dataclasses.dataclass(frozen=True)
class Cell:
  """The compared runs of one optimizer on one architecture.

  Attributes:
    architecture: model.name.
    optimizer: optimizer.name.
    runs: one per seed, empty where every run diverged.
    spreads: column key -> mean and sd over seeds, where all seeds have it.
    per_seed: column key -> the seeds' values.
    scores: 'task/metric' -> score.
    diverged: runs of other seeds that diverged.
  """

  architecture: str
  optimizer: str
  runs: list[Run]
  spreads: dict[str, statistics.Spread]
  per_seed: dict[str, tuple[float, ...]]
  scores: dict[str, accuracy.Score]
  diverged: list[Run]

  def value(self, key: str) -> float | None:
    """Returns the mean over seeds of a column; None where it is missing."""
    if key in self.spreads:
      return self.spreads[key].mean
    return self.scores[key].mean if key in self.scores else None


@dataclasses.dataclass(frozen=True)
class Verdict:
  """Who is best in one column of one architecture, and whether that holds.

  Attributes:
    architecture: model.name.
    column: what is compared.
    best: the optimizer with the best mean; None where nothing is compared.
    conclusion: 'wins' (the difference to every other one counts; of exact
      counts, to every one with another number), 'partly', 'tie' (to none),
      'unknown' (one seed), 'equal' (the same number), 'alone', 'chance' (the
      best is not above chance) or 'incomparable'.
    differences: other optimizer -> difference of the best to it.
    reason: why nothing is compared, in words.
  """

  architecture: str
  column: Column
  best: str | None
  conclusion: str
  differences: dict[str, statistics.Difference]
  reason: str = ''

  @property
  def leaders(self) -> list[str]:
    """The best and those with the very same number."""
    same = [name for name, d in self.differences.items() if d.value == 0]
    return [] if self.best is None else [self.best, *same]


@dataclasses.dataclass(frozen=True)
class Group:
  """One architecture: its cells and verdicts.

  Attributes:
    selection: which runs are compared and which are not.
    cells: in the order of their optimizers' names.
    verdicts: one for every contested column that a cell has.
    warnings: what limits the comparison, in words.
  """

  selection: fairness.Selection
  cells: list[Cell]
  verdicts: list[Verdict]
  warnings: list[str]

  @property
  def architecture(self) -> str:
    return self.selection.architecture

  def verdict(self, key: str) -> Verdict | None:
    """Returns the verdict on a column, if there is one."""
    return next((v for v in self.verdicts if v.column.key == key), None)


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Everything that the report shows.

  Attributes:
    runs: all that were read.
    groups: one per architecture that has final runs.
    columns: those that at least one cell has.
    curves: the learning-rate searches.
  """

  runs: list[Run]
  groups: list[Group]
  columns: list[Column]
  curves: list[tuning.Curve]

  @property
  def cells(self) -> list[Cell]:
    return [cell for group in self.groups for cell in group.cells]


def compare(runs: Sequence[Run]) -> Comparison:
  """Compares the final runs within each architecture.

  Raises:
    ValueError: a run has an unknown stage.
  """
  for run in runs:
    if run.stage not in ('tune', 'final'):
      raise ValueError(
        f'{run.name}: stage is {run.stage!r}; known are tune and final'
      )
  finals = [run for run in runs if run.stage == 'final']
  groups = [
    _group([run for run in finals if run.architecture == name])
    for name in sorted({run.architecture for run in finals})
  ]
  compared = [run for g in groups for cell in g.cells for run in cell.runs]
  scored = [
    Column(f'{task}/{metric}', 'benchmark', accuracy.METRICS[metric])
    for task, metric in accuracy.list_metrics(compared)
  ]
  columns = [
    column
    for column in (*COLUMNS, *scored)
    if any(
      cell.value(column.key) is not None for g in groups for cell in g.cells
    )
  ]
  curves = tuning.curves([r for r in runs if r.stage == 'tune'], compared)
  return Comparison(
    runs=list(runs),
    groups=groups,
    columns=columns,
    curves=curves,
  )


def _group(runs: Sequence[Run]) -> Group:
  selection = fairness.select(runs)
  compared = [run for cell in selection.cells.values() for run in cell]
  scored = [
    Column(f'{task}/{metric}', 'benchmark', accuracy.METRICS[metric])
    for task, metric in accuracy.list_metrics(compared)
  ]
  names = {*selection.cells, *(run.optimizer for run in selection.diverged)}
  cells = [_cell(selection, name, scored) for name in sorted(names)]
  warnings = _warnings(compared)
  unlike: dict[str, list[str]] = {}
  for column in scored:
    lines = accuracy.unlike_questions(compared, column.task, column.metric)
    if lines:
      unlike[column.key] = lines
      warnings += [f'{column.key} is not compared: {line}' for line in lines]
  speeds = sorted({fairness.speed_setup(run) for run in compared})
  verdicts = []
  for column in (*COLUMNS, *scored):
    reason = ''
    if column.kind == 'speed' and len(speeds) > 1:
      reason = 'the runs had unlike machines or meshes: ' + ' / '.join(
        ', '.join(speed) for speed in speeds
      )
    elif column.key in unlike:
      reason = 'the runs scored unlike questions'
    verdict = _verdict(selection.architecture, column, cells, reason)
    if verdict is not None:
      verdicts.append(verdict)
  return Group(selection, cells, verdicts, warnings)


def _cell(
  selection: fairness.Selection, optimizer: str, scored: Sequence[Column]
) -> Cell:
  runs = selection.cells[optimizer] if optimizer in selection.cells else []
  per_seed = {}
  for column in COLUMNS:
    values = [
      run.summary[column.key]
      for run in runs
      # Older runs lack some.
      if run.summary and run.summary.get(column.key) is not None
    ]
    if values and len(values) == len(runs):
      per_seed[column.key] = tuple(float(value) for value in values)
  scores = {}
  for column in scored:
    score = accuracy.score(runs, column.task, column.metric) if runs else None
    if score is not None:
      scores[column.key] = score
  return Cell(
    architecture=selection.architecture,
    optimizer=optimizer,
    runs=runs,
    spreads={k: statistics.spread(v) for k, v in per_seed.items()},
    per_seed=per_seed,
    scores=scores,
    diverged=[r for r in selection.diverged if r.optimizer == optimizer],
  )


def _verdict(
  architecture: str, column: Column, cells: Sequence[Cell], reason: str
) -> Verdict | None:
  """Compares the cell with the best mean with each of the others."""
  if column.lower_is_better is None:
    return None
  have = {
    cell.optimizer: cell for cell in cells if cell.value(column.key) is not None
  }
  if not have:
    return None
  if reason:
    return Verdict(architecture, column, None, 'incomparable', {}, reason)
  values = {name: cell.value(column.key) or 0.0 for name, cell in have.items()}
  pick = min if column.lower_is_better else max
  best = pick(values, key=lambda name: values[name])
  others = [name for name in values if name != best]
  if not others:
    return Verdict(architecture, column, best, 'alone', {})
  compare_two = _comparer(column, have)
  differences = {name: compare_two(best, name) for name in others}
  return Verdict(
    architecture,
    column,
    best,
    _conclusion(have[best], column, differences),
    differences,
  )


def _comparer(
  column: Column, cells: Mapping[str, Cell]
) -> Callable[[str, str], statistics.Difference]:
  """Returns the function that compares two cells in `column`."""

  def exact(a: str, b: str) -> statistics.Difference:
    value = (
      cells[a].spreads[column.key].mean - cells[b].spreads[column.key].mean
    )
    return statistics.Difference(value, 0.0, 0.0, 'exact')

  def questions(a: str, b: str) -> statistics.Difference:
    return accuracy.difference(
      cells[a].runs, cells[b].runs, column.task, column.metric
    )

  def seeds(a: str, b: str) -> statistics.Difference:
    groups = {name: cell.per_seed[column.key] for name, cell in cells.items()}
    return statistics.seed_difference(groups, a, b)

  if column.kind == 'count':
    return exact
  if column.kind == 'benchmark':
    return questions
  return seeds


def _conclusion(
  best: Cell,
  column: Column,
  differences: Mapping[str, statistics.Difference],
) -> str:
  if column.kind == 'benchmark':
    if best.scores[column.key].above_chance is False:
      return 'chance'
  elif all(d.value == 0 for d in differences.values()):
    return 'equal'
  exceeds = [
    d.exceeds
    for d in differences.values()
    if column.kind != 'count' or d.value != 0
  ]
  if None in exceeds:
    return 'unknown'
  if all(exceeds):
    return 'wins'
  return 'partly' if any(exceeds) else 'tie'


def _warnings(runs: Sequence[Run]) -> list[str]:
  """Says which versions or commits differ among the compared runs."""
  lines = []
  for key in ('git_commit', 'python', 'platform'):
    values = {str(run.env[key]) for run in runs if key in run.env}
    if len(values) > 1:
      lines.append(f'{key} differs among the runs: {", ".join(sorted(values))}')
  names = {n for r in runs if 'versions' in r.env for n in r.env['versions']}
  for name in sorted(names):
    values = {
      str(run.env['versions'][name])
      for run in runs
      if 'versions' in run.env and name in run.env['versions']
    }
    if len(values) > 1:
      lines.append(
        f'{name} differs among the runs: {", ".join(sorted(values))}'
      )
  return lines

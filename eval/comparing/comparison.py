"""Runs on disk -> groups, their statistics, and who wins what.

A group is an architecture at one value of each axis that a study declares; a
cell of it is an optimizer, whose runs differ in the seed. Cells are compared
within a group, over the same seeds, seed by seed; groups that differ on one
axis are compared optimizer by optimizer. docs/comparison.md defines every
number.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

from steepest.eval.comparing import (
  accuracy,
  agreement,
  budgets as budgets_lib,
  cells as cells_lib,
  costs as costs_lib,
  effects as effects_lib,
  fairness,
  groups as groups_lib,
  pareto,
  scaling_fit,
  sensitivity,
  targets,
  tuning,
  verdicts,
)
from steepest.eval.comparing.cells import (
  COLUMNS as COLUMNS,
  Cell as Cell,
  Column as Column,
)
from steepest.eval.comparing.runs import Run, load_runs as load_runs
from steepest.eval.comparing.verdicts import (
  Pair as Pair,
  SourceLoss as SourceLoss,
  Verdict as Verdict,
)


@dataclasses.dataclass(frozen=True)
class Group:
  """One architecture at one value of each axis.

  Attributes:
    selection: which runs are compared and which are not.
    cells: in the order of their optimizers' names.
    verdicts: one for every contested column that a cell has.
    warnings: what limits the comparison, in words.
    axes: axis -> value; {} where no study declares axes.
    budgets: how each cell was tuned.
    refusal: why losses and scores are not ranked; '' where they are.
    pairs: column key -> every two optimizers, with p-values corrected for all
      of them; 'accuracy' is the mean over the benchmarks.
    sources: validation losses by source, nats and bits per byte.
    costs: of each cell, with its search.
    overheads: what the others add to AdamW's step.
    targets: tokens, operations and seconds to AdamW's final loss.
    agreements: rank correlations of loss and scores over the cells.
  """

  selection: fairness.Selection
  cells: list[Cell]
  verdicts: list[Verdict]
  warnings: list[str]
  axes: dict[str, Any]
  budgets: list[budgets_lib.Budget]
  refusal: str
  pairs: dict[str, list[Pair]]
  sources: list[SourceLoss]
  costs: list[costs_lib.CellCost]
  overheads: list[costs_lib.Overhead]
  targets: list[targets.ToTarget]
  agreements: list[agreement.Agreement]

  @property
  def architecture(self) -> str:
    return self.selection.architecture

  @property
  def axes_label(self) -> str:
    """The values of the axes in words, such as 'epochs 4'; '' without axes."""
    return groups_lib.label(self.axes)

  def verdict(self, key: str) -> Verdict | None:
    """Returns the verdict on a column, if there is one."""
    return next((v for v in self.verdicts if v.column.key == key), None)

  def cell(self, optimizer: str) -> Cell | None:
    """Returns an optimizer's cell, if there is one."""
    return next((c for c in self.cells if c.optimizer == optimizer), None)


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Everything that the report shows.

  Attributes:
    runs: all that were read.
    groups: one per architecture and axis values that has final runs.
    columns: those that at least one cell has.
    curves: the learning-rate searches.
    axes: that the studies declare and that final runs differ on.
    effects: what another value of an axis changes, optimizer by optimizer.
    interactions: whether it changes the difference between two optimizers.
    sensitivities: of the loss to each hyperparameter that was searched.
    scalings: loss over token budgets and the speed-ups through AdamW's curve,
      one per architecture and values of the other axes.
    pareto: every cell in the trade-off of hours, loss and accuracy.
    pareto_warning: why its hours are not comparable; '' where they are.
    agreements: rank correlations of loss and scores over the cells of all
      groups, where all were asked the same questions.
  """

  runs: list[Run]
  groups: list[Group]
  columns: list[Column]
  curves: list[tuning.Curve]
  axes: list[groups_lib.Axis]
  effects: list[effects_lib.AxisEffect]
  interactions: list[effects_lib.Interaction]
  sensitivities: list[sensitivity.Sensitivity]
  scalings: list[scaling_fit.Scaling]
  pareto: list[pareto.Candidate]
  pareto_warning: str
  agreements: list[agreement.Agreement]

  @property
  def cells(self) -> list[Cell]:
    return [cell for group in self.groups for cell in group.cells]


def compare(
  runs: Sequence[Run], accept_unequal_budgets: bool = False
) -> Comparison:
  """Compares the final runs within each group, and groups along the axes.

  Args:
    runs: of stage 'tune' or 'final'.
    accept_unequal_budgets: whether losses and scores are ranked where the
      optimizers of a group had unequal tuning budgets.

  Raises:
    ValueError: a run has an unknown stage.
  """
  for run in runs:
    if run.stage not in ('tune', 'final'):
      raise ValueError(
        f'{run.name}: stage is {run.stage!r}; known are tune and final'
      )
  finals = [run for run in runs if run.stage == 'final']
  trials = [run for run in runs if run.stage == 'tune']
  searches = tuning.searches(trials)
  axes = groups_lib.declared(finals)
  groups = [
    _group(members, searches, accept_unequal_budgets)
    for members in groups_lib.partition(finals, axes)
  ]
  compared = [run for g in groups for cell in g.cells for run in cell.runs]
  effects, interactions = effects_lib.compare(
    [_level(group) for group in groups], axes
  )
  candidates, warning = pareto.candidates(
    [
      (cell, cost.total)
      for group in groups
      for cell, cost in zip(group.cells, group.costs, strict=True)
    ]
  )
  return Comparison(
    runs=list(runs),
    groups=groups,
    columns=_columns(groups, compared),
    curves=tuning.curves(trials, compared),
    axes=axes,
    effects=effects,
    interactions=interactions,
    sensitivities=sensitivity.of_searches(searches),
    scalings=_scalings(groups),
    pareto=candidates,
    pareto_warning=warning,
    agreements=agreement.of_cells(
      [cell for group in groups for cell in group.cells],
      [
        column
        for column in _scored(compared)
        if not accuracy.unlike_questions(compared, column.task, column.metric)
      ],
    ),
  )


def _columns(groups: Sequence[Group], compared: Sequence[Run]) -> list[Column]:
  cells = [cell for group in groups for cell in group.cells]
  return [
    column
    for column in (*COLUMNS, *_scored(compared))
    if any(cell.value(column.key) is not None for cell in cells)
  ]


def _scored(runs: Sequence[Run]) -> list[Column]:
  return [
    Column(f'{task}/{metric}', 'benchmark', accuracy.METRICS[metric])
    for task, metric in accuracy.list_metrics(runs)
  ]


def _group(
  members: groups_lib.Members,
  searches: Sequence[Sequence[Run]],
  accept_unequal_budgets: bool,
) -> Group:
  selection = fairness.select(members.runs)
  compared = [run for cell in selection.cells.values() for run in cell]
  scored = _scored(compared)
  names = {*selection.cells, *(run.optimizer for run in selection.diverged)}
  cells = [
    cells_lib.build(selection, name, scored, members.axes)
    for name in sorted(names)
  ]
  unlike = {
    column.key: lines
    for column in scored
    if (
      lines := accuracy.unlike_questions(compared, column.task, column.metric)
    )
  }
  trials = {cell.optimizer: _trials(cell, searches) for cell in cells}
  budgets = [
    budget
    for cell in cells
    if (budget := _budget(cell, trials[cell.optimizer])) is not None
  ]
  refusal = ''
  if not accept_unequal_budgets:
    refusal = budgets_lib.refusal(budgets, list(selection.cells))
  speeds = sorted({fairness.speed_setup(run) for run in compared})
  pairs = {
    column.key: verdicts.column_pairs(column, cells)
    for column in (*COLUMNS, *scored)
    if column.lower_is_better is not None
  }
  pairs['accuracy'] = [] if unlike else verdicts.average_pairs(cells)
  reasons = _reasons(scored, speeds, unlike, refusal)
  found = [
    verdicts.decide(
      selection.architecture,
      column,
      cells,
      pairs[column.key] if column.key in pairs else [],
      reasons[column.key],
    )
    for column in (*COLUMNS, *scored)
  ]
  costs = [costs_lib.cell_cost(cell, trials[cell.optimizer]) for cell in cells]
  return Group(
    selection=selection,
    cells=cells,
    verdicts=[verdict for verdict in found if verdict is not None],
    warnings=fairness.warnings(compared) + _unlike_lines(unlike),
    axes=members.axes,
    budgets=budgets,
    refusal=refusal,
    pairs={key: of for key, of in pairs.items() if of},
    sources=verdicts.source_losses(cells),
    costs=costs,
    overheads=costs_lib.overheads(cells, len(speeds) < 2),
    targets=targets.to_targets(cells, costs, len(speeds) < 2),
    agreements=agreement.of_cells(
      cells, [column for column in scored if column.key not in unlike]
    ),
  )


def _unlike_lines(unlike: dict[str, list[str]]) -> list[str]:
  return [
    f'{key} is not compared: {line}'
    for key, lines in unlike.items()
    for line in lines
  ]


def _reasons(
  scored: Sequence[Column],
  speeds: Sequence[tuple[str, ...]],
  unlike: dict[str, list[str]],
  refusal: str,
) -> dict[str, str]:
  """Returns column key -> why it is not compared; '' where it is."""
  found = {}
  for column in (*COLUMNS, *scored):
    reason = ''
    if column.kind == 'speed' and len(speeds) > 1:
      reason = 'the runs had unlike machines or meshes: ' + ' / '.join(
        ', '.join(speed) for speed in speeds
      )
    elif column.key in unlike:
      reason = 'the runs scored unlike questions'
    elif column.kind in ('loss', 'benchmark'):
      reason = refusal
    found[column.key] = reason
  return found


def _trials(cell: Cell, searches: Sequence[Sequence[Run]]) -> list[Run]:
  """Returns the trials behind a cell's final runs."""
  finals = [*cell.runs, *cell.diverged]
  return [
    run
    for search in searches
    if tuning.served(search, finals[:1])
    for run in search
    if run.status != 'unfinished'
  ]


def _budget(cell: Cell, trials: Sequence[Run]) -> budgets_lib.Budget | None:
  return budgets_lib.build(cell.optimizer, trials, cell.runs)


def _level(group: Group) -> effects_lib.Level:
  key = 'eval_loss'
  return effects_lib.Level(
    group.architecture,
    group.axes,
    group.cells,
    group.selection.equal,
    group.pairs[key] if key in group.pairs else [],
  )


def _scalings(groups: Sequence[Group]) -> list[scaling_fit.Scaling]:
  """Fits AdamW's loss over tokens where groups differ in nothing else."""
  found: dict[tuple[Any, ...], list[Group]] = {}
  for group in groups:
    others = {k: v for k, v in group.axes.items() if k != 'tokens'}
    key = (group.architecture, *others.items())
    found.setdefault(key, []).append(group)
  result = []
  for (architecture, *axes), of_key in found.items():
    losses: dict[str, dict[float, Sequence[float]]] = {}
    for group in of_key:
      for cell in group.cells:
        if 'eval_loss' in cell.per_seed:
          tokens = float(cell.runs[0].planned_tokens)
          of = losses.setdefault(cell.optimizer, {})
          of[tokens] = cell.per_seed['eval_loss']
    name = costs_lib.baseline(losses)
    if name is not None and len(losses) > 1:
      result.append(scaling_fit.scaling(architecture, dict(axes), name, losses))
  return result

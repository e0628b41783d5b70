"""The report's numbers as JSON: everything the page shows, unrounded."""

from collections.abc import Sequence
import dataclasses
import math
from typing import Any

from steepest.eval.comparing import claims, formatting, rules, tuning
from steepest.eval.comparing.comparison import Cell, Comparison, Group
from steepest.eval.comparing.runs import Run
from steepest.eval.plots import figures
from steepest.eval.report import words


def to_dict(
  comparison: Comparison,
  transfer: dict[str, Any] | None,
  answers: Sequence[claims.Answer],
) -> dict[str, Any]:
  """Returns the comparison as values that JSON can hold.

  Args:
    comparison: everything that the report shows, but for
    transfer: of transfer.analyse, and
    answers: to a paper's claims.
  """
  content = {
    'architectures': [_group(group) for group in comparison.groups],
    'axes': [dataclasses.asdict(axis) for axis in comparison.axes],
    'effects': [dataclasses.asdict(effect) for effect in comparison.effects],
    'interactions': [
      dataclasses.asdict(found) for found in comparison.interactions
    ],
    'sensitivities': [
      dataclasses.asdict(found) for found in comparison.sensitivities
    ],
    'scalings': [dataclasses.asdict(found) for found in comparison.scalings],
    'pareto': [
      {**dataclasses.asdict(found), 'efficient': found.efficient}
      for found in comparison.pareto
    ],
    'pareto_warning': comparison.pareto_warning,
    'agreements': [
      dataclasses.asdict(found) for found in comparison.agreements
    ],
    'fairness': [dataclasses.asdict(rule) for rule in rules.RULES],
    'tuning': [_curve(curve) for curve in comparison.curves],
    'unequal_budgets': words.unequal_budgets(comparison),
    'runs': [_run(run) for run in comparison.runs],
    'rules': list(words.RULES),
    'transfer': transfer,
    'claims': [dataclasses.asdict(answer) for answer in answers],
  }
  return _finite(content)


def drawn(
  comparison: Comparison, transfer: dict[str, Any] | None
) -> dict[str, Any]:
  """Returns the figures as values that JSON can hold; arguments as above."""
  return _finite(figures.figures(comparison, transfer))


def _group(group: Group) -> dict[str, Any]:
  selection = group.selection
  return {
    'architecture': group.architecture,
    'axes': group.axes,
    'name': formatting.group_name(group),
    'refusal': group.refusal,
    'headline': words.headline(group),
    'seeds': list(selection.seeds),
    'equal': selection.equal,
    'cells': [_cell(cell) for cell in group.cells],
    'verdicts': _verdicts(group),
    'left_out': [
      {'run': entry.run.name, 'reasons': list(entry.reasons)}
      for entry in selection.left_out
    ],
    'diverged': [
      {'run': run.name, 'step': tuning.diverged_step(run)}
      for run in selection.diverged
    ],
    'unfinished': [
      {'run': run.name, 'steps': run.steps_done, 'of': run.config['steps']}
      for run in selection.unfinished
    ],
    'warnings': group.warnings,
    **_numbers(group),
  }


def _numbers(group: Group) -> dict[str, Any]:
  """Returns differences, budgets, costs and speed-ups of a group."""
  return {
    'pairs': {
      key: [
        {
          'first': pair.first,
          'second': pair.second,
          **dataclasses.asdict(pair.difference),
          'exceeds': pair.difference.exceeds,
        }
        for pair in pairs
      ]
      for key, pairs in group.pairs.items()
    },
    **{
      key: [dataclasses.asdict(entry) for entry in getattr(group, key)]
      for key in (
        'budgets',
        'sources',
        'costs',
        'overheads',
        'agreements',
      )
    },
    'targets': [
      {**dataclasses.asdict(found), 'gap': found.gap} for found in group.targets
    ],
  }


def _verdicts(group: Group) -> list[dict[str, Any]]:
  return [
    {
      'column': verdict.column.key,
      'best': verdict.best,
      'conclusion': verdict.conclusion,
      'text': statement.text,
      'differences': {
        other: {**dataclasses.asdict(d), 'exceeds': d.exceeds}
        for other, d in verdict.differences.items()
      },
    }
    for verdict, statement in zip(group.verdicts, words.statements(group))
  ]


def _cell(cell: Cell) -> dict[str, Any]:
  return {
    'optimizer': cell.optimizer,
    'runs': [run.name for run in cell.runs],
    'values': {
      key: {**dataclasses.asdict(spread), 'per_seed': cell.per_seed[key]}
      for key, spread in cell.spreads.items()
    },
    'scores': {
      key: dataclasses.asdict(score) for key, score in cell.scores.items()
    },
    'accuracy': (
      None if cell.accuracy is None else dataclasses.asdict(cell.accuracy)
    ),
  }


def _curve(curve: tuning.Curve) -> dict[str, Any]:
  return {
    **dataclasses.asdict(curve),
    'fitted': curve.fitted,
    'extended': curve.extended,
  }


def _run(run: Run) -> dict[str, Any]:
  return {
    'run': run.name,
    'stage': run.stage,
    'status': run.status,
    'architecture': run.architecture,
    'optimizer': run.optimizer,
    'seed': run.seed,
    'lr': run.lr,
    'summary': run.summary,
    'env': run.env,
  }


def _finite(value: Any) -> Any:
  """Returns `value` with null for numbers that JSON has no word for."""
  if isinstance(value, dict):
    return {str(key): _finite(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [_finite(item) for item in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value

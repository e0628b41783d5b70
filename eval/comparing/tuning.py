"""How each cell was tuned: search, trials, budget, optimum, transfer."""

from collections.abc import Sequence
import dataclasses
import json
import math
from typing import Any

from steepest.eval.comparing import groups, optimum, statistics
from steepest.eval.comparing.runs import Run


@dataclasses.dataclass(frozen=True)
class Point:
  """Trials at one learning rate.

  Attributes:
    lr: peak learning rate.
    loss: mean over the trials of one setting, the lowest of all settings whose
      trials finished; None where there is none.
    trials: how many there are.
    diverged_at: the first step at which one diverged; None where none did.
    pruned_at: the first step before which one was ended early; likewise.
  """

  lr: float
  loss: float | None
  trials: int
  diverged_at: int | None
  pruned_at: int | None


@dataclasses.dataclass(frozen=True)
class Curve:
  """The search of one cell on one proxy.

  Attributes:
    architecture: model.name.
    optimizer: optimizer.name.
    width: of the proxy.
    layers: of the proxy.
    parameters: of the proxy; None while no trial has ended.
    search: 'grid', 'random' or 'tpe'; None where not recorded.
    searched: what was searched beside lr, as in config.json.
    values: of these, those of the best trial.
    tokens: per trial, planned.
    spent: tokens of all trials that ended, pruned ones as far as they came,
      diverged ones in full.
    pruned: trials that were ended early.
    criterion: 'eval_loss', or 'train_loss' where a trial has no other.
    points: ascending in lr.
    unfinished: trials under way.
    best: learning rate of the lowest loss; None where none finished.
    inside: whether a lower and a higher rate were tried; None without `best`.
    fit: parabola in log lr around the best, through the trials that differ
      from it in lr alone; None where there is none.
    planned: the grid that the study started from; None where not recorded.
    chosen: learning rate of the cell's final runs; None while there are none.
    target_width: of the cell's final runs; None while there are none.
    target_layers: likewise.
    settings: the optimizer's other settings that the trials share.
    parametrization: parametrization.kind of the trials.
    axes: values on axes that were searched anew, in words; ''.
  """

  architecture: str
  optimizer: str
  width: int
  layers: int
  parameters: int | None
  search: str | None
  searched: tuple[str, ...]
  values: dict[str, Any]
  tokens: int
  spent: int
  pruned: int
  criterion: str
  points: tuple[Point, ...]
  unfinished: int
  best: float | None
  inside: bool | None
  fit: optimum.Fit | None
  planned: tuple[float, ...] | None
  chosen: float | None
  target_width: int | None
  target_layers: int | None
  settings: dict[str, Any]
  parametrization: str
  axes: str

  @property
  def trials(self) -> int:
    return sum(point.trials for point in self.points)

  @property
  def fitted(self) -> float | None:
    """The learning rate at which the parabola is lowest."""
    return None if self.fit is None else self.fit.lr

  @property
  def extended(self) -> tuple[float, ...] | None:
    """The rates tried beyond the planned ones; None where not recorded."""
    if self.planned is None:
      return None
    planned = self.planned
    if self.search in ('random', 'tpe'):
      low, high = min(planned) * (1 - 1e-5), max(planned) * (1 + 1e-5)
      return tuple(p.lr for p in self.points if not low <= p.lr <= high)
    return tuple(
      point.lr
      for point in self.points
      if not any(math.isclose(point.lr, lr, rel_tol=1e-6) for lr in planned)
    )


def curves(trials: Sequence[Run], finals: Sequence[Run]) -> list[Curve]:
  """Groups trials by architecture, optimizer and proxy shape.

  Args:
    trials: runs of stage 'tune'.
    finals: the compared runs of all cells.
  """
  # Unlike criteria within an architecture would not be comparable.
  result = []
  for search in searches(trials):
    first = search[0]
    peers = [run for run in trials if run.architecture == first.architecture]
    result.append(_curve(search, _criterion(peers), served(search, finals)))
  return result


def searches(trials: Sequence[Run]) -> list[list[Run]]:
  """Returns the trials of each search: of one cell, on one proxy."""
  found: dict[tuple[Any, ...], list[Run]] = {}
  for run in trials:
    shape = (run.config['model.width'], run.config['model.num_layers'])
    rule = (run.planned_tokens, run.config['parametrization.kind'])
    at = json.dumps(groups.searched_at(run))
    key = (run.architecture, run.optimizer, *shape, *rule, at)
    found.setdefault(key, []).append(run)
  return [found[key] for key in sorted(found)]


def served(search: Sequence[Run], finals: Sequence[Run]) -> list[Run]:
  """Returns the final runs of the cells that a search was for."""
  key = _searched_for(search[0])
  return [run for run in finals if _searched_for(run) == key]


def _searched_for(run: Run) -> tuple[Any, ...]:
  return run.architecture, run.optimizer, groups.searched_at(run)


def _criterion(trials: Sequence[Run]) -> str:
  finished = [r.summary for r in trials if r.status == 'finished']
  has_all = all(s is not None and s['eval_loss'] is not None for s in finished)
  return 'eval_loss' if has_all else 'train_loss'


def _curve(
  trials: Sequence[Run], criterion: str, targets: Sequence[Run]
) -> Curve:
  ended = [run for run in trials if run.status != 'unfinished']
  searched = _searched(trials)
  points = tuple(
    _point([run for run in ended if run.lr == lr], criterion, searched)
    for lr in sorted({run.lr for run in ended})
  )
  best = _best(points)
  values = _values(ended, criterion, searched)
  alike = [run for run in ended if _settings(run, searched) == values]
  first = trials[0]
  done = [r.summary for r in ended if r.summary is not None]
  parameters = next((s['parameters'] for s in done if 'parameters' in s), None)
  target = targets[0].config if targets else None
  study = first.study
  return Curve(
    architecture=first.architecture,
    optimizer=first.optimizer,
    width=int(first.config['model.width']),
    layers=int(first.config['model.num_layers']),
    parameters=parameters,
    search=str(study['search']) if 'search' in study else None,
    searched=searched,
    values=dict(zip(searched, values, strict=True)) if values else {},
    tokens=first.planned_tokens,
    spent=sum(_spent(run) for run in ended),
    pruned=sum(run.status == 'pruned' for run in ended),
    criterion=criterion,
    points=points,
    unfinished=len(trials) - len(ended),
    best=None if best is None else points[best].lr,
    inside=None if best is None else 0 < best < len(points) - 1,
    fit=optimum.fit(
      [
        (lr, _point([r for r in alike if r.lr == lr], criterion, ()).loss)
        for lr in sorted({run.lr for run in alike})
      ]
    ),
    planned=_planned(study, first.optimizer),
    chosen=targets[0].lr if targets else None,
    target_width=int(target['model.width']) if target else None,
    target_layers=int(target['model.num_layers']) if target else None,
    settings=_shared(trials),
    parametrization=str(first.config['parametrization.kind']),
    axes=groups.label(dict(groups.searched_at(first))),
  )


def _searched(trials: Sequence[Run]) -> tuple[str, ...]:
  """Returns the hyperparameters but lr that differ between the trials."""
  first = trials[0].config
  return tuple(
    key
    for key in first
    if key.startswith(('optimizer.', 'schedule.', 'parametrization.'))
    and key != 'optimizer.lr'
    and any(run.config[key] != first[key] for run in trials)
  )


def _settings(run: Run, searched: Sequence[str]) -> tuple[Any, ...]:
  return tuple(run.config[key] for key in searched)


def _values(
  trials: Sequence[Run], criterion: str, searched: Sequence[str]
) -> tuple[Any, ...]:
  """Returns the settings of the best trial, but lr; () where there is none."""
  finished = [r for r in trials if r.status == 'finished' and r.summary]
  losses = [float((r.summary or {})[criterion]) for r in finished]
  if not losses:
    return ()
  return _settings(finished[losses.index(min(losses))], searched)


def _spent(run: Run) -> int:
  assert run.summary is not None
  pruned = run.status == 'pruned'
  return int(run.summary['tokens']) if pruned else run.planned_tokens


def _point(
  trials: Sequence[Run], criterion: str, searched: Sequence[str]
) -> Point:
  diverged = []
  pruned = []
  settings: dict[str, list[float | None]] = {}
  for run in trials:
    assert run.summary is not None
    if run.status == 'diverged':
      diverged.append(diverged_step(run))
    elif run.status == 'pruned':
      pruned.append(run.steps_done)
    loss = run.summary[criterion] if run.status == 'finished' else None
    setting = json.dumps(_settings(run, searched))
    settings.setdefault(setting, []).append(loss)
  losses = [
    statistics.spread([loss for loss in group if loss is not None]).mean
    for group in settings.values()
    if None not in group
  ]
  return Point(
    lr=trials[0].lr,
    loss=min(losses, default=None),
    trials=len(trials),
    diverged_at=min(diverged, default=None),
    pruned_at=min(pruned, default=None),
  )


def diverged_step(run: Run) -> int:
  """Returns the step at which a diverged run did so."""
  assert run.summary is not None
  if 'diverged_at_step' in run.summary:
    return int(run.summary['diverged_at_step'])
  return run.steps_done


def _best(points: Sequence[Point]) -> int | None:
  finished = [(p.loss, i) for i, p in enumerate(points) if p.loss is not None]
  return min(finished)[1] if finished else None


def _shared(trials: Sequence[Run]) -> dict[str, Any]:
  """Returns the optimizer's settings, but lr, that all trials share."""
  first = trials[0].config
  return {
    key.removeprefix('optimizer.'): value
    for key, value in first.items()
    if key.startswith('optimizer.')
    and key not in ('optimizer.name', 'optimizer.lr')
    and all(run.config[key] == value for run in trials)
  }


def _planned(study: dict[str, Any], optimizer: str) -> tuple[float, ...] | None:
  """Returns the rates that the study started from."""
  key = f'lrs_{optimizer}'
  try:
    return tuple(float(lr) for lr in study[key])
  except (ValueError, KeyError, TypeError):
    return None


def budgets(found: Sequence[Curve]) -> dict[str, dict[str, tuple[int, int]]]:
  """Returns architecture -> optimizer -> trials and what they spent.

  In tokens; see `Curve.spent`.
  """
  result: dict[str, dict[str, tuple[int, int]]] = {}
  for curve in found:
    of_all = result.setdefault(curve.architecture, {})
    trials, tokens = of_all.setdefault(curve.optimizer, (0, 0))
    of_all[curve.optimizer] = (
      trials + curve.trials,
      tokens + curve.spent,
    )
  return result

"""How each cell's learning rate was found: trials, grid, optimum, transfer."""

from collections.abc import Sequence
import dataclasses
import json
import math
import pathlib
from typing import Any

from steepest.eval import statistics
from steepest.eval.runs import Run


@dataclasses.dataclass(frozen=True)
class Point:
  """Trials at one learning rate.

  Attributes:
    lr: peak learning rate.
    loss: mean over the trials that finished; None where one diverged.
    trials: how many there are.
    diverged_at: the first step at which one diverged; None where none did.
  """

  lr: float
  loss: float | None
  trials: int
  diverged_at: int | None


@dataclasses.dataclass(frozen=True)
class Curve:
  """The search of one cell on one proxy.

  Attributes:
    architecture: model.name.
    optimizer: optimizer.name.
    width: of the proxy.
    layers: of the proxy.
    parameters: of the proxy; None while no trial has ended.
    tokens: per trial, planned.
    criterion: 'eval_loss', or 'train_loss' where a trial has no other.
    points: ascending in lr.
    unfinished: trials under way.
    best: learning rate of the lowest loss; None where none finished.
    inside: whether a lower and a higher rate were tried; None without `best`.
    fitted: minimum of the parabola in log lr through the best and its
      neighbours; None where one of them is missing or diverged.
    planned: the grid that the study started from; None where not recorded.
    chosen: learning rate of the cell's final runs; None while there are none.
    target_width: of the cell's final runs; None while there are none.
    target_layers: likewise.
    settings: the optimizer's other settings that the trials share.
    parametrization: parametrization.kind of the trials.
  """

  architecture: str
  optimizer: str
  width: int
  layers: int
  parameters: int | None
  tokens: int
  criterion: str
  points: tuple[Point, ...]
  unfinished: int
  best: float | None
  inside: bool | None
  fitted: float | None
  planned: tuple[float, ...] | None
  chosen: float | None
  target_width: int | None
  target_layers: int | None
  settings: dict[str, Any]
  parametrization: str

  @property
  def trials(self) -> int:
    return sum(point.trials for point in self.points)

  @property
  def extended(self) -> tuple[float, ...] | None:
    """The rates tried beyond the planned grid; None where not recorded."""
    if self.planned is None:
      return None
    planned = self.planned
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
  groups: dict[tuple[Any, ...], list[Run]] = {}
  for run in trials:
    shape = (run.config['model.width'], run.config['model.num_layers'])
    rule = (run.planned_tokens, run.config['parametrization.kind'])
    key = (run.architecture, run.optimizer, *shape, *rule)
    groups.setdefault(key, []).append(run)
  # Unlike criteria within an architecture would not be comparable.
  result = []
  for key in sorted(groups):
    peers = [r for k, group in groups.items() if k[0] == key[0] for r in group]
    targets = [r for r in finals if (r.architecture, r.optimizer) == key[:2]]
    result.append(_curve(groups[key], _criterion(peers), targets))
  return result


def _criterion(trials: Sequence[Run]) -> str:
  finished = [r.summary for r in trials if r.status == 'finished']
  has_all = all(s is not None and s['eval_loss'] is not None for s in finished)
  return 'eval_loss' if has_all else 'train_loss'


def _curve(
  trials: Sequence[Run], criterion: str, targets: Sequence[Run]
) -> Curve:
  ended = [run for run in trials if run.status != 'unfinished']
  points = tuple(
    _point([run for run in ended if run.lr == lr], criterion)
    for lr in sorted({run.lr for run in ended})
  )
  best = _best(points)
  first = trials[0]
  done = [r.summary for r in ended if r.summary is not None]
  parameters = next((s['parameters'] for s in done if 'parameters' in s), None)
  target = targets[0].config if targets else None
  return Curve(
    architecture=first.architecture,
    optimizer=first.optimizer,
    width=int(first.config['model.width']),
    layers=int(first.config['model.num_layers']),
    parameters=parameters,
    tokens=first.planned_tokens,
    criterion=criterion,
    points=points,
    unfinished=len(trials) - len(ended),
    best=None if best is None else points[best].lr,
    inside=None if best is None else 0 < best < len(points) - 1,
    fitted=_fitted(points, best),
    planned=_planned(first),
    chosen=targets[0].lr if targets else None,
    target_width=int(target['model.width']) if target else None,
    target_layers=int(target['model.num_layers']) if target else None,
    settings=_settings(trials),
    parametrization=str(first.config['parametrization.kind']),
  )


def _point(trials: Sequence[Run], criterion: str) -> Point:
  steps = []
  losses = []
  for run in trials:
    assert run.summary is not None
    if run.status == 'diverged':
      steps.append(diverged_step(run))
    else:
      losses.append(float(run.summary[criterion]))
  loss = statistics.spread(losses).mean if losses and not steps else None
  return Point(trials[0].lr, loss, len(trials), min(steps) if steps else None)


def diverged_step(run: Run) -> int:
  """Returns the step at which a diverged run did so."""
  assert run.summary is not None
  if 'diverged_at_step' in run.summary:
    return int(run.summary['diverged_at_step'])
  return run.steps_done


def _best(points: Sequence[Point]) -> int | None:
  finished = [(p.loss, i) for i, p in enumerate(points) if p.loss is not None]
  return min(finished)[1] if finished else None


def _fitted(points: Sequence[Point], best: int | None) -> float | None:
  if best is None or not 0 < best < len(points) - 1:
    return None
  around = [
    (math.log(p.lr), p.loss)
    for p in points[best - 1 : best + 2]
    if p.loss is not None
  ]
  if len(around) < 3:
    return None
  minimum = statistics.parabola_minimum(around)
  return None if minimum is None else math.exp(minimum[0])


def _settings(trials: Sequence[Run]) -> dict[str, Any]:
  """Returns the optimizer's settings, but lr, that all trials share."""
  first = trials[0].config
  return {
    key.removeprefix('optimizer.'): value
    for key, value in first.items()
    if key.startswith('optimizer.')
    and key not in ('optimizer.name', 'optimizer.lr')
    and all(run.config[key] == value for run in trials)
  }


def _planned(trial: Run) -> tuple[float, ...] | None:
  """Returns the study's grid, from the trial's or the study's config."""
  key = f'study.lrs_{trial.optimizer}'
  if key in trial.config:
    return tuple(float(lr) for lr in trial.config[key])
  for parent in list(pathlib.Path(trial.path).resolve().parents)[:4]:
    path = parent / 'config.json'
    if not path.exists():
      continue
    try:
      study = json.loads(path.read_text('utf-8'))['study']
      return tuple(float(lr) for lr in study[f'lrs_{trial.optimizer}'])
    except (ValueError, KeyError, TypeError):
      return None
  return None


def budgets(found: Sequence[Curve]) -> dict[str, dict[str, tuple[int, int]]]:
  """Returns architecture -> optimizer -> trials and their tokens in all."""
  result: dict[str, dict[str, tuple[int, int]]] = {}
  for curve in found:
    of_all = result.setdefault(curve.architecture, {})
    trials, tokens = of_all.setdefault(curve.optimizer, (0, 0))
    of_all[curve.optimizer] = (
      trials + curve.trials,
      tokens + curve.trials * curve.tokens,
    )
  return result

"""Which final runs form a group: a model at one value of each declared axis.

Within a group only optimizers differ. An axis is what a study declares in its
config.json (`study.axis_*`). What no study declares is no axis, and runs that
differ in it are unlike.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

from steepest.eval.comparing.runs import Run

# Axis -> config key of its value; what no key holds is told by `value`.
_KEYS = {
  'epochs': 'data.epochs',
  'batch_size': 'batch_size',
  'schedule': 'schedule.kind',
}
_TOKENS = 'tokens'
# What changes with an axis by itself, so that tokens or epochs stay equal.
_FOLLOWS = {
  'epochs': ('data fingerprint',),
  'batch_size': ('steps', 'schedule.warmup_steps', 'log_every'),
  'schedule': (),
  'tokens': ('steps',),
}


@dataclasses.dataclass(frozen=True)
class Axis:
  """What a study varies beside model and optimizer.

  Attributes:
    name: as in study.axis_NAME: 'epochs', 'batch_size', 'schedule', 'tokens'.
    own: the value of the study's own configuration, which the others are
      compared with; of several studies, of the first.
    values: those that final runs have, rising.
  """

  name: str
  own: Any
  values: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Members:
  """Final runs that belong together.

  Attributes:
    architecture: model.name.
    axes: axis -> value.
    runs: all of them, unlike ones included.
  """

  architecture: str
  axes: dict[str, Any]
  runs: list[Run]


def declared(finals: Sequence[Run]) -> list[Axis]:
  """Returns the axes that studies declare and that have two values here."""
  owners: dict[str, Run] = {}
  for run in finals:
    for name in _names(run):
      owners.setdefault(name, run)
  axes = []
  for name, owner in owners.items():
    values = sorted({value(run, name) for run in finals}, key=_rank)
    if len(values) > 1:
      own = _own(owner, name)
      axes.append(
        Axis(name, own if own in values else values[0], tuple(values))
      )
  return axes


def partition(finals: Sequence[Run], axes: Sequence[Axis]) -> list[Members]:
  """Returns the groups of the runs, by model and then by rising values."""
  found: dict[tuple[Any, ...], list[Run]] = {}
  for run in finals:
    key = (run.architecture, *(value(run, axis.name) for axis in axes))
    found.setdefault(key, []).append(run)
  names = [axis.name for axis in axes]
  return [
    Members(key[0], dict(zip(names, key[1:], strict=True)), found[key])
    for key in sorted(found, key=lambda key: tuple(map(_rank, key)))
  ]


def value(run: Run, name: str) -> Any:
  """Returns a run's value on an axis; tokens are those that it plans."""
  if name == _TOKENS:
    return run.planned_tokens
  if name in _KEYS:
    return run.config[_KEYS[name]]
  held = [key for key in run.config if key.rpartition('.')[2] == name]
  return run.config[held[0]] if held else ''


def _rank(shown: Any) -> tuple[bool, Any]:
  """Returns what numbers, and then words, are sorted by."""
  return isinstance(shown, str), shown


def follows(name: str) -> tuple[str, ...]:
  """Returns the fingerprint's keys that an axis changes."""
  own = _TOKENS if name == _TOKENS else _KEYS[name] if name in _KEYS else name
  return (own, *(_FOLLOWS[name] if name in _FOLLOWS else ()))


def label(axes: Mapping[str, Any]) -> str:
  """Returns 'epochs 4, batch size 32'; '' without axes."""
  return ', '.join(
    f'{name.replace("_", " ")} {shown:,}'
    if isinstance(shown, int)
    else f'{name.replace("_", " ")} {shown}'
    for name, shown in axes.items()
  )


def searched_at(run: Run) -> tuple[tuple[str, Any], ...]:
  """Returns (axis, value) of those on which the run's study searches anew.

  A trial and a final run belong together where these are equal. Tokens stand
  as multiples of the study's own, which trials and final runs share.
  """
  retuned = str(run.study['retune']) if 'retune' in run.study else ''
  names = {word.strip() for word in retuned.split(',')}
  return tuple(
    (name, _multiple(run) if name == _TOKENS else value(run, name))
    for name in sorted(set(_names(run)) & names)
  )


def _names(run: Run) -> list[str]:
  """Returns the axes that a run's study declares."""
  return [
    key.removeprefix('axis_')
    for key, values in run.study.items()
    if key.startswith('axis_') and values
  ]


def _own(run: Run, name: str) -> Any:
  """Returns the value of the study's own configuration; None if unknown."""
  if name == _TOKENS:
    return _own_tokens(run)
  plan = run.study_config
  return plan[_KEYS[name]] if name in _KEYS and _KEYS[name] in plan else None


def _own_tokens(run: Run) -> int | None:
  """Returns what the study's own configuration has for a run of this stage."""
  plan = run.study_config
  keys = ('batch_size', 'steps', 'study.target_steps', 'model.context')
  if any(key not in plan for key in keys):
    return None
  steps = plan['study.target_steps' if run.stage == 'final' else 'steps']
  return int(plan['batch_size'] * steps * plan['model.context'])


def _multiple(run: Run) -> float:
  """Returns the run's tokens over those of the study's own configuration."""
  own = _own_tokens(run)
  return 1.0 if own is None else float(f'{run.planned_tokens / own:.6g}')

"""The axes of a study: what its targets vary beside model and optimizer.

An axis has values; the study's own one, which its configuration has anyway, is
always among them. A point says where a target lies: the values that are not
the study's own. All keys are `study.axis_*` in experiments/base.py.
"""

from collections.abc import Sequence
import dataclasses
import itertools

from ml_collections import ConfigDict

from steepest.optimizers import schedules

MODES = ('one_at_a_time', 'product')

Value = int | float | str
# (axis, value) of every axis that is not at the study's own value.
Point = tuple[tuple[str, Value], ...]


@dataclasses.dataclass(frozen=True)
class Axis:
  """An axis and its values.

  Attributes:
    name: 'epochs', 'batch_size', 'schedule' or 'tokens'.
    own: the study's own value.
    others: the values that are tried beside it.
  """

  name: str
  own: Value
  others: tuple[Value, ...]


def axes(config: ConfigDict) -> list[Axis]:
  """Returns all axes of a study; those without values have no `others`.

  Raises:
    ValueError: a value is out of its range or given twice.
  """
  study = config.study
  found = [
    _axis('epochs', config.data.epochs, study.axis_epochs, int),
    _axis('batch_size', config.batch_size, study.axis_batch_size, int),
    _axis('schedule', config.schedule.kind, _words(study.axis_schedule), str),
    _axis('tokens', 1, study.axis_tokens, float),
  ]
  for kind in found[2].others:
    if kind not in schedules.KINDS:
      raise ValueError(
        f'study.axis_schedule={study.axis_schedule!r}: there are '
        f'{", ".join(schedules.KINDS)}'
      )
  return found


def points(config: ConfigDict) -> list[Point]:
  """Returns where the targets lie, the study's own values () first.

  Raises:
    ValueError: as `axes`, or study.axes_mode is unknown.
  """
  mode, found = config.study.axes_mode, axes(config)
  if mode not in MODES:
    raise ValueError(
      f'study.axes_mode={mode!r}: must be one of {", ".join(MODES)}'
    )
  choices = [
    [(), *(((axis.name, value),) for value in axis.others)] for axis in found
  ]
  if mode == 'product':
    return [
      tuple(itertools.chain(*parts)) for parts in itertools.product(*choices)
    ]
  return [(), *(point for of_axis in choices for point in of_axis[1:])]


def retuned(config: ConfigDict, point: Point) -> Point:
  """Returns the part of a point that has a search of its own.

  Raises:
    ValueError: study.retune names an axis that does not exist.
  """
  names = _words(config.study.retune)
  known = [axis.name for axis in axes(config)]
  for name in names:
    if name not in known:
      raise ValueError(
        f'study.retune={config.study.retune!r}: there are {", ".join(known)}'
      )
  return tuple((name, value) for name, value in point if name in names)


def suffix(point: Point) -> str:
  """Returns what a point adds to the names of directories; '' for ()."""
  return ''.join(f'-{name}={_shown(value)}' for name, value in point)


def apply(run: ConfigDict, point: Point) -> None:
  """Moves a run from the study's own values to a point.

  Runs of other batch sizes read as many tokens: steps, warm-up and the
  distances between validations change inversely, and a slice of the batch
  keeps its sequences. Other token budgets have the same warm-up.

  Raises:
    ValueError: the steps would not be a whole number.
  """
  for name, value in point:
    if name == 'epochs':
      run.data.epochs = value
    elif name == 'schedule':
      run.schedule.kind = value
    elif name == 'tokens':
      run.steps = _whole(run.steps * value, name, value)
    else:
      _set_batch_size(run, int(value))


def _set_batch_size(run: ConfigDict, size: int) -> None:
  share = run.batch_size / size
  run.steps = _whole(run.steps * run.batch_size / size, 'batch_size', size)
  run.schedule.warmup_steps = round(run.schedule.warmup_steps * share)
  for key in ('eval_every', 'eval_tasks_every'):
    run[key] = max(1, round(run[key] * share)) if run[key] else 0
  rows = run.batch_size // run.microbatches
  if size <= rows:
    run.microbatches = 1
  elif size % rows == 0:
    run.microbatches = size // rows
  run.batch_size = size


def _whole(steps: float, name: str, value: Value) -> int:
  if steps < 1 or steps != round(steps):
    raise ValueError(
      f'study.axis_{name}: {_shown(value)} makes {steps:g} steps of a run; '
      'choose steps and values that divide'
    )
  return round(steps)


def _axis(
  name: str, own: Value, given: Sequence[Value], kind: type[Value]
) -> Axis:
  key = f'study.axis_{name}={tuple(given)}'
  if kind is not str:
    for value in given:
      if isinstance(value, str) or value != kind(value) or value <= 0:
        wanted = 'whole numbers' if kind is int else 'numbers'
        raise ValueError(f'{key}: give {wanted} above 0')
  if len(set(given)) < len(given):
    raise ValueError(f'{key}: give each value once')
  values = (kind(value) for value in given)
  return Axis(name, own, tuple(v for v in values if v != own))


def _words(text: str) -> list[str]:
  return [word.strip() for word in text.split(',') if word.strip()]


def _shown(value: Value) -> str:
  return value if isinstance(value, str) else f'{value:.6g}'

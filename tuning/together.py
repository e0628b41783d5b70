"""Trains several trials of a cell as one program, where memory allows."""

from collections.abc import Callable, Sequence
import math
import pathlib
from typing import Any

from ml_collections import ConfigDict

from steepest.experiments import base
from steepest.models import config as model_config
from steepest.training import config as validation, run as assemble, trials
from steepest.training.loop import Callbacks, Diverged
from steepest.tuning import cells
from steepest.tuning.pruning import Pruned

OnRow = Callable[[dict[str, Any]], None]


def train(
  configs: Sequence[ConfigDict],
  workdirs: Sequence[pathlib.Path],
  on_rows: Sequence[OnRow],
) -> list[float]:
  """Trains the runs, halved where memory does not hold all at once.

  Args:
    configs: differ in the compiled step's arguments alone; without
      checkpoints and benchmarks.
    workdirs: of each.
    on_rows: called with the rows of each; may raise `Pruned`.

  Returns:
    The loss to compare of each; infinite if it diverged or was pruned.

  Raises:
    ValueError: the configurations cannot share a program, or do not fit the
      data.
  """
  first = configs[0].copy_and_resolve_references()
  validation.check_ranges(first)
  if first.checkpoint_every or first.eval_tasks:
    raise ValueError(
      'trials that share a program have no checkpoints and no benchmarks: set '
      'checkpoint_every=0 and eval_tasks='
    )
  if first.spikes.policy != 'stop' or len(configs) == 1:
    # What a run leaves out or does again is its own affair.
    runs = zip(configs, workdirs, on_rows, strict=True)
    return [cells.run_once(*run) for run in runs]
  data = assemble.open_data(first)
  model = model_config.resolve(first.model, data.vocab_size, first.dtype)
  program = assemble.make_program(first, model)
  for config in configs:
    same = _shared(config) == _shared(configs[0])
    if not same or assemble.make_program(config, model) is not program:
      raise ValueError(
        'the trials have unlike programs: set study.vmapped_trials=0'
      )
  lanes = [
    assemble.open_loop(
      trials.Lane, config, workdir, program, data, Callbacks(None, on_row)
    )
    for config, workdir, on_row in zip(configs, workdirs, on_rows, strict=True)
  ]
  if not trials.fits(program, lanes):
    half = (len(configs) + 1) // 2
    return [
      loss
      for part in (slice(0, half), slice(half, None))
      for loss in train(configs[part], workdirs[part], on_rows[part])
    ]
  endings = trials.train(lanes, lambda: assemble.initial_state(first, program))
  return [
    _close(lane, ending) for lane, ending in zip(lanes, endings, strict=True)
  ]


def _shared(config: ConfigDict) -> dict[str, object]:
  """Returns what trials of one program have to share."""
  return {
    key: value
    for key, value in base.flatten(config).items()
    if not key.startswith(('optimizer.', 'schedule.'))
  }


def _close(lane: trials.Lane, ending: dict[str, Any] | Exception) -> float:
  """Writes a run's summary and returns its loss."""
  if isinstance(ending, Pruned):
    summary = lane.pruned(ending.steps)
  elif isinstance(ending, Diverged):
    summary = lane.diverged(ending)
  elif isinstance(ending, Exception):
    raise ending
  else:
    summary = ending
  assemble.write_summary(lane.workdir, summary)
  return math.inf if isinstance(ending, Exception) else cells.loss_of(summary)

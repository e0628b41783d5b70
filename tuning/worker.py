"""What a slot of the engine does: jobs are dictionaries of JSON values."""

import math
import pathlib
import tempfile
from typing import Any

from ml_collections import ConfigDict

from steepest.eval import evaluation
from steepest.training import processes, run as training_run
from steepest.training.loop import Diverged, Pruned
from steepest.tuning import cells, search

# Steps that are timed before a study begins.
_STEPS = 10


def train(job: dict[str, Any]) -> float | None:
  """Trains a run unless it is done, and returns the loss to compare.

  Args:
    job: `config` and `directory` of the run, and `finished`: the curves of the
      trials by which it may be ended early, None where it may not.

  Returns:
    The validation loss, or the training loss where none is read; None if the
    run diverged or was ended early.
  """
  processes.keep_memory()
  config = ConfigDict(job['config'])
  directory = pathlib.Path(job['directory'])
  loss = cells.ended(config, directory)
  if loss is None:
    pruner = None
    if job['finished'] is not None:
      pruner = search.MedianPruner(
        job['finished'], config.steps, config.log_every
      )

    def on_row(row: dict[str, Any]) -> None:
      if pruner and (reason := pruner.ends(row)):
        raise Pruned(reason, row['step'] + 1)

    try:
      summary = training_run.train(
        config,
        directory,
        on_row=on_row,
        make_evaluate=evaluation.evaluator(
          config.eval_tasks, config.eval_tasks_data, config.eval_tasks_limit
        ),
      )
      loss = cells.loss_of(summary)
    except (Diverged, Pruned):
      return None
  return loss if math.isfinite(loss) else None


def time_steps(job: dict[str, Any]) -> float:
  """Returns the seconds of a step of a run that is thrown away.

  What is compiled for it serves the run later.
  """
  config = ConfigDict(job['config'])
  config.update(
    steps=min(_STEPS, config.steps),
    eval_every=0,
    eval_sequences=0,
    eval_tasks='',
    checkpoint_every=0,
  )
  with tempfile.TemporaryDirectory() as directory:
    summary = training_run.train(config, directory)
  return float(summary['seconds']) / config.steps

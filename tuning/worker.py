"""The jobs of an engine's slots: dictionaries of JSON values."""

import json
import math
import os
import pathlib
import tempfile
import time
from typing import Any

import jax
from ml_collections import ConfigDict

from steepest.data import buckets
from steepest.eval import evaluation
from steepest.training import (
  chips,
  config as config_lib,
  mesh as mesh_lib,
  processes,
  run as training_run,
)
from steepest.training.interrupts import Stopped
from steepest.training.loop import Diverged, Pruned
from steepest.tuning import cells, plan, pruning

# Result of a run that its deadline ended, or that was asked to stop.
STOPPED = 'stopped'
# File in the study's directory that asks all its runs to stop, anywhere.
STOP = 'stop'
# Steps timed before a study begins.
_STEPS = 10


def train(job: dict[str, Any]) -> float | str | None:
  """Trains a run unless it is done, and returns the loss to compare.

  Args:
    job: `config` and `directory` (possibly in a bucket) of the run;
      `finished`: curves of the trials against which to prune it, or None;
      `deadline`: when to save and stop, as time.time(), or None; `stop`: a file
      or object that makes it do so, too; `programs`: the directory of compiled
      programs, shared by all runs.

  Returns:
    The validation loss, else the training loss; None if the run diverged or was
    ended early; STOPPED if it was asked to stop.
  """
  processes.keep_memory()
  _keep_programs(job)
  config = ConfigDict(job['config'])
  away = buckets.is_address(job['directory'])
  with buckets.staged(
    job['directory'],
    'training there',
    takes_over=True,
    stop=job['stop'] if away else '',
  ) as stage:
    loss: float | str | None = cells.ended(config, stage.directory)
    if loss is None:
      loss = _train(config, stage, job)
  return loss if not isinstance(loss, float) or math.isfinite(loss) else None


def _keep_programs(job: dict[str, Any]) -> None:
  directory = job['programs']
  away = buckets.is_address(directory)
  mesh_lib.keep_programs(
    buckets.copy_of(directory) if away else pathlib.Path(directory)
  )


def _train(
  config: ConfigDict, stage: buckets.Stage, job: dict[str, Any]
) -> float | str | None:
  """Trains a run; returns what `train` does, with the raw loss."""
  deadline = math.inf if job['deadline'] is None else job['deadline']
  pruner = None
  if job['finished'] is not None:
    pruner = pruning.MedianPruner(
      job['finished'], config.steps, config.log_every
    )

  def on_row(row: dict[str, Any]) -> None:
    if pruner and (reason := pruner.ends(row)):
      raise Pruned(reason, row['step'] + 1)

  def stop(steps: int) -> bool:
    asked = stage.stop.is_set() or os.path.exists(job['stop'])
    return asked or time.time() >= deadline

  try:
    summary = training_run.train(
      config,
      stage.directory,
      on_row=on_row,
      stop=stop,
      make_evaluate=evaluation.evaluator(
        config.eval_tasks, config.eval_tasks_data, config.eval_tasks_limit
      ),
    )
  except (Diverged, Pruned):
    return None
  except Stopped:
    return STOPPED
  return cells.loss_of(summary)


def check(job: dict[str, Any]) -> None:
  """Checks a study's runs as they would begin; trains nothing.

  Args:
    job: `runs`: name, configuration and number of devices of each.

  Raises:
    ValueError: a run's data or benchmarks cannot be read, its mesh does not
      divide it, or by tuning/plan.py it does not fit into memory.
  """
  for name, values, devices in job['runs']:
    try:
      _check(config_lib.resolve(ConfigDict(values)), devices)
    except (ValueError, OSError) as error:
      raise ValueError(f'{name}: {error}') from error


def _check(config: ConfigDict, devices: int) -> None:
  config_lib.import_shapes(config, {})
  mesh = plan.abstract_mesh(plan.mesh_sizes(config, devices))
  data, setup = training_run.begin(config, mesh)
  make_evaluate = evaluation.evaluator(
    config.eval_tasks, config.eval_tasks_data, config.eval_tasks_limit
  )
  if make_evaluate is not None:
    make_evaluate(
      setup.features,
      None,
      setup.model.context,
      data.tokenizer_dir,
      pathlib.Path(),
    )
  chip = chips.of(jax.local_devices()[0])
  if chip is None:
    return
  config.model.vocab_size = setup.model.vocab_size
  step = plan.plan(config, chip, devices)
  if not step.fits:
    raise ValueError(
      f'takes {step.peak / 2**30:.3g} of {step.capacity / 2**30:.3g} GiB of '
      'each device: see launch.study --plan'
    )


def time_steps(job: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
  """Returns summary and env.json of a run's first steps, kept nowhere.

  The run reuses what is compiled for it.
  """
  _keep_programs(job)
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
    env = (pathlib.Path(directory) / 'env.json').read_text('utf-8')
  return summary, json.loads(env)

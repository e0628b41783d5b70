"""The timing pass of a study: steps of all optimizers in turn, on one machine.

Times of a study's runs depend on the other load of their machines. So once the
targets are done, the compiled steps of a group's optimizers alternate,
A B C A B C …, and the report compares only these times.
"""

from collections.abc import Mapping
import json
import pathlib
import time
from typing import Any

import jax
from ml_collections import ConfigDict
import numpy as np

from steepest.experiments import outside
from steepest.models import config as model_config
from steepest.optimizers import build
from steepest.training import (
  environment,
  mesh as mesh_lib,
  metrics,
  processes,
  run as training_run,
  state as states,
  step as steps,
)
from steepest.tuning import cells
from steepest.tuning.engine import Engine

FILE = 'timing.json'
# Intervals of some optimizers' extra work; whole intervals are timed.
_ROUNDS = ('hessian_every', 'precondition_every')


def run(config: ConfigDict, workdir: pathlib.Path, engine: Engine) -> None:
  """Times all groups of a finished study and writes timing.json.

  Skips groups that are in it already.

  Args:
    config: of the study.
    workdir: of the study.
    engine: its first slot does the timing, while the others are idle.

  Raises:
    ValueError: a step could not be compiled or run.
  """
  # Times from one core among busy ones say little.
  repeats = config.study.timing_repeats
  if repeats < 0:
    repeats = 3 if processes.has_accelerator() else 0
  if not repeats:
    return
  path = workdir / FILE
  found = json.loads(path.read_text('utf-8')) if path.exists() else {}
  kept = found['groups'] if found else []
  for group, runs in _groups(config, workdir):
    optimizers = {cells.name_of(run['optimizer']['name']) for run in runs}
    known = [
      {entry['optimizer'] for entry in of['repeats']}
      for of in kept
      if of['group'] == group
    ]
    if optimizers in known:
      continue
    job = {'configs': runs, 'repeats': repeats}
    said = engine.submit(engine.slots[0], time_in_turn, job).result()
    kept = [of for of in kept if of['group'] != group]
    kept.append({'group': group, 'repeats': said['repeats']})
    metrics.write_json(
      path,
      {'device': said['device'], 'commit': said['commit'], 'groups': kept},
    )


def _groups(
  config: ConfigDict, workdir: pathlib.Path
) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
  """Returns each group's shared settings, and a run of each optimizer.

  Takes the targets of seed 0 that exist, as they were configured.
  """
  found: dict[str, list[dict[str, Any]]] = {}
  for cell in cells.cells(config):
    path = cells.target_dir(workdir, cell, 0) / 'config.json'
    if path.exists():
      run = json.loads(path.read_text('utf-8'))
      found.setdefault(json.dumps(_group(run)), []).append(run)
  return [(json.loads(group), runs) for group, runs in found.items()]


def _group(run: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a target's architecture and its values on all axes."""
  model = run['model']
  return {
    'architecture': outside.stem(model['name']),
    'width': model['width'],
    'parametrization': run['parametrization']['kind'],
    'epochs': run['data']['epochs'],
    'batch_size': run['batch_size'],
    'schedule': run['schedule']['kind'],
    'tokens': run['steps'] * run['batch_size'] * model['context'],
  }


def time_in_turn(job: Mapping[str, Any]) -> dict[str, Any]:
  """Times the steps of several runs that differ in their optimizer.

  Args:
    job: `configs` of the runs, and `repeats`: turns of each.

  Returns:
    `device`, `commit` and `repeats`: in the order in which they were timed,
    each with its `optimizer` and `seconds_per_step`.
  """
  runs = [_Steps(ConfigDict(config)) for config in job['configs']]
  for run in runs:
    run.seconds_per_step()
  repeats = [
    {'optimizer': run.optimizer, 'seconds_per_step': [run.seconds_per_step()]}
    for _ in range(job['repeats'])
    for run in runs
  ]
  return {
    'device': jax.devices()[0].device_kind,
    'commit': environment.git_commit(),
    'repeats': repeats,
  }


class _Steps:
  """The compiled step of a run, and its first batch."""

  def __init__(self, config: ConfigDict):
    self.optimizer = cells.name_of(config.optimizer.name)
    data = training_run.open_data(config)
    model = model_config.resolve(config.model, data.vocab_size, config.dtype)
    self._setup = training_run.make_setup(config, model)
    rows = next(data.train(0))
    mesh = self._setup.mesh
    self._batch = mesh_lib.put_batch(mesh, rows, config.batch_size)
    hypers = build.hyperparameters(
      config.optimizer, config.schedule, config.steps
    )
    packed = 'segment_ids' in rows
    self._step = steps.compile_step(self._setup, hypers, packed)
    # The step's other arguments; nothing is measured with them.
    self._rest = mesh_lib.replicate(
      mesh, (hypers, np.uint32(0), np.bool_(False))
    )
    o = config.optimizer
    rounds = [o[key] for key in _ROUNDS if key in o]
    self._count = 2 * max(rounds, default=10)

  def seconds_per_step(self) -> float:
    """Returns the mean over some steps from the initial state."""
    # Only one state is in memory at a time.
    state = states.init(self._setup, 0)
    jax.block_until_ready(state)
    start = time.perf_counter()
    for _ in range(self._count):
      state, _ = self._step(state, self._batch, *self._rest)
    jax.block_until_ready(state)
    return (time.perf_counter() - start) / self._count

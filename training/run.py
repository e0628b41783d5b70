"""Puts a run together from its configuration: the one place that knows all."""

from collections.abc import Callable
import dataclasses
import importlib.util
import os
import pathlib
import sys
from typing import Any, TypeVar

import jax
from ml_collections import ConfigDict

from steepest.data import pipeline, tokenizers
from steepest.experiments import base
from steepest.models import config as model_config, huggingface, parametrization
from steepest.models.config import ModelConfig
from steepest.optimizers import build, costs
from steepest.training import (
  config as validation,
  environment,
  mesh as mesh_lib,
  metrics,
)
from steepest.training.loop import Callbacks, Diverged, Loop, LoopConfig
from steepest.training.program import Program
from steepest.training.step import TrainState
from steepest.training.wandb_writer import WandbWriter
from steepest.tuning.pruning import Pruned

AnyLoop = TypeVar('AnyLoop', bound=Loop)

_programs: dict[str, Program] = {}


def train(
  config: ConfigDict,
  workdir: str | os.PathLike[str],
  overrides: dict[str, Any],
  on_row: Callable[[dict[str, Any]], None] | None = None,
  stop: Callable[[int], bool] = lambda steps: False,
  make_evaluate: Callable[..., Callable[..., dict[str, float]]] | None = None,
) -> dict[str, Any]:
  """Trains one run, or goes on with it, and returns its summary.

  Args:
    config: as experiments/base.py has it.
    workdir: of the run; see `python -m launch.train --help`.
    overrides: keys set on the command line, which no imported model may
      contradict.
    on_row: called with each row of metrics.
    stop: (steps done) → whether to save and leave; asked once a step.
    make_evaluate: (features, mesh, context, tokenizer_dir, workdir) → callback
      for benchmark scores (eval/evaluation.py); None: there are none.

  Raises:
    ValueError: anything in the configuration, the data or the workdir does
      not fit, or the run diverged.
    Stopped: `stop` said so.
  """
  workdir = pathlib.Path(workdir)
  config = config.copy_and_resolve_references()
  validation.check_ranges(config)
  validation.import_shapes(config, overrides)
  summary = finished(config, workdir)
  if summary is not None:
    return summary
  data = open_data(config)
  model = model_config.resolve(config.model, data.vocab_size, config.dtype)
  if model.vocab_size < data.vocab_size:
    raise ValueError(
      f'model.vocab_size={model.vocab_size} is below the '
      f'{data.vocab_size} token ids of {config.data.source}'
    )
  validation.check_memory(config, model)
  program = make_program(config, model)
  evaluate = None
  if make_evaluate is not None:
    evaluate = make_evaluate(
      program.features,
      program.mesh,
      model.context,
      data.tokenizer_dir,
      workdir,
    )
  callbacks = Callbacks(evaluate, on_row, stop, _writers(config, workdir))
  loop = open_loop(Loop, config, workdir, program, data, callbacks)
  who = costs.description(program.chain, program.state_shapes.params)
  if who and jax.process_index() == 0:
    print(f'{config.optimizer.name}: {who}', file=sys.stderr)
  try:
    summary = loop.run(lambda: initial_state(config, program))
  except Diverged as error:
    write_summary(workdir, loop.diverged(error))
    raise
  except Pruned as error:
    write_summary(workdir, loop.pruned(error.steps))
    raise
  write_summary(workdir, summary)
  return summary


def _writers(
  config: ConfigDict, workdir: pathlib.Path
) -> Callable[[Callable[[str], None]], list[metrics.Writer]]:
  """Returns what makes the writers besides the files in the workdir."""
  if not config.wandb_project:
    return lambda warn: []
  if importlib.util.find_spec('wandb') is None:
    raise ValueError(
      f'wandb_project={config.wandb_project!r} needs: '
      "pip install 'steepest[wandb]'"
    )
  return lambda warn: [WandbWriter(workdir, config.wandb_project, warn)]


def finished(
  config: ConfigDict, workdir: pathlib.Path
) -> dict[str, Any] | None:
  """Returns the summary of a workdir that holds this run to its end.

  Raises:
    ValueError: it holds another run, or one that diverged.
    Pruned: it holds a trial that was ended early.
  """
  if not (workdir / 'config.json').exists():
    return None
  validation.check_same(config, workdir)
  summary = validation.read_summary(workdir)
  if summary is None:
    return None
  if summary['status'] == 'diverged':
    raise Diverged(
      f'{workdir} holds a run that diverged at step '
      f'{summary["diverged_at_step"]}: use another --workdir',
      summary['diverged_at_step'],
    )
  if summary['status'] == 'pruned':
    raise Pruned(
      f'{workdir} holds a trial that was ended early, after '
      f'{summary["steps"]} steps: use another --workdir',
      summary['steps'],
    )
  if summary['steps'] > config.steps:
    raise ValueError(
      f'{workdir} holds {summary["steps"]} steps, steps={config.steps} asks '
      'for fewer: use another --workdir'
    )
  return summary if summary['steps'] == config.steps else None


def open_data(config: ConfigDict) -> pipeline.Data:
  """Opens the data that a run's configuration names."""
  wanted = None
  imported = config.model.init_from.removeprefix('hf:')
  if imported and (pathlib.Path(imported) / 'tokenizer.json').exists():
    wanted = tokenizers.load(f'hf:{imported}').sha256
  rows = None
  if jax.process_count() > 1:
    mesh = mesh_lib.make_mesh(config.mesh)
    rows = mesh_lib.local_rows(mesh, config.batch_size)
  return pipeline.open_data(
    config.data,
    context=config.model.context,
    batch_size=config.batch_size,
    steps=config.steps,
    seed=config.seed,
    eval_sequences=config.eval_sequences,
    vocab_size=config.model.vocab_size,
    tokenizer_sha256=wanted,
    rows=rows,
  )


def make_program(
  config: ConfigDict,
  model: ModelConfig,
  devices: list[jax.Device] | None = None,
) -> Program:
  """Returns the compiled functions, shared with runs that may share them."""
  o = config.optimizer
  key = repr(
    (
      model,
      config.parametrization.to_json(),
      (o.name, o.decay_mode, o.hessian_estimator, o.hessian_bias_correction),
      o.hessian_subset,
      config.schedule.kind,
      config.mesh.to_json(),
      devices,
      config.batch_size,
      config.microbatches,
    )
  )
  if key not in _programs:
    rules = parametrization.resolve(config.parametrization, model)
    # Only the latest shape stays: a search goes through them one by one.
    _programs.clear()
    _programs[key] = Program(
      model_config.find_model(model.name).Model(model, rules),
      rules,
      mesh_lib.make_mesh(config.mesh, devices),
      lambda factors: build.build(o, config.schedule, factors),
      o.hessian_estimator,
      config.batch_size,
      config.microbatches,
      o.hessian_subset,
    )
  return _programs[key]


def open_loop(
  kind: type[AnyLoop],
  config: ConfigDict,
  workdir: pathlib.Path,
  program: Program,
  data: pipeline.Data,
  callbacks: Callbacks,
) -> AnyLoop:
  """Opens a run's workdir and returns its loop, of class `kind`."""
  args = build.arguments(config.optimizer, config.schedule, config.steps)
  _open_workdir(config, workdir, data.tokenizer_dir)
  return kind(
    program,
    data,
    args,
    LoopConfig(
      **{f.name: config[f.name] for f in dataclasses.fields(LoopConfig)}
    ),
    workdir,
    callbacks,
    base.flatten(config),
  )


def initial_state(config: ConfigDict, program: Program) -> TrainState:
  """Returns the state that a run starts from."""
  if not config.model.init_from:
    return program.init(config.seed)
  directory = config.model.init_from.removeprefix('hf:')
  params = huggingface.read_params(directory, program.model)
  return program.from_params(params)


def write_summary(workdir: pathlib.Path, summary: dict[str, Any]) -> None:
  """Writes summary.json: the run has ended."""
  # Of several processes, one writes.
  if jax.process_index() == 0:
    metrics.write_json(workdir / 'summary.json', summary)


def _open_workdir(
  config: ConfigDict, workdir: pathlib.Path, tokenizer_dir: str | None
) -> None:
  """Leaves what identifies the run."""
  if jax.process_index():
    return
  workdir.mkdir(parents=True, exist_ok=True)
  metrics.write_json(workdir / 'config.json', validation.as_json(config))
  metrics.write_json(workdir / 'env.json', environment.describe())
  if tokenizer_dir is not None:
    tokenizers.load(f'hf:{tokenizer_dir}').save(workdir)

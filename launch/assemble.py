"""Puts a run together from its configuration: the one place that knows all."""

from collections.abc import Callable
import dataclasses
import difflib
import importlib
import json
import math
import os
import pathlib
import pkgutil
import sys
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from steepest import models
from steepest.data import pipeline
from steepest.data import tokenizers
from steepest.interop import huggingface
from steepest.launch import cli
from steepest.launch import environment
from steepest.launch import scores
from steepest.models import config as model_config
from steepest.models import parametrization
from steepest.models.config import ModelConfig
from steepest.optimizers import build
from steepest.training import mesh as mesh_lib
from steepest.training import metrics
from steepest.training.checkpoint import Checkpointer
from steepest.training.loop import Callbacks
from steepest.training.loop import Diverged
from steepest.training.loop import Loop
from steepest.training.loop import LoopConfig
from steepest.training.program import Program

# Keys that a restart may change: they do not change what is computed.
_FREE = ('steps', 'log_every', 'eval_', 'checkpoint', 'mesh.', 'microbatches')

_POSITIVE = (
  'batch_size',
  'checkpoints_kept',
  'data.epochs',
  'log_every',
  'microbatches',
  'steps',
)
_NOT_NEGATIVE = (
  'checkpoint_every',
  'eval_every',
  'eval_sequences',
  'eval_tasks_every',
  'eval_tasks_limit',
  'parametrization.base_depth',
  'parametrization.base_head_dim',
  'parametrization.base_mlp_dim',
  'parametrization.base_num_heads',
  'parametrization.base_width',
  'seed',
)

_programs: dict[str, Program] = {}


def train(
  config: ConfigDict,
  workdir: str | os.PathLike[str],
  overrides: dict[str, Any],
  on_row: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
  """Trains one run, or goes on with it, and returns its summary.

  Args:
    config: as experiments/base.py has it.
    workdir: of the run; see `python -m launch.train --help`.
    overrides: keys set on the command line, which no imported model may
      contradict.
    on_row: called with each row of metrics.

  Raises:
    ValueError: anything in the configuration, the data or the workdir does
      not fit, or the run diverged.
  """
  workdir = pathlib.Path(workdir)
  config = config.copy_and_resolve_references()
  _check_ranges(config)
  _import_shapes(config, overrides)
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
  program = make_program(config, model)
  args = build.arguments(config.optimizer, config.schedule, config.steps)
  evaluate = None
  if config.eval_tasks:
    evaluate = scores.evaluator(config, program, data.tokenizer_dir, workdir)
  _open_workdir(config, workdir, data.tokenizer_dir)
  loop = Loop(
    program,
    data,
    args,
    LoopConfig(
      **{f.name: config[f.name] for f in dataclasses.fields(LoopConfig)}
    ),
    workdir,
    Callbacks(evaluate, on_row),
    cli.flatten(config),
  )

  def init():
    if not config.model.init_from:
      return program.init(config.seed)
    directory = config.model.init_from.removeprefix('hf:')
    return program.from_params(huggingface.read_params(directory, model))

  try:
    summary = loop.run(init)
  except Diverged as error:
    metrics.write_json(workdir / 'summary.json', loop.diverged(error))
    raise
  metrics.write_json(workdir / 'summary.json', summary)
  return summary


def finished(
  config: ConfigDict, workdir: pathlib.Path
) -> dict[str, Any] | None:
  """Returns the summary of a workdir that holds this run to its end.

  Raises:
    ValueError: it holds another run, or one that diverged.
  """
  if not (workdir / 'config.json').exists():
    return None
  _check_same(config, workdir)
  path = workdir / 'summary.json'
  if not path.exists():
    return None
  summary = json.loads(path.read_text('utf-8'))
  if summary['status'] == 'diverged':
    raise Diverged(
      f'{workdir} holds a run that diverged at step '
      f'{summary["diverged_at_step"]}: use another --workdir',
      summary['diverged_at_step'],
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
  return pipeline.open_data(
    config.data,
    context=config.model.context,
    batch_size=config.batch_size,
    steps=config.steps,
    seed=config.seed,
    eval_sequences=config.eval_sequences,
    vocab_size=config.model.vocab_size,
    tokenizer_sha256=wanted,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )


def make_program(config: ConfigDict, model: ModelConfig) -> Program:
  """Returns the compiled functions, shared with runs that may share them."""
  o = config.optimizer
  key = repr(
    (
      model,
      config.parametrization.to_json(),
      (o.name, o.decay_mode, o.hessian_estimator, o.hessian_bias_correction),
      config.schedule.kind,
      config.mesh.to_json(),
      config.batch_size,
      config.microbatches,
    )
  )
  if key not in _programs:
    rules = parametrization.resolve(config.parametrization, model)
    # Only the latest shape stays: a search goes through them one by one.
    _programs.clear()
    _programs[key] = Program(
      find_model(model.name).Model(model, rules),
      rules,
      mesh_lib.make_mesh(config.mesh),
      lambda factors: build.build(o, config.schedule, factors),
      o.hessian_estimator,
      config.batch_size,
      config.microbatches,
    )
  return _programs[key]


def find_model(name: str) -> Any:
  """Returns the file models/NAME.py."""
  known = []
  for info in pkgutil.iter_modules(models.__path__):
    module = importlib.import_module(f'{models.__name__}.{info.name}')
    if hasattr(module, 'Model'):
      known.append(info.name)
      if info.name == name:
        return module
  near = difflib.get_close_matches(name, known, 1)
  hint = f'did you mean {near[0]!r}? ' if near else ''
  raise ValueError(f'model.name={name!r}: {hint}there are {", ".join(known)}')


class LoadedModel(NamedTuple):
  """A trained model, ready to be scored.

  Attributes:
    logits_fn: (params, tokens B×L) → float32 logits B×L×V.
    params: on the devices.
    tokenizer: that goes with it.
    max_length: most tokens that go in.
    description: where it is from, JSON values.
    rules: its shapes and multipliers.
  """

  logits_fn: Any
  params: Any
  tokenizer: tokenizers.Tokenizer
  max_length: int
  description: dict[str, Any]
  rules: parametrization.Parametrization


def load_model(spec: str) -> LoadedModel:
  """Loads `hf:DIR` or `ckpt:WORKDIR`.

  Raises:
    ValueError: the name is neither, or what is there does not fit.
  """
  kind, _, directory = spec.partition(':')
  if kind == 'hf' and directory:
    return _load_hf(directory)
  if kind == 'ckpt' and directory:
    return _load_checkpoint(pathlib.Path(directory))
  raise ValueError(f'--model={spec}: give hf:DIR or ckpt:WORKDIR')


def _load_hf(directory: str) -> LoadedModel:
  from steepest.experiments import base

  config = base.get_config()
  config.model.update(huggingface.read_config(directory))
  config.dtype.compute = 'float32'
  model = model_config.resolve(config.model, 0, config.dtype)
  rules = parametrization.resolve(config.parametrization, model)
  module = find_model(model.name).Model(model, rules)
  return LoadedModel(
    lambda params, tokens: module.apply({'params': params}, tokens),
    jax.device_put(huggingface.read_params(directory, model)),
    tokenizers.load(f'hf:{directory}'),
    model.context,
    {'model': f'hf:{directory}'},
    rules,
  )


def _load_checkpoint(workdir: pathlib.Path) -> LoadedModel:
  if not (workdir / 'config.json').exists():
    raise FileNotFoundError(f'ckpt:{workdir}: no config.json, not a run')
  if not (workdir / 'tokenizer.json').exists():
    raise FileNotFoundError(
      f'ckpt:{workdir}: no tokenizer.json; a run on a flat token file has '
      'none, put the one that made the tokens there'
    )
  config = ConfigDict(json.loads((workdir / 'config.json').read_text('utf-8')))
  tokenizer = tokenizers.load(f'hf:{workdir}')
  config.model.vocab_size = config.model.vocab_size or tokenizer.vocab_size
  # One sequence a device: the mesh must fit the model, not a batch.
  config.batch_size, config.microbatches = jax.device_count(), 1
  model = model_config.resolve(config.model, tokenizer.vocab_size, config.dtype)
  _fit_mesh(config.mesh, model.width)
  program = make_program(config, model)
  checkpointer = Checkpointer(workdir / 'checkpoints', 1, read_only=True)
  steps = checkpointer.latest()
  if steps is None:
    raise FileNotFoundError(
      f'ckpt:{workdir}: no complete checkpoint; train with '
      'checkpoint_every above 0'
    )
  params = checkpointer.restore_params(program.state_shapes.params, steps)
  return LoadedModel(
    program.logits,
    params,
    tokenizer,
    model.context,
    {'model': f'ckpt:{workdir}', 'steps': steps},
    parametrization.resolve(config.parametrization, model),
  )


def _fit_mesh(mesh: ConfigDict, width: int) -> None:
  """Splits the model over the devices here where the run had others."""
  try:
    mesh_lib.make_mesh(mesh)
  except ValueError:
    fsdp = math.gcd(width, jax.device_count())
    mesh.update({'data': -1, 'fsdp': fsdp, 'tensor': 1, 'sequence': 1})


def _check_ranges(config: ConfigDict) -> None:
  """Raises a ValueError that names the first key out of its range."""
  values: dict[str, Any] = cli.flatten(config)
  for key in _POSITIVE + _NOT_NEGATIVE:
    least = 1 if key in _POSITIVE else 0
    if values[key] < least:
      raise ValueError(f'{key}={values[key]}: must be at least {least}')
  if config.stage not in ('tune', 'final'):
    raise ValueError(f'stage={config.stage!r}: must be tune or final')


def _import_shapes(config: ConfigDict, overrides: dict[str, Any]) -> None:
  """Takes the model's shapes from the checkpoint that it starts from."""
  spec = config.model.init_from
  if not spec:
    return
  if not spec.startswith('hf:'):
    raise ValueError(f'model.init_from={spec!r}: give hf:DIR')
  found = huggingface.read_config(spec.removeprefix('hf:'))
  for key, value in found.items():
    name = f'model.{key}'
    if name in overrides and overrides[name] != value:
      smaller = key == 'context' and 0 < overrides[name] < value
      # 0 asks for the default, which is what the checkpoint says.
      if not smaller and overrides[name] != 0:
        raise ValueError(
          f'--config.{name}={overrides[name]} disagrees with {spec}, which '
          f'has {value}: leave the key out'
        )
      if smaller:
        continue
    config.model[key] = value
  # It was trained without factors: it is the base, not the recipe's shapes.
  for key in config.parametrization:
    if key.startswith('base_') and f'parametrization.{key}' not in overrides:
      config.parametrization[key] = 0


def _open_workdir(
  config: ConfigDict, workdir: pathlib.Path, tokenizer_dir: str | None
) -> None:
  """Leaves what identifies the run."""
  workdir.mkdir(parents=True, exist_ok=True)
  metrics.write_json(workdir / 'config.json', _as_json(config))
  metrics.write_json(workdir / 'env.json', environment.describe())
  if tokenizer_dir is not None:
    tokenizers.load(f'hf:{tokenizer_dir}').save(workdir)


def _as_json(config: ConfigDict) -> dict[str, Any]:
  return json.loads(config.to_json())


def _check_same(config: ConfigDict, workdir: pathlib.Path) -> None:
  """Raises a ValueError that names the first key on which a restart differs."""
  saved = ConfigDict(json.loads((workdir / 'config.json').read_text('utf-8')))
  now = ConfigDict(_as_json(config))
  before, after = cli.flatten(saved), cli.flatten(now)
  if saved.steps < now.steps and saved.schedule.kind != 'constant':
    print(
      f'note: {workdir} was planned for {saved.steps} steps; with '
      f'{now.steps} its {saved.schedule.kind} schedule is another one',
      file=sys.stderr,
    )
  for key in sorted(before | after):
    a, b = before.get(key), after.get(key)
    if a != b and not key.startswith(_FREE):
      raise ValueError(
        f'{workdir} holds a run with {key}={a}, asked for {b}: use another '
        '--workdir'
      )

"""Trains a run from its configuration; only this file knows all of it."""

from collections.abc import Callable, Mapping
import dataclasses
import functools
import importlib.util
import os
import pathlib
import sys
import time
import traceback
from typing import Any

import jax
from ml_collections import ConfigDict, FrozenConfigDict

from steepest.data import buckets, pipeline, tokenizers
from steepest.experiments import base
from steepest.models import config as model_config, huggingface, parametrization
from steepest.models.config import ModelConfig
from steepest.optimizers import build, costs
from steepest.training import (
  config as config_lib,
  mesh as mesh_lib,
  metrics,
  processes,
  state as state_lib,
)
from steepest.training.attempt import Attempt
from steepest.training.loop import (
  Callbacks,
  Diverged,
  Ended,
  LoopConfig,
  Pruned,
  fit,
)
from steepest.training.state import Setup, TrainState
from steepest.training.wandb import WandbWriter

# Makes Callbacks.evaluate; implemented in eval/evaluation.py.
MakeEvaluate = Callable[
  [Callable[..., Any], jax.sharding.Mesh, int, str | None, pathlib.Path],
  Callable[[Any, int, bool], dict[str, float]],
]


def train(
  config: ConfigDict,
  workdir: str | os.PathLike[str],
  *,
  overrides: Mapping[str, Any] | None = None,
  make_evaluate: MakeEvaluate | None = None,
  on_row: Callable[[dict[str, Any]], None] | None = None,
  stop: Callable[[int], bool] = lambda steps: False,
  restart: bool = False,
  stage: buckets.Stage | None = None,
) -> dict[str, Any]:
  """Trains or resumes one run and returns its summary.

  Args:
    config: with the keys of experiments/base.py.
    workdir: the run's directory; see `python -m launch.train --help`.
    overrides: keys set on the command line; an imported model must not
      contradict them.
    make_evaluate: (features, mesh, context, tokenizer_dir, workdir) → callback
      for benchmark scores (eval/evaluation.py); None: no scores.
    on_row: called with each row of metrics.
    stop: (steps done) → whether to save and stop; called once per step.
    restart: continue even if the workdir lost checkpoints or rows.
    stage: the workdir's, if each process has its own copy of one in a bucket.

  Raises:
    ValueError: the configuration, the data or the workdir do not fit, or the
      run diverged.
    FloatingPointError: with `debug_nans`; names where the NaN arose.
    Stopped: `stop` requested it.
  """
  began = time.time()
  if buckets.is_address(workdir):
    raise ValueError(f'{workdir}: train in what buckets.staged gives of it')
  workdir = pathlib.Path(workdir)
  config = config_lib.resolve(config)
  config_lib.check_ranges(config)
  config_lib.import_shapes(config, overrides or {})
  summary = finished(config, workdir)
  if summary is not None:
    return summary
  data, setup = begin(config)
  evaluate = None
  if make_evaluate is not None:
    evaluate = make_evaluate(
      setup.features,
      setup.mesh,
      setup.model.context,
      data.tokenizer_dir,
      workdir,
    )
  hypers = build.hyperparameters(
    config.optimizer, config.schedule, config.steps
  )
  writers = _writers(config, workdir)
  who = costs.description(setup.chain, setup.shapes.params)
  # A trial moves what its final runs move.
  if who and config.stage == 'final' and jax.process_index() == 0:
    print(who, file=sys.stderr)
  about = {'optimizer': setup.chain.optimizer.describe()}
  attempt = _open_workdir(config, workdir, about, data.tokenizer_dir, began)
  check = attempt.check if attempt else lambda: None
  began = attempt.began if attempt else began
  callbacks = Callbacks(evaluate, on_row, stop, writers, check, began, stage)
  try:
    with jax.debug_nans(config.debug_nans or jax.debug_nans.value):
      summary = fit(
        setup,
        data,
        hypers,
        LoopConfig(
          **{f.name: config[f.name] for f in dataclasses.fields(LoopConfig)}
        ),
        workdir,
        callbacks,
        base.flatten(config),
        lambda: _initial_state(config, setup),
        restart,
      )
  except FloatingPointError as error:
    raise FloatingPointError(f'{error}{_origin(error)}') from error
  except Ended as error:
    check()
    _write_summary(workdir, error.summary)
    raise
  check()
  _write_summary(workdir, summary)
  return summary


def begin(config: ConfigDict, mesh: Any = None) -> tuple[pipeline.Data, Setup]:
  """Opens a run's data; returns it with the constants of the run's programs.

  Args:
    config: the run's, resolved.
    mesh: as in `state.setup`.

  Raises:
    ValueError: the configuration, the data and the devices do not fit.
  """
  data = open_data(config)
  model = model_config.resolve(config.model, data.vocab_size, config.dtype)
  if model.vocab_size < data.vocab_size:
    raise ValueError(
      f'model.vocab_size={model.vocab_size} is below the '
      f'{data.vocab_size} token ids of {config.data.source}'
    )
  config_lib.check_memory(config, model)
  return data, make_setup(config, model, mesh=mesh)


def finished(
  config: ConfigDict, workdir: pathlib.Path
) -> dict[str, Any] | None:
  """Returns the summary if the workdir holds this run, finished.

  Raises:
    ValueError: it holds another run, or one that diverged.
    Pruned: it holds a trial that was ended early.
  """
  if not (workdir / 'config.json').exists() or not _has_begun(workdir):
    return None
  config_lib.check_same(config, workdir)
  summary = config_lib.read_summary(workdir)
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


def _has_begun(workdir: pathlib.Path) -> bool:
  """Whether a workdir holds rows, a checkpoint or a summary.

  A run that failed before these may be retried with another configuration.
  """
  rows = workdir / 'metrics.jsonl'
  return (
    (workdir / 'summary.json').exists()
    or (rows.exists() and rows.stat().st_size > 0)
    or any((workdir / 'checkpoints').glob('*'))
  )


def open_data(config: ConfigDict) -> pipeline.Data:
  """Opens the data that a run's configuration names."""
  wanted = None
  imported = config.model.init_from.removeprefix('hf:')
  if imported and (pathlib.Path(imported) / 'tokenizer.json').exists():
    wanted = tokenizers.load(f'hf:{imported}').sha256
  rows = None
  if jax.process_count() > 1:
    mesh = mesh_lib.make_mesh(config.mesh)
    rows = list(mesh_lib.local_rows(mesh, config.batch_size))
  part = jax.process_index(), jax.process_count()
  checked = processes.gathered(lambda: pipeline.check(config.data, part))
  opens = functools.partial(
    pipeline.open_data,
    config.data,
    context=config.model.context,
    batch_size=config.batch_size,
    steps=config.steps,
    seed=config.seed,
    eval_sequences=config.eval_sequences,
    vocab_size=config.model.vocab_size,
    tokenizer_sha256=wanted,
    rows=rows,
    checked=checked,
  )
  return processes.together(opens)


def make_setup(
  config: ConfigDict,
  model: ModelConfig,
  devices: tuple[jax.Device, ...] = (),
  mesh: Any = None,
) -> Setup:
  """Returns the constants of a run's programs, shared by runs of its shape.

  Args:
    config: the run's.
    model: its resolved shapes.
    devices: to use; (): all of this job's.
    mesh: replaces theirs, see `state.setup`.
  """
  spec = state_lib.Spec(
    parametrization.resolve(config.parametrization, model),
    build.static(config.optimizer),
    build.static(config.schedule),
    FrozenConfigDict(config.mesh),
    config.batch_size,
    config.microbatches,
  )
  return state_lib.setup(spec, devices, mesh)


def _initial_state(config: ConfigDict, setup: Setup) -> TrainState:
  """Returns a run's initial state, and prints remarks on it."""
  if config.model.init_from:
    directory = config.model.init_from.removeprefix('hf:')
    params = huggingface.read_params(directory, setup.model)
    state = state_lib.from_params(setup, params)
  else:
    state = state_lib.init(setup, config.seed)
  remark = setup.chain.remark(state.params)
  if remark and jax.process_index() == 0:
    print(f'{config.optimizer.name}: {remark}', file=sys.stderr)
  return state


def _writers(
  config: ConfigDict, workdir: pathlib.Path
) -> Callable[[Callable[[str], None]], list[metrics.Writer]]:
  """Returns the factory of the writers other than the workdir's files."""
  if not config.wandb_project:
    return lambda warn: []
  if importlib.util.find_spec('wandb') is None:
    raise ValueError(
      f'wandb_project={config.wandb_project!r} needs wandb: '
      "pip install 'steepest[wandb]'"
    )
  return lambda warn: [WandbWriter(workdir, config.wandb_project, warn)]


def _open_workdir(
  config: ConfigDict,
  workdir: pathlib.Path,
  about: Mapping[str, Any],
  tokenizer_dir: str | None,
  began: float,
) -> Attempt | None:
  """Records what identifies the run; of several processes, one writes."""
  if jax.process_index():
    return None
  workdir.mkdir(parents=True, exist_ok=True)
  goes_on = _has_begun(workdir)
  metrics.write_json(workdir / 'config.json', config_lib.as_json(config))
  attempt = Attempt(workdir, about, began, goes_on)
  if tokenizer_dir is not None:
    tokenizers.load(f'hf:{tokenizer_dir}').save(workdir)
  return attempt


def _origin(error: BaseException) -> str:
  """Returns the line outside libraries where an error arose."""
  root = str(pathlib.Path(__file__).parent.parent)
  frames = [
    frame
    for frame in traceback.extract_tb(error.__traceback__)
    if 'site-packages' not in frame.filename.removeprefix(root)
  ]
  last = frames[-1]
  return f' at {last.filename}:{last.lineno}: {last.line}'


def _write_summary(workdir: pathlib.Path, summary: dict[str, Any]) -> None:
  """Writes summary.json: the run has ended."""
  if jax.process_index() == 0:
    metrics.write_json(workdir / 'summary.json', summary)

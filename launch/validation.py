"""Checks a run's configuration before anything is made of it."""

import json
import pathlib
import sys
from typing import Any

from ml_collections import ConfigDict

from steepest.experiments import base
from steepest.interop import huggingface
from steepest.launch import cli

# Keys that a restart may change: they do not change what is computed, or are
# what a run that went wrong is to be saved by.
_FREE = (
  'steps',
  'log_every',
  'eval_',
  'checkpoint',
  'mesh.',
  'microbatches',
  'spikes.',
  'stall_seconds',
  'stop_grace_seconds',
  'wandb_project',
)

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
  'stall_seconds',
  'stop_grace_seconds',
)


def check_ranges(config: ConfigDict) -> None:
  """Raises a ValueError that names the first key out of its range."""
  values: dict[str, Any] = cli.flatten(config)
  for key in _POSITIVE + _NOT_NEGATIVE:
    least = 1 if key in _POSITIVE else 0
    if values[key] < least:
      raise ValueError(f'{key}={values[key]}: must be at least {least}')
  if config.stage not in ('tune', 'final'):
    raise ValueError(f'stage={config.stage!r}: must be tune or final')


def import_shapes(config: ConfigDict, overrides: dict[str, Any]) -> None:
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


def check_same(config: ConfigDict, workdir: pathlib.Path) -> None:
  """Raises a ValueError that names the first key on which a restart differs."""
  saved = read_config(workdir)
  now = ConfigDict(as_json(config))
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


def read_config(workdir: pathlib.Path) -> ConfigDict:
  """Returns a run's configuration.

  Keys that did not exist when the run was made have their default, which does
  what was done before there was a key.
  """
  saved = json.loads((workdir / 'config.json').read_text('utf-8'))
  config = ConfigDict(as_json(base.get_config()))
  with config.unlocked():
    config.update(saved)
  return config


def as_json(config: ConfigDict) -> dict[str, Any]:
  """Returns the configuration as config.json holds it."""
  return json.loads(config.to_json())

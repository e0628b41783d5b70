"""A run's configuration: checked before use, saved and read back."""

from collections.abc import Mapping
import difflib
import json
import math
import os
import pathlib
import sys
from typing import Any

import jax
from ml_collections import ConfigDict
import numpy as np

from steepest.data import reading
from steepest.experiments import base, outside
from steepest.models import config as model_config, huggingface
from steepest.models.config import ModelConfig
from steepest.optimizers import build, horizons

# Keys that a restart may change: they do not affect what is computed, or they
# rescue a run that went wrong.
_FREE = (
  'steps',
  'log_every',
  'eval_',
  'checkpoint',
  'data.verify',
  'debug_nans',
  'mesh.',
  'microbatches',
  'model.scan_layers',
  'profile_steps',
  'stall_seconds',
  'stop_grace_seconds',
  'wandb_project',
)

# Keys of earlier versions → the value at which they had no effect; runs with it
# can be resumed. `_ANY`: no value ever affected what a run computes.
_ANY = object()
_REMOVED: dict[str, Any] = {
  'checkpoints_at': _ANY,
  'dtype.moments': 'float32',
  'model.rope_scaling': '',
  # Now Muon's b1.
  'optimizer.momentum': _ANY,
  'spikes.most': _ANY,
  'spikes.policy': 'stop',
  'spikes.window': _ANY,
  'spikes.z_score': 0.0,
  'study.corpus': 'passages',
  'study.search_seed': 0,
  'study.vmapped_trials': _ANY,
}

# On devices, steps and sizes are int32, real numbers float32.
_INTEGER = 2**31 - 1
_REAL = float(np.finfo(np.float32).max)
# Key → smallest and largest value; optimizers define those of their own keys.
_RANGES: dict[str, tuple[float, float]] = {
  'batch_size': (1, _INTEGER),
  'checkpoint_every': (0, _INTEGER),
  'checkpoints_kept': (1, _INTEGER),
  'data.epochs': (1, _INTEGER),
  'eval_every': (0, _INTEGER),
  'eval_sequences': (0, _INTEGER),
  'eval_tasks_every': (0, _INTEGER),
  'eval_tasks_limit': (0, _INTEGER),
  'log_every': (1, _INTEGER),
  'microbatches': (1, _INTEGER),
  'model.context': (1, _INTEGER),
  'model.norm_eps': (0, _REAL),
  # Layers are traced and compiled one at a time.
  'model.num_layers': (1, 1000),
  'model.width': (1, _INTEGER),
  'parametrization.base_depth': (0, _INTEGER),
  'parametrization.base_head_dim': (0, _INTEGER),
  'parametrization.base_mlp_dim': (0, _INTEGER),
  'parametrization.base_num_heads': (0, _INTEGER),
  'parametrization.base_num_kv_heads': (0, _INTEGER),
  'parametrization.base_width': (0, _INTEGER),
  'seed': (0, 2**32 - 1),
  # Longer than threading can wait.
  'stall_seconds': (0, 1e9),
  'steps': (1, _INTEGER),
  'stop_grace_seconds': (0, 1e9),
  # Every trial of the search and every target is a directory.
  'study.max_extensions': (0, 1000),
  'study.parallel_trials': (1, _INTEGER),
  'study.seeds': (1, 100_000),
  'study.target_steps': (1, _INTEGER),
  'study.trial_seeds': (1, 1000),
  'study.tokens_per_parameter': (0, _REAL),
  'study.trials': (0, 100_000),
  'study.vocab_size': (1, _INTEGER),
  'study.width_ratio': (1, _INTEGER),
}
_ABOVE_ZERO = (
  'model.rope_base',
  'parametrization.attention_multiplier',
  'parametrization.logit_multiplier',
)
# Comma-separated names, none empty.
_NAMES = ('study.models', 'study.optimizers')
# Lists of words; all others are of numbers.
_WORDS = ('study.axis_parametrization', 'study.axis_schedule')
_MOST_CHARACTERS = 4096


def resolve(config: ConfigDict) -> ConfigDict:
  """Returns a copy with all values filled in.

  Uses the defaults of the model's and the optimizer's files, and horizons.

  Raises:
    FileNotFoundError: the model is a path without a file.
    ValueError: there is no such model or optimizer, no optimizer has a key, or
      a horizon is impossible.
  """
  config = config.copy_and_resolve_references()
  make_absolute(config)
  config.model.update(model_config.habits(config.model))
  horizons.apply(
    config.optimizer,
    config.schedule,
    config.steps,
    config.batch_size * config.model.context,
  )
  build.complete(config.optimizer)
  return config


def make_absolute(config: ConfigDict) -> None:
  """Makes paths of external files absolute, to resume a run from anywhere.

  Raises:
    ValueError: a path would hold a comma.
  """
  for group in (config.model, config.optimizer):
    group.name = outside.absolute(group.name)
  config.eval_tasks = outside.absolute_each(config.eval_tasks)
  if 'study' in config:
    for key in ('models', 'optimizers'):
      config.study[key] = outside.absolute_each(config.study[key])


def check_ranges(config: ConfigDict) -> None:
  """Raises a ValueError that names the first key outside its range."""
  values: dict[str, Any] = base.flatten(config)
  known = base.flatten(base.get_study_config())
  for key, value in values.items():
    # This group accepts new keys: lrs_NAME, space_NAME, what `target` changes.
    if key.startswith('study.') and key not in known:
      if not key.startswith(('study.lrs_', 'study.space_', 'study.target.')):
        near = difflib.get_close_matches(key, known, 1)
        hint = f'; did you mean {near[0]}?' if near else ''
        raise ValueError(f'unknown key {key}{hint}')
    _check_value(key, value)
  for key, (least, _) in _RANGES.items():
    # None: the value from the model's file.
    if key in values and values[key] is not None and values[key] < least:
      raise ValueError(f'{key}={values[key]}: must be at least {least}')
  for key in _ABOVE_ZERO:
    if values[key] <= 0:
      raise ValueError(f'{key}={values[key]}: must be above 0')
  for key in _NAMES:
    if key in values and not all(values[key].split(',')):
      raise ValueError(f'{key}={values[key]!r}: give comma-separated names')
  betas = config.optimizer.betas or ()
  if any(isinstance(b, (int, float)) and not 0 <= b < 1 for b in betas):
    raise ValueError(f'optimizer.betas={betas}: must be in [0, 1)')
  steps = config.profile_steps
  whole = all(type(step) is int for step in steps)
  if steps and not (whole and len(steps) == 2 and 0 <= steps[0] < steps[1]):
    raise ValueError(
      f'profile_steps={steps}: give (FIRST, END), the first step to trace and '
      'the one after the last, or ()'
    )
  if config.stage not in ('tune', 'final'):
    raise ValueError(f'stage={config.stage!r}: must be tune or final')


def _check_value(key: str, value: Any) -> None:
  """Checks what every value of a type must satisfy."""
  if value is None:
    # The value from the model's file.
    return
  if isinstance(value, str):
    if not value.isprintable() or len(value) > _MOST_CHARACTERS:
      raise ValueError(
        f'{key}={value[:80]!r}: must be printable and of at most '
        f'{_MOST_CHARACTERS} characters'
      )
  elif isinstance(value, (tuple, list)):
    for held in value:
      # Non-literals arrive as text, including nan and inf.
      if key not in _WORDS and not isinstance(held, (int, float)):
        raise ValueError(f'{key}={value}: give comma-separated numbers')
      _check_value(key, held)
  elif isinstance(value, float) and not abs(value) <= _REAL:
    raise ValueError(f'{key}={value}: must be finite as a float32')
  elif isinstance(value, int) or key in _RANGES:
    most = _RANGES[key][1] if key in _RANGES else _INTEGER
    if value > most:
      raise ValueError(f'{key}={value}: must be at most {most}')
    if value < -most:
      raise ValueError(f'{key}={value}: must be at least {-most}')


def check_memory(config: ConfigDict, model: ModelConfig) -> None:
  """Raises a ValueError if a run cannot possibly fit into memory.

  Compares parameters with one moment each, and a batch's tokens, with all the
  memory there is: a run that passes may still not fit (launch.bench --plan).
  """
  have = _memory()
  layer = model.num_heads * model.head_dim + 2 * model.mlp_dim
  shapes = ' '.join(
    f'{key}={getattr(model, key)}'
    for key in (
      *('width', 'num_layers', 'num_heads', 'head_dim', 'mlp_dim'),
      'vocab_size',
    )
  )
  for what, count in (
    (
      f'a model of {shapes}',
      model.width * (model.vocab_size + model.num_layers * layer),
    ),
    (
      f'batch_size={config.batch_size} of model.context={model.context} tokens',
      config.batch_size * model.context,
    ),
  ):
    # Two four-byte numbers.
    if 8 * count > have:
      raise ValueError(
        f'{what} takes at least {8 * count / 2**30:,.0f} GiB, there are '
        f'{have / 2**30:,.0f}: launch.bench --plan says what fits'
      )


def _memory() -> float:
  """Returns the memory of all devices in bytes, infinity if unknown."""
  device = jax.local_devices()[0]
  if device.platform == 'cpu':
    # CPU devices of one machine share its memory.
    page, pages = os.sysconf('SC_PAGE_SIZE'), os.sysconf('SC_PHYS_PAGES')
    return float(page * pages * jax.process_count())
  stats = device.memory_stats()
  if not stats or 'bytes_limit' not in stats:
    return math.inf
  return float(stats['bytes_limit'] * jax.device_count())


def import_shapes(config: ConfigDict, overrides: Mapping[str, Any]) -> None:
  """Takes the model's shapes from its initial checkpoint."""
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
      # 0 means the default, here the checkpoint's value.
      if not smaller and overrides[name] != 0:
        raise ValueError(
          f'--config.{name}={overrides[name]} disagrees with {spec}, which '
          f'has {value}: leave the key out'
        )
      if smaller:
        continue
    config.model[key] = value
  # It was trained without factors, so it is the base, not the recipe's shapes.
  for key in config.parametrization:
    if key.startswith('base_') and f'parametrization.{key}' not in overrides:
      config.parametrization[key] = 0


def check_same(config: ConfigDict, workdir: pathlib.Path) -> None:
  """Raises a ValueError that names the first key that a restart changes."""
  saved, removed = _read_config(workdir / 'config.json')
  make_absolute(saved)
  # Drop keys of other optimizers; earlier versions wrote them all.
  try:
    build.complete(saved.optimizer)
  except (ValueError, TypeError) as error:
    raise ValueError(f'{workdir / "config.json"}: {error}') from error
  before = base.flatten(ConfigDict(as_json(saved)))
  now = base.flatten(ConfigDict(as_json(config)))
  kind = before['schedule.kind']
  changes = kind != 'constant'
  if before['steps'] > now['steps'] and changes:
    raise ValueError(
      f'{workdir} holds a run of steps={before["steps"]}, asked for '
      f'{now["steps"]}: its {kind} schedule would differ: use another '
      '--workdir'
    )
  if before['steps'] < now['steps'] and changes:
    print(
      f'note: {workdir} was planned for {before["steps"]} steps; with '
      f'{now["steps"]} its {kind} schedule is another one',
      file=sys.stderr,
    )
  for key, value in removed.items():
    if _REMOVED[key] is not _ANY and _REMOVED[key] != value:
      raise ValueError(
        f'{workdir} holds a run with {key}={value}, which this version does '
        'not support: use another --workdir'
      )
  for key in sorted(before | now):
    a, b = before.get(key), now.get(key)
    if a != b and not key.startswith(_FREE):
      raise ValueError(
        f'{workdir} holds a run with {key}={a}, asked for {b}: use another '
        '--workdir'
      )


def read_config(workdir: pathlib.Path) -> ConfigDict:
  """Returns a run's configuration, to load its model.

  Keys that did not exist when the run was made get their defaults, which do
  what was done before the key existed.

  Raises:
    ValueError: config.json is damaged, or its model needs a key that this
      version does not know.
  """
  path = workdir / 'config.json'
  config, removed = _read_config(path)
  for key, value in removed.items():
    of_model = key.startswith(('model.', 'parametrization.'))
    if of_model and _REMOVED[key] is not _ANY and _REMOVED[key] != value:
      raise ValueError(
        f'{path} has {key}={value}, which this version does not support'
      )
  return config


def _read_config(path: pathlib.Path) -> tuple[ConfigDict, dict[str, Any]]:
  """Returns a file's configuration, and its values of removed keys."""
  config = ConfigDict(as_json(base.get_config()))
  removed: dict[str, Any] = {}
  try:
    with config.unlocked():
      config.update(reading.parse(path.read_text('utf-8')))
      for key, value in base.flatten(config).items():
        if value is None:
          raise ValueError(f'{key} is null')
        if key in _REMOVED:
          removed[key] = value
          group, _, name = key.rpartition('.')
          del (config[group] if group else config)[name]
  except (ValueError, TypeError, KeyError, AttributeError) as error:
    raise ValueError(
      f'{path} is damaged ({_first_line(error)}): use another --workdir'
    ) from error
  return config, removed


def read_summary(workdir: pathlib.Path) -> dict[str, Any] | None:
  """Returns how a run ended, None if it has not.

  Raises:
    ValueError: summary.json is damaged.
  """
  path = workdir / 'summary.json'
  if not path.exists():
    return None
  try:
    summary = reading.parse(path.read_text('utf-8'))
    kinds = {'status': str, 'steps': int}
    if summary['status'] == 'diverged':
      kinds['diverged_at_step'] = int
    for key, kind in kinds.items():
      if not isinstance(summary[key], kind):
        raise ValueError(f'{key} is no {kind.__name__}')
  except (ValueError, TypeError, KeyError) as error:
    raise ValueError(
      f'{path} is damaged ({_first_line(error)}): delete it and run the same '
      'command again'
    ) from error
  return summary


def _first_line(error: Exception) -> str:
  text = str(error).splitlines() or ['']
  return f'{type(error).__name__}: {text[0][:200]}'


def known() -> dict[str, Any]:
  """Returns how to read configurations, including earlier versions' ones.

  Returns:
    Fields of `report.runs.Known`; its defaults are the values of keys that a
    run lacks; for removed keys, the value at which they had no effect.
  """
  effective = {k: v for k, v in _REMOVED.items() if v is not _ANY}
  return {
    'defaults': as_json(base.get_config()) | effective,
    'ignored': frozenset(_REMOVED) - frozenset(effective),
    'study': as_json(base.get_study_config())['study'],
    'ranges': _RANGES,
  }


def as_json(config: ConfigDict) -> dict[str, Any]:
  """Returns the configuration as stored in config.json."""
  return json.loads(config.to_json())

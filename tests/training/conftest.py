"""Programs of small models: width 32, 64 tokens, batches of 16 · 16."""

from typing import Any

from ml_collections import ConfigDict
import numpy as np
import pytest

from steepest.experiments import base
from steepest.models import config as model_config
from steepest.optimizers import build
from steepest.training import run as assemble
from steepest.training.loop import Callbacks, Loop, LoopConfig
from steepest.training.program import Program

# Goes on whatever happens, short of what is not a number.

_SMALL = {
  'model.num_layers': 1,
  'model.width': 32,
  'model.num_heads': 4,
  'model.vocab_size': 64,
  'model.context': 16,
  'batch_size': 16,
  'steps': 100,
  'schedule.warmup_steps': 2,
  'optimizer.hessian_every': 2,
  'optimizer.hessian_bias_correction': True,
  'dtype.compute': 'float32',
  'mesh.data': 1,
}


def _configure(name: str, optimizer: str, **keys: Any) -> ConfigDict:
  """Returns a configuration; keys are written group__key."""
  config, _ = base.with_variant(f'{name},{optimizer}')
  given = {key.replace('__', '.'): value for key, value in keys.items()}
  config.update_from_flattened_dict({**_SMALL, **given})
  assert given.keys() <= base.flatten(config).keys()
  return config


def _program(config: ConfigDict) -> Program:
  model = model_config.resolve(config.model, 64, config.dtype)
  return assemble.make_program(config, model)


def _arguments(config: ConfigDict) -> build.Arguments:
  return build.arguments(config.optimizer, config.schedule, config.steps)


def _batch(step: int = 0, rows: int = 16) -> dict[str, np.ndarray]:
  tokens = np.random.default_rng(step).integers(0, 64, (rows, 17))
  tokens = np.minimum(tokens, np.roll(tokens, 1, 1)).astype(np.int32)
  return {'inputs': tokens[:, :-1], 'targets': tokens[:, 1:]}


@pytest.fixture(scope='session')
def configure():
  return _configure


@pytest.fixture(scope='session')
def make_program():
  return _program


@pytest.fixture(scope='session')
def arguments():
  return _arguments


@pytest.fixture(scope='session')
def make_batch():
  return _batch


class _Data:
  """Batches by step, and 20 and 5 validation sequences of two sources."""

  fingerprint = 'f'
  bytes_per_token = {'a': 4.0, 'b': 2.5}

  def __init__(self, make_batch):
    self._make_batch = make_batch

  def train(self, first_step):
    step = first_step
    while True:
      yield self._make_batch(step)
      step += 1

  def validation(self):
    batches = {}
    for source, real in (('a', (16, 4)), ('b', (5,))):
      batches[source] = [
        {
          **self._make_batch(100 + i),
          'mask': (np.arange(16) < rows).astype(np.float32),
        }
        for i, rows in enumerate(real)
      ]
    return batches


@pytest.fixture
def make_loop(configure, make_program, arguments, make_batch, tmp_path):
  """Returns a function that makes a loop of a few steps."""

  def fn(
    optimizer='lion',
    callbacks=None,
    data=None,
    args=None,
    directory=None,
    **keys,
  ):
    config = configure('gpt2', optimizer, schedule__kind='constant')
    values = {
      'seed': 0,
      'steps': 7,
      'log_every': 1,
      'eval_every': 0,
      'eval_sequences': 0,
      'eval_tasks': '',
      'eval_tasks_every': 0,
      'checkpoint_every': 0,
      'checkpoints_kept': 2,
      'stall_seconds': 0.0,
      **keys,
    }
    return Loop(
      make_program(config),
      data or _Data(make_batch),
      (args or arguments)(config),
      LoopConfig(**values),
      directory or tmp_path,
      callbacks or Callbacks(),
      values,
    )

  return fn

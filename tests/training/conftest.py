"""Small models: width 32, 64 tokens, batches of 16 · 16."""

from typing import Any

import jax
from ml_collections import ConfigDict
import numpy as np
import pytest

from steepest.experiments import base
from steepest.models import config as model_config
from steepest.optimizers import build, role_statistics
from steepest.training import (
  mesh as mesh_lib,
  run,
  state as state_lib,
  step as step_lib,
)
from steepest.training.loop import Callbacks, LoopConfig, fit

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


class Trainer:
  """A setup with hyperparameters and a seed, to be stepped by hand."""

  def __init__(self, config: ConfigDict):
    model = model_config.resolve(config.model, 64, config.dtype)
    self.setup = run.make_setup(config, model)
    self.hypers = build.hyperparameters(
      config.optimizer, config.schedule, config.steps
    )

  def init(self, seed: int = 0) -> state_lib.TrainState:
    return state_lib.init(self.setup, seed)

  def put(self, batch):
    return mesh_lib.put_batch(self.setup.mesh, batch, self.setup.batch_size)

  def step(self, state, batch, measure=True):
    """Returns the next state and all that was logged, by name."""
    compiled = step_lib.compile_step(self.setup, self.hypers)
    numbers = mesh_lib.replicate(
      self.setup.mesh, (self.hypers, np.uint32(0), np.bool_(measure))
    )
    state, stats = compiled(state, self.put(batch), *numbers)
    stats = role_statistics.kept(jax.device_get(stats), measure)
    return state, self.setup.chain.named(stats)


def _batch(step: int = 0, rows: int = 16) -> dict[str, np.ndarray]:
  tokens = np.random.default_rng(step).integers(0, 64, (rows, 17))
  tokens = np.minimum(tokens, np.roll(tokens, 1, 1)).astype(np.int32)
  return {'inputs': tokens[:, :-1], 'targets': tokens[:, 1:]}


@pytest.fixture(scope='session')
def configure():
  return _configure


@pytest.fixture(scope='session')
def make_trainer():
  return Trainer


@pytest.fixture(scope='session')
def make_batch():
  return _batch


class Data:
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
def data(make_batch):
  return Data(make_batch)


@pytest.fixture
def train(configure, make_trainer, data, tmp_path):
  """Trains for a few steps and returns the summary."""

  def fn(
    optimizer='lion',
    callbacks=None,
    data=data,
    hypers=None,
    directory=None,
    restart=False,
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
      'profile_steps': (),
      **keys,
    }
    trainer = make_trainer(config)
    return fit(
      trainer.setup,
      data,
      {**trainer.hypers, **(hypers or {})},
      LoopConfig(**values),
      directory or tmp_path,
      callbacks or Callbacks(),
      values,
      trainer.init,
      restart,
    )

  return fn

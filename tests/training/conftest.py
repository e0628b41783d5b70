"""Programs of small models: width 32, 64 tokens, batches of 16 · 16."""

from typing import Any

from ml_collections import ConfigDict
import numpy as np
import pytest

from steepest.experiments import base
from steepest.launch import assemble
from steepest.launch import cli
from steepest.models import config as model_config
from steepest.optimizers import build
from steepest.training.program import Program

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
  assert given.keys() <= cli.flatten(config).keys()
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

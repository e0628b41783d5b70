"""A model's shapes, resolved and checked, and the file that defines it."""

from collections.abc import Iterable
import dataclasses
import difflib
import importlib
import pkgutil
from typing import Any

import jax
from jax import numpy as jnp
from jax.typing import DTypeLike
from ml_collections import ConfigDict

from steepest import models
from steepest.experiments import outside
from steepest.models import remat

# What a model file defines; see `find_model`.
_CONTENTS = ('Model', 'HABITS', 'default_mlp_dim', 'check')
# Keys that take the model's own value unless the configuration sets them.
_HABITS = ('bias', 'tie_embeddings', 'norm_eps', 'activation')
_DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}
ACTIVATIONS = {
  'gelu_tanh': lambda x: jax.nn.gelu(x, approximate=True),
  'gelu': lambda x: jax.nn.gelu(x, approximate=False),
  'silu': jax.nn.silu,
}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """The `model` keys of experiments/base.py with every 0 resolved."""

  name: str
  num_layers: int
  width: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  mlp_dim: int
  vocab_size: int
  context: int
  bias: bool
  tie_embeddings: bool
  norm_eps: float
  norm_gain: bool
  activation: str
  rope_base: float
  zero_init_readout: bool
  zero_init_query: bool
  qk_norm: bool
  z_loss: float
  remat: str
  scan_layers: bool
  compute_dtype: DTypeLike = jnp.float32


def find_model(name: str) -> Any:
  """Returns the module of models/NAME.py, or of a path such as `./mine.py`.

  A model file, here or anywhere, defines
    Model(config, rules): a Flax module of `ModelConfig` and `Parametrization`;
      see models/gpt2.py for its arguments and results.
    HABITS: defaults for the keys bias, tie_embeddings, norm_eps, activation.
    default_mlp_dim(width): what `mlp_dim` 0 means.
    check(config): raises a ValueError if the model cannot have this config.

  Raises:
    FileNotFoundError: no file at this path.
    ValueError: no model has that name, or the file lacks one of these.
  """
  if outside.is_path(name):
    file = outside.load('model.name=', name, _CONTENTS)
    if missing := [habit for habit in _HABITS if habit not in file.HABITS]:
      raise ValueError(f'model.name={name}: HABITS has no {", ".join(missing)}')
    return file
  known = []
  for info in pkgutil.iter_modules(models.__path__):
    module = importlib.import_module(f'{models.__name__}.{info.name}')
    if hasattr(module, 'Model'):
      known.append(info.name)
      if info.name == name:
        return module
  near = difflib.get_close_matches(name, known, 1)
  hint = f'did you mean {near[0]!r}? ' if near else ''
  raise ValueError(
    f'model.name={name!r}: {hint}there are {", ".join(known)}, or give the '
    'path of a model file, ./NAME.py'
  )


def habits(config: ConfigDict) -> dict[str, Any]:
  """Returns the keys of the `model` slice that default to the file's HABITS."""
  file = find_model(config.name)
  return {
    key: file.HABITS[key] if config[key] is None else config[key]
    for key in _HABITS
  }


def resolve(
  config: ConfigDict, vocab_size: int, dtype: ConfigDict
) -> ModelConfig:
  """Returns the model's configuration.

  Args:
    config: the `model` slice.
    vocab_size: number of token ids in the data, used if the slice says 0.
    dtype: the `dtype` slice.

  Raises:
    FileNotFoundError: `name` is a path without a file.
    ValueError: a shape does not divide or a name is unknown.
  """
  file = find_model(config.name)
  values = {
    field.name: config[field.name]
    for field in dataclasses.fields(ModelConfig)
    if field.name != 'compute_dtype'
  }
  values |= habits(config)
  _check_positive('num_heads', config.num_heads)
  if config.head_dim == 0:
    if config.width % config.num_heads:
      raise ValueError(
        f'model.width={config.width} is not a multiple of model.num_heads='
        f'{config.num_heads}: change one, or set model.head_dim'
      )
    values['head_dim'] = config.width // config.num_heads
  values['num_kv_heads'] = config.num_kv_heads or config.num_heads
  values['mlp_dim'] = config.mlp_dim or file.default_mlp_dim(config.width)
  values['vocab_size'] = config.vocab_size or vocab_size
  if dtype.params != 'float32':
    raise ValueError(f'dtype.params={dtype.params!r}: must be float32')
  _check_name('dtype.compute', dtype.compute, _DTYPES)
  model = ModelConfig(**values, compute_dtype=_DTYPES[dtype.compute])
  _check(model)
  file.check(model)
  return model


def _check(model: ModelConfig) -> None:
  for name in (
    'num_layers',
    'width',
    'num_kv_heads',
    'head_dim',
    'mlp_dim',
    'vocab_size',
    'context',
  ):
    _check_positive(name, getattr(model, name))
  _check_name('model.activation', model.activation, ACTIVATIONS)
  _check_name('model.remat', model.remat, remat.POLICIES)
  if model.num_heads % model.num_kv_heads:
    raise ValueError(
      f'model.num_heads={model.num_heads} is not a multiple of '
      f'model.num_kv_heads={model.num_kv_heads}: change one'
    )
  if model.z_loss < 0:
    raise ValueError(f'model.z_loss={model.z_loss}: must not be negative')
  if model.qk_norm and model.zero_init_query:
    raise ValueError(
      'model.qk_norm cannot normalise queries that are zero: set '
      'model.zero_init_query=False'
    )
  if model.zero_init_readout and model.tie_embeddings:
    raise ValueError(
      'model.zero_init_readout needs an untied readout: set '
      'model.tie_embeddings=False'
    )


def _check_positive(name: str, value: int) -> None:
  if value < 1:
    raise ValueError(f'model.{name}={value}: must be at least 1')


def _check_name(key: str, value: str, known: Iterable[str]) -> None:
  if value not in known:
    raise ValueError(f'{key}={value!r}: must be one of {", ".join(known)}')

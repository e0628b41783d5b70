"""Shapes and habits of a model, resolved and checked."""

import dataclasses

from jax import numpy as jnp
from jax.typing import DTypeLike
from ml_collections import ConfigDict

from steepest.models import remat

_DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}
_ACTIVATIONS = ('gelu_tanh', 'gelu', 'silu')


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
  compute_dtype: DTypeLike = jnp.float32


def default_mlp_dim(name: str, width: int) -> int:
  """4·width; for llama 8/3·width rounded up to a multiple of 32."""
  if name == 'llama':
    return -(-8 * width // (3 * 32)) * 32
  return 4 * width


def resolve(
  config: ConfigDict, vocab_size: int, dtype: ConfigDict
) -> ModelConfig:
  """Returns the model's configuration.

  Args:
    config: the `model` slice.
    vocab_size: token ids in the data, used when the slice says 0.
    dtype: the `dtype` slice.

  Raises:
    ValueError: a shape does not divide or a name is unknown.
  """
  values = {
    field.name: config[field.name]
    for field in dataclasses.fields(ModelConfig)
    if field.name != 'compute_dtype'
  }
  _check_positive('num_heads', config.num_heads)
  if config.head_dim == 0:
    if config.width % config.num_heads:
      raise ValueError(
        f'model.width={config.width} is not a multiple of model.num_heads='
        f'{config.num_heads}: change one, or set model.head_dim'
      )
    values['head_dim'] = config.width // config.num_heads
  values['num_kv_heads'] = config.num_kv_heads or config.num_heads
  values['mlp_dim'] = config.mlp_dim or default_mlp_dim(
    config.name, config.width
  )
  values['vocab_size'] = config.vocab_size or vocab_size
  if dtype.params != 'float32':
    raise ValueError(f'dtype.params={dtype.params!r}: must be float32')
  if dtype.compute not in _DTYPES:
    raise ValueError(
      f'dtype.compute={dtype.compute!r}: must be one of {", ".join(_DTYPES)}'
    )
  model = ModelConfig(**values, compute_dtype=_DTYPES[dtype.compute])
  _check(model)
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
  if model.num_heads % model.num_kv_heads:
    raise ValueError(
      f'model.num_heads={model.num_heads} is not a multiple of '
      f'model.num_kv_heads={model.num_kv_heads}: change one'
    )
  if model.name == 'llama' and model.head_dim % 2:
    raise ValueError(
      f'model.head_dim={model.head_dim}: rotary positions need an even one'
    )
  if model.name == 'gpt2' and model.num_kv_heads != model.num_heads:
    raise ValueError(
      'model.num_kv_heads: gpt2 has as many as query heads; set it to 0'
    )
  if model.activation not in _ACTIVATIONS:
    raise ValueError(
      f'model.activation={model.activation!r}: must be one of '
      f'{", ".join(_ACTIVATIONS)}'
    )
  if model.remat not in remat.POLICIES:
    raise ValueError(
      f'model.remat={model.remat!r}: must be one of {", ".join(remat.POLICIES)}'
    )
  if model.z_loss < 0:
    raise ValueError(f'model.z_loss={model.z_loss}: must not be negative')
  if model.qk_norm and model.zero_init_query:
    raise ValueError(
      'model.qk_norm has no use for a query of zero: set '
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

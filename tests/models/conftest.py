"""Small models: width 32, two layers, 64 tokens."""

import functools
from typing import Any

from flax import linen as nn
import jax
from jax import numpy as jnp
import numpy as np
import pytest

from steepest.experiments import base
from steepest.models import config as model_config, parametrization

SMALL = {
  'num_layers': 2,
  'width': 32,
  'num_heads': 4,
  'vocab_size': 64,
  'context': 16,
}


class Built:
  """A model, its rules and its parameters: initial, boxed and random."""

  def __init__(
    self, module: nn.Module, rules: parametrization.Parametrization, seed: int
  ):
    self.module, self.rules, self._seed = module, rules, seed

  def _init(self) -> Any:
    tokens = jnp.zeros((1, self.rules.model.context), jnp.int32)
    return self.module.init(jax.random.key(self._seed), tokens)['params']

  @functools.cached_property
  def boxed(self) -> Any:
    """Shapes with roles."""
    return jax.eval_shape(self._init)

  @functools.cached_property
  def params(self) -> Any:
    """Initial values."""
    return nn.unbox(jax.jit(self._init)())

  def random(self) -> Any:
    """Values in which biases and gains are random too."""
    rng = np.random.default_rng(self._seed)
    return jax.tree.map(
      lambda p: jnp.asarray(rng.normal(0.2, 0.3, p.shape), jnp.float32),
      nn.unbox(self.boxed),
    )

  def logits(self, params: Any, tokens: Any) -> jax.Array:
    return self.module.apply({'params': params}, jnp.asarray(tokens))


def _build(
  name: str,
  kind: str = 'sp',
  compute: str = 'float32',
  rules: dict[str, Any] | None = None,
  seed: int = 0,
  **shapes: Any,
) -> Built:
  config = base.get_config()
  base.set_model(config, name)
  config.model.update({**SMALL, **shapes})
  config.parametrization.update({'kind': kind, **(rules or {})})
  config.dtype.compute = compute
  model = model_config.resolve(config.model, 0, config.dtype)
  resolved = parametrization.resolve(config.parametrization, model)
  module = model_config.find_model(name).Model(model, resolved)
  return Built(module, resolved, seed)


@pytest.fixture(scope='session')
def build_model():
  """Returns the function that builds a model from what differs."""
  return _build

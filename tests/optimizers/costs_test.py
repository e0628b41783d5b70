"""Bytes and FLOPs of updates by hand, and who moves what."""

import jax
from jax import numpy as jnp
import pytest

from steepest.experiments import base
from steepest.models.parametrization import Factors
from steepest.optimizers import build, costs

_SHAPES = {'embedding': (1000, 256), 'hidden': (256, 512), 'gain': (256,)}
_SIZE = 1000 * 256 + 256 * 512 + 256
# Bytes a parameter: read and write the parameter, read the gradient, and what
# of the state is read and written.
_BYTES = {
  'adamw': 28,
  'ademamix': 36,
  'adopt': 28,
  'cautious_adamw': 28,
  'cautious_lion': 20,
  'lion': 20,
  'nadamw': 28,
  'prodigy': 40,
  'schedule_free': 28,
  'signum': 20,
  'sophia': 24,
}


def _chain(name):
  config = base.get_config()
  base.set_optimizer(config, name)
  factors = {
    kind: Factors(
      1.0, 1.0, 1.0, 1.0, dict.fromkeys(build.DECAY_MODES, 0.0), kind
    )
    for kind in _SHAPES
  }
  return build.build(config.optimizer, config.schedule, factors)


@pytest.fixture
def params():
  return {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in _SHAPES.items()}


@pytest.mark.parametrize('name', build.names())
def test_bytes(name, params):
  chain = _chain(name)
  moved = costs.update_bytes(chain, params) / _SIZE
  hidden = 256 * 512 / _SIZE
  if name in _BYTES:
    assert moved == pytest.approx(_BYTES[name], rel=1e-4)
  elif name == 'muon':
    assert moved == pytest.approx(28 - 8 * hidden, rel=1e-4)
  elif name == 'adafactor':
    assert moved == pytest.approx(20, rel=0.01)
  else:
    assert name == 'soap'
    bases = 16 * (256**2 + 512**2) / _SIZE
    assert moved == pytest.approx(28 + bases, rel=1e-4)
  state = costs.state_bytes(chain, params) / _SIZE
  assert 4 <= state <= 25


def test_flops_by_hand(params):
  # Five times X·Xᵀ, its square, and their product with X; one matrix.
  products = 2 * 256**2 * 512 + 2 * 256**3 + 2 * 256**2 * 512
  assert costs.update_flops(_chain('muon'), params) == 5 * products
  # Gradient and momentum turned, the update turned back, the covariances.
  turns = 4 * (2 * 256**2 * 512 + 2 * 256 * 512**2)
  assert costs.update_flops(_chain('soap'), params) == turns
  assert costs.update_flops(_chain('adamw'), params) == 0


def test_descriptions(params):
  assert costs.description(_chain('adamw'), params) == ''
  assert costs.description(_chain('muon'), params) == (
    'muon: 1 hidden (131,072 parameters); '
    'adamw: 1 embedding, 1 gain (256,256 parameters)'
  )
  assert costs.description(_chain('adafactor'), params) == (
    'factored: 1 embedding, 1 hidden (387,072 parameters); '
    'not factored: 1 gain (256 parameters)'
  )

"""Bytes and FLOPs of updates by hand, and who moves what."""

import jax
from jax import numpy as jnp
import pytest

from steepest.optimizers import costs, optimizer

_SHAPES = {'embedding': (1000, 256), 'hidden': (256, 512), 'gain': (256,)}
_SIZE = 1000 * 256 + 256 * 512 + 256
# Bytes a parameter: read and write the parameter, read the gradient, and what
# of the state is read and written.
_BYTES = {
  'adamh': 28,
  'adamw': 28,
  'ademamix': 36,
  'adopt': 28,
  'cautious_adamw': 28,
  'cautious_lion': 20,
  'lion': 20,
  'nadamw': 28,
  'prodigy': 40,
  'schedule_free': 28,
  'scion': 20,
  'signum': 20,
  'sophia': 24,
}


@pytest.fixture
def params():
  return {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in _SHAPES.items()}


@pytest.mark.parametrize('name', optimizer.names())
def test_bytes(name, params, setup):
  chain = setup(name).chain
  moved = costs.update_bytes(chain, params) / _SIZE
  hidden = 256 * 512 / _SIZE
  # Of the hidden matrix: momentum alone, and what is read and written besides.
  momentum = 28 - 8 * hidden
  besides = {
    'muon': 0,
    'muonh': 0,
    'normuon': 512,
    'dion': 256 * 256,
  }
  if name in _BYTES:
    assert moved == pytest.approx(_BYTES[name], rel=1e-4)
  elif name in besides:
    wanted = momentum + 8 * besides[name] / _SIZE
    assert moved == pytest.approx(wanted, rel=1e-4)
  elif name == 'mars':
    # The last gradient is kept of matrices, embedding and readout.
    assert moved == pytest.approx(36 - 8 * 256 / _SIZE, rel=1e-4)
  elif name == 'kron':
    factors = 1000**2 + 2 * 256**2 + 512**2 + 256
    assert moved == pytest.approx(20 + 8 * factors / _SIZE, rel=1e-4)
  elif name == 'adafactor':
    assert moved == pytest.approx(20, rel=0.01)
  else:
    assert name == 'soap'
    bases = 16 * (256**2 + 512**2) / _SIZE
    assert moved == pytest.approx(28 + bases, rel=1e-4)
  state = costs.state_bytes(chain, params) / _SIZE
  assert 4 <= state <= 25


def test_flops_by_hand(params, setup):
  # Five times X·Xᵀ, its square, and their product with X; one matrix.
  products = 2 * 256**2 * 512 + 2 * 256**3 + 2 * 256**2 * 512
  for name, iterations in (('muon', 5), ('normuon', 5), ('muonh', 12)):
    chain = setup(name).chain
    assert costs.update_flops(chain, params) == iterations * products
  # Scion orthogonalises hidden matrices alone.
  assert costs.update_flops(setup('scion').chain, params) == 5 * products
  # Rank 64: four products, and QR of 512 × 64 with its Q.
  dion = costs.update_flops(setup('dion', rank_fraction=0.25).chain, params)
  assert dion == 4 * 2 * 256 * 512 * 64 + 4 * 512 * 64**2 - 4 * 64**3 / 3
  # Two products on each side of both matrices, and 3 % of seven halves more
  # and of a triangular one.
  sides = [(n, a * b) for a, b in ((1000, 256), (256, 512)) for n in (a, b)]
  assert costs.update_flops(setup('kron').chain, params) == pytest.approx(
    sum(4 * n * mn + 0.03 * (7 * n * mn + 2 * n**3) for n, mn in sides)
  )
  # Gradient and momentum turned, the update turned back, the covariances.
  turns = 4 * (2 * 256**2 * 512 + 2 * 256 * 512**2)
  assert costs.update_flops(setup('soap').chain, params) == turns
  assert costs.update_flops(setup('adamw').chain, params) == 0


def test_descriptions(params, setup):
  assert costs.description(setup('adamw').chain, params) == ''
  assert costs.description(setup('muon').chain, params) == (
    'muon: 1 hidden (131,072 parameters); '
    'adamw: 1 embedding, 1 gain (256,256 parameters)'
  )

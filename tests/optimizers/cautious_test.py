"""Cautious updates and sign methods against numpy."""

import jax
from jax import numpy as jnp
import numpy as np
import pytest

from steepest.optimizers import adamw, lion, signum
from steepest.optimizers.trees import cautious

_BASES = {
  'adamw': adamw.scale_by_adamw(0.9, 0.95, 1e-8),
  'lion': lion.scale_by_lion(0.9, 0.99),
}


def _gradients():
  return np.random.default_rng(0).normal(size=(12, 5, 4)).astype('f')


def test_signum_is_the_sign_of_an_average():
  transform = signum.scale_by_signum(0.8)
  m = np.zeros((5, 4))
  state = transform.init(jnp.zeros((5, 4)))
  for g in _gradients():
    u, state = transform.update(jnp.asarray(g), state)
    m = 0.8 * m + 0.2 * g
    np.testing.assert_array_equal(u, np.sign(m))


@pytest.mark.parametrize('name', _BASES)
def test_cautious_updates_agree_with_the_gradient(name):
  """u·φ·n/(Σφ + 1) in numpy; the state is that of the plain optimizer."""
  base = _BASES[name]
  ours = cautious(base)
  state, plain = ours.init(jnp.zeros((5, 4))), base.init(jnp.zeros((5, 4)))
  left_out = 0
  for g in _gradients():
    u, state = ours.update(jnp.asarray(g), state)
    full, plain = base.update(jnp.asarray(g), plain)
    keep = np.asarray(full) * g > 0
    wanted = np.where(keep, full, 0) * (20 / (keep.sum() + 1))
    np.testing.assert_allclose(u, wanted, rtol=1e-5)
    left_out += (~keep).sum()
  jax.tree.map(np.testing.assert_array_equal, state, plain)
  assert left_out > 5

"""Sophia against hand-computed values."""

import jax
from jax import numpy as jnp
import numpy as np
import pytest

from steepest.optimizers import sophia


def test_direction_by_hand():
  """m = 0.1·g; |m|/(0.5·h + 0.01) with h of every kind."""
  grads = jnp.array([1.0, -1.0, 1.0, -1.0, 0.0])
  transform = sophia.scale_by_sophia(0.9, 0.99, 0.5, 0.01)
  state = transform.init(grads)
  # 0.1/(0.5·0.78 + 0.01) = 1/4; at 0.18 exactly 1; zero and negative clip.
  state = state._replace(h=jnp.array([0.78, 0.78, 0.0, -5.0, 1.0]))
  updates, state = transform.update(grads, state)
  np.testing.assert_allclose(updates, [0.25, -0.25, 1, -1, 0], rtol=1e-5)
  np.testing.assert_allclose(state.m, 0.1 * grads, rtol=1e-6)


def test_before_the_first_estimate_it_is_the_momentums_sign():
  grads = jnp.array([1e-6, -3.0])
  for correction in (False, True):
    transform = sophia.scale_by_sophia(0.9, 0.99, 0.05, 1e-15, correction)
    updates, _ = transform.update(grads, transform.init(grads))
    np.testing.assert_array_equal(updates, [1, -1])


def test_a_tree_gives_each_parameter_its_own_b2():
  params = {'a': jnp.zeros(1), 'b': jnp.zeros(1)}
  state = sophia.scale_by_sophia(0.9, 0.9, 0.05, 1e-15).init(params)
  ones = jax.tree.map(jnp.ones_like, params)
  state = sophia.update_curvature(state, ones, {'a': 0.9, 'b': 0.75})
  np.testing.assert_allclose(state.h['a'], [0.1], rtol=1e-5)
  np.testing.assert_allclose(state.h['b'], [0.25], rtol=1e-5)
  with pytest.raises(ValueError, match='differ'):
    sophia.update_curvature(state, ones, {'a': 0.9, 'c': 0.75})


@pytest.mark.parametrize('estimates', [1, 2, 7])
def test_bias_correction_recovers_a_constant_curvature(estimates):
  """Equal estimates c give h = c exactly, from the first one on."""
  c, rho = 4.0, 0.5
  transform = sophia.scale_by_sophia(0.9, 0.99, rho, 0.0, True)
  state = transform.init(jnp.zeros(1))
  for _ in range(estimates):
    state = sophia.update_curvature(state, jnp.array([c]), 0.99)
  updates, _ = transform.update(jnp.array([3.0]), state)
  # m = 0.3, so u = 0.3 / (0.5·4).
  np.testing.assert_allclose(updates, [0.15], rtol=1e-4)

"""Lion against Optax and the traps of its definition."""

import jax
from jax import numpy as jnp
import numpy as np
import optax

from steepest.optimizers import lion


def test_equals_optax():
  params = {'w': jnp.ones((3, 2)), 'b': jnp.zeros(2)}
  ours, theirs = lion.scale_by_lion(0.9, 0.99), optax.scale_by_lion(0.9, 0.99)
  state, reference = ours.init(params), theirs.init(params)
  for key in jax.random.split(jax.random.key(0), 20):
    grads = {
      'w': jax.random.normal(key, (3, 2)),
      'b': jax.random.normal(key, (2,)) * 1e-3,
    }
    updates, state = ours.update(grads, state, params)
    wanted, reference = theirs.update(grads, reference, params)
    jax.tree.map(np.testing.assert_array_equal, updates, wanted)


def test_an_untouched_coordinate_does_not_move():
  grads = jnp.array([0.0, 1.0, -2.0])
  transform = lion.scale_by_lion(0.9, 0.99)
  updates, _ = transform.update(grads, transform.init(grads))
  np.testing.assert_array_equal(updates, [0, 1, -1])


def test_a_touched_coordinate_keeps_moving():
  transform = lion.scale_by_lion(0.9, 0.99)
  _, state = transform.update(jnp.array([1.0]), transform.init(jnp.zeros(1)))
  for _ in range(100):
    updates, state = transform.update(jnp.zeros(1), state)
    assert updates[0] == 1


def test_direction_uses_the_old_momentum():
  """At m = 0.01 and g = -0.05: 0.9·m + 0.1·g > 0, but 0.99·m' would not be."""
  transform = lion.scale_by_lion(0.9, 0.5)
  state = lion.ScaleByLionState(jnp.array([0.01]))
  updates, state = transform.update(jnp.array([-0.05]), state)
  assert updates[0] == 1
  np.testing.assert_allclose(state.m, [-0.02], rtol=1e-6)


def test_a_common_factor_on_all_gradients_changes_nothing():
  grads = jax.random.normal(jax.random.key(0), (10, 8))
  transform = lion.scale_by_lion(0.9, 0.99)
  state = scaled = transform.init(grads[0])
  for g in grads:
    updates, state = transform.update(g, state)
    wanted, scaled = transform.update(g * 2**-10, scaled)
    np.testing.assert_array_equal(updates, wanted)

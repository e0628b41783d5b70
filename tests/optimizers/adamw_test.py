"""AdamW against Optax and closed forms."""

import jax
from jax import numpy as jnp
import numpy as np
import optax

from steepest.optimizers import adamw


def test_equals_optax():
  keys = jax.random.split(jax.random.key(0), 20)
  params = {'w': jnp.ones((3, 2)), 'b': jnp.zeros(2)}
  ours = adamw.scale_by_adamw(0.9, 0.95, 1e-8)
  theirs = optax.scale_by_adam(0.9, 0.95, 1e-8)
  state, reference = ours.init(params), theirs.init(params)
  for key in keys:
    grads = {
      'w': jax.random.normal(key, (3, 2)),
      'b': jax.random.normal(key, (2,)) * 1e-3,
    }
    updates, state = ours.update(grads, state, params)
    wanted, reference = theirs.update(grads, reference, params)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6), updates, wanted
    )


def test_first_step_is_the_sign_of_the_gradient():
  """With corrected moments m̂ = g and v̂ = g², whatever the betas."""
  grads = jnp.array([3.0, -1e-3, 0.0, 20.0])
  transform = adamw.scale_by_adamw(0.9, 0.999, 0.0)
  updates, _ = transform.update(grads[:2], transform.init(grads[:2]))
  np.testing.assert_allclose(updates, [1, -1], rtol=1e-5)
  transform = adamw.scale_by_adamw(0.9, 0.999, 1e-8)
  updates, _ = transform.update(grads, transform.init(grads))
  assert updates[2] == 0


def test_eps_is_outside_the_root():
  grads = jnp.array([1e-4])
  transform = adamw.scale_by_adamw(0.9, 0.95, 1e-4)
  updates, _ = transform.update(grads, transform.init(grads))
  np.testing.assert_allclose(updates, [0.5], rtol=1e-5)


def test_a_tree_gives_each_parameter_its_own_eps():
  grads = {'a': jnp.array([1e-4]), 'b': jnp.array([1e-4])}
  transform = adamw.scale_by_adamw(0.9, 0.95, {'a': 0.0, 'b': 3e-4})
  updates, _ = transform.update(grads, transform.init(grads))
  np.testing.assert_allclose(updates['a'], [1.0], rtol=1e-5)
  np.testing.assert_allclose(updates['b'], [0.25], rtol=1e-5)

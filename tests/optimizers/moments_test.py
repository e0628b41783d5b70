"""Moments in bfloat16: rounding, averages that stay right, and the chain."""

from hypothesis import given, settings, strategies as st
import jax
from jax import numpy as jnp
import numpy as np
import pytest

from steepest.experiments import base
from steepest.models.parametrization import Factors
from steepest.optimizers import adamw, build, moments

_SHAPES = {'embedding': (16, 8), 'hidden': (8, 8), 'gain': (8,)}


def _chain(name, dtype):
  config = base.get_config()
  base.set_optimizer(config, name)
  config.schedule.update(kind='constant', warmup_steps=0)
  factors = {
    kind: Factors(
      1.0, 1.0, 1.0, 1.0, dict.fromkeys(build.DECAY_MODES, 0.0), kind
    )
    for kind in _SHAPES
  }
  chain = build.build(config.optimizer, config.schedule, factors, dtype)
  return chain, build.arguments(config.optimizer, config.schedule, 20)


def _params():
  rng = np.random.default_rng(0)
  return {k: jnp.asarray(rng.normal(size=s), 'f') for k, s in _SHAPES.items()}


def _round(x, step):
  state = adamw.ScaleByAdamWState(jnp.int32(0), x, x)
  return moments.narrowed(state, ('m',), step)


@settings(deadline=None, max_examples=30)
@given(st.floats(-(2.0**99), 2.0**99, width=32), st.integers(0, 1000))
def test_rounds_to_one_of_the_two_neighbours(value, step):
  x = jnp.full(4, value, jnp.float32)
  got = np.asarray(_round(x, step).m.astype(jnp.float32), np.float64)
  digit = 2.0 ** (np.floor(np.log2(abs(value))) - 7) if value else 0
  assert (np.abs(got - np.float64(value)) <= max(digit, 1e-37)).all()


def test_the_mean_is_exact_and_neighbours_are_independent():
  x = jnp.full((200, 500), 1 + 2**-10, jnp.float32)  # An eighth of a digit.
  up = np.asarray(_round(x, 3).m, np.float32) > 1
  # Standard deviation of the share: 0.001.
  assert up.mean() == pytest.approx(1 / 8, abs=0.005)
  assert up.mean(0).std() == pytest.approx(
    (1 / 8 * 7 / 8 / 200) ** 0.5, rel=0.2
  )
  assert up.mean(1).std() == pytest.approx(
    (1 / 8 * 7 / 8 / 500) ** 0.5, rel=0.2
  )
  other = np.asarray(_round(x, 4).m, np.float32) > 1
  assert (up & other).mean() == pytest.approx(1 / 64, abs=0.005)


def test_only_the_named_fields_change_and_what_is_not_finite_stays():
  x = jnp.array([1.5, jnp.inf, -jnp.inf, jnp.nan])
  state = _round(x, 0)
  assert state.m.dtype == jnp.bfloat16 and state.v.dtype == jnp.float32
  np.testing.assert_array_equal(state.m.astype(jnp.float32), x)
  wide = moments.widened(state, ('m',))
  assert wide.m.dtype == jnp.float32


def test_a_slow_average_follows():
  """With decay 0.999 rounding to the nearest would stand still at 1."""
  v = jnp.ones(4096)
  nearest = jnp.ones(4096, jnp.bfloat16)
  for step in range(300):
    v = 0.999 * _round(v, step).v.astype(jnp.float32)
    v = _round(v, step).m.astype(jnp.float32)
    nearest = (0.999 * nearest.astype(jnp.float32)).astype(jnp.bfloat16)
  assert float(v.mean()) == pytest.approx(0.999**300, rel=0.01)
  assert float(nearest.mean(dtype=jnp.float32)) > 0.99


@pytest.mark.parametrize('name', build.names())
def test_halves_the_moments_of_every_optimizer(name):
  plain, _ = _chain(name, 'float32')
  narrow, args = _chain(name, 'bfloat16')
  params = _params()
  leaves = jax.tree.leaves(jax.eval_shape(plain.init, params))
  halved = jax.tree.leaves(jax.eval_shape(narrow.init, params))
  changed = [
    (a, b) for a, b in zip(leaves, halved, strict=True) if a.dtype != b.dtype
  ]
  assert changed
  assert all(b.dtype == jnp.bfloat16 for _, b in changed)
  after = jax.eval_shape(
    lambda p, s: narrow.update(p, s, p, 0, args)[1], params, narrow.init(params)
  )
  jax.tree.map(
    lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype) or pytest.fail(),
    after,
    jax.eval_shape(narrow.init, params),
  )


def test_updates_are_near_those_of_float32():
  plain, args = _chain('adamw', 'float32')
  narrow, _ = _chain('adamw', 'bfloat16')
  a = b = _params()
  of_a, of_b = plain.init(a), narrow.init(b)
  for t in range(20):
    grads = jax.tree.map(
      lambda p, key: jax.random.normal(key, p.shape),
      a,
      dict(zip(a, jax.random.split(jax.random.key(t), len(a)))),
    )
    a, of_a, _ = plain.update(grads, of_a, a, t, args)
    b, of_b, _ = narrow.update(grads, of_b, b, t, args)
  moved = jax.tree.map(lambda x, y: np.abs(x - y).mean(), a, _params())
  apart = jax.tree.map(lambda x, y: np.abs(x - y).mean(), a, b)
  for k in _SHAPES:
    assert 0 < apart[k] < 0.02 * moved[k]


def test_other_dtypes_are_refused():
  with pytest.raises(ValueError, match=r'dtype\.moments.*bfloat16'):
    _chain('adamw', 'float16')

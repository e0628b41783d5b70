"""GPT-2's own gradients against the plain formulas, in float64 by NumPy."""

import jax
from jax import numpy as jnp
import numpy as np
import pytest

from steepest.models import gpt2, remat

_EPS = 1e-5


def _plain(x, g):
  """Returns (x - μ)/√(σ² + eps) and its gradient, by the chain rule."""
  x, g = np.asarray(x, np.float64), np.asarray(g, np.float64)
  D = x.shape[-1]
  centred = x - x.mean(-1, keepdims=True)
  scale = 1 / np.sqrt((centred**2).mean(-1, keepdims=True) + _EPS)
  by_scale = (g * centred).sum(-1, keepdims=True)
  by_centred = g * scale - by_scale * scale**3 * centred / D
  return centred * scale, by_centred - by_centred.mean(-1, keepdims=True)


@pytest.mark.parametrize(
  'dtype, rounding', [(jnp.float32, 2e-6), (jnp.bfloat16, 2**-8)]
)
@pytest.mark.parametrize('mean', [0.0, 3.0])
def test_standardized_features(dtype, rounding, mean):
  """In half precision the input and the gradient are rounded, no more is."""
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(mean, 1, (2, 3, 256)), dtype)
  g = jnp.asarray(rng.normal(0, 1, x.shape), jnp.float32)
  value, pull = jax.vjp(lambda x: gpt2.standardized(x, _EPS), x)
  gradient = pull(g)[0]
  wanted, wanted_gradient = _plain(x, g)
  assert value.dtype == jnp.float32 and gradient.dtype == dtype
  np.testing.assert_allclose(value, wanted, rtol=1e-5, atol=2e-6)
  np.testing.assert_allclose(
    np.asarray(gradient, np.float64), wanted_gradient, rtol=rounding, atol=2e-6
  )


def test_constant_features_become_zero():
  for dtype in (jnp.float32, jnp.bfloat16):
    x = jnp.full((1, 1, 48), 1.3, dtype)
    value, pull = jax.vjp(lambda x: gpt2.standardized(x, _EPS), x)
    np.testing.assert_allclose(value, 0, atol=1e-3)
    assert np.isfinite(np.asarray(pull(value + 1)[0], np.float32)).all()


def test_positions_get_the_sum_of_their_gradients():
  rng = np.random.default_rng(0)
  x_LxD = jnp.asarray(rng.normal(size=(5, 8)), jnp.float32)
  g_BxLxD = jnp.asarray(rng.normal(size=(3, 5, 8)), jnp.float32)
  value, pull = jax.vjp(lambda x: gpt2._repeat(x, 3), x_LxD)
  np.testing.assert_array_equal(value, np.broadcast_to(x_LxD, (3, 5, 8)))
  np.testing.assert_allclose(pull(g_BxLxD)[0], g_BxLxD.sum(0), rtol=1e-5)


@pytest.mark.parametrize(
  'name, function', [('gpt2', ' tanh'), ('llama', ' logistic')]
)
def test_activations_computed_again_change_no_gradient(
  build_model, monkeypatch, name, function
):
  """As on accelerators, where only the operands are kept."""
  built = build_model(name)
  params = built.random()
  tokens = np.random.default_rng(0).integers(0, 64, (2, 16))

  def gradient():
    # A new function each time: JAX keeps what it traced of the old one.
    fn = jax.grad(lambda p: jnp.square(built.logits(p, tokens)).mean())
    return fn(params), str(jax.make_jaxpr(fn)(params))

  plain, text = gradient()
  monkeypatch.setattr(remat, 'platform', lambda: 'gpu')
  again, other = gradient()
  assert other.count(function) > text.count(function) > 0
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    again,
    plain,
  )

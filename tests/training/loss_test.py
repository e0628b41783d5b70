"""The loss and its own gradient against the plain formula in float32."""

import pathlib

import jax
from jax import numpy as jnp
import numpy as np
import optax
import pytest

from steepest.training import loss as loss_lib


def _plain(logits_BxLxV, labels_BxL):
  """Loss and normalizer, differentiated by JAX."""
  logits = logits_BxLxV.astype(jnp.float32)
  normalizer_BxL = jax.nn.logsumexp(logits, -1)
  picked_BxLx1 = jnp.take_along_axis(logits, labels_BxL[..., None], -1)
  return normalizer_BxL - picked_BxLx1[..., 0], normalizer_BxL


def _given(dtype, V=97, scale=3.0):
  rng = np.random.default_rng(0)
  logits = jnp.asarray(scale * rng.normal(size=(2, 8, V)), dtype)
  labels = jnp.asarray(rng.integers(0, V, (2, 8)), jnp.int32)
  weights = jnp.asarray(rng.normal(size=(2, 8)), jnp.float32)
  return logits, labels, weights


def _both(fn, labels, weights, penalty):
  """Weighted losses with a penalty on the square of the normalizer."""

  def total(logits):
    loss_BxL, normalizer_BxL = fn(logits, labels)
    return (weights * (loss_BxL + penalty * normalizer_BxL**2)).sum()

  return total


@pytest.mark.parametrize('penalty', [0.0, 1e-2])
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_loss_and_gradient_are_those_of_the_plain_formula(dtype, penalty):
  logits, labels, weights = _given(dtype)
  got, wanted = (
    jax.jit(jax.value_and_grad(_both(fn, labels, weights, penalty)))(logits)
    for fn in (loss_lib.with_normalizer, _plain)
  )
  assert got[0] == pytest.approx(float(wanted[0]), rel=1e-6)
  assert got[1].dtype == wanted[1].dtype == dtype
  # One rounding to bfloat16 each.
  tolerance = 1e-6 if dtype == jnp.float32 else 2**-8
  np.testing.assert_allclose(
    np.asarray(got[1], np.float64),
    np.asarray(wanted[1], np.float64),
    atol=tolerance * 0.1,
    rtol=tolerance,
  )


def test_gradient_is_softmax_minus_one_hot():
  logits, labels, _ = _given(jnp.float32)
  gradient = jax.grad(lambda x: loss_lib.cross_entropy(x, labels).sum())(logits)
  e = np.exp(np.asarray(logits, np.float64))
  wanted = e / e.sum(-1, keepdims=True) - np.eye(97)[labels]
  np.testing.assert_allclose(gradient, wanted, atol=2e-7)
  np.testing.assert_allclose(gradient.sum(-1), 0, atol=1e-6)


def test_products_with_the_hessian_are_those_of_the_plain_formula():
  """Sophia-H differentiates the gradient once more."""
  logits, labels, weights = _given(jnp.float32)
  probe = jnp.asarray(np.random.default_rng(1).normal(size=logits.shape))
  got, wanted = (
    jax.jvp(jax.grad(_both(fn, labels, weights, 1e-2)), (logits,), (probe,))[1]
    for fn in (loss_lib.with_normalizer, _plain)
  )
  np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def test_one_copy_of_the_logits_waits_for_the_backward_pass():
  """In their own dtype; of the plain formula, a second one in float32."""
  logits, labels, weights = _given(jnp.bfloat16)

  def kept(fn):
    backward = jax.vjp(_both(fn, labels, weights, 0.0), logits)[1]
    leaves = jax.tree.leaves(backward)
    return [x.dtype for x in leaves if x.size == logits.size]

  assert kept(loss_lib.with_normalizer) == [jnp.bfloat16]
  assert jnp.float32 in kept(_plain)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_large_logits_do_not_overflow(dtype):
  logits = jnp.array([[[3e4, 0.0, -3e4], [-1e30, 1e30, 0.0]]], dtype)
  labels = jnp.array([[0, 1]])
  loss, gradient = jax.value_and_grad(
    lambda x: loss_lib.cross_entropy(x, labels).sum()
  )(logits)
  assert loss == 0
  np.testing.assert_array_equal(gradient, jnp.zeros_like(logits))


def test_several_runs_at_once_give_what_each_gives():
  logits, labels, _ = _given(jnp.float32)
  many = jnp.stack([logits, 2 * logits])
  fn = jax.grad(lambda x: loss_lib.cross_entropy(x, labels).mean())
  np.testing.assert_allclose(jax.vmap(fn)(many)[1], fn(2 * logits), rtol=1e-6)


def test_the_tutorials_loss_smooths_labels():
  text = pathlib.Path(__file__).parents[2] / 'docs' / 'adding.md'
  code = text.read_text('utf-8').split('## Another loss')[1]
  names = {'jnp': jnp, 'with_normalizer': loss_lib.with_normalizer}
  exec(code.split('```python')[1].split('```')[0], names)
  logits, targets, _ = _given(jnp.float32, V=7)
  found, logged = names['training_loss'](logits, {'targets': targets}, 0.0)
  labels = optax.smooth_labels(jax.nn.one_hot(targets, 7), 0.1)
  expected = optax.softmax_cross_entropy(logits, labels).mean()
  np.testing.assert_allclose(found, expected, rtol=1e-6)
  assert logged.keys() == {'train/loss', 'train/smoothed'}

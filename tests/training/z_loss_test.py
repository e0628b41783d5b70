"""The z-loss against its closed form."""

from jax import numpy as jnp
import numpy as np
import pytest

from steepest.models import config as model_config
from steepest.training import step


def _softmax_and_normalizer(weights, inputs):
  logits = np.float64(weights)[inputs]
  normalizer = np.log(np.exp(logits).sum(-1))
  return np.exp(logits - normalizer[..., None]), normalizer


@pytest.mark.parametrize('microbatches', [1, 2])
def test_gradient_by_hand(bare_setup, microbatches):
  """d/dlogits of w·Z² is 2·w·Z·softmax; the logged loss has no part of it."""
  rng = np.random.default_rng(0)
  weights = rng.normal(size=(7, 5)).astype('f')
  batch = {
    'inputs': jnp.asarray(rng.integers(0, 7, (4, 6))),
    'targets': jnp.asarray(rng.integers(0, 5, (4, 6))),
  }
  apply = lambda params, tokens: params[tokens]
  (plain, without), (losses, gradient) = (
    step.gradient(
      bare_setup(apply, weights, z_loss=weight, microbatches=microbatches),
      weights,
      batch,
    )
    for weight in (0.0, 0.1)
  )
  assert set(plain) == {'train/loss'}
  p, z = _softmax_and_normalizer(weights, batch['inputs'])
  assert float(losses['train/loss']) == pytest.approx(
    float(plain['train/loss']), rel=1e-6
  )
  assert float(losses['train/z_loss']) == pytest.approx(
    0.1 * (z**2).mean(), rel=1e-5
  )
  wanted = np.zeros((7, 5))
  np.add.at(wanted, np.asarray(batch['inputs']), 0.2 * z[..., None] * p / 24)
  np.testing.assert_allclose(gradient - without, wanted, atol=1e-6)


def test_negative_weights_are_refused(configure):
  config = configure('gpt2', 'adamw', model__z_loss=-1.0)
  with pytest.raises(ValueError, match='model.z_loss=-1.0'):
    model_config.resolve(config.model, 64, config.dtype)

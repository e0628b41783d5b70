"""The z-loss against its closed form."""

import jax
from jax import numpy as jnp
import numpy as np
import pytest

from steepest.models import config as model_config
from steepest.training.step import Step


def _softmax_and_normalizer(weights, inputs):
  logits = np.float64(weights)[inputs]
  normalizer = np.log(np.exp(logits).sum(-1))
  return np.exp(logits - normalizer[..., None]), normalizer


@pytest.mark.parametrize('microbatches', [1, 2])
def test_gradient_by_hand(microbatches):
  """d/dlogits of w·Z² is 2·w·Z·softmax; the logged loss has no part of it."""
  rng = np.random.default_rng(0)
  weights = rng.normal(size=(7, 5)).astype('f')
  batch = {
    'inputs': jnp.asarray(rng.integers(0, 7, (4, 6))),
    'targets': jnp.asarray(rng.integers(0, 5, (4, 6))),
  }
  apply = lambda params, tokens: params[tokens]
  plain = Step(apply, None, 'gnb', microbatches)
  with_z = Step(apply, None, 'gnb', microbatches, z_loss=0.1)
  losses, gradient = with_z._losses_and_gradient(weights, batch)
  loss, without = plain.gradient(weights, batch)
  p, z = _softmax_and_normalizer(weights, batch['inputs'])
  assert float(losses['train/loss']) == pytest.approx(float(loss), rel=1e-6)
  assert float(losses['train/z_loss']) == pytest.approx(
    0.1 * (z**2).mean(), rel=1e-5
  )
  wanted = np.zeros((7, 5))
  np.add.at(wanted, np.asarray(batch['inputs']), 0.2 * z[..., None] * p / 24)
  np.testing.assert_allclose(gradient - without, wanted, atol=1e-6)


def test_without_it_the_step_is_what_it_was(configure, make_program):
  """And with it one more number is logged."""
  texts = {}
  for z_loss in (0.0, 1e-4):
    program = make_program(configure('gpt2', 'adamw', model__z_loss=z_loss))
    fn = program.step_function
    assert fn.z_loss == z_loss
    batch = {
      k: jax.ShapeDtypeStruct((16, 16), jnp.int32)
      for k in ('inputs', 'targets')
    }
    losses, _ = jax.eval_shape(
      fn._losses_and_gradient, program.state_shapes.params, batch
    )
    texts[z_loss] = set(losses)
  assert texts[0.0] == {'train/loss'}
  assert texts[1e-4] == {'train/loss', 'train/z_loss'}


def test_negative_weights_are_refused(configure):
  config = configure('gpt2', 'adamw', model__z_loss=-1.0)
  with pytest.raises(ValueError, match='model.z_loss=-1.0'):
    model_config.resolve(config.model, 64, config.dtype)

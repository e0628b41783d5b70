"""A loop over stacked blocks is the blocks one after another."""

import jax
from jax import numpy as jnp
import numpy as np
import pytest

from steepest.models import layers

_TOKENS = np.random.default_rng(0).integers(0, 64, (3, 16))
_PACKED = (
  np.repeat([[1, 2]], 8, axis=1).repeat(3, axis=0).astype(np.int32),
  np.tile(np.arange(8, dtype=np.int32), (3, 2)),
)


@pytest.mark.parametrize(
  'name, remat, inputs',
  [
    ('gpt2', 'full', _PACKED),
    ('llama', 'none', ()),
    pytest.param('llama', 'names', _PACKED, marks=pytest.mark.slow),
    pytest.param('gpt2', 'dots', (), marks=pytest.mark.slow),
  ],
)
def test_loss_and_gradient_are_those_of_single_blocks(
  build_model, name, remat, inputs
):
  """Where every layer has other weights, gains and biases."""
  model = build_model(name, num_layers=3, remat=remat)
  params = model.random()

  def loss(params):
    logits_BxLxV = model.module.apply({'params': params}, _TOKENS, *inputs)
    return jax.nn.log_softmax(logits_BxLxV.astype(jnp.float32))[..., 3].mean()

  found = jax.jit(jax.value_and_grad(loss))
  (wanted, grads), (got, stacked) = found(params), found(layers.stack(params))
  np.testing.assert_allclose(got, wanted, rtol=1e-5)
  largest = max(np.abs(g).max() for g in jax.tree.leaves(grads))
  jax.tree.map(
    # GPT-2's key bias, to which the softmax is blind, has no scale of its own.
    lambda a, b: np.testing.assert_allclose(
      a, b, rtol=0, atol=1e-5 * max(np.abs(b).max(), 1e-3 * largest)
    ),
    layers.unstack(stacked),
    grads,
  )


def _products(jaxpr):
  """Counts the products of matrices that are compiled."""
  inner = [
    getattr(p, 'jaxpr', p)
    for eqn in jaxpr.eqns
    for p in eqn.params.values()
    if hasattr(p, 'eqns') or hasattr(p, 'jaxpr')
  ]
  own = sum(eqn.primitive.name == 'dot_general' for eqn in jaxpr.eqns)
  return own + sum(map(_products, inner))


def test_a_block_is_compiled_once(build_model):
  def products(count, form):
    model = build_model('llama', num_layers=count)
    fn = lambda p: model.logits(p, _TOKENS).sum()
    shapes = jax.eval_shape(lambda: form(model.random()))
    return _products(jax.make_jaxpr(jax.grad(fn))(shapes).jaxpr)

  assert products(2, layers.stack) == products(5, layers.stack)
  assert products(2, layers.unstack) < products(5, layers.unstack)

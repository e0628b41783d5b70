"""A loop over the blocks is the blocks one after another."""

import jax
from jax import numpy as jnp
import numpy as np
import pytest

from steepest.models import decoding
from steepest.models import remat

_TOKENS = np.random.default_rng(0).integers(0, 64, (3, 16))
_SEGMENTS = np.repeat([[1, 2]], 8, axis=1).repeat(3, axis=0).astype(np.int32)
_POSITIONS = np.tile(np.arange(8, dtype=np.int32), (3, 2))


def _value_and_grad(model, params, *inputs):
  def loss(params):
    logits_BxLxV = model.module.apply({'params': params}, _TOKENS, *inputs)
    return jax.nn.log_softmax(logits_BxLxV.astype(jnp.float32))[..., 3].mean()

  return jax.jit(jax.value_and_grad(loss))(params)


def _close(got, wanted, rtol):
  """Equal to `rtol` of the largest entry of each tensor."""
  largest = max(np.abs(w).max() for w in jax.tree.leaves(wanted[1]))

  def check(a, b):
    # GPT-2's key bias, to which the softmax is blind, has no scale of its own.
    scale = max(np.abs(b).max(), 1e-3 * largest)
    np.testing.assert_allclose(a, b, rtol=0, atol=rtol * scale)

  jax.tree.map(check, got, wanted)


@pytest.mark.parametrize('packed', [False, True])
@pytest.mark.parametrize('policy', remat.POLICIES)
@pytest.mark.parametrize('name', ['gpt2', 'llama'])
def test_loss_and_gradient_are_those_of_single_blocks(
  build_model, name, policy, packed
):
  """Where every layer has other weights, gains and biases."""
  inputs = (_SEGMENTS, _POSITIONS) if packed else ()
  plain = build_model(name, num_layers=3)
  loop = build_model(name, num_layers=3, remat=policy, scan_layers=True)
  params = plain.random()
  _close(
    _value_and_grad(loop, params, *inputs),
    _value_and_grad(plain, params, *inputs),
    rtol=1e-5,
  )


@pytest.mark.parametrize('name', ['gpt2', 'llama'])
def test_weights_are_rounded_as_in_single_blocks(build_model, name):
  """In bfloat16: matrices are, what the norms multiply with is not."""
  plain = build_model(name, compute='bfloat16', num_layers=3)
  loop = build_model(name, compute='bfloat16', num_layers=3, scan_layers=True)
  params = plain.random()
  # Operation by operation, as XLA's fusions round otherwise.
  with jax.disable_jit():
    exact = plain.logits(params, _TOKENS), loop.logits(params, _TOKENS)
  np.testing.assert_array_equal(*exact)


@pytest.mark.parametrize('name', ['gpt2', 'llama'])
def test_parameters_are_those_of_single_blocks(build_model, name):
  plain = build_model(name, num_layers=3)
  loop = build_model(name, num_layers=3, scan_layers=True)
  jax.tree.map(np.testing.assert_array_equal, loop.params, plain.params)


def _products(jaxpr):
  """Counts the products of matrices that are compiled."""
  inner = [
    getattr(p, 'jaxpr', p)
    for eqn in jaxpr.eqns
    for p in eqn.params.values()
    if hasattr(p, 'eqns') or hasattr(p, 'jaxpr')
  ]
  own = sum(eqn.primitive.name == 'dot_general' for eqn in jaxpr.eqns)
  return own + sum(_products(j) for j in inner)


def test_a_block_is_compiled_once(build_model):
  def products(layers, **keys):
    model = build_model('llama', num_layers=layers, **keys)
    fn = lambda p: model.logits(p, _TOKENS).sum()
    return _products(jax.make_jaxpr(jax.grad(fn))(model.params).jaxpr)

  assert products(2, scan_layers=True) == products(5, scan_layers=True)
  assert products(2) < products(5)


def test_a_cache_is_filled_block_by_block(build_model):
  """What extends a text does not loop."""
  model = build_model('gpt2', num_layers=3, scan_layers=True)
  params = model.random()
  whole = model.logits(params, _TOKENS)
  cache = decoding.make_cache(model.rules.model, 3, 16)
  positions = jnp.tile(jnp.arange(16), (3, 1))
  logits, _ = decoding.extend(
    model.module, params, cache, _TOKENS, positions, jnp.full(3, 15)
  )
  np.testing.assert_allclose(logits, whole[:, -1], atol=1e-4, rtol=1e-4)

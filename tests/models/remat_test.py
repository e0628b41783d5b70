"""Recomputation changes what is kept, never what comes out."""

import collections

from flax import linen as nn
import jax
from jax import numpy as jnp
import numpy as np
import pytest

from steepest.models import remat

_ROWS, _LENGTH = 3, 16
_TOKENS = np.random.default_rng(0).integers(0, 64, (_ROWS, _LENGTH))


def _loss(model):
  return lambda p: jax.nn.log_softmax(model.logits(p, _TOKENS))[..., 3].mean()


@pytest.fixture(scope='module')
def plain(build_model):
  """Loss and gradient with everything kept, by model."""
  known = {}

  def compute(name):
    if name not in known:
      built = build_model(name, num_layers=2)
      params = built.random()
      both = jax.jit(jax.value_and_grad(_loss(built)))(params)
      known[name] = params, both
    return known[name]

  return compute


@pytest.mark.parametrize('policy', remat.POLICIES[1:])
@pytest.mark.parametrize('name', ['gpt2', 'llama'])
def test_loss_and_gradient_are_those_without(build_model, plain, name, policy):
  params, (value, grads) = plain(name)
  again = build_model(name, num_layers=2, remat=policy)
  other, others = jax.jit(jax.value_and_grad(_loss(again)))(params)
  np.testing.assert_allclose(value, other, rtol=1e-6)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
    grads,
    others,
  )


@pytest.mark.parametrize('name', ['gpt2', 'llama'])
def test_initial_values_do_not_depend_on_it(build_model, name):
  wanted = build_model(name, num_layers=1).params
  for policy in remat.POLICIES[1:]:
    got = build_model(name, num_layers=1, remat=policy).params
    jax.tree.map(np.testing.assert_array_equal, got, wanted)


def _kept(build_model, name, policy):
  """Returns how often one layer keeps an array of each size a token."""

  def count(layers):
    model = build_model(name, num_layers=layers, remat=policy, mlp_dim=96)
    fn = lambda p: model.logits(p, _TOKENS).astype(jnp.float32).sum()

    def residuals(params):
      leaves = jax.tree.leaves(jax.vjp(fn, params)[1])
      return list({id(x): x for x in leaves}.values())

    return collections.Counter(
      x.size // (_ROWS * _LENGTH)
      for x in jax.eval_shape(residuals, nn.unbox(model.boxed))
      if x.size % (_ROWS * _LENGTH) == 0 and x.shape[0] in (_ROWS, 48)
    )

  return count(2) - count(1)


@pytest.mark.parametrize('name, wide', [('gpt2', 1), ('llama', 2)])
def test_each_policy_keeps_what_it_says(build_model, name, wide):
  """Width 32 and 96 features in the MLP."""
  full = _kept(build_model, name, 'full')
  assert full == {32: 1}
  names = _kept(build_model, name, 'names')
  # The block's input, q, k, v, attention's output, the stream after it.
  assert names == {32: 6, 96: wide}
  dots = _kept(build_model, name, 'dots')
  # Input, q, k, v and the result of the output projection; of the last product
  # nothing is needed again.
  assert dots[96] == wide
  assert 5 <= dots[32] <= 6
  none = _kept(build_model, name, 'none')
  assert none[32] > names[32] and none[96] > names[96]

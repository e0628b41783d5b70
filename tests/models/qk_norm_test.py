"""QK-norm against numpy, and its absence against the model without the key."""

from flax import linen as nn, traverse_util
import jax
import numpy as np
import pytest

from steepest.models import huggingface, huggingface_export

_NAMES = ('gpt2', 'llama')
_EPS = {'gpt2': 1e-5, 'llama': 1e-6}


def _softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def _rotate(x_LxHxh):
  """Turns pair (i, i + h/2) of position p by p·10000^(-2i/h)."""
  length, _, h = x_LxHxh.shape
  angle = np.arange(length)[:, None] * 1e4 ** (-np.arange(h // 2) / (h // 2))
  turn = np.exp(1j * angle)[:, None]
  z = (x_LxHxh[..., : h // 2] + 1j * x_LxHxh[..., h // 2 :]) * turn
  return np.concatenate([z.real, z.imag], -1)


def _attention(name, params, x_LxD, scale):
  """One block's attention in float64, normalised queries and keys."""
  block = params['block_0']
  length = len(x_LxD)

  def project(part):
    y = x_LxD @ np.float64(block[part]['kernel'])
    if 'bias' in block[part]:
      y = y + np.float64(block[part]['bias'])
    return y.reshape(length, 4, 8)

  def norm(x, part):
    rms = np.sqrt((x * x).mean(-1, keepdims=True) + _EPS[name])
    return x / rms * np.float64(block[part]['gain'])

  q, k = norm(project('query'), 'query_norm'), norm(project('key'), 'key_norm')
  if name == 'llama':
    q, k = _rotate(q), _rotate(k)
  logits = scale * np.einsum('qHh,kHh->Hqk', q, k)
  logits = np.where(np.tril(np.ones((length, length))), logits, -np.inf)
  mixed = np.einsum('Hqk,kHh->qHh', _softmax(logits), project('value'))
  y = mixed.reshape(length, 32) @ np.float64(block['output']['kernel'])
  if 'bias' in block['output']:
    y = y + np.float64(block['output']['bias'])
  return y


@pytest.mark.parametrize('name', _NAMES)
def test_equals_numpy(build_model, name):
  built = build_model(name, qk_norm=True, num_layers=1)
  params = built.random()
  tokens = np.random.default_rng(0).integers(0, 64, (1, 16))
  found = {}

  def record(call, args, kwargs, context):
    y = call(*args, **kwargs)
    if context.method_name == '__call__':
      found['/'.join(context.module.path)] = np.float64(y[0])
    return y

  with nn.intercept_methods(record):
    built.logits(params, tokens)
  wanted = _attention(
    name, params, found['block_0/attention_norm'], built.rules.attention_scale
  )
  np.testing.assert_allclose(
    found['block_0/output'], wanted, rtol=1e-4, atol=1e-5
  )


@pytest.mark.parametrize('name', _NAMES)
def test_larger_queries_change_nothing(build_model, name):
  """What the normalisation is for: |q| does not reach the logits."""
  built = build_model(name, qk_norm=True)
  params = built.random()
  tokens = np.random.default_rng(0).integers(0, 64, (2, 16))

  def scale(path, value):
    return value * 64 if "'query'" in jax.tree_util.keystr(path) else value

  larger = jax.tree_util.tree_map_with_path(scale, params)
  np.testing.assert_allclose(
    built.logits(larger, tokens), built.logits(params, tokens), atol=2e-3
  )


@pytest.mark.parametrize('name', _NAMES)
def test_adds_one_gain_a_head_feature_and_off_nothing(build_model, name):
  flat = lambda built: traverse_util.flatten_dict(built.boxed, sep='/')
  plain, normed = flat(build_model(name)), flat(build_model(name, qk_norm=True))
  added = {
    f'block_{i}/{part}_norm/gain' for i in (0, 1) for part in ('query', 'key')
  }
  assert normed.keys() - plain.keys() == added
  assert not plain.keys() - normed.keys()
  for path in added:
    assert normed[path].role.kind == 'gain'
    assert normed[path].value.shape == (8,)


def test_without_it_the_program_is_what_it_was(build_model):
  """No operation of a normalisation, and no z-loss in the model."""
  for name in _NAMES:
    built = build_model(name)
    tokens = np.zeros((1, 16), np.int32)
    text = str(jax.make_jaxpr(built.logits)(built.params, tokens))
    # Two in each of two blocks and the last one.
    assert text.count('rsqrt') == 5, name


@pytest.mark.parametrize('name', _NAMES)
def test_layouts_without_a_place_for_it_are_refused(
  build_model, name, tmp_path
):
  built = build_model(name, qk_norm=True)
  with pytest.raises(ValueError, match='model.qk_norm=True.*exported'):
    huggingface_export.write(tmp_path, built.params, built.rules, 0, 0)
  with pytest.raises(ValueError, match='model.qk_norm=True.*imported'):
    huggingface.read_params(tmp_path, built.rules.model)
  assert not list(tmp_path.iterdir())


def test_queries_of_zero_are_refused(build_model):
  with pytest.raises(ValueError, match='zero_init_query=False'):
    build_model('gpt2', qk_norm=True, zero_init_query=True)

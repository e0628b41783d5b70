"""Both models against plain NumPy, one sequence and one head at a time."""

import math

import jax
from jax import numpy as jnp
import numpy as np
import pytest

from steepest.experiments import base
from steepest.models import (
  config as model_config,
  huggingface,
  parametrization,
)

_TOKENS = np.random.default_rng(0).integers(0, 64, (2, 11)).astype(np.int32)
_VARIANTS = [
  ('gpt2', {}),
  ('gpt2', {'bias': False, 'tie_embeddings': False}),
  ('gpt2', {'activation': 'gelu', 'mlp_dim': 48, 'head_dim': 6}),
  ('gpt2', {'qk_norm': True}),
  ('llama', {}),
  ('llama', {'num_kv_heads': 2, 'rope_base': 500.0}),
  ('llama', {'num_kv_heads': 1, 'tie_embeddings': True, 'bias': True}),
  ('llama', {'num_kv_heads': 2, 'qk_norm': True}),
]


def _linear(p, x):
  y = x @ p['kernel']
  return y + p['bias'] if 'bias' in p else y


def _norm(name, p, x, eps):
  if name == 'gpt2':
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)
  else:
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)
  return x * p['gain'] + p.get('bias', 0)


def _activation(kind, x):
  if kind == 'silu':
    return x / (1 + np.exp(-x))
  if kind == 'gelu':
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
  inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
  return 0.5 * x * (1 + np.tanh(inner))


def _rotate(x, base_):
  """x[t] as complex pairs (i, i + h/2), turned by t·base^(-2i/h)."""
  half = x.shape[1] // 2
  angle = np.arange(len(x))[:, None] * base_ ** (
    -2 * np.arange(half) / 2 / half
  )
  z = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * angle)
  return np.concatenate([z.real, z.imag], 1)


def _attention(c, p, x, scale):
  h, group = c.head_dim, c.num_heads // c.num_kv_heads
  q, k, v = (_linear(p[n], x) for n in ('query', 'key', 'value'))
  outputs = []
  for head in range(c.num_heads):
    kv = head // group
    qh = q[:, head * h : head * h + h]
    kh, vh = (y[:, kv * h : kv * h + h] for y in (k, v))
    if c.qk_norm:
      qh = _norm('llama', p['query_norm'], qh, c.norm_eps)
      kh = _norm('llama', p['key_norm'], kh, c.norm_eps)
    if c.name == 'llama':
      qh, kh = _rotate(qh, c.rope_base), _rotate(kh, c.rope_base)
    rows = []
    for t in range(len(x)):
      scores = kh[: t + 1] @ qh[t] * scale
      weights = np.exp(scores - scores.max())
      rows.append(weights @ vh[: t + 1] / weights.sum())
    outputs.append(np.stack(rows))
  return _linear(p['output'], np.concatenate(outputs, 1))


def _mlp(c, p, x):
  if c.name == 'llama':
    gate = _activation(c.activation, _linear(p['mlp_gate'], x))
    return _linear(p['mlp_down'], gate * _linear(p['mlp_up'], x))
  return _linear(
    p['mlp_down'], _activation(c.activation, _linear(p['mlp_up'], x))
  )


def _plain(c, p, tokens, scale):
  x = p['embedding'][tokens]
  if c.name == 'gpt2':
    x = x + p['positions'][: len(tokens)]
  for i in range(c.num_layers):
    b = p[f'block_{i}']
    x = x + _attention(
      c, b, _norm(c.name, b['attention_norm'], x, c.norm_eps), scale
    )
    x = x + _mlp(c, b, _norm(c.name, b['mlp_norm'], x, c.norm_eps))
  x = _norm(c.name, p['norm'], x, c.norm_eps)
  return x @ p['embedding' if c.tie_embeddings else 'readout'].T


@pytest.mark.parametrize('name, shapes', _VARIANTS)
def test_equals_plain_numpy(build_model, name, shapes):
  built = build_model(name, **shapes)
  params = built.random()
  wide = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  c = built.rules.model
  got = jax.jit(built.logits)(params, _TOKENS)
  for row, tokens in zip(got, _TOKENS):
    wanted = _plain(c, wide, tokens, c.head_dim**-0.5)
    np.testing.assert_allclose(row, wanted, atol=2e-4, rtol=2e-4)
  assert got.dtype == jnp.float32


@pytest.mark.parametrize('name', ['gpt2', 'llama'])
def test_equals_transformers(golden, name):
  """Logits that `transformers` computed on the same weights."""
  config = base.get_config()
  config.model.update(huggingface.read_config(golden / name))
  config.dtype.compute = 'float32'
  model = model_config.resolve(config.model, 0, config.dtype)
  rules = parametrization.resolve(config.parametrization, model)
  params = huggingface.read_params(golden / name, model)
  wanted = np.load(golden / f'{name}_logits.npy')
  tokens = np.load(golden / 'tokens.npy')[: len(wanted)].astype(np.int32)
  module = model_config.find_model(name).Model(model, rules)
  got = jax.jit(module.apply)({'params': params}, tokens[None])[0]
  assert np.abs(wanted).max() > 0.1
  np.testing.assert_allclose(got, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
  'name, shapes',
  [('gpt2', {}), ('llama', {}), ('llama', {'num_kv_heads': 2})],
)
def test_no_token_sees_a_later_one(build_model, name, shapes):
  built = build_model(name, **shapes)
  params = built.random()
  logits = jax.jit(built.logits)
  before = logits(params, _TOKENS)
  for t in (1, 6, 10):
    changed = _TOKENS.copy()
    changed[:, t] = (changed[:, t] + 7) % 64
    after = logits(params, changed)
    np.testing.assert_array_equal(after[:, :t], before[:, :t])
    assert (np.abs(after[:, t:] - before[:, t:]).max((0, 2)) > 1e-4).all()


@pytest.mark.parametrize('name', ['gpt2', 'llama'])
def test_bfloat16_stays_close_to_float32(build_model, name):
  """Parameters stay float32; logits differ by bfloat16's 8 bits."""
  built = build_model(name, num_layers=1)
  half = build_model(name, num_layers=1, compute='bfloat16')
  jax.tree.map(np.testing.assert_array_equal, built.params, half.params)
  assert {p.dtype for p in jax.tree.leaves(half.params)} == {
    jnp.dtype('float32')
  }
  wanted = jax.jit(built.logits)(built.params, _TOKENS)
  got = jax.jit(half.logits)(built.params, _TOKENS)
  assert got.dtype == jnp.bfloat16
  error = np.abs(got.astype(jnp.float32) - wanted).max()
  assert 0 < error < 0.05 * np.abs(wanted).max()

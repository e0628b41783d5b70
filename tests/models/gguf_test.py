"""GGUF files that the package `gguf` writes, and a published model."""

import json

import jax
import numpy as np
import pytest

from steepest.data import benchmarks, tokenizers
from steepest.eval import evaluation, likelihoods, sampling
from steepest.experiments import base
from steepest.models import (
  config as model_config,
  gguf as interop_gguf,
  huggingface,
  parametrization,
)
from steepest.training import loading, run as assemble

_SHAPES = {
  'num_layers': 2,
  'width': 64,
  'num_heads': 4,
  'num_kv_heads': 2,
  'mlp_dim': 96,
  'context': 32,
  'rope_base': 5e4,
}
_NAMES = {
  'attention_norm/gain': 'attn_norm',
  'mlp_norm/gain': 'ffn_norm',
  'query/kernel': 'attn_q',
  'key/kernel': 'attn_k',
  'value/kernel': 'attn_v',
  'output/kernel': 'attn_output',
  'mlp_gate/kernel': 'ffn_gate',
  'mlp_up/kernel': 'ffn_up',
  'mlp_down/kernel': 'ffn_down',
}


def _interleave(rows, heads):
  """The order that llama.cpp's converter puts query and key rows in."""
  h = rows.shape[0] // heads
  order = [x for i in range(h // 2) for x in (i, i + h // 2)]
  return np.concatenate([rows[k * h : k * h + h][order] for k in range(heads)])


@pytest.fixture(scope='module')
def tokenizer():
  return tokenizers.train_bpe(iter(['the cat sat on 12 mats'] * 9), 288)


@pytest.fixture(scope='module')
def model(tokenizer):
  """A small LLaMA: what applies it, and its weights."""
  config = base.get_config()
  base.set_model(config, 'llama')
  config.model.update({**_SHAPES, 'vocab_size': tokenizer.vocab_size})
  config.dtype.compute = 'float32'
  resolved = model_config.resolve(config.model, 0, config.dtype)
  rules = parametrization.resolve(config.parametrization, resolved)
  module = assemble.find_model('llama').Model(resolved, rules)
  shapes = jax.eval_shape(
    lambda: module.init(jax.random.key(0), np.zeros((1, 4), int))['params']
  )
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda p: rng.normal(0.1, 0.2, p.value.shape).astype(np.float32),
    shapes,
    is_leaf=lambda p: isinstance(p, parametrization.Parameter),
  )
  return module, params


def _write(path, params, tokenizer, kind='F32', pre='smollm', **changes):
  gguf = pytest.importorskip('gguf')
  writer = gguf.GGUFWriter(path, changes.pop('architecture', 'llama'))
  s = {**_SHAPES, **changes}
  writer.add_block_count(s['num_layers'])
  writer.add_context_length(s['context'])
  writer.add_embedding_length(s['width'])
  writer.add_feed_forward_length(s['mlp_dim'])
  writer.add_head_count(s['num_heads'])
  writer.add_head_count_kv(s['num_kv_heads'])
  writer.add_layer_norm_rms_eps(1e-6)
  writer.add_rope_freq_base(s['rope_base'])
  definition = json.loads(tokenizer._backend.to_str())['model']
  tokens = sorted(definition['vocab'], key=definition['vocab'].get)
  end = tokens.index('<|endoftext|>')
  writer.add_tokenizer_model('gpt2')
  writer.add_tokenizer_pre(pre)
  writer.add_token_list(tokens)
  writer.add_token_types([3 if i == end else 1 for i in range(len(tokens))])
  writer.add_token_merges([' '.join(m) for m in definition['merges']])
  writer.add_bos_token_id(end)
  writer.add_eos_token_id(end)
  tensors = {
    'token_embd': params['embedding'],
    'output_norm': params['norm']['gain'],
    'output': params['readout'],
  }
  for i in range(2):
    for ours, theirs in _NAMES.items():
      layer, leaf = ours.split('/')
      value = params[f'block_{i}'][layer][leaf].T
      if theirs in ('attn_q', 'attn_k'):
        value = _interleave(value, 4 if theirs == 'attn_q' else 2)
      tensors[f'blk.{i}.{theirs}'] = value
  for name, value in tensors.items():
    dtype = gguf.GGMLQuantizationType[kind if value.ndim == 2 else 'F32']
    data = gguf.quantize(np.ascontiguousarray(value), dtype)
    writer.add_tensor(f'{name}.weight', data, raw_dtype=dtype)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()


def _logits(module, params, tokens):
  return np.asarray(module.apply({'params': params}, tokens))


@pytest.mark.parametrize('kind, error', [('F32', 1e-5), ('Q8_0', 0.05)])
def test_logits_are_those_of_the_weights(
  model, tokenizer, tmp_path, kind, error
):
  module, params = model
  file = tmp_path / 'model.gguf'
  _write(file, params, tokenizer, kind)
  loaded = loading.load_model(f'gguf:{file}')
  tokens = np.random.default_rng(1).integers(0, 256, (2, 32)).astype(np.int32)
  got = np.asarray(loaded.logits_fn(loaded.params, tokens))
  wanted = _logits(module, params, tokens)
  assert np.abs(got - wanted).max() < error * np.abs(wanted).max()
  if kind != 'F32':
    assert np.abs(got - wanted).max() > 1e-4  # It was quantised.
  c = loaded.rules.model
  assert (c.rope_base, c.norm_eps, c.tie_embeddings) == (5e4, 1e-6, False)
  assert loaded.max_length == 32
  assert loaded.description == {'model': f'gguf:{file}'}


def test_the_tokenizer_splits_as_the_file_says(model, tokenizer, tmp_path):
  """smollm: GPT-2's pieces, but each digit alone."""
  text = 'the cat sat on 12 mats<|endoftext|>'
  for pre, together in (('gpt-2', True), ('smollm', False)):
    _write(tmp_path / pre, model[1], tokenizer, pre=pre)
    read = loading.load_model(f'gguf:{tmp_path / pre}').tokenizer
    assert read.decode(read.encode(text)) == text
    assert (read.encode(text) == tokenizer.encode(text)) == together
    pieces = [read.decode([i]) for i in read.encode(' 12')]
    assert pieces == ([' 12'] if together else [' ', '1', '2'])
    assert read.eos_id == tokenizer.eos_id


def test_what_is_not_understood_is_named(model, tokenizer, tmp_path):
  file = tmp_path / 'model.gguf'
  with pytest.raises(FileNotFoundError, match='no GGUF file'):
    interop_gguf.convert(file, tmp_path)
  file.write_bytes(b'no such thing' * 9)
  pytest.importorskip('gguf')
  with pytest.raises(ValueError, match='is no readable GGUF file'):
    interop_gguf.convert(file, tmp_path)
  for changes, words in (
    ({'architecture': 'bloom'}, "general.architecture is 'bloom'"),
    ({'pre': 'qwen2'}, "tokenizer.ggml.pre is 'qwen2', not one of gpt-2, smo"),
  ):
    _write(file, model[1], tokenizer, **changes)
    with pytest.raises(ValueError, match=words):
      interop_gguf.convert(file, tmp_path)
  _write(file, model[1], tokenizer, mlp_dim=128)
  interop_gguf.convert(file, tmp_path)
  config = base.get_config()
  config.model.update(huggingface.read_config(tmp_path))
  resolved = model_config.resolve(config.model, 0, config.dtype)
  words = r'mlp\S+ has shape \(96, 64\), config wants \(128, 64\)'
  with pytest.raises(ValueError, match=words):
    huggingface.read_params(tmp_path, resolved)


@pytest.mark.slow
def test_smollm2_knows_what_it_knows():
  """135 M parameters: a capital, and ARC-Easy far above chance.

  The first 10 questions are those on which an independent NumPy forward of
  the same weights had acc 0.8 and acc_norm 0.4.
  """
  pytest.importorskip('gguf')
  try:
    model = loading.load_model('gguf:smollm2-135m-instruct')
    data = benchmarks.locate('')
  except OSError as error:
    pytest.skip(f'cannot be downloaded: {error}')
  t = model.tokenizer
  sampler = sampling.Sampler(model.extend_fn, model.make_cache, t.vocab_size)
  prompt = t.encode('The capital of France is')
  first = next(sampler(model.params, [prompt], 1, 64))[0]
  assert t.decode([first]) == ' Paris'
  results = evaluation.evaluate(
    likelihoods.make_score_fn(model.features_fn),
    model.params,
    t,
    'arc_easy',
    data,
    model.max_length,
    limit=100,
  )
  scores, chance = results.metrics['arc_easy'], results.info['chance']
  assert scores['acc'] > chance['arc_easy'] + 3 * scores['acc_stderr']
  for metric, wanted in (('acc', 8), ('acc_norm', 4)):
    rows = [p for p in results.predictions if p['metric'] == metric]
    assert sum(p['pred'] == p['gold'] for p in rows[:10]) == wanted

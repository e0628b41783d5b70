"""Export to Hugging Face's layout: logits, bits, foreign readers, errors."""

import json
import os
import re

from flax import traverse_util
import jax
import numpy as np
import pytest

from steepest.experiments import base
from steepest.models import (
  config as model_config,
  gpt2,
  huggingface,
  huggingface_export,
  parametrization,
)

_VARIANTS = {
  'gpt2 tied': ('gpt2', {}),
  'gpt2 untied without biases': (
    'gpt2',
    {'model.tie_embeddings': False, 'model.bias': False},
  ),
  'gpt2 gelu, narrow mlp': (
    'gpt2',
    {'model.activation': 'gelu', 'model.mlp_dim': 72},
  ),
  'llama tied with biases': (
    'llama',
    {'model.tie_embeddings': True, 'model.bias': True},
  ),
  'llama gqa, base of RoPE, heads wider than the stream': (
    'llama',
    {'model.num_kv_heads': 2, 'model.rope_base': 5e5, 'model.head_dim': 24},
  ),
  # Their Qwen3.
  'llama, normalised queries and keys, wider heads': (
    'llama',
    {'model.qk_norm': True, 'model.num_kv_heads': 2, 'model.head_dim': 24},
  ),
  'llama without gains': ('llama', {'model.norm_gain': False}),
}
_MULTIPLIERS = {
  'sp': {'parametrization.kind': 'sp'},
  'mup at its base': {'parametrization.base_width': 64},
  'mup, depth_mup, wider heads': {
    'parametrization.base_width': 16,
    'parametrization.base_head_dim': 4,
    'parametrization.base_depth': 1,
    'parametrization.depth_rule': 'depth_mup',
  },
  'mup, completep, below its base': {
    'parametrization.base_width': 128,
    'parametrization.base_depth': 6,
    'parametrization.depth_rule': 'completep',
  },
}
# All multipliers for the most unlike variant of each model.
_CASES = [
  (variant, multipliers)
  for variant in _VARIANTS
  for multipliers in _MULTIPLIERS
  if multipliers == 'sp' or re.search('narrow|wider|gains', variant)
]
_EXACT = ('sp', 'mup at its base')
_LENGTH = 24


def _rules(name, **keys):
  config = base.get_config()
  base.set_model(config, name)
  config.update_from_flattened_dict(
    {
      'model.num_layers': 2,
      'model.width': 64,
      'model.num_heads': 4,
      'model.vocab_size': 96,
      'model.context': _LENGTH,
      'dtype.compute': 'float32',
      **keys,
    }
  )
  model = model_config.resolve(config.model, 0, config.dtype)
  return parametrization.resolve(config.parametrization, model)


def _module(rules):
  return model_config.find_model(rules.model.name).Model(rules.model, rules)


def _params(rules):
  """Random weights that leave no gain at 1 and no bias at 0."""
  tokens = jax.ShapeDtypeStruct((1, _LENGTH), np.int32)
  shapes = jax.eval_shape(
    lambda t: _module(rules).init(jax.random.key(0), t)['params'], tokens
  )
  shapes = traverse_util.flatten_dict(
    jax.tree.map(
      lambda p: p.value.shape,
      shapes,
      is_leaf=lambda p: isinstance(p, parametrization.Parameter),
    ),
    sep='/',
  )
  rng = np.random.default_rng(0)
  return traverse_util.unflatten_dict(
    {
      path: rng.normal('gain' in path, 0.2, shape).astype(np.float32)
      for path, shape in shapes.items()
    },
    sep='/',
  )


def _logits(rules, params):
  tokens = np.random.default_rng(1).integers(0, 96, (3, _LENGTH))
  apply = jax.jit(_module(rules).apply)
  return tokens, apply({'params': params}, tokens.astype(np.int32))


def _read_back(directory):
  config = base.get_config()
  config.model.update(huggingface.read_config(directory))
  config.dtype.compute = 'float32'
  model = model_config.resolve(config.model, 0, config.dtype)
  rules = parametrization.resolve(config.parametrization, model)
  return rules, huggingface.read_params(directory, model)


@pytest.mark.parametrize('variant, multipliers', _CASES)
def test_logits_stay_what_they_were(tmp_path, variant, multipliers):
  name, keys = _VARIANTS[variant]
  rules = _rules(name, **keys, **_MULTIPLIERS[multipliers])
  params = _params(rules)
  huggingface_export.write(tmp_path, params, rules, 1, 2)
  read_rules, read = _read_back(tmp_path)
  _, wanted = _logits(rules, params)
  _, got = _logits(read_rules, read)
  np.testing.assert_allclose(got, wanted, atol=1e-5 * np.abs(wanted).max())
  if multipliers in _EXACT:
    read = traverse_util.flatten_dict(read, sep='/')
    params = traverse_util.flatten_dict(params, sep='/')
    assert params.keys() <= read.keys()
    for path, value in read.items():
      # Only GPT-2's biases and gains can be more than there were.
      absent = np.float32(path.endswith('gain'))
      np.testing.assert_array_equal(value, params.get(path, absent))
  else:
    assert rules.readout_multiplier != 1
    assert rules.attention_scale != rules.model.head_dim**-0.5


@pytest.mark.parametrize('name', ['gpt2', 'llama'])
def test_reference_models_come_out_as_they_went_in(golden, tmp_path, name):
  rules, params = _read_back(golden / name)
  huggingface_export.write(tmp_path, params, rules, None, None)
  read_rules, read = _read_back(tmp_path)
  assert read_rules.model == rules.model
  jax.tree.map(np.testing.assert_array_equal, read, params)
  ours = json.loads((tmp_path / 'config.json').read_text('utf-8'))
  theirs = json.loads((golden / name / 'config.json').read_text('utf-8'))
  for key in ours.keys() & theirs.keys() - {'bos_token_id', 'eos_token_id'}:
    assert ours[key] == theirs[key] or key == 'n_inner', key


def test_special_tokens_are_named_or_null(tmp_path):
  """transformers would put in ids of its own where a key is missing."""
  rules = _rules('gpt2')
  huggingface_export.write(tmp_path, _params(rules), rules, None, 3)
  for file in ('config.json', 'generation_config.json'):
    config = json.loads((tmp_path / file).read_text('utf-8'))
    assert config['bos_token_id'] is None
    assert config['eos_token_id'] == 3


def test_whoever_reads_the_configuration_reads_the_weights(tmp_path):
  rules = _rules('gpt2')
  huggingface_export.write(tmp_path, _params(rules), rules, None, 3)
  modes = {path.stat().st_mode for path in tmp_path.iterdir()}
  assert len(modes) == 1


@pytest.mark.parametrize(
  'keys, said',
  [
    ({'model.head_dim': 8}, 'is not num_heads·head_dim = 32'),
    ({'model.qk_norm': True}, 'model.qk_norm=True: of gpt2, .*exported'),
    ({'model.name': gpt2.__file__}, 'gpt2.py: transformers has no such model'),
  ],
)
def test_what_their_classes_cannot_hold_is_refused(tmp_path, keys, said):
  rules = _rules('gpt2', **keys)
  with pytest.raises(ValueError, match=said):
    huggingface_export.write(tmp_path, _params(rules), rules, None, None)
  assert not list(tmp_path.iterdir())
  with pytest.raises((ValueError, FileNotFoundError)):
    huggingface.read_params(tmp_path, rules.model)


@pytest.mark.parametrize('variant, multipliers', _CASES)
def test_transformers_gives_the_same_logits(tmp_path, variant, multipliers):
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  name, keys = _VARIANTS[variant]
  rules = _rules(name, **keys, **_MULTIPLIERS[multipliers])
  params = _params(rules)
  huggingface_export.write(tmp_path, params, rules, 1, 2)
  model, info = transformers.AutoModelForCausalLM.from_pretrained(
    os.fspath(tmp_path), output_loading_info=True
  )
  assert not any(info.values()), info
  tokens, wanted = _logits(rules, params)
  with torch.no_grad():
    got = model.eval()(torch.tensor(tokens)).logits.numpy()
  np.testing.assert_allclose(got, wanted, atol=1e-4)

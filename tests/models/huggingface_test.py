"""Import from Hugging Face's layout: values, dtypes, shards, errors."""

import hashlib
import json
import shutil

from flax import traverse_util
import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as safetensors

from steepest.data import tokenizers
from steepest.experiments import base
from steepest.models import config as model_config, huggingface

_NAMES = ('gpt2', 'llama')


@pytest.fixture
def copy(golden, tmp_path):
  """Returns a function that copies a reference model to be damaged."""

  def fn(name):
    return shutil.copytree(golden / name, tmp_path / name)

  return fn


def _model(directory, **shapes):
  config = base.get_config()
  config.model.update(huggingface.read_config(directory))
  config.model.update(shapes)
  config.dtype.compute = 'float32'
  return model_config.resolve(config.model, 0, config.dtype)


def _read(directory, **shapes):
  params = huggingface.read_params(directory, _model(directory, **shapes))
  return traverse_util.flatten_dict(params, sep='/')


def _edit(directory, **keys):
  path = directory / 'config.json'
  config = json.loads(path.read_text('utf-8'))
  config.update(keys)
  path.write_text(json.dumps(config), 'utf-8')


def _tensors(directory):
  return safetensors.load_file(directory / 'model.safetensors')


def _save(directory, tensors):
  tensors = {k: np.ascontiguousarray(v) for k, v in tensors.items()}
  safetensors.save_file(tensors, directory / 'model.safetensors')


@pytest.mark.parametrize(
  'name, values',
  [
    (
      'gpt2',
      {
        **{'width': 64, 'mlp_dim': 256, 'head_dim': 16, 'num_kv_heads': 4},
        **{'context': 64, 'vocab_size': 256, 'norm_eps': 1e-5},
        **{'tie_embeddings': True, 'bias': True, 'activation': 'gelu_tanh'},
      },
    ),
    (
      'llama',
      {
        **{'width': 64, 'mlp_dim': 172, 'head_dim': 16, 'num_kv_heads': 2},
        **{'norm_eps': 1e-6, 'rope_base': 1e4, 'activation': 'silu'},
        **{'tie_embeddings': False, 'bias': False},
      },
    ),
  ],
)
def test_shapes_and_habits(golden, name, values):
  model = _model(golden / name)
  assert {key: getattr(model, key) for key in values} == values


@pytest.mark.parametrize('key', ['rope_theta', 'rope_parameters'])
def test_rotary_base_of_old_and_new_files(copy, key):
  """transformers 5 writes it inside rope_parameters alone."""
  directory = copy('llama')
  path = directory / 'config.json'
  config = json.loads(path.read_text('utf-8'))
  del config['rope_parameters']
  path.write_text(json.dumps(config), 'utf-8')
  assert _model(directory).rope_base == 1e4  # The first LLaMA's files.
  value = 5e5 if key == 'rope_theta' else {'rope_theta': 5e5}
  path.write_text(json.dumps({**config, key: value}), 'utf-8')
  assert _model(directory).rope_base == 5e5


@pytest.mark.parametrize('name', _NAMES)
def test_shards(copy, golden, name):
  directory = copy(name)
  tensors = _tensors(directory)
  (directory / 'model.safetensors').unlink()
  names = sorted(tensors)
  for i, part in enumerate((names[::2], names[1::2]), 1):
    safetensors.save_file(
      {n: tensors[n] for n in part},
      directory / f'model-0000{i}-of-00002.safetensors',
    )
  wanted = _read(golden / name)
  got = _read(directory)
  assert got.keys() == wanted.keys()
  for path, value in wanted.items():
    np.testing.assert_array_equal(got[path], value)
  # An index says which files count; others may lie beside them.
  safetensors.save_file(
    {'layers.0.wq': np.zeros((2, 2))}, directory / 'consolidated.safetensors'
  )
  files = [f'model-0000{i}-of-00002.safetensors' for i in (1, 2)]
  index = {n: files[i % 2] for i, n in enumerate(names)}
  path = directory / 'model.safetensors.index.json'
  path.write_text(json.dumps({'metadata': {}, 'weight_map': index}), 'utf-8')
  assert _read(directory).keys() == wanted.keys()
  (directory / files[1]).unlink()
  with pytest.raises(
    FileNotFoundError, match=f'{files[1]}, named in .* missing'
  ):
    _read(directory)
  # Whole weights, but of another folder.
  there = directory.with_name('there')
  there.mkdir()
  safetensors.save_file(tensors, there / 'model.safetensors')
  index = dict.fromkeys(names, '../there/model.safetensors')
  path.write_text(json.dumps({'weight_map': index}), 'utf-8')
  with pytest.raises(ValueError, match='no such file is beside it'):
    _read(directory)
  path.write_text('[]', 'utf-8')
  with pytest.raises(ValueError, match='holds no JSON object'):
    _read(directory)


@pytest.mark.parametrize('dtype', [ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize('name', _NAMES)
def test_half_precision(copy, name, dtype):
  directory = copy(name)
  tensors = _tensors(directory)
  wanted = {k: v.astype(dtype).astype(np.float32) for k, v in tensors.items()}
  _save(directory, wanted)
  expected = _read(directory)
  _save(directory, {k: v.astype(dtype) for k, v in tensors.items()})
  for path, value in _read(directory).items():
    assert value.dtype == np.float32
    np.testing.assert_array_equal(value, expected[path])


@pytest.mark.parametrize('name', _NAMES)
def test_checkpoints_of_the_bare_transformer(copy, golden, name):
  """Without the `transformer.` or `model.` that the head's class adds."""
  directory = copy(name)
  tensors = {
    k.removeprefix('transformer.').removeprefix('model.'): v
    for k, v in _tensors(directory).items()
  }
  _save(directory, tensors)
  wanted = _read(golden / name)
  for path, value in _read(directory).items():
    np.testing.assert_array_equal(value, wanted[path])


def test_constants_of_old_files_are_passed_over(copy):
  directory = copy('gpt2')
  tensors = _tensors(directory)
  tensors['h.0.attn.bias'] = np.tril(np.ones((1, 1, 64, 64), np.float32))
  tensors['h.0.attn.masked_bias'] = np.float32(-1e4)[None]
  tensors['lm_head.weight'] = _read(directory)['embedding']
  _save(directory, tensors)
  assert _read(directory)


def test_a_smaller_context_keeps_the_first_positions(golden):
  whole = _read(golden / 'gpt2')['positions']
  cut = _read(golden / 'gpt2', context=20)['positions']
  np.testing.assert_array_equal(cut, whole[:20])


@pytest.mark.parametrize('name', _NAMES)
def test_tensors_that_do_not_fit_are_named(copy, name):
  directory = copy(name)
  tensors = _tensors(directory)
  key = next(k for k in sorted(tensors) if 'mlp' in k and tensors[k].ndim == 2)
  others = {k: v for k, v in tensors.items() if k != key}
  for held, said in (
    (others, 'mlp.* is missing'),
    (
      {**tensors, 'adapter.w': np.zeros((2, 2))},
      r'unexpected tensor adapter\.w',
    ),
    ({**tensors, key: tensors[key][:-1]}, f'{key} has shape .*config requires'),
  ):
    _save(directory, held)
    with pytest.raises(ValueError, match=said):
      _read(directory)


@pytest.mark.parametrize(
  'name, keys, said',
  [
    ('gpt2', {'model_type': 'bert'}, "'bert' is not one of gpt2, llama"),
    ('gpt2', {'activation_function': 'relu'}, "'relu' is not supported"),
    ('gpt2', {'scale_attn_by_inverse_layer_idx': True}, 'not supported'),
    ('gpt2', {'scale_attn_weights': False}, 'scale_attn_weights=False is not'),
    (
      'llama',
      {'rope_parameters': {'rope_type': 'llama3', 'factor': 8}},
      "config.json: rope_parameters.rope_type 'llama3': scaled rotary",
    ),
    (
      'llama',
      {'rope_parameters': {'partial_rotary_factor': 0.5}},
      'rope_parameters.partial_rotary_factor is not supported',
    ),
    (
      'llama',
      {'rope_scaling': {'type': 'linear'}, 'rope_parameters': None},
      "config.json: rope_scaling.rope_type 'linear': scaled rotary",
    ),
    (
      'llama',
      {'rope_theta': 'much', 'rope_parameters': None},
      'config.json: .*much',
    ),
    ('llama', {'attention_bias': True}, 'differ: not supported'),
  ],
)
def test_unlike_architectures_are_refused(copy, name, keys, said):
  directory = copy(name)
  _edit(directory, **keys)
  with pytest.raises(ValueError, match=said):
    _model(directory)


def test_missing_files_are_named(copy, tmp_path):
  with pytest.raises(FileNotFoundError, match=r'no .*config\.json'):
    huggingface.read_config(tmp_path / 'nowhere')
  directory = copy('gpt2')
  model = _model(directory)
  (directory / 'model.safetensors').write_bytes(b'not safetensors')
  with pytest.raises(ValueError, match='is not safetensors'):
    huggingface.read_params(directory, model)
  (directory / 'model.safetensors').unlink()
  with pytest.raises(FileNotFoundError, match=r'no \*\.safetensors'):
    huggingface.read_params(directory, model)
  (directory / 'config.json').write_text('{', 'utf-8')
  with pytest.raises(ValueError, match='not valid JSON'):
    huggingface.read_config(directory)
  (directory / 'config.json').write_text('{"model_type": "gpt2"}', 'utf-8')
  with pytest.raises(ValueError, match="key 'n_layer' is missing"):
    huggingface.read_config(directory)


def test_weights_of_a_type_without_a_reader_are_named(copy):
  directory = copy('gpt2')
  path = directory / 'model.safetensors'
  tensors = _tensors(directory)
  small = {n: t.astype(ml_dtypes.float8_e4m3fn) for n, t in tensors.items()}
  safetensors.save_file(small, path)
  with pytest.raises(ValueError, match=r'model\.safetensors: .* type F8_E4M3'):
    _read(directory)


def test_files_of_the_hubs_cache_are_hashed_again(copy):
  directory = copy('gpt2')
  tokenizers.train_bpe(iter(['a few words'] * 9), 260).save(directory)
  (directory.parent / 'blobs').mkdir()
  for path in list(directory.iterdir()):
    blob = hashlib.sha256(path.read_bytes()).hexdigest()
    path.replace(directory.parent / 'blobs' / blob)
    path.symlink_to(f'../blobs/{blob}')
  assert _read(directory)
  tokenizers.load(f'hf:{directory}')
  for name, read in (
    ('config.json', lambda: huggingface.read_config(directory)),
    ('model.safetensors', lambda: _read(directory)),
    ('tokenizer.json', lambda: tokenizers.load(f'hf:{directory}')),
    ('tokenizer_config.json', lambda: tokenizers.load(f'hf:{directory}')),
  ):
    path = directory / name
    whole = path.read_bytes()
    # As JSON and as a table of tensors it is as good as before.
    path.write_bytes(whole[:-1] + b' ' + whole[-1:])
    with pytest.raises(ValueError, match=f'/{name} has changed since'):
      read()
    path.write_bytes(whole)

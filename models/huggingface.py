"""GPT-2 and LLaMA weights from Hugging Face's layout (safetensors)."""

from collections.abc import Iterator
import json
import math
import os
import pathlib
from typing import Any

from flax import traverse_util
import numpy as np
from safetensors import safe_open

from steepest.models.config import ModelConfig

_ACTIVATIONS = {
  'gelu_new': 'gelu_tanh',
  'gelu_pytorch_tanh': 'gelu_tanh',
  'gelu': 'gelu',
  'silu': 'silu',
}
# Their names of a layer's parts and ours; query, key and value of GPT-2 are
# one matrix there.
GPT2_NORMS = (('ln_1', 'attention_norm'), ('ln_2', 'mlp_norm'))
GPT2_LINEARS = (
  ('attn.c_proj', 'output', 'DD'),
  ('mlp.c_fc', 'mlp_up', 'DF'),
  ('mlp.c_proj', 'mlp_down', 'FD'),
)
GPT2_ATTENTION = ('query', 'key', 'value')
LLAMA_NORMS = (
  ('input_layernorm', 'attention_norm'),
  ('post_attention_layernorm', 'mlp_norm'),
)
# With inputs and outputs: D width, H query heads, K key-value heads, F MLP.
LLAMA_LINEARS = (
  ('self_attn.q_proj', 'query', 'DH'),
  ('self_attn.k_proj', 'key', 'DK'),
  ('self_attn.v_proj', 'value', 'DK'),
  ('self_attn.o_proj', 'output', 'HD'),
  ('mlp.gate_proj', 'mlp_gate', 'DF'),
  ('mlp.up_proj', 'mlp_up', 'DF'),
  ('mlp.down_proj', 'mlp_down', 'FD'),
)


def read_config(directory: str | os.PathLike[str]) -> dict[str, Any]:
  """Returns the `model` keys that DIR/config.json fixes.

  Raises:
    FileNotFoundError: there is no config.json.
    ValueError: the architecture is neither, or has a part we do not build.
  """
  path = pathlib.Path(directory) / 'config.json'
  if not path.exists():
    raise FileNotFoundError(
      f'no {path}: give hf:DIR with config.json and *.safetensors'
    )
  try:
    config = json.loads(path.read_text('utf-8'))
  except (ValueError, RecursionError) as error:
    raise ValueError(f'{path} is not JSON: {error}') from None
  if not isinstance(config, dict):
    raise ValueError(f'{path} holds no JSON object')
  readers = {'gpt2': _gpt2_config, 'llama': _llama_config}
  kind = config['model_type'] if 'model_type' in config else None
  if not isinstance(kind, str) or kind not in readers:
    raise ValueError(
      f'{path}: model_type {kind!r} is not one of {", ".join(readers)}'
    )
  try:
    found = {'name': kind, **readers[kind](config)}
    _check_types(found)
    return found
  except KeyError as error:
    raise ValueError(f'{path}: key {error} is missing') from None
  except (
    ValueError,
    TypeError,
    AttributeError,
    ArithmeticError,
  ) as error:
    raise ValueError(f'{path}: {error}') from None


def _gpt2_config(c: dict[str, Any]) -> dict[str, Any]:
  for key, built in (
    ('scale_attn_by_inverse_layer_idx', False),
    ('scale_attn_weights', True),
    ('add_cross_attention', False),
  ):
    if _or(c, key, built) != built:
      raise ValueError(f'{key}={c[key]} is not supported')
  return {
    'num_layers': c['n_layer'],
    'width': c['n_embd'],
    'num_heads': c['n_head'],
    'num_kv_heads': c['n_head'],
    'head_dim': c['n_embd'] // c['n_head'],
    'mlp_dim': c.get('n_inner') or 4 * c['n_embd'],
    'vocab_size': c['vocab_size'],
    'context': c['n_positions'],
    'bias': True,
    'tie_embeddings': _or(c, 'tie_word_embeddings', True),
    'norm_eps': c['layer_norm_epsilon'],
    'activation': _activation(c['activation_function']),
  }


def _llama_config(c: dict[str, Any]) -> dict[str, Any]:
  # transformers 5 writes the first and the base only inside it, older
  # versions the second.
  where = 'rope_parameters' if c.get('rope_parameters') else 'rope_scaling'
  rope = c.get(where) or {}
  kind = rope.get('rope_type') or rope.get('type') or 'default'
  if kind != 'default':
    raise ValueError(
      f'{where}.rope_type {kind!r}: scaled rotary positions are not supported'
    )
  if _or(rope, 'partial_rotary_factor', 1.0) != 1.0:
    raise ValueError(f'{where}.partial_rotary_factor is not supported, only 1')
  attention_bias = _or(c, 'attention_bias', False)
  if attention_bias != _or(c, 'mlp_bias', False):
    raise ValueError('attention_bias and mlp_bias differ: not supported')
  # The first LLaMA's files leave it out.
  base = _or(rope, 'rope_theta', _or(c, 'rope_theta', 10_000.0))
  heads = c['num_attention_heads']
  return {
    'num_layers': c['num_hidden_layers'],
    'width': c['hidden_size'],
    'num_heads': heads,
    'num_kv_heads': c.get('num_key_value_heads') or heads,
    'head_dim': c.get('head_dim') or c['hidden_size'] // heads,
    'mlp_dim': c['intermediate_size'],
    'vocab_size': c['vocab_size'],
    'context': c['max_position_embeddings'],
    'bias': attention_bias,
    'tie_embeddings': _or(c, 'tie_word_embeddings', False),
    'norm_eps': c['rms_norm_eps'],
    'activation': _activation(c['hidden_act']),
    'rope_base': float(base),
  }


def _check_types(found: dict[str, Any]) -> None:
  for key, value in found.items():
    if key in ('bias', 'tie_embeddings'):
      fits = isinstance(value, bool)
    elif key in ('name', 'activation'):
      fits = isinstance(value, str)
    elif key in ('norm_eps', 'rope_base'):
      fits = isinstance(value, int | float) and 0 < value < math.inf
    else:
      # JSON's true is no number, whatever Python says.
      fits = type(value) is int and 0 < value < 2**31
    if not fits:
      raise ValueError(f'{value!r} is no model.{key}')


def _or(config: dict[str, Any], key: str, absent: Any) -> Any:
  """Returns a value that config.json leaves out at transformers' default."""
  return config[key] if key in config else absent


def _activation(name: str) -> str:
  if name not in _ACTIVATIONS:
    raise ValueError(f'activation {name!r} is not supported')
  return _ACTIVATIONS[name]


def read_params(
  directory: str | os.PathLike[str], model: ModelConfig
) -> dict[str, Any]:
  """Returns the parameters of `model` from DIR/*.safetensors, float32.

  Raises:
    FileNotFoundError: there is no safetensors file.
    ValueError: a tensor is missing, left over, or has another shape, or the
      layout cannot hold the model.
  """
  check_layout(model)
  tensors = _Tensors(pathlib.Path(directory))
  reader = {'gpt2': _gpt2_params, 'llama': _llama_params}[model.name]
  params = dict(reader(tensors, model))
  tensors.check_all_used()
  return traverse_util.unflatten_dict(params, sep='/')


def check_layout(model: ModelConfig) -> None:
  """Raises a ValueError if the layout has no place for a part of a model."""
  if model.qk_norm:
    raise ValueError(
      f"model.qk_norm=True: transformers' {model.name} normalises no queries "
      'and keys, so such a model can be neither imported nor exported; train '
      'with model.qk_norm=False'
    )


class _Tensors:
  """All tensors of a directory, each to be taken once."""

  def __init__(self, directory: pathlib.Path):
    files = _find_files(directory)
    self._where = str(directory)
    self._file: dict[str, pathlib.Path] = {}
    for file in files:
      try:
        with safe_open(file, 'numpy') as reader:
          self._file |= dict.fromkeys(reader.keys(), file)
      except Exception as error:
        raise ValueError(f'{file} is not safetensors: {error}') from None
    # Checkpoints of the bare transformer lack the prefix.
    self._prefixes = ('', 'transformer.', 'model.')
    self._left = set(self._file)

  def rows(self, name: str) -> int:
    """Returns the first dimension of a tensor."""
    full = self._find(name)
    with safe_open(self._file[full], 'numpy') as reader:
      return reader.get_slice(full).get_shape()[0]

  def take(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns a tensor as float32."""
    full = self._find(name)
    self._left.discard(full)
    with safe_open(self._file[full], 'numpy') as reader:
      value = reader.get_tensor(full)
    if value.shape != shape:
      raise ValueError(
        f'{self._where}: tensor {full} has shape {value.shape}, config '
        f'wants {shape}'
      )
    return value.astype(np.float32)

  def _find(self, name: str) -> str:
    for prefix in self._prefixes:
      if prefix + name in self._file:
        return prefix + name
    raise ValueError(f'{self._where}: tensor {name} is missing')

  def check_all_used(self) -> None:
    # Masks and rotary tables are constants; a tied readout may be repeated.
    constants = ('.attn.bias', '.attn.masked_bias', 'rotary_emb.inv_freq')
    left = [n for n in sorted(self._left) if not n.endswith(constants)]
    left = [n for n in left if n != 'lm_head.weight']
    if left:
      raise ValueError(f'{self._where}: tensor {left[0]} has no place here')


def _find_files(directory: pathlib.Path) -> list[pathlib.Path]:
  """Returns the files of an index, else the one file, else all there are."""
  index = directory / 'model.safetensors.index.json'
  one = directory / 'model.safetensors'
  if index.exists():
    try:
      names = set(json.loads(index.read_text('utf-8'))['weight_map'].values())
    except (ValueError, KeyError, TypeError, AttributeError):
      raise ValueError(f'{index} has no weight_map: fetch it again') from None
    for name in sorted(map(str, names)):
      if pathlib.PurePath(name).name != name or '\0' in name:
        raise ValueError(f'{index} names {name!r}, which is no file beside it')
      if not (directory / name).is_file():
        raise FileNotFoundError(
          f'{directory / name}, named in {index}, is gone'
        )
    return [directory / name for name in sorted(map(str, names))]
  files = [one] if one.exists() else sorted(directory.glob('*.safetensors'))
  if not files:
    raise FileNotFoundError(f'no *.safetensors in {directory}')
  return files


def _gpt2_params(
  t: _Tensors, c: ModelConfig
) -> Iterator[tuple[str, np.ndarray]]:
  D, F, V = c.width, c.mlp_dim, c.vocab_size
  yield 'embedding', t.take('wte.weight', (V, D))
  yield from _positions(t, c)
  for i in range(c.num_layers):
    ours, theirs = f'block_{i}', f'h.{i}'
    for name, norm in GPT2_NORMS:
      yield f'{ours}/{norm}/gain', t.take(f'{theirs}.{name}.weight', (D,))
      yield f'{ours}/{norm}/bias', t.take(f'{theirs}.{name}.bias', (D,))
    kernels = np.split(t.take(f'{theirs}.attn.c_attn.weight', (D, 3 * D)), 3, 1)
    biases = np.split(t.take(f'{theirs}.attn.c_attn.bias', (3 * D,)), 3)
    for name, kernel, bias in zip(GPT2_ATTENTION, kernels, biases):
      yield f'{ours}/{name}/kernel', kernel
      yield f'{ours}/{name}/bias', bias
    for name, linear, letters in GPT2_LINEARS:
      shape = tuple({'D': D, 'F': F}[letter] for letter in letters)
      yield (
        f'{ours}/{linear}/kernel',
        t.take(f'{theirs}.{name}.weight', shape),
      )
      yield (
        f'{ours}/{linear}/bias',
        t.take(f'{theirs}.{name}.bias', shape[1:]),
      )
  yield 'norm/gain', t.take('ln_f.weight', (D,))
  yield 'norm/bias', t.take('ln_f.bias', (D,))
  if not c.tie_embeddings:
    yield 'readout', t.take('lm_head.weight', (V, D))


def _positions(t: _Tensors, c: ModelConfig) -> Iterator[tuple[str, np.ndarray]]:
  """A smaller context than the checkpoint's keeps its first positions."""
  held = t.rows('wpe.weight')
  yield 'positions', t.take('wpe.weight', (held, c.width))[: c.context]


def _llama_params(
  t: _Tensors, c: ModelConfig
) -> Iterator[tuple[str, np.ndarray]]:
  D, F, V = c.width, c.mlp_dim, c.vocab_size
  H, K = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
  sizes = {'D': D, 'F': F, 'H': H, 'K': K}
  yield 'embedding', t.take('embed_tokens.weight', (V, D))
  for i in range(c.num_layers):
    ours, theirs = f'block_{i}', f'layers.{i}'
    for name, norm in LLAMA_NORMS:
      yield f'{ours}/{norm}/gain', t.take(f'{theirs}.{name}.weight', (D,))
    for name, linear, letters in LLAMA_LINEARS:
      into, out = (sizes[letter] for letter in letters)
      # torch.nn.Linear holds the transpose of x·W.
      kernel = t.take(f'{theirs}.{name}.weight', (out, into)).T
      yield f'{ours}/{linear}/kernel', np.ascontiguousarray(kernel)
      if c.bias:
        yield f'{ours}/{linear}/bias', t.take(f'{theirs}.{name}.bias', (out,))
  yield 'norm/gain', t.take('norm.weight', (D,))
  if not c.tie_embeddings:
    yield 'readout', t.take('lm_head.weight', (V, D))

"""GPT-2 and LLaMA models from directories in Hugging Face's layout.

There, LLaMA with normalised queries and keys is called Qwen3.
"""

from collections.abc import Iterator
import math
import os
import pathlib
from typing import Any, NamedTuple

from flax import traverse_util
import numpy as np
from safetensors import safe_open

from steepest.data import reading
from steepest.models.config import ModelConfig

_ACTIVATIONS = {
  'gelu_new': 'gelu_tanh',
  'gelu_pytorch_tanh': 'gelu_tanh',
  'gelu': 'gelu',
  'silu': 'silu',
}


class Tensor(NamedTuple):
  """A tensor in Hugging Face's layout.

  Attributes:
    name: without the prefix that the class with a readout adds.
    paths: our parameters' paths, concatenated along its last dimension.
    shape: shape of the tensor.
    transposed: whether it is a torch.nn.Linear's, which stores the transpose.
  """

  name: str
  paths: tuple[str, ...]
  shape: tuple[int, ...]
  transposed: bool = False


class _Layout(NamedTuple):
  """Hugging Face's names of a model's parts, and ours.

  Each linear layer has a letter for its inputs and one for each part's outputs:
  D width, H query heads, K key-value heads, F MLP.
  """

  prefix: str
  embedding: str
  blocks: str
  norms: tuple[tuple[str, str], ...]
  linears: tuple[tuple[str, tuple[str, ...], str, str], ...]
  last_norm: str


_LAYOUTS = {
  'gpt2': _Layout(
    'transformer.',
    'wte',
    'h',
    (('ln_1', 'attention_norm'), ('ln_2', 'mlp_norm')),
    (
      ('attn.c_attn', ('query', 'key', 'value'), 'D', 'HHH'),
      ('attn.c_proj', ('output',), 'H', 'D'),
      ('mlp.c_fc', ('mlp_up',), 'D', 'F'),
      ('mlp.c_proj', ('mlp_down',), 'F', 'D'),
    ),
    'ln_f',
  ),
  'llama': _Layout(
    'model.',
    'embed_tokens',
    'layers',
    (
      ('input_layernorm', 'attention_norm'),
      ('post_attention_layernorm', 'mlp_norm'),
    ),
    (
      ('self_attn.q_proj', ('query',), 'D', 'H'),
      ('self_attn.k_proj', ('key',), 'D', 'K'),
      ('self_attn.v_proj', ('value',), 'D', 'K'),
      ('self_attn.o_proj', ('output',), 'H', 'D'),
      ('mlp.gate_proj', ('mlp_gate',), 'D', 'F'),
      ('mlp.up_proj', ('mlp_up',), 'D', 'F'),
      ('mlp.down_proj', ('mlp_down',), 'F', 'D'),
    ),
    'norm',
  ),
}
_READOUT = 'lm_head.weight'
# Safetensors dtypes that weights are read from.
_DTYPES = ('F64', 'F32', 'F16', 'BF16')


def tensors(model: ModelConfig) -> Iterator[Tensor]:
  """Yields the tensors that a directory with `model` holds."""
  layout, gpt2 = _LAYOUTS[model.name], model.name == 'gpt2'
  D, V = model.width, model.vocab_size
  sizes = {
    'D': D,
    'F': model.mlp_dim,
    'H': model.num_heads * model.head_dim,
    'K': model.num_kv_heads * model.head_dim,
  }

  def norm(name: str, path: str, size: int = D) -> Iterator[Tensor]:
    yield Tensor(f'{name}.weight', (f'{path}/gain',), (size,))
    if gpt2:
      yield Tensor(f'{name}.bias', (f'{path}/bias',), (D,))

  yield Tensor(f'{layout.embedding}.weight', ('embedding',), (V, D))
  if gpt2:
    yield Tensor('wpe.weight', ('positions',), (model.context, D))
  for i in range(model.num_layers):
    theirs, ours = f'{layout.blocks}.{i}', f'block_{i}'
    for name, path in layout.norms:
      yield from norm(f'{theirs}.{name}', f'{ours}/{path}')
    if model.qk_norm:
      for kind in ('query', 'key'):
        theirs_norm = f'{theirs}.self_attn.{kind[0]}_norm'
        yield from norm(theirs_norm, f'{ours}/{kind}_norm', model.head_dim)
    for name, paths, letter, letters in layout.linears:
      into, out = sizes[letter], sum(sizes[letter] for letter in letters)
      yield Tensor(
        f'{theirs}.{name}.weight',
        tuple(f'{ours}/{path}/kernel' for path in paths),
        (into, out) if gpt2 else (out, into),
        transposed=not gpt2,
      )
      if gpt2 or model.bias:
        biases = tuple(f'{ours}/{path}/bias' for path in paths)
        yield Tensor(f'{theirs}.{name}.bias', biases, (out,))
  yield from norm(layout.last_norm, 'norm')
  if not model.tie_embeddings:
    yield Tensor(_READOUT, ('readout',), (V, D))


def full_name(model: ModelConfig, tensor: Tensor) -> str:
  """Returns a tensor's name in the class that has a readout."""
  if tensor.name == _READOUT:
    return tensor.name
  return _LAYOUTS[model.name].prefix + tensor.name


def read_config(directory: str | os.PathLike[str]) -> dict[str, Any]:
  """Returns the `model` keys that DIR/config.json sets.

  Raises:
    FileNotFoundError: there is no config.json.
    ValueError: it is neither GPT-2 nor LLaMA nor Qwen3, uses a feature that we
      lack, or differs from what was downloaded.
  """
  path = pathlib.Path(directory) / 'config.json'
  if not path.exists():
    raise FileNotFoundError(
      f'no {path}: give hf:DIR with config.json and *.safetensors'
    )
  config = reading.json_object(path)
  readers = {
    'gpt2': _gpt2_config,
    'llama': _llama_config,
    'qwen3': _qwen3_config,
  }
  kind = config['model_type'] if 'model_type' in config else None
  if not isinstance(kind, str) or kind not in readers:
    raise ValueError(
      f'{path}: model_type {kind!r} is not one of {", ".join(readers)}'
    )
  try:
    found = {'name': kind.replace('qwen3', 'llama'), **readers[kind](config)}
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
  # transformers 5 writes rope_parameters, which alone holds the base; older
  # versions write rope_scaling.
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
  # The first LLaMA's files have no base.
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


def _qwen3_config(c: dict[str, Any]) -> dict[str, Any]:
  """Returns LLaMA's keys plus `qk_norm`."""
  if _or(c, 'use_sliding_window', False):
    raise ValueError('use_sliding_window=True is not supported')
  if _or(c, 'attention_bias', False):
    raise ValueError('attention_bias without biases in the MLP: not supported')
  # transformers' class defaults to 128.
  head_dim = _or(c, 'head_dim', 128)
  return {**_llama_config({**c, 'head_dim': head_dim}), 'qk_norm': True}


def _check_types(found: dict[str, Any]) -> None:
  for key, value in found.items():
    if key in ('bias', 'tie_embeddings', 'qk_norm'):
      fits = isinstance(value, bool)
    elif key in ('name', 'activation'):
      fits = isinstance(value, str)
    elif key in ('norm_eps', 'rope_base'):
      fits = isinstance(value, int | float) and 0 < value < math.inf
    else:
      # In Python a bool is an int; in JSON true is not a number.
      fits = type(value) is int and 0 < value < 2**31
    if not fits:
      raise ValueError(f'{value!r} cannot be model.{key}')


def _or(config: dict[str, Any], key: str, absent: Any) -> Any:
  """Returns a value, or transformers' default if config.json lacks it."""
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
    ValueError: a tensor is missing, left over or of another shape, the layout
      cannot hold the model, or a file differs from what was downloaded.
  """
  check_layout(model)
  file = _Tensors(pathlib.Path(directory))
  params: dict[str, np.ndarray] = {}
  for tensor in tensors(model):
    shape = tensor.shape
    if tensor.paths == ('positions',):
      # A smaller context than the checkpoint's keeps its first positions.
      shape = (max(file.rows(tensor.name), model.context), model.width)
    value = file.take(tensor.name, shape)[: tensor.shape[0]]
    if tensor.transposed:
      value = np.ascontiguousarray(value.T)
    params |= zip(tensor.paths, np.split(value, len(tensor.paths), -1))
  file.check_all_used()
  return traverse_util.unflatten_dict(params, sep='/')


def check_layout(model: ModelConfig) -> None:
  """Raises a ValueError if the layout cannot hold a part of the model."""
  if model.name not in _LAYOUTS:
    raise ValueError(
      f'model.name={model.name}: transformers has no such model, only '
      f'{", ".join(_LAYOUTS)} can be imported or exported'
    )
  if model.qk_norm and (model.name != 'llama' or model.bias):
    raise ValueError(
      f'model.qk_norm=True: of {model.name}, bias={model.bias}, transformers '
      'has no such class, so the model can be neither imported nor exported; '
      'its Qwen3 is llama without biases'
    )


class _Tensors:
  """The tensors of a directory; each is taken once."""

  def __init__(self, directory: pathlib.Path):
    self._where = str(directory)
    self._file: dict[str, pathlib.Path] = {}
    for file in _find_files(directory):
      reading.check_blob(file)
      try:
        with safe_open(file, 'numpy') as reader:
          self._file |= dict.fromkeys(reader.keys(), file)
      except Exception as error:
        raise ValueError(f'{file} is not safetensors: {error}') from None
    # Checkpoints of the bare transformer have no prefix.
    self._prefixes = ('', *(layout.prefix for layout in _LAYOUTS.values()))
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
      dtype = reader.get_slice(full).get_dtype()
      if dtype not in _DTYPES:
        raise ValueError(
          f'{self._file[full]}: tensor {full} is of type {dtype}; convert it '
          f'to one of {", ".join(_DTYPES)}'
        )
      value = reader.get_tensor(full)
    if value.shape != shape:
      raise ValueError(
        f'{self._where}: tensor {full} has shape {value.shape}, config '
        f'requires {shape}'
      )
    return value.astype(np.float32)

  def _find(self, name: str) -> str:
    for prefix in self._prefixes:
      if prefix + name in self._file:
        return prefix + name
    raise ValueError(f'{self._where}: tensor {name} is missing')

  def check_all_used(self) -> None:
    """Raises a ValueError that names a tensor left over."""
    # Masks and rotary tables are constants; a tied readout may be duplicated.
    constants = ('.attn.bias', '.attn.masked_bias', 'rotary_emb.inv_freq')
    left = [n for n in sorted(self._left) if not n.endswith(constants)]
    left = [n for n in left if n != _READOUT]
    if left:
      raise ValueError(f'{self._where}: unexpected tensor {left[0]}')


def _find_files(directory: pathlib.Path) -> list[pathlib.Path]:
  """Returns the files that an index names, else the single file, else all."""
  index = directory / 'model.safetensors.index.json'
  one = directory / 'model.safetensors'
  if index.exists():
    hint = 'fetch it again'
    held = reading.json_object(index, hint)
    reading.require(held, {'weight_map': 'object'}, str(index), hint)
    names = set(map(str, held['weight_map'].values()))
    for name in sorted(names):
      if pathlib.PurePath(name).name != name or '\0' in name:
        raise ValueError(
          f'{index} names {name!r}, but no such file is beside it'
        )
      if not (directory / name).is_file():
        raise FileNotFoundError(
          f'{directory / name}, named in {index}, is missing'
        )
    return [directory / name for name in sorted(names)]
  files = [one] if one.exists() else sorted(directory.glob('*.safetensors'))
  if not files:
    raise FileNotFoundError(f'no *.safetensors in {directory}')
  return files

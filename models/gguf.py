"""LLaMA-family models out of GGUF files (llama.cpp), as Hugging Face has them.

Quantised weights become float32. llama.cpp keeps query and key rows in the
order of interleaved rotary positions: row 2i + j of a head here is row
j·h/2 + i there, h being the head dim.
"""

from collections.abc import Iterator
import json
import os
import pathlib
from typing import Any

import numpy as np
from safetensors import numpy as safetensors

# Their names of a layer's tensors, and Hugging Face's.
_LAYER = {
  'attn_norm': 'input_layernorm',
  'attn_q': 'self_attn.q_proj',
  'attn_k': 'self_attn.k_proj',
  'attn_v': 'self_attn.v_proj',
  'attn_output': 'self_attn.o_proj',
  'ffn_norm': 'post_attention_layernorm',
  'ffn_gate': 'mlp.gate_proj',
  'ffn_up': 'mlp.up_proj',
  'ffn_down': 'mlp.down_proj',
}
_WHOLE = {
  'token_embd.weight': 'model.embed_tokens.weight',
  'output_norm.weight': 'model.norm.weight',
  'output.weight': 'lm_head.weight',
}
# How texts are split before byte pairs are merged, by tokenizer.ggml.pre:
# GPT-2's regular expression, and whether digits stand alone.
_DIGITS_ALONE = {'gpt-2': False, 'smollm': True}
# Values of tokenizer.ggml.token_type.
_CONTROL, _USER_DEFINED = 3, 4


def convert(
  file: str | os.PathLike[str], directory: str | os.PathLike[str]
) -> None:
  """Writes config.json, model.safetensors and the tokenizer's files.

  Args:
    file: GGUF of a LLaMA-family model with a byte-level BPE.
    directory: that exists.

  Raises:
    FileNotFoundError: there is no such file.
    ImportError: the package `gguf` is not installed.
    ValueError: it is of another kind; names the key or tensor.
  """
  file, directory = pathlib.Path(file), pathlib.Path(directory)
  if not file.is_file():
    raise FileNotFoundError(f'no GGUF file {file}')
  try:
    import gguf
  except ImportError:
    raise ImportError(
      'reading GGUF files needs the package gguf: pip install steepest[gguf]'
    ) from None
  try:
    reader = gguf.GGUFReader(file)
  except (ValueError, IndexError, OSError) as error:
    raise ValueError(f'{file} is no readable GGUF file: {error}') from None
  about = _About(file, reader.fields)
  shapes = {t.name: t.data.shape for t in reader.tensors}
  config = _config(about, tied='output.weight' not in shapes)
  definition, special = _tokenizer(about)
  tensors = dict(_tensors(about, reader, config))
  safetensors.save_file(
    tensors, directory / 'model.safetensors', {'format': 'pt'}
  )
  for name, value in (
    ('tokenizer.json', definition),
    ('tokenizer_config.json', special),
    ('config.json', config),
  ):
    (directory / name).write_text(
      json.dumps(value, indent=1, ensure_ascii=False) + '\n', 'utf-8'
    )


class _About:
  """The keys of a GGUF file."""

  def __init__(self, file: pathlib.Path, fields: dict[str, Any]):
    self.file = file
    self._fields = fields

  def __contains__(self, key: str) -> bool:
    return key in self._fields

  def __getitem__(self, key: str) -> Any:
    if key not in self._fields:
      raise ValueError(f'{self.file}: key {key} is missing')
    return self._fields[key].contents()

  def expect(self, key: str, *known: Any) -> Any:
    """Returns a value that has to be one of those known."""
    if self[key] not in known:
      raise ValueError(
        f'{self.file}: {key} is {self[key]!r}, not one of '
        f'{", ".join(map(str, known))}'
      )
    return self[key]


def _config(about: _About, tied: bool) -> dict[str, Any]:
  about.expect('general.architecture', 'llama')
  if 'llama.rope.scaling.type' in about:
    about.expect('llama.rope.scaling.type', 'none')
  if 'llama.expert_count' in about:
    about.expect('llama.expert_count', 0)
  width = about['llama.embedding_length']
  heads = about['llama.attention.head_count']
  kv_heads = heads
  if 'llama.attention.head_count_kv' in about:
    kv_heads = about['llama.attention.head_count_kv']
  head_dim = width // heads
  if 'llama.attention.key_length' in about:
    head_dim = about['llama.attention.key_length']
  if 'llama.rope.dimension_count' in about:
    about.expect('llama.rope.dimension_count', head_dim)
  base = 10_000.0
  if 'llama.rope.freq_base' in about:
    base = _decimal(about['llama.rope.freq_base'])
  return {
    'architectures': ['LlamaForCausalLM'],
    'model_type': 'llama',
    'attention_bias': False,
    'bos_token_id': about['tokenizer.ggml.bos_token_id'],
    'eos_token_id': about['tokenizer.ggml.eos_token_id'],
    'head_dim': head_dim,
    'hidden_act': 'silu',
    'hidden_size': width,
    'intermediate_size': about['llama.feed_forward_length'],
    'max_position_embeddings': about['llama.context_length'],
    'mlp_bias': False,
    'num_attention_heads': heads,
    'num_hidden_layers': about['llama.block_count'],
    'num_key_value_heads': kv_heads,
    'rms_norm_eps': _decimal(about['llama.attention.layer_norm_rms_epsilon']),
    'rope_theta': base,
    'rope_parameters': {'rope_theta': base, 'rope_type': 'default'},
    'tie_word_embeddings': tied,
    'torch_dtype': 'float32',
    'vocab_size': len(about['tokenizer.ggml.tokens']),
  }


def _decimal(value: float) -> float:
  """Returns the number that was rounded to float32: 1e-05, not 9.99…e-06."""
  return float(str(np.float32(value)))


def _tensors(
  about: _About, reader: Any, config: dict[str, Any]
) -> Iterator[tuple[str, np.ndarray]]:
  """Yields Hugging Face's names and float32 values."""
  import gguf

  heads = {
    'attn_q': config['num_attention_heads'],
    'attn_k': config['num_key_value_heads'],
  }
  for tensor in reader.tensors:
    name = _name(tensor.name)
    # Factors of rotary scaling, say, which would silently be left out.
    if name is None:
      raise ValueError(f'{about.file}: tensor {tensor.name} has no place here')
    try:
      value = gguf.dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError:
      raise ValueError(
        f'{about.file}: tensor {tensor.name} has type '
        f'{tensor.tensor_type.name}, which gguf cannot dequantise'
      ) from None
    value = np.asarray(value, np.float32)
    part = tensor.name.split('.')[-2]
    if part in heads:
      value = _half_split(value, heads[part])
    yield name, np.ascontiguousarray(value)


def _name(theirs: str) -> str | None:
  """Returns Hugging Face's name of a tensor; None where it has none."""
  if theirs in _WHOLE:
    return _WHOLE[theirs]
  block, _, rest = theirs.partition('.')
  number, _, rest = rest.partition('.')
  part, _, leaf = rest.partition('.')
  if block != 'blk' or part not in _LAYER or leaf != 'weight':
    return None
  return f'model.layers.{number}.{_LAYER[part]}.weight'


def _half_split(rows: np.ndarray, heads: int) -> np.ndarray:
  """Puts rows of heads from interleaved into half-split rotary order."""
  split = rows.reshape(heads, rows.shape[0] // heads // 2, 2, rows.shape[1])
  return split.swapaxes(1, 2).reshape(rows.shape)


def _tokenizer(about: _About) -> tuple[dict[str, Any], dict[str, Any]]:
  """Returns tokenizer.json and tokenizer_config.json."""
  about.expect('tokenizer.ggml.model', 'gpt2')
  if 'tokenizer.ggml.add_bos_token' in about:
    about.expect('tokenizer.ggml.add_bos_token', False)
  pre = about.expect('tokenizer.ggml.pre', *_DIGITS_ALONE)
  tokens = about['tokenizer.ggml.tokens']
  byte_level = {
    'type': 'ByteLevel',
    'add_prefix_space': False,
    'trim_offsets': True,
    'use_regex': True,
  }
  splitters = [{'type': 'Digits', 'individual_digits': True}, byte_level]
  added = [
    {
      'id': i,
      'content': tokens[i],
      'single_word': False,
      'lstrip': False,
      'rstrip': False,
      'normalized': False,
      'special': kind == _CONTROL,
    }
    for i, kind in enumerate(about['tokenizer.ggml.token_type'])
    if kind in (_CONTROL, _USER_DEFINED)
  ]
  definition = {
    'version': '1.0',
    'truncation': None,
    'padding': None,
    'added_tokens': added,
    'normalizer': None,
    'pre_tokenizer': {
      'type': 'Sequence',
      'pretokenizers': splitters if _DIGITS_ALONE[pre] else splitters[1:],
    },
    'post_processor': None,
    'decoder': byte_level,
    'model': {
      'type': 'BPE',
      'dropout': None,
      'unk_token': None,
      'continuing_subword_prefix': None,
      'end_of_word_suffix': None,
      'fuse_unk': False,
      'byte_fallback': False,
      'vocab': {token: i for i, token in enumerate(tokens)},
      'merges': [m.split(' ') for m in about['tokenizer.ggml.merges']],
    },
  }
  special = {
    'tokenizer_class': 'PreTrainedTokenizerFast',
    'clean_up_tokenization_spaces': False,
    'bos_token': tokens[about['tokenizer.ggml.bos_token_id']],
    'eos_token': tokens[about['tokenizer.ggml.eos_token_id']],
    'model_max_length': about['llama.context_length'],
  }
  return definition, special

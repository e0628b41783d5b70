"""GPT-2 and LLaMA weights into Hugging Face's layout (safetensors).

That layout knows no multipliers, so those of the parametrization go into the
weights: the readout's into the final normalisation (a tied embedding stays as
it is), the attention scale beyond 1/√head_dim into the query projection, the
residual branches' into the matrices that write to the residual stream. A
factor of 1 leaves every bit as it is.

D width, V vocabulary.
"""

from collections.abc import Iterator
import json
import os
import pathlib
import shutil
from typing import Any

from flax import traverse_util
import jax
import numpy as np
from safetensors import numpy as safetensors

from steepest.models import huggingface
from steepest.models.config import ModelConfig
from steepest.models.parametrization import Parametrization

# LLaMA's class accepts GPT-2's activations under these names too.
_ACTIVATIONS = {'gelu_tanh': 'gelu_new', 'gelu': 'gelu', 'silu': 'silu'}


def write(
  directory: str | os.PathLike[str],
  params: Any,
  rules: Parametrization,
  bos_id: int | None,
  eos_id: int | None,
) -> None:
  """Writes config.json, generation_config.json and model.safetensors.

  Weights are float32. GPT-2 without biases gets biases of zero, as its class
  always has them.

  Args:
    directory: that exists; files of these names in it are replaced.
    params: of the model, as its module has them.
    rules: the model's parametrization, with its shapes.
    bos_id: the tokenizer's id of the beginning of a text, None without one.
    eos_id: of its end.

  Raises:
    ValueError: the layout cannot hold this model.
  """
  directory = pathlib.Path(directory)
  model = rules.model
  huggingface.check_layout(model)
  describe, list_tensors = {
    'gpt2': (_gpt2_config, _gpt2_tensors),
    'llama': (_llama_config, _llama_tensors),
  }[model.name]
  special = {'bos_token_id': bos_id, 'eos_token_id': eos_id}
  config = describe(model) | special | {'pad_token_id': None}
  flat = traverse_util.flatten_dict(jax.device_get(params), sep='/')
  folded = {path: _fold(path, value, rules) for path, value in flat.items()}
  tensors = {n: np.ascontiguousarray(t) for n, t in list_tensors(folded, model)}
  safetensors.save_file(
    tensors, directory / 'model.safetensors', {'format': 'pt'}
  )
  _write_json(directory / 'config.json', config)
  _write_json(directory / 'generation_config.json', special)
  # safetensors lets the owner alone read its file.
  shutil.copymode(directory / 'config.json', directory / 'model.safetensors')


def _fold(path: str, value: np.ndarray, rules: Parametrization) -> np.ndarray:
  """Returns a parameter with the multiplier that acts behind it."""
  part = path.split('/')[-2] if '/' in path else path
  factor = {
    'norm': rules.readout_multiplier,
    'query': rules.attention_scale / rules.model.head_dim**-0.5,
    'output': rules.residual_multiplier,
    'mlp_down': rules.residual_multiplier,
  }
  value = np.asarray(value, np.float32)
  return value * np.float32(factor[part]) if part in factor else value


def _gpt2_config(model: ModelConfig) -> dict[str, Any]:
  if model.width != model.num_heads * model.head_dim:
    raise ValueError(
      f'model.width={model.width} is not num_heads·head_dim = '
      f"{model.num_heads * model.head_dim}: transformers' GPT-2 has no such "
      'model'
    )
  return {
    'architectures': ['GPT2LMHeadModel'],
    'model_type': 'gpt2',
    'activation_function': _ACTIVATIONS[model.activation],
    'attn_pdrop': 0.0,
    'embd_pdrop': 0.0,
    'layer_norm_epsilon': model.norm_eps,
    'n_embd': model.width,
    'n_head': model.num_heads,
    'n_inner': model.mlp_dim,
    'n_layer': model.num_layers,
    'n_positions': model.context,
    'resid_pdrop': 0.0,
    'tie_word_embeddings': model.tie_embeddings,
    'torch_dtype': 'float32',
    'vocab_size': model.vocab_size,
  }


def _llama_config(model: ModelConfig) -> dict[str, Any]:
  return {
    'architectures': ['LlamaForCausalLM'],
    'model_type': 'llama',
    'attention_bias': model.bias,
    'head_dim': model.head_dim,
    'hidden_act': _ACTIVATIONS[model.activation],
    'hidden_size': model.width,
    'intermediate_size': model.mlp_dim,
    'max_position_embeddings': model.context,
    'mlp_bias': model.bias,
    'num_attention_heads': model.num_heads,
    'num_hidden_layers': model.num_layers,
    'num_key_value_heads': model.num_kv_heads,
    'rms_norm_eps': model.norm_eps,
    # transformers 5 reads the last, older versions and vLLM the other two.
    'rope_theta': model.rope_base,
    'rope_scaling': None,
    'rope_parameters': {'rope_theta': model.rope_base, 'rope_type': 'default'},
    'tie_word_embeddings': model.tie_embeddings,
    'torch_dtype': 'float32',
    'vocab_size': model.vocab_size,
  }


def _gpt2_tensors(
  params: dict[str, np.ndarray], model: ModelConfig
) -> Iterator[tuple[str, np.ndarray]]:
  def bias(layer: str, size: int) -> np.ndarray:
    if model.bias:
      return params[f'{layer}/bias']
    return np.zeros(size, np.float32)

  def norm(ours: str) -> Iterator[tuple[str, np.ndarray]]:
    yield 'weight', _gain(params, ours, model)
    yield 'bias', bias(ours, model.width)

  yield 'transformer.wte.weight', params['embedding']
  yield 'transformer.wpe.weight', params['positions']
  for i in range(model.num_layers):
    ours, theirs = f'block_{i}', f'transformer.h.{i}'
    for name, part in huggingface.GPT2_NORMS:
      for leaf, value in norm(f'{ours}/{part}'):
        yield f'{theirs}.{name}.{leaf}', value
    attention = [f'{ours}/{name}' for name in huggingface.GPT2_ATTENTION]
    kernels = [params[f'{layer}/kernel'] for layer in attention]
    biases = [bias(layer, model.width) for layer in attention]
    yield f'{theirs}.attn.c_attn.weight', np.concatenate(kernels, 1)
    yield f'{theirs}.attn.c_attn.bias', np.concatenate(biases)
    for name, linear, _ in huggingface.GPT2_LINEARS:
      kernel = params[f'{ours}/{linear}/kernel']
      yield f'{theirs}.{name}.weight', kernel
      yield f'{theirs}.{name}.bias', bias(f'{ours}/{linear}', kernel.shape[1])
  for leaf, value in norm('norm'):
    yield f'transformer.ln_f.{leaf}', value
  if not model.tie_embeddings:
    yield 'lm_head.weight', params['readout']


def _llama_tensors(
  params: dict[str, np.ndarray], model: ModelConfig
) -> Iterator[tuple[str, np.ndarray]]:
  yield 'model.embed_tokens.weight', params['embedding']
  for i in range(model.num_layers):
    ours, theirs = f'block_{i}', f'model.layers.{i}'
    for name, norm in huggingface.LLAMA_NORMS:
      yield f'{theirs}.{name}.weight', _gain(params, f'{ours}/{norm}', model)
    for name, linear, _ in huggingface.LLAMA_LINEARS:
      # torch.nn.Linear holds the transpose of x·W.
      yield f'{theirs}.{name}.weight', params[f'{ours}/{linear}/kernel'].T
      if model.bias:
        yield f'{theirs}.{name}.bias', params[f'{ours}/{linear}/bias']
  yield 'model.norm.weight', _gain(params, 'norm', model)
  if not model.tie_embeddings:
    yield 'lm_head.weight', params['readout']


def _gain(
  params: dict[str, np.ndarray], norm: str, model: ModelConfig
) -> np.ndarray:
  """Returns a normalisation's gain, ones where the model has none."""
  if model.norm_gain:
    return params[f'{norm}/gain']
  return np.ones(model.width, np.float32)


def _write_json(path: pathlib.Path, value: dict[str, Any]) -> None:
  path.write_text(json.dumps(value, indent=2) + '\n', 'utf-8')

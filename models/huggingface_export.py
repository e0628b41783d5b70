"""GPT-2 and LLaMA models as directories in Hugging Face's layout.

That layout has no multipliers, so the parametrization's are folded into the
weights: the readout's into the final normalisation (a tied embedding stays as
it is), the attention scale beyond 1/√head_dim into the query projection, the
residual branches' into the matrices that write to the residual stream. With
normalised queries, the attention scale goes into their gain, and LLaMA is
exported as Qwen3. A factor of 1 changes no bit.
"""

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

  Weights are float32. GPT-2 without biases gets biases of zero: transformers'
  class always has them.

  Args:
    directory: must exist; files of these names in it are replaced.
    params: the model's parameters, as its module has them.
    rules: the model's parametrization, with its shapes.
    bos_id: the tokenizer's beginning-of-text id; None: it has none.
    eos_id: its end-of-text id, likewise.

  Raises:
    ValueError: the layout cannot hold this model.
  """
  directory = pathlib.Path(directory)
  model = rules.model
  huggingface.check_layout(model)
  describe = {'gpt2': _gpt2_config, 'llama': _llama_config}[model.name]
  special = {'bos_token_id': bos_id, 'eos_token_id': eos_id}
  config = describe(model) | special | {'pad_token_id': None}
  flat = traverse_util.flatten_dict(jax.device_get(params), sep='/')
  safetensors.save_file(
    {
      huggingface.full_name(model, tensor): _collect(tensor, flat, rules)
      for tensor in huggingface.tensors(model)
    },
    directory / 'model.safetensors',
    {'format': 'pt'},
  )
  _write_json(directory / 'config.json', config)
  _write_json(directory / 'generation_config.json', special)
  # safetensors makes its file readable only by the owner.
  shutil.copymode(directory / 'config.json', directory / 'model.safetensors')


def _fold(path: str, value: np.ndarray, rules: Parametrization) -> np.ndarray:
  """Returns a parameter times the multiplier of its output."""
  layer = path.split('/')[-2] if '/' in path else path
  attention = 'query_norm' if rules.model.qk_norm else 'query'
  factor = {
    'norm': rules.readout_multiplier,
    attention: rules.attention_scale / rules.model.head_dim**-0.5,
    'output': rules.residual_multiplier,
    'mlp_down': rules.residual_multiplier,
  }
  value = np.asarray(value, np.float32)
  return value * np.float32(factor[layer]) if layer in factor else value


def _collect(
  tensor: huggingface.Tensor,
  params: dict[str, np.ndarray],
  rules: Parametrization,
) -> np.ndarray:
  """Returns a tensor built from our parameters.

  Biases and gains that transformers' class has but the model lacks are 0 and 1.
  """
  size = tensor.shape[0] // len(tensor.paths)
  held = lambda path: (
    params[path]
    if path in params
    else np.full(size, path.endswith('/gain'), np.float32)
  )
  parts = [_fold(path, held(path), rules) for path in tensor.paths]
  value = np.concatenate(parts, -1)
  return np.ascontiguousarray(value.T if tensor.transposed else value)


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
  kind = 'qwen3' if model.qk_norm else 'llama'
  return {
    'architectures': [f'{kind.capitalize()}ForCausalLM'],
    'model_type': kind,
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


def _write_json(path: pathlib.Path, value: dict[str, Any]) -> None:
  path.write_text(json.dumps(value, indent=2) + '\n', 'utf-8')

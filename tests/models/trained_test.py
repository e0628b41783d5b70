"""Models that each optimizer trained, with all multipliers, out and in."""

import jax
import numpy as np
import pytest

from steepest.experiments import base
from steepest.models import (
  config as model_config,
  huggingface,
  huggingface_export,
  parametrization,
)
from steepest.optimizers import build
from steepest.training import run as assemble

_LENGTH = 16


def _train(name, optimizer):
  """Returns rules and parameters after a few large steps."""
  config, _ = base.with_variant(f'{name},{optimizer}')
  config.update_from_flattened_dict(
    {
      'model.num_layers': 2,
      'model.width': 48,
      'model.num_heads': 6,
      'model.vocab_size': 64,
      'model.context': _LENGTH,
      'parametrization.base_width': 16,
      'parametrization.base_head_dim': 4,
      'parametrization.base_depth': 1,
      'parametrization.depth_rule': 'completep',
      'optimizer.lr': 0.02,
      'optimizer.hessian_every': 2,
      'optimizer.hessian_bias_correction': True,
      'schedule.warmup_steps': 0,
      'batch_size': 8,
      'steps': 9,
      'dtype.compute': 'float32',
      'mesh.data': 1,
    }
  )
  model = model_config.resolve(config.model, 0, config.dtype)
  program = assemble.make_program(config, model)
  args = program.put(
    build.arguments(config.optimizer, config.schedule, config.steps)
  )
  state, first = program.init(0), program.init(0).params
  for step in range(6):
    rows = np.random.default_rng(step).integers(0, 64, (8, _LENGTH + 1))
    rows = rows.astype(np.int32)
    batch = {'inputs': rows[:, :-1], 'targets': rows[:, 1:]}
    state, _ = program.step(
      state, program.put_batch(batch), args, program.put(np.uint32(0))
    )
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), state.params, first)
  # Query biases move least: their gradients all but cancel.
  assert min(jax.tree.leaves(moved)) > 1e-4
  rules = parametrization.resolve(config.parametrization, model)
  return rules, jax.device_get(state.params)


@pytest.mark.slow
@pytest.mark.parametrize('optimizer', ['adamw', 'lion', 'sophia'])
@pytest.mark.parametrize('name', ['gpt2', 'llama'])
def test_a_trained_model_gives_the_same_logits(tmp_path, name, optimizer):
  rules, params = _train(name, optimizer)
  assert rules.readout_multiplier == 1 / 3
  assert rules.residual_multiplier == 1 / 2
  assert rules.attention_scale != rules.model.head_dim**-0.5
  huggingface_export.write(tmp_path, params, rules, None, 0)
  tokens = np.random.default_rng(9).integers(0, 64, (4, _LENGTH))
  tokens = tokens.astype(np.int32)
  wanted = _logits(rules, params, tokens)
  assert np.abs(wanted).max() > 0.1
  config = base.get_config()
  config.model.update(huggingface.read_config(tmp_path))
  config.dtype.compute = 'float32'
  model = model_config.resolve(config.model, 0, config.dtype)
  plain = parametrization.resolve(config.parametrization, model)
  read = huggingface.read_params(tmp_path, model)
  np.testing.assert_allclose(_logits(plain, read, tokens), wanted, atol=1e-5)
  # Without multipliers nothing is folded: out and in again, bit for bit.
  (tmp_path / 'again').mkdir()
  huggingface_export.write(tmp_path / 'again', read, plain, None, 0)
  jax.tree.map(
    np.testing.assert_array_equal,
    huggingface.read_params(tmp_path / 'again', model),
    read,
  )


def _logits(rules, params, tokens):
  module = model_config.find_model(rules.model.name).Model(rules.model, rules)
  return np.asarray(jax.jit(module.apply)({'params': params}, tokens))

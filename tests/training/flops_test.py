"""FLOPs by hand, and against what XLA counts."""

import jax
import pytest

from steepest.training import flops


def test_parameters_and_flops_by_hand(configure, make_trainer):
  """One layer of width 32, MLP 128, 64 tokens, context 16, GPT-2."""
  trainer = make_trainer(configure('gpt2', 'adamw'))
  params = trainer.setup.shapes.params
  block = 4 * (32 * 32 + 32) + (32 * 128 + 128) + (128 * 32 + 32) + 4 * 32
  outside = 64 * 32 + 16 * 32
  assert flops.count(params) == {
    'parameters': block + 2 * 32 + outside,
    'parameters_without_embeddings': block + 2 * 32,
  }
  wanted = 6 * (block + 2 * 32 + 64 * 32) + 12 * 1 * 32 * 16
  assert flops.per_token(params, trainer.setup.model) == wanted


def test_is_close_to_what_xla_counts(configure, make_trainer, make_batch):
  """Matrix products are nearly all of it at these widths."""
  trainer = make_trainer(configure('gpt2', 'adamw', model__width=128))
  params = trainer.setup.shapes.params
  batch = trainer.put(make_batch())

  def forward(params, tokens):
    return trainer.setup.apply(params, tokens)

  with jax.set_mesh(trainer.setup.mesh):
    cost = jax.jit(forward).lower(params, batch['inputs']).cost_analysis()
  tokens = batch['inputs'].size
  # A third of a step's FLOPs are the forward pass's.
  ours = flops.per_token(params, trainer.setup.model) * tokens / 3
  assert cost['flops'] == pytest.approx(ours, rel=0.1)

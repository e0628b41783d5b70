"""Tuned multipliers against the weights that do the same."""

import jax
import numpy as np
import pytest


@pytest.mark.parametrize('kind', ['sp', 'mup'])
@pytest.mark.parametrize('name', ['gpt2', 'llama'])
def test_multipliers_equal_scaled_weights(build_model, name, kind):
  """Factor 2 on the logits; 4 on query-key products as 2 on each side."""
  tokens = np.random.default_rng(0).integers(0, 64, (2, 16))
  plain = build_model(name, kind)
  params = plain.random()
  wanted = plain.logits(params, tokens)
  doubled = build_model(name, kind, rules={'logit_multiplier': 2.0})
  np.testing.assert_array_equal(doubled.logits(params, tokens), 2 * wanted)

  sharper = build_model(name, kind, rules={'attention_multiplier': 4.0})
  got = sharper.logits(params, tokens)
  assert not np.allclose(got, wanted, atol=1e-3)

  def scale(path, value):
    inside = jax.tree_util.keystr(path)
    return value * 2 if 'query' in inside or 'key' in inside else value

  scaled = jax.tree_util.tree_map_with_path(scale, params)
  assert scaled is not params
  np.testing.assert_allclose(
    got, plain.logits(scaled, tokens), rtol=1e-5, atol=1e-5
  )

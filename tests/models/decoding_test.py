"""Cached logits against those of whole texts; drawn tokens against them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steepest.models import decoding

_VOCAB = 12


def _logits(table_VxV, ids):
  """A causal model: all tokens so far, the last one most."""
  return 0.1 * table_VxV[np.array(ids)].sum(0) + table_VxV[ids[-1]]


def _make_cache(rows, length):
  return jnp.full((rows, length), _VOCAB - 1)


def _extend(table_VxV, cache_BxC, tokens_BxL, positions_BxL, last_B):
  """The same, with the tokens so far for a cache."""
  rows_B = jnp.arange(last_B.shape[0])
  cache_BxC = cache_BxC.at[rows_B[:, None], positions_BxL].set(tokens_BxL)
  at_B = positions_BxL[rows_B, last_B]
  seen_BxC = jnp.arange(cache_BxC.shape[1])[None] <= at_B[:, None]
  sum_BxV = (table_VxV[cache_BxC] * seen_BxC[..., None]).sum(1)
  return 0.1 * sum_BxV + table_VxV[tokens_BxL[rows_B, last_B]], cache_BxC


def _sampler(vocab_size=_VOCAB, mesh=None):
  return decoding.Sampler(_extend, _make_cache, vocab_size, mesh)


def _draw(sampler, table, prompts, tokens, length=64, **keys):
  """Returns the continuations."""
  rows = list(sampler(table, prompts, tokens, length, **keys))
  return [list(column) for column in zip(*rows)]


@pytest.fixture(scope='module')
def table() -> np.ndarray:
  """Parameters of that model."""
  rng = np.random.default_rng(0)
  return rng.normal(0, 2, (_VOCAB, _VOCAB)).astype(np.float32)


def test_temperature_zero_takes_the_likeliest(table):
  """Prompts of unlike lengths side by side, as each alone."""
  sampler, prompts = _sampler(), [[3, 1, 4, 1, 5], [2], [7, 1]]
  together = _draw(sampler, table, prompts, 9)
  assert sampler.compilations == 2
  for prompt, drawn in zip(prompts, together):
    ids = list(prompt)
    for token in drawn:
      assert token == int(_logits(table, ids).argmax())
      ids.append(token)
    assert len(drawn) == 9


def test_a_row_stops_where_the_model_is_full(table):
  drawn = _draw(_sampler(), table, [[3, 1, 4, 1], [5]], 9, 6)
  assert [sum(t is not None for t in row) for row in drawn] == [2, 5]
  assert drawn[0][:2] == _draw(_sampler(), table, [[3, 1, 4, 1]], 2)[0]
  with pytest.raises(ValueError, match='7 tokens, the model takes at most 6'):
    next(_sampler()(table, [[1] * 7], 1, 6))


def test_a_row_stops_at_the_end_of_text(table):
  (free,) = _draw(_sampler(), table, [[3]], 9)
  end = free[4]
  stop = free.index(end)
  one, two = _draw(_sampler(), table, [[3], [3, free[0]]], 9, eos_id=end)
  assert [t for t in one if t is not None] == free[: stop + 1]
  assert [t for t in two if t is not None] == free[1 : stop + 1]


def test_ids_beyond_the_vocabulary_are_never_drawn(table):
  (drawn,) = _draw(_sampler(5), table, [[1]], 40, temperature=9.0)
  assert max(drawn) == 4


def test_draws_are_a_function_of_the_seed_and_the_row(table):
  sampler = _sampler()
  draw = lambda *prompts, **keys: _draw(sampler, table, prompts, 20, **keys)
  (once,) = draw([1], temperature=1.0, seed=1)
  assert draw([1], temperature=1.0, seed=1) == [once]
  assert draw([1], temperature=1.0, seed=2) != [once]
  assert draw([1], temperature=1.0, top_p=0.0, seed=3) == draw([1])
  assert draw([1], temperature=1.0, top_k=1, seed=3) == draw([1])
  assert sampler.compilations == 1  # A prompt of one token is like any other.
  first, second = draw([1], [1], temperature=1.0, seed=1)
  assert first == once != second


@pytest.mark.parametrize(
  'temperature, top_k, top_p', [(1.0, 0, 1.0), (1.7, 0, 0.6), (1.3, 5, 0.9)]
)
def test_frequencies_are_the_probabilities(table, temperature, top_k, top_p):
  draws = 4000
  logits = _logits(table, [7]).astype(np.float64) / temperature
  ids = decoding.pick(
    jnp.broadcast_to(table[7] * 1.1, (draws, _VOCAB)),
    jnp.zeros(draws, jnp.int32),
    seed=jnp.uint32(0),
    temperature=jnp.float32(temperature),
    top_k=jnp.int32(top_k),
    top_p=jnp.float32(top_p),
  )
  counts = np.bincount(ids, minlength=_VOCAB)
  order = np.argsort(-logits)[: top_k or _VOCAB]
  p = np.exp(logits - logits.max())
  p /= p[order].sum()
  # The fewest tokens whose probabilities reach top_p.
  kept = order[: np.searchsorted(np.cumsum(p[order]), top_p - 1e-9) + 1]
  wanted = np.zeros_like(p)
  wanted[kept] = p[kept] / p[kept].sum()
  assert set(np.flatnonzero(counts)) <= set(kept)
  deviation = np.sqrt(wanted * (1 - wanted) / draws)
  np.testing.assert_array_less(
    np.abs(counts / draws - wanted), 4.5 * deviation + 1e-9
  )


def test_a_mesh_gives_the_same(table):
  mesh = jax.make_mesh(
    (2, 2), ('data', 'fsdp'), axis_types=(jax.sharding.AxisType.Auto,) * 2
  )
  spec = jax.sharding.PartitionSpec('fsdp')
  split = jax.device_put(table, jax.sharding.NamedSharding(mesh, spec))
  prompts, keys = [[1, 2], [3]], {'temperature': 1.0}
  wanted = _draw(_sampler(), table, prompts, 7, 16, **keys)
  assert _draw(_sampler(mesh=mesh), split, prompts, 7, 16, **keys) == wanted


@pytest.mark.parametrize(
  'name, shapes',
  [('gpt2', {'num_layers': 1}), ('llama', {'num_kv_heads': 2})],
)
def test_cached_logits_equal_those_of_the_whole_text(build_model, name, shapes):
  """Rows of unlike lengths: a prompt at once, then a token at a time."""
  built = build_model(name, **shapes)
  params = built.random()
  tokens = np.random.default_rng(1).integers(0, 64, (2, 16)).astype(np.int32)
  wanted = built.logits(params, tokens)
  cache = decoding.make_cache(built.rules.model, 2, 16)

  @jax.jit
  def extend(cache, tokens, positions, last):
    return decoding.extend(built.module, params, cache, tokens, positions, last)

  prompt = np.array([6, 3])  # The shorter row's rest is padding.
  positions = np.broadcast_to(np.arange(6), (2, 6))
  padded = np.where(positions < prompt[:, None], tokens[:, :6], 0)
  logits, cache = extend(cache, padded, positions, prompt - 1)
  rows = np.arange(2)
  np.testing.assert_allclose(logits, wanted[rows, prompt - 1], atol=1e-5)
  for step in range(10):
    at = prompt + step
    logits, cache = extend(
      cache, tokens[rows, at][:, None], at[:, None], np.zeros(2, int)
    )
    np.testing.assert_allclose(logits, wanted[rows, at], atol=1e-5)

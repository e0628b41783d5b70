"""Drawn tokens against the logits and their probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steepest.eval import sampling

_VOCAB = 12


def _logits_fn(table_VxV, tokens_BxL):
  """A causal model: all tokens so far, the last one most."""
  sums_BxLxV = jnp.cumsum(table_VxV[tokens_BxL], axis=1)
  return 0.1 * sums_BxLxV + table_VxV[tokens_BxL]


@pytest.fixture(scope='module')
def table() -> np.ndarray:
  """Parameters of that model."""
  rng = np.random.default_rng(0)
  return rng.normal(0, 2, (_VOCAB, _VOCAB)).astype(np.float32)


def test_temperature_zero_takes_the_likeliest(table):
  sampler = sampling.Sampler(_logits_fn, _VOCAB)
  ids = [3, 1, 4]
  for token in sampler(table, ids[:], 9, 64):
    logits = _logits_fn(table, np.array([ids]))
    assert token == int(logits[0, -1].argmax())
    ids.append(token)
  assert len(ids) == 12
  assert sampler.compilations == 1


def test_a_text_longer_than_the_model_is_seen_from_its_end(table):
  sampler = sampling.Sampler(_logits_fn, _VOCAB)
  ids = [3, 1, 4, 1, 5]
  for token in sampler(table, ids[:], 6, 4):
    assert token == int(_logits_fn(table, np.array([ids[-4:]]))[0, -1].argmax())
    ids.append(token)


def test_ids_beyond_the_vocabulary_are_never_drawn(table):
  sampler = sampling.Sampler(_logits_fn, 5)
  assert max(sampler(table, [1], 40, 64, temperature=9.0)) == 4


def test_draws_are_a_function_of_the_seed(table):
  sampler = sampling.Sampler(_logits_fn, _VOCAB)
  draw = lambda **keys: list(sampler(table, [1], 20, 64, **keys))
  assert draw(temperature=1.0, seed=1) == draw(temperature=1.0, seed=1)
  assert draw(temperature=1.0, seed=1) != draw(temperature=1.0, seed=2)
  assert draw(temperature=1.0, top_p=0.0, seed=3) == draw()
  assert sampler.compilations == 1


@pytest.mark.parametrize('temperature, top_p', [(1.0, 1.0), (1.7, 0.6)])
def test_frequencies_are_the_probabilities(table, temperature, top_p):
  sampler = sampling.Sampler(_logits_fn, _VOCAB)
  draws, tokens = 4000, np.array([[7]])
  fn = jax.jit(
    jax.vmap(
      lambda seed: sampler._pick(
        jnp.asarray(table),
        jnp.asarray(tokens),
        jnp.int32(0),
        seed,
        jnp.int32(0),
        jnp.float32(temperature),
        jnp.float32(top_p),
      )
    )
  )
  counts = np.bincount(fn(jnp.arange(draws, dtype=np.uint32)), minlength=_VOCAB)
  logits = np.asarray(_logits_fn(table, tokens)[0, 0], np.float64) / temperature
  p = np.exp(logits - logits.max())
  p /= p.sum()
  order = np.argsort(-p)
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
    (2, 2, 1, 2),
    ('data', 'fsdp', 'tensor', 'sequence'),
    axis_types=(jax.sharding.AxisType.Auto,) * 4,
  )
  whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

  def constrained(params, tokens_BxL):
    spec = jax.sharding.PartitionSpec(('data', 'fsdp'), 'sequence')
    return _logits_fn(
      params, jax.lax.with_sharding_constraint(tokens_BxL, spec)
    )

  one = sampling.Sampler(_logits_fn, _VOCAB)
  many = sampling.Sampler(constrained, _VOCAB, mesh)
  wanted = list(one(table, [1, 2], 7, 16, temperature=1.0))
  spread = jax.device_put(table, whole)
  assert list(many(spread, [1, 2], 7, 16, temperature=1.0)) == wanted

"""Packed documents against the same documents alone."""

import functools

import jax
from jax import numpy as jnp
import numpy as np
import pytest

from steepest.training import step as step_lib
from steepest.training.loss import cross_entropy

_LENGTHS = ((6, 10), (10, 6), (16,))
_VARIANTS = [
  ('gpt2', {}),
  ('llama', {'num_kv_heads': 2, 'remat': 'full'}),
]


def _pack(lengths, context=16):
  """Rows of documents: tokens, targets, segment ids and positions."""
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, 64, (len(lengths), context + 1)).astype(np.int32)
  ids = [np.repeat(np.arange(len(row)) + 1, row) for row in lengths]
  positions = [np.concatenate([np.arange(n) for n in row]) for row in lengths]
  return {
    'inputs': tokens[:, :-1],
    'targets': tokens[:, 1:],
    'segment_ids': np.stack(ids).astype(np.int32),
    'positions': np.stack(positions).astype(np.int32),
  }


def _documents(batch):
  """Yields indices of all documents of a length, a row for each."""
  found = {}
  for row, ids in enumerate(batch['segment_ids']):
    for segment in np.unique(ids):
      (at,) = np.nonzero(ids == segment)
      found.setdefault(len(at), []).append((np.full_like(at, row), at))
  for indices in found.values():
    yield tuple(np.stack(rows) for rows in zip(*indices))


def _apply(built):
  return lambda params, *inputs: built.module.apply({'params': params}, *inputs)


@pytest.mark.parametrize('name, shapes', _VARIANTS)
def test_packed_documents_equal_each_alone(build_model, name, shapes):
  built, batch = build_model(name, **shapes), _pack(_LENGTHS)
  params, apply = built.random(), _apply(built)
  names = ('inputs', 'segment_ids', 'positions')
  together = jax.jit(apply)(params, *(batch[n] for n in names))
  for where in _documents(batch):
    alone = jax.jit(apply)(params, batch['inputs'][where])
    np.testing.assert_allclose(together[where], alone, atol=1e-5, rtol=1e-5)
  # What is kept apart would matter.
  mixed = jax.jit(apply)(params, batch['inputs'])
  assert np.abs(mixed[0, 6:] - together[0, 6:]).max() > 0.01


@pytest.mark.parametrize(
  'name, microbatches',
  [
    ('gpt2', 3),
    pytest.param('gpt2', 1, marks=pytest.mark.slow),
    pytest.param('llama', 1, marks=pytest.mark.slow),
    pytest.param('llama', 3, marks=pytest.mark.slow),
  ],
)
def test_loss_and_gradient_are_those_of_the_documents(
  build_model, bare_setup, name, microbatches
):
  """Every target counts, those after an end of document too."""
  built, batch = build_model(name, num_layers=1), _pack(_LENGTHS)
  params, apply = built.random(), _apply(built)

  def apart(params):
    total = jnp.float32(0)
    for where in _documents(batch):
      logits = apply(params, batch['inputs'][where])
      total += cross_entropy(logits, batch['targets'][where]).sum()
    return total / batch['targets'].size

  wanted, grads = jax.jit(jax.value_and_grad(apart))(params)
  setup = bare_setup(apply, params, microbatches=microbatches)
  gradient = functools.partial(step_lib.gradient, setup)
  losses, others = jax.jit(gradient)(params, batch)
  np.testing.assert_allclose(losses['train/loss'], wanted, rtol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
    others,
    grads,
  )


@pytest.mark.parametrize(
  'estimator', ['gnb', pytest.param('hutchinson', marks=pytest.mark.slow)]
)
def test_curvature_sees_the_documents_apart(build_model, bare_setup, estimator):
  """A first document does not change what a later one contributes."""
  built, batch = build_model('llama', num_layers=1), _pack(((8, 8),))
  params, apply = built.random(), _apply(built)
  setup = bare_setup(apply, params, estimator=estimator)
  curvature = jax.jit(lambda b: step_lib.curvature(setup, params, b, 0, 0))
  alone = {k: v for k, v in batch.items() if k in ('inputs', 'targets')}
  one = {**batch, 'segment_ids': np.ones_like(batch['segment_ids'])}
  one['positions'] = np.arange(16, dtype=np.int32)[None]
  plain, whole, parts = map(curvature, (alone, one, batch))
  close = lambda a, b: all(
    np.allclose(x, y, rtol=1e-4, atol=1e-5 * np.abs(y).max())
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b))
  )
  assert close(plain, whole)
  assert not close(plain, parts)


@pytest.mark.parametrize('name', ['gpt2', 'llama'])
def test_without_segments_nothing_is_masked_or_gathered(build_model, name):
  """The compiled model has the operations it had: one mask of constants."""
  built = build_model(name, num_layers=1)
  text = jax.jit(built.logits).lower(built.random(), np.zeros((1, 16), int))
  assert text.as_text().count('"stablehlo.gather"(') == 1  # Embedding.

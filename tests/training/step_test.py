"""Gradient, z-loss and curvature by hand; micro-batches against batches."""

import functools

import jax
from jax import numpy as jnp
import numpy as np
import pytest

from steepest.models import config as model_config
from steepest.training import step as step_lib
from steepest.training.loss import cross_entropy
from steepest.training.state import key_for

_FEATURES = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
_TOKENS = np.random.default_rng(1).integers(0, 7, (4, 5)).astype(np.int32)
_BATCH = {'inputs': _TOKENS, 'targets': (_TOKENS + 2) % 4}
_WEIGHTS = np.random.default_rng(2).normal(size=(3, 4)).astype(np.float32)


def _regression(params, tokens_BxL):
  """Softmax regression of 4 classes on 3 features of a token."""
  return jnp.asarray(_FEATURES)[tokens_BxL] @ params


# Twelve sequences, so that subsets divide and leave some.
_ROWS = np.random.default_rng(3).integers(0, 7, (12, 5)).astype(np.int32)
_LARGE = {'inputs': _ROWS, 'targets': (_ROWS + 2) % 4}


@pytest.fixture
def regression(bare_setup):
  """Returns a function that makes its setup."""

  def make(estimator='gnb', microbatches=1, subset=1, apply=_regression):
    return bare_setup(
      apply,
      _WEIGHTS,
      estimator=estimator,
      microbatches=microbatches,
      subset=subset,
    )

  return make


def _average(setup, draws, batch=_BATCH):
  fn = lambda s: step_lib.curvature(setup, _WEIGHTS, batch, 0, s)
  samples = np.asarray(jax.jit(jax.vmap(fn))(jnp.arange(draws)), np.float64)
  return samples.mean(0), samples.std(0) / draws**0.5


def _gauss_newton(tokens):
  x_NxF = _FEATURES[tokens.ravel()].astype(np.float64)
  p_NxV = np.exp(x_NxF @ _WEIGHTS)
  p_NxV /= p_NxV.sum(1, keepdims=True)
  return np.einsum('nf,nv->fv', x_NxF**2, p_NxV * (1 - p_NxV)) / len(x_NxF)


@pytest.mark.parametrize('microbatches', [1, 4])
def test_gauss_newton_bartlett_averages_to_the_closed_form(
  regression, microbatches
):
  """Diagonal of the Gauss-Newton matrix: mean over tokens of p(1-p)·x²."""
  mean, error = _average(regression('gnb', microbatches), 20_000)
  wanted = _gauss_newton(_TOKENS)
  assert (np.abs(mean - wanted) < 5 * error).all()
  np.testing.assert_allclose(mean, wanted, rtol=0.06)
  # The targets do not enter: the empirical Fisher would differ.
  grads = step_lib.gradient(regression(), _WEIGHTS, _BATCH)[1]
  empirical = _TOKENS.size * np.asarray(grads) ** 2
  assert np.abs(empirical / wanted - 1).max() > 0.5


def test_hutchinson_averages_to_the_hessians_diagonal(regression):
  def loss(flat):
    logits = _regression(flat.reshape(3, 4), _TOKENS)
    return cross_entropy(logits, _BATCH['targets']).mean()

  wanted = np.diag(jax.hessian(loss)(_WEIGHTS.ravel())).reshape(3, 4)
  mean, error = _average(regression('hutchinson'), 20_000)
  assert (np.abs(mean - wanted) < 5 * error).all()
  np.testing.assert_allclose(mean, wanted, atol=0.05 * wanted.max())


@pytest.mark.parametrize('microbatches', [1, 4])
def test_a_subset_averages_to_the_closed_form_of_its_rows(
  regression, microbatches
):
  mean, error = _average(regression('gnb', microbatches, 2), 20_000, _LARGE)
  wanted = _gauss_newton(_ROWS[::2])
  assert (np.abs(mean - wanted) < 5 * error).all()
  np.testing.assert_allclose(mean, wanted, rtol=0.06)
  # Other rows have another one.
  others = _gauss_newton(_ROWS[1::2])
  assert (np.abs(mean - others) > 5 * error).any()


# Slices of 12 rows: as large as those of training, or smaller by 3 and by 2.
_SLICED = [(1, 2), (1, 12), (2, 2), (4, 2), (4, 4), (4, 3), (4, 6), (2, 3)]


@pytest.mark.parametrize('microbatches, subset', _SLICED)
def test_a_subset_is_its_rows_with_their_own_labels(
  regression, microbatches, subset
):
  """Those that its sequences have in the whole batch."""
  setup = regression('gnb', microbatches, subset)
  rows = {k: v[::subset] for k, v in _LARGE.items()}
  keys = jax.random.split(key_for(3, 'labels', 5), 12)[::subset]
  logits = _regression(_WEIGHTS, rows['inputs'])
  rows['targets'] = step_lib.sample(keys, logits)
  gradient = step_lib.gradient(regression(), _WEIGHTS, rows)[1]
  np.testing.assert_allclose(
    step_lib.curvature(setup, _WEIGHTS, _LARGE, 3, 5),
    rows['inputs'].size * np.asarray(gradient) ** 2,
    rtol=1e-5,
    atol=1e-7,
  )


@pytest.mark.parametrize('microbatches, subset', _SLICED)
def test_hutchinson_of_a_subset_is_that_of_its_rows(
  regression, microbatches, subset
):
  setup = regression('hutchinson', microbatches, subset)
  rows = {k: v[::subset] for k, v in _LARGE.items()}
  np.testing.assert_allclose(
    step_lib.curvature(setup, _WEIGHTS, _LARGE, 3, 5),
    step_lib.curvature(regression('hutchinson'), _WEIGHTS, rows, 3, 5),
    rtol=1e-5,
    atol=1e-7,
  )


@pytest.mark.parametrize('microbatches, subset', _SLICED)
def test_no_slice_of_a_subset_is_larger_than_those_of_training(
  regression, microbatches, subset
):
  seen = []

  def apply(params, tokens_BxL):
    seen.append(len(tokens_BxL))
    return _regression(params, tokens_BxL)

  setup = regression('gnb', microbatches, subset, apply)
  step_lib.curvature(setup, _WEIGHTS, _LARGE, 0, 0)
  most = 12 // microbatches
  assert max(seen) <= most
  if microbatches % subset == 0:
    assert set(seen) == {most}


def test_gradient_is_the_mean_over_tokens_by_hand(regression):
  x_NxF = _FEATURES[_TOKENS.ravel()].astype(np.float64)
  p_NxV = np.exp(x_NxF @ _WEIGHTS)
  p_NxV /= p_NxV.sum(1, keepdims=True)
  labels = _BATCH['targets'].ravel()
  picked = p_NxV[np.arange(len(labels)), labels]
  wanted = x_NxF.T @ (p_NxV - np.eye(4)[labels]) / len(labels)
  losses, grads = step_lib.gradient(regression(), _WEIGHTS, _BATCH)
  loss = losses['train/loss']
  np.testing.assert_allclose(loss, -np.log(picked).mean(), rtol=1e-5)
  np.testing.assert_allclose(grads, wanted, rtol=1e-4, atol=1e-6)


def test_keys_differ_by_seed_purpose_and_step():
  keys = {
    jax.random.key_data(key_for(seed, purpose, step)).tobytes()
    for seed in (0, 1)
    for purpose in ('init', 'labels', 'probe')
    for step in (0, 1, 2)
  }
  assert len(keys) == 18


@pytest.mark.parametrize('every', [1, 3])
def test_curvature_comes_after_the_update_every_so_many_steps(
  configure, make_trainer, make_batch, every
):
  """At s = every - 1, 2·every - 1, …, at the new parameters, same inputs."""
  config = configure('gpt2', 'sophia', optimizer__hessian_every=every)
  trainer = make_trainer(config)
  state, refreshed = trainer.init(), []
  for s in range(4):
    before = jax.tree.map(np.asarray, state.opt_state)
    state, _ = trainer.step(state, make_batch(s))
    h = jax.tree.map(np.asarray, state.opt_state.h)
    moved = int(state.opt_state.estimates) - int(before.estimates)
    refreshed.append(moved)
    if not moved:
      jax.tree.map(np.testing.assert_array_equal, h, before.h)
  assert refreshed == [int(s % every == every - 1) for s in range(4)]
  if every == 1:
    curvature = functools.partial(step_lib.curvature, trainer.setup)
    wanted = jax.jit(curvature)(state.params, make_batch(3), 0, 3)
    jax.tree.map(
      lambda new, old, c: np.testing.assert_allclose(
        new, 0.99 * old + 0.01 * c, rtol=1e-4, atol=1e-6 * np.abs(c).max()
      ),
      h,
      before.h,
      wanted,
    )


def test_labels_by_one_reduction_are_those_by_two(monkeypatch):
  """As on accelerators, for any dtype of the logits."""
  rng = np.random.default_rng(0)
  keys = jax.random.split(jax.random.key(0), 4)
  for dtype in (jnp.float32, jnp.bfloat16):
    logits = jnp.asarray(rng.normal(0, 2, (4, 32, 50)), dtype)
    monkeypatch.undo()
    two = step_lib.sample(keys, logits)
    monkeypatch.setattr(step_lib, 'platform', lambda: 'gpu')
    one = step_lib.sample(keys, logits)
    np.testing.assert_array_equal(one, two)
    assert len(np.unique(one)) > 20


def _softmax_and_normalizer(weights, inputs):
  logits = np.float64(weights)[inputs]
  normalizer = np.log(np.exp(logits).sum(-1))
  return np.exp(logits - normalizer[..., None]), normalizer


@pytest.mark.parametrize('microbatches', [1, 2])
def test_z_loss_by_hand(bare_setup, microbatches):
  """d/dlogits of w·Z² is 2·w·Z·softmax; the logged loss has no part of it."""
  rng = np.random.default_rng(0)
  weights = rng.normal(size=(7, 5)).astype('f')
  batch = {
    'inputs': jnp.asarray(rng.integers(0, 7, (4, 6))),
    'targets': jnp.asarray(rng.integers(0, 5, (4, 6))),
  }
  apply = lambda params, tokens: params[tokens]
  (plain, without), (losses, gradient) = (
    step_lib.gradient(
      bare_setup(apply, weights, z_loss=weight, microbatches=microbatches),
      weights,
      batch,
    )
    for weight in (0.0, 0.1)
  )
  assert set(plain) == {'train/loss'}
  p, z = _softmax_and_normalizer(weights, batch['inputs'])
  assert float(losses['train/loss']) == pytest.approx(
    float(plain['train/loss']), rel=1e-6
  )
  assert float(losses['train/z_loss']) == pytest.approx(
    0.1 * (z**2).mean(), rel=1e-5
  )
  wanted = np.zeros((7, 5))
  np.add.at(wanted, np.asarray(batch['inputs']), 0.2 * z[..., None] * p / 24)
  np.testing.assert_allclose(gradient - without, wanted, atol=1e-6)


def test_a_negative_z_loss_is_refused(configure):
  config = configure('gpt2', 'adamw', model__z_loss=-1.0)
  with pytest.raises(ValueError, match='model.z_loss=-1.0'):
    model_config.resolve(config.model, 64, config.dtype)

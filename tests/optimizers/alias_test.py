"""Optimizers as plain Optax: schedules, masks, roles and switches."""

import importlib
import inspect

import jax
from jax import numpy as jnp
import numpy as np
import optax
from optax import contrib
import pytest

from steepest.optimizers import (
  adamw,
  lion,
  muon,
  optimizer,
  schedule_free,
  sophia,
)

_PARAMS = {'w': jnp.ones((4, 6)) * 0.5, 'b': jnp.array([2.0, -1.0, 0.0])}


def _grads(t):
  rng = np.random.default_rng(t)
  return {
    k: jnp.asarray(rng.normal(size=p.shape), 'f') for k, p in _PARAMS.items()
  }


def _train(transform, steps=6, **extra):
  params, state = _PARAMS, transform.init(_PARAMS)
  for t in range(steps):
    updates, state = jax.jit(transform.update)(
      _grads(t), state, params, **extra
    )
    params = optax.apply_updates(params, updates)
  return params, state


def _agree(a, b):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5, atol=1e-7), a, b
  )


@pytest.mark.parametrize('rate', [0.01, optax.linear_schedule(0.01, 0.0, 6)])
@pytest.mark.parametrize('mask', [None, {'w': True, 'b': False}])
def test_adamw_and_lion_are_those_of_optax(rate, mask):
  _agree(
    _train(adamw.adamw(rate, weight_decay=0.1, mask=mask))[0],
    _train(optax.adamw(rate, 0.9, 0.95, 1e-8, weight_decay=0.1, mask=mask))[0],
  )
  _agree(
    _train(lion.lion(rate, weight_decay=0.1, mask=mask))[0],
    _train(optax.lion(rate, 0.9, 0.99, weight_decay=0.1, mask=mask))[0],
  )


def test_matrix_methods_leave_vectors_to_their_own_adamw():
  """Kernels have two dimensions; the rest has its own rate and memories."""
  got, _ = _train(
    muon.muon(
      0.01,
      weight_decay=0.0,
      auxiliary_lr=optax.constant_schedule(0.03),
      auxiliary_b1=0.8,
      auxiliary_weight_decay=0.1,
    )
  )
  rest = optax.adamw(0.03, 0.8, 0.95, 1e-8, weight_decay=0.1)
  np.testing.assert_allclose(got['b'], _train(rest)[0]['b'], rtol=2e-5)


def test_curvature_is_optional_and_sophias_alone():
  """Without an estimate h stays 0 and Sophia is the momentum's sign."""
  params, state = _train(sophia.sophia(0.1, b1=0.0, weight_decay=0.0), 1)
  signs = jax.tree.map(lambda p, g: p - 0.1 * jnp.sign(g), _PARAMS, _grads(0))
  _agree(params, signs)
  assert not jnp.any(state.inner.h['w'])
  ones = jax.tree.map(jnp.ones_like, _PARAMS)
  _, state = _train(sophia.sophia(0.1, b2=0.5), 2, curvature=ones)
  np.testing.assert_allclose(state.inner.h['w'], 0.75)
  with pytest.raises(ValueError, match='does not use curvature'):
    _train(lion.lion(0.1), 1, curvature=ones)


def test_cautious_weight_decay_spares_what_it_would_undo():
  """arXiv 2510.12402: x - lr·(u + wd·1[u·x ≥ 0]·x), u·x = 0 included."""
  params = {'w': jnp.array([[1.0, 1.0, -1.0, 0.0, 2.0]])}
  grads = {'w': jnp.array([[1.0, -1.0, 1.0, 1.0, 0.0]])}
  transform = lion.lion(0.1, weight_decay=0.5, cautious=True)
  updates, _ = transform.update(grads, transform.init(params), params)
  u = np.sign(grads['w'])
  decays = np.array([[True, False, False, True, True]])
  wanted = -0.1 * (u + 0.5 * np.where(decays, params['w'], 0))
  np.testing.assert_allclose(updates['w'], wanted, rtol=1e-6)


def test_cautious_updates_are_a_switch_too():
  named = importlib.import_module('steepest.optimizers.cautious_adamw')
  _agree(
    _train(adamw.adamw(0.01, cautious_updates=True))[0],
    _train(named.cautious_adamw(0.01))[0],
  )


def test_schedule_free_moves_what_is_trained():
  keys = {'b1': 0.9, 'b2': 0.95, 'eps': 1e-8, 'weight_decay': 0.1}
  got, state = _train(schedule_free.schedule_free(0.01, **keys))
  reference = contrib.schedule_free_adamw(0.01, **keys)
  wanted, reference_state = _train(reference)
  evaluate = contrib.schedule_free_eval_params
  _agree(got, wanted)
  _agree(
    schedule_free.OPTIMIZER.eval_params(state.inner, got),
    evaluate(reference_state, wanted),
  )


@pytest.mark.parametrize('name', optimizer.names())
def test_every_file_has_its_alias(name):
  """By the file's name, with the defaults of its hyperparameters."""
  module = importlib.import_module(f'steepest.optimizers.{name}')
  found = module.OPTIMIZER
  assert found.name == name
  make = getattr(module, name)
  parameters = inspect.signature(make).parameters
  for key, hyper in found.hyperparameters.items():
    if key != 'lr':
      assert parameters[key].default == hyper.default
  extra = {'steps': 6} if found.depends_on_steps else {}
  params, _ = _train(make(0.01, **extra), 2)
  assert all(jnp.isfinite(p).all() for p in params.values())
  with pytest.raises(TypeError, match='b7'):
    make(0.01, **extra, b7=0.5)
  with pytest.raises(ValueError, match='params'):
    make(0.01, **extra).update(_grads(0), make(0.01, **extra).init(_PARAMS))

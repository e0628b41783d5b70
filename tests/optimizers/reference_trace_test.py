"""Directions and aliases follow traces of their reference implementations."""

import json

import jax
from jax import numpy as jnp
import numpy as np
import optax
import pytest

from steepest.optimizers import adamw, lion, sophia

_NAMES = ('embedding', 'hidden', 'bias')
_ALIASES = {'adamw': adamw.adamw, 'lion': lion.lion, 'sophiag': sophia.sophia}

pytestmark = pytest.mark.usefixtures('float64')


@pytest.fixture(scope='module')
def trace(golden):
  """The trace as arrays, and its description."""
  with np.load(golden / 'optimizers.npz') as arrays:
    return dict(arrays), json.loads((golden / 'optimizers.json').read_text())


def _direction(
  name: str, hyper: dict, wrap
) -> optax.GradientTransformationExtraArgs:
  """The bare direction, with the decay and rate of the reference."""
  b1, b2 = (wrap(b) for b in hyper['betas'])
  scale = {
    'adamw': lambda: adamw.scale_by_adamw(b1, b2, wrap(hyper['eps'])),
    'lion': lambda: lion.scale_by_lion(b1, b2),
    'sophiag': lambda: sophia.scale_by_sophia(
      b1, b2, wrap(hyper['rho']), wrap(1e-15)
    ),
  }[name]()

  def update(grads, state, params, *, curvature=None):
    if curvature is not None:
      state = sophia.update_curvature(state, curvature, b2)
    u, state = scale.update(grads, state, params)
    change = lambda u, p: -hyper['lr'] * (u + hyper['weight_decay'] * p)
    return jax.tree.map(change, u, params), state

  return optax.GradientTransformationExtraArgs(scale.init, update)


def _alias(name: str, hyper: dict) -> optax.GradientTransformationExtraArgs:
  """What users of Optax call."""
  keys = {k: hyper[k] for k in ('eps', 'rho', 'weight_decay') if k in hyper}
  b1, b2 = hyper['betas']
  return _ALIASES[name](hyper['lr'], b1=b1, b2=b2, **keys)


_FORMS = {
  'numbers': lambda name, hyper: _direction(name, hyper, lambda x: x),
  'scalars': lambda name, hyper: _direction(name, hyper, jnp.float64),
  'trees': lambda name, hyper: _direction(
    name, hyper, lambda x: dict.fromkeys(_NAMES, jnp.float64(x))
  ),
  'alias': _alias,
}


@pytest.mark.parametrize('form', _FORMS)
@pytest.mark.parametrize('name', _ALIASES)
def test_follows_the_reference(trace, name, form):
  arrays, about = trace
  every, tokens = about['hessian_every'], about['tokens_per_batch']

  @jax.jit
  def step(params, state, grads, extra):
    optimizer = _FORMS[form](name, about['hyperparameters'][name])
    updates, state = optimizer.update(grads, state, params, **extra)
    return optax.apply_updates(params, updates), state

  params = {n: jnp.asarray(arrays[f'init/{n}']) for n in _NAMES}
  optimizer = _FORMS[form](name, about['hyperparameters'][name])
  state, extra = optimizer.init(params), {}
  for t in range(about['steps']):
    grads = {n: jnp.asarray(arrays[f'grad/{n}'][t]) for n in _NAMES}
    params, state = step(params, state, grads, extra)
    extra = {}
    if name == 'sophiag' and t % every == every - 1:
      # The reference keeps g² and multiplies by the tokens later.
      sampled = {n: arrays[f'sampled_grad/{n}'][t // every] for n in _NAMES}
      extra = {'curvature': {n: tokens * g**2 for n, g in sampled.items()}}
    for n in _NAMES:
      np.testing.assert_allclose(
        params[n], arrays[f'{name}/{n}'][t], rtol=1e-12, atol=1e-14
      )


def test_the_trace_leaves_and_enters_sophias_clip(trace):
  """Guards the test above: both branches of the minimum are taken."""
  arrays, about = trace
  hyper = about['hyperparameters']['sophiag']
  steps = np.diff(arrays['sophiag/hidden'], axis=0)
  before = arrays['sophiag/hidden'][:-1]
  u = (steps + hyper['lr'] * hyper['weight_decay'] * before) / hyper['lr']
  clipped = np.isclose(np.abs(u[20:]), 1, atol=1e-6)
  assert 0.05 < clipped.mean() < 0.95

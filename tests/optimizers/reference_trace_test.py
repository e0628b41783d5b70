"""The three directions follow traces of their reference implementations."""

import json

import jax
from jax import numpy as jnp
import numpy as np
import optax
import pytest

from steepest.optimizers import adamw, lion, sophia

_NAMES = ('embedding', 'hidden', 'bias')


@pytest.fixture(scope='module')
def trace(golden):
  """The trace as arrays, and its description."""
  with np.load(golden / 'optimizers.npz') as arrays:
    return dict(arrays), json.loads((golden / 'optimizers.json').read_text())


@pytest.fixture(autouse=True)
def _float64():
  with jax.enable_x64(True):
    yield


def _transform(
  name: str, hyper: dict, wrap
) -> optax.GradientTransformationExtraArgs:
  b1, b2 = (wrap(b) for b in hyper['betas'])
  if name == 'adamw':
    return adamw.scale_by_adamw(b1, b2, wrap(hyper['eps']))
  if name == 'lion':
    return lion.scale_by_lion(b1, b2)
  return sophia.scale_by_sophia(b1, b2, wrap(hyper['rho']), wrap(1e-15))


def _number(x):
  return x


def _scalar(x):
  return jnp.asarray(x, jnp.float64)


def _tree(x):
  return {name: jnp.asarray(x, jnp.float64) for name in _NAMES}


@pytest.mark.parametrize('wrap', [_number, _scalar, _tree])
@pytest.mark.parametrize('name', ['adamw', 'lion', 'sophiag'])
def test_follows_the_reference(trace, name, wrap):
  arrays, about = trace
  hyper = about['hyperparameters'][name]
  lr, decay = hyper['lr'], hyper['weight_decay']

  @jax.jit
  def step(params, state, grads):
    transform = _transform(name, hyper, wrap)
    updates, state = transform.update(grads, state, params)
    params = jax.tree.map(
      lambda p, u: p * (1 - lr * decay) - lr * u, params, updates
    )
    return params, state

  params = {n: jnp.asarray(arrays[f'init/{n}']) for n in _NAMES}
  state = _transform(name, hyper, wrap).init(params)
  every, tokens = about['hessian_every'], about['tokens_per_batch']
  for t in range(about['steps']):
    grads = {n: jnp.asarray(arrays[f'grad/{n}'][t]) for n in _NAMES}
    params, state = step(params, state, grads)
    if name == 'sophiag' and t % every == every - 1:
      # The reference keeps g² and multiplies by the tokens later.
      curvature = {
        n: jnp.asarray(tokens * arrays[f'sampled_grad/{n}'][t // every] ** 2)
        for n in _NAMES
      }
      state = sophia.update_curvature(state, curvature, wrap(hyper['betas'][1]))
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

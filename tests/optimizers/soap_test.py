"""SOAP against the paper's algorithm in numpy, and its limits."""

import jax
from jax import numpy as jnp
import numpy as np
import pytest

from steepest.optimizers import adamw, soap

_KINDS = {'w': 'hidden', 'b': 'bias'}
_B1, _B2, _EPS = 0.9, 0.95, 1e-8


def _matrices(shape, steps):
  rng = np.random.default_rng(0)
  return [
    (rng.normal(size=shape) @ np.diag(np.geomspace(3, 0.1, shape[-1]))).astype(
      'f'
    )
    for _ in range(steps)
  ]


def _trace(gradients, every, b=None):
  """Returns the update of each step, and the last state."""
  scale = soap.scale_by_soap(_B1, _B2, _EPS, every, _KINDS)
  b = np.ones(3, 'f') if b is None else b
  state = scale.init({'w': jnp.asarray(gradients[0]), 'b': jnp.asarray(b)})
  update, found = jax.jit(scale.update), []
  for g in gradients:
    u, state = update({'w': jnp.asarray(g), 'b': jnp.asarray(b)}, state)
    found.append(u)
  return found, state


class _Reference:
  """Algorithm 3, float64, one matrix."""

  def __init__(self, shape):
    self.left, self.right = (np.zeros((n, n)) for n in shape)
    self.m, self.v = np.zeros(shape), np.zeros(shape)
    self.t = 0

  def step(self, g, renew):
    g = g.astype(np.float64)
    first = self.t == 0
    u = np.zeros_like(g)
    if not first:
      turned = self.q_left.T @ g @ self.q_right
      self.m = _B1 * self.m + (1 - _B1) * g
      self.v = _B2 * self.v + (1 - _B2) * turned**2
      m = self.q_left.T @ self.m @ self.q_right / (1 - _B1**self.t)
      n = m / (np.sqrt(self.v / (1 - _B2**self.t)) + _EPS)
      u = self.q_left @ n @ self.q_right.T
    self.left = _B2 * self.left + (1 - _B2) * g @ g.T
    self.right = _B2 * self.right + (1 - _B2) * g.T @ g
    if first:
      self.q_left = np.linalg.eigh(self.left)[1][:, ::-1]
      self.q_right = np.linalg.eigh(self.right)[1][:, ::-1]
    elif renew:
      self.q_left = np.linalg.qr(self.left @ self.q_left)[0]
      self.q_right = np.linalg.qr(self.right @ self.q_right)[0]
    self.t += 1
    return u


@pytest.mark.parametrize('every', [1, 3])
def test_follows_the_algorithm(every):
  gradients = _matrices((4, 4), 10)
  found, _ = _trace(gradients, every)
  reference = _Reference((4, 4))
  for t, (g, u) in enumerate(zip(gradients, found)):
    wanted = reference.step(g, t % every == 0)
    np.testing.assert_allclose(u['w'], wanted, rtol=2e-3, atol=2e-3)


def test_axis_parallel_gradients_give_adam():
  """Eigenvectors are the axes, in some order: the bases change nothing."""
  rng = np.random.default_rng(0)
  gradients = [
    np.diag(rng.normal(size=4) * [4, 3, 2, 1]).astype('f') for _ in range(8)
  ]
  found, _ = _trace(gradients, 2)
  adam = adamw.scale_by_adamw(_B1, _B2, _EPS)
  state = adam.init(jnp.zeros((4, 4)))
  assert not found[0]['w'].any()
  for g, u in zip(gradients[1:], found[1:]):
    wanted, state = adam.update(jnp.asarray(g), state)
    np.testing.assert_allclose(u['w'], wanted, rtol=1e-3, atol=1e-4)


def test_turned_gradients_give_turned_updates():
  """SOAP does not know the axes: U·G·Vᵀ moves U·Δ·Vᵀ. Adam does."""
  gradients = _matrices((4, 4), 8)
  rng = np.random.default_rng(1)
  u, v = (np.linalg.qr(rng.normal(size=(4, 4)))[0].astype('f') for _ in 'uv')
  plain, _ = _trace(gradients, 2)
  turned, _ = _trace([u @ g @ v.T for g in gradients], 2)
  for a, b in zip(plain, turned):
    np.testing.assert_allclose(u @ a['w'] @ v.T, b['w'], rtol=2e-3, atol=2e-3)


def test_the_rest_is_adamws():
  found, _ = _trace(_matrices((4, 4), 3), 2, b=np.array([1, -2, 3], 'f'))
  for u in found:
    np.testing.assert_allclose(u['b'], [1, -1, 1], rtol=1e-5)


def test_stacked_layers_are_matrices_of_their_own():
  gradients = [np.stack([g, 2 * g.T]) for g in _matrices((4, 4), 6)]
  found, _ = _trace(gradients, 2)
  for i in (0, 1):
    wanted, _ = _trace([g[i] for g in gradients], 2)
    for a, b in zip(found, wanted):
      np.testing.assert_allclose(a['w'][i], b['w'], rtol=2e-3, atol=2e-3)


def test_long_sides_keep_their_basis(monkeypatch):
  monkeypatch.setattr(soap, '_LONGEST', 4)
  found, state = _trace(_matrices((8, 3), 5), 2)
  assert state.matrices[0].left is None
  assert state.matrices[0].right.vectors.shape == (3, 3)
  assert np.isfinite(found[-1]['w']).all() and found[-1]['w'].any()
  assert soap.method('hidden', (8, 3)) == 'soap with one side'
  assert soap.method('hidden', (8, 8)) == 'adamw'

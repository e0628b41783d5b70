"""SOAP against the paper's algorithm in numpy, and its limits."""

import jax
from jax import numpy as jnp
import numpy as np
import pytest

from steepest.optimizers import adamw, soap

_B1, _B2, _EPS = 0.9, 0.95, 1e-8


def _matrices(shape, steps):
  rng = np.random.default_rng(0)
  return [
    (rng.normal(size=shape) @ np.diag(np.geomspace(3, 0.1, shape[-1]))).astype(
      'f'
    )
    for _ in range(steps)
  ]


def _trace(gradients, every):
  """Returns the update of each step, and the last state."""
  scale = soap.scale_by_soap(_B1, _B2, _EPS, every)
  state = scale.init([jnp.asarray(gradients[0])])
  update, found = jax.jit(scale.update), []
  for g in gradients:
    (u,), state = update([jnp.asarray(g)], state)
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
      self.q_left, order = self._renewed(self.left, self.q_left)
      self.v = self.v[order]
      self.q_right, order = self._renewed(self.right, self.q_right)
      self.v = self.v[:, order]
    self.t += 1
    return u

  @staticmethod
  def _renewed(covariance, basis):
    """Sorted by estimated eigenvalues, then a power iteration and QR."""
    order = np.argsort(-np.diag(basis.T @ covariance @ basis))
    return np.linalg.qr(covariance @ basis[:, order])[0], order


@pytest.mark.parametrize('every', [1, 3])
def test_follows_the_algorithm(every):
  gradients = _matrices((4, 4), 10)
  found, _ = _trace(gradients, every)
  reference = _Reference((4, 4))
  for t, (g, u) in enumerate(zip(gradients, found)):
    wanted = reference.step(g, t % every == 0)
    np.testing.assert_allclose(u, wanted, rtol=2e-3, atol=2e-3)


def test_axis_parallel_gradients_give_adam():
  """Eigenvectors are the axes, in some order: the bases change nothing."""
  rng = np.random.default_rng(0)
  gradients = [
    np.diag(rng.normal(size=4) * [4, 3, 2, 1]).astype('f') for _ in range(8)
  ]
  found, _ = _trace(gradients, 2)
  adam = adamw.scale_by_adamw(_B1, _B2, _EPS)
  state = adam.init(jnp.zeros((4, 4)))
  assert not found[0].any()
  for g, u in zip(gradients[1:], found[1:]):
    wanted, state = adam.update(jnp.asarray(g), state)
    np.testing.assert_allclose(u, wanted, rtol=1e-3, atol=1e-4)


def test_long_sides_keep_their_basis(monkeypatch):
  monkeypatch.setattr(soap, '_LONGEST', 4)
  found, state = _trace(_matrices((8, 3), 5), 2)
  assert state.matrices[0].left is None
  assert state.matrices[0].right.vectors.shape == (3, 3)
  assert np.isfinite(found[-1]).all() and found[-1].any()

"""What is logged of roles and layers, against sums by hand."""

import jax
from jax import numpy as jnp
import numpy as np
import pytest

from steepest.optimizers import role_statistics


class _Leaf:
  """A leaf that is no pytree."""

  layers = 0

  def __init__(self, kind: str):
    self.kind = kind


_FACTORS = {
  'block_0': {'bias': _Leaf('bias'), 'kernel': _Leaf('hidden')},
  'block_1': {'bias': _Leaf('bias'), 'kernel': _Leaf('hidden')},
  'embedding': _Leaf('embedding'),
}
_SHAPES = [(3,), (2, 3), (3,), (2, 3), (5, 2)]
_MEMBERS = {
  'bias': [0, 2],
  'hidden': [1, 3],
  'embedding': [4],
  'layer/block_0': [0, 1],
  'layer/block_1': [2, 3],
  'layer/embedding': [4],
}


@pytest.fixture
def trees():
  """Returns leaves of gradients, changes and directions, and their trees."""
  random = np.random.default_rng(0)
  structure = jax.tree.structure(_FACTORS)
  leaves = [
    [random.normal(size=s).astype(np.float32) for s in _SHAPES]
    for _ in range(3)
  ]
  return leaves, [structure.unflatten(map(jnp.array, x)) for x in leaves]


def _flat(leaves, members):
  return np.concatenate([leaves[i].ravel() for i in members])


def test_each_part_has_what_its_coordinates_give(trees):
  (grads, changes, updates), given = trees
  found = role_statistics.named(
    _FACTORS, role_statistics.measure(_FACTORS, *given)
  )
  wanted = {'unclipped_fraction': (np.abs(_flat(updates, range(5))) < 1).mean()}
  for part, members in _MEMBERS.items():
    norm = np.linalg.norm(_flat(grads, members))
    rms = np.sqrt((_flat(changes, members) ** 2).mean())
    share = (np.abs(_flat(updates, members)) < 1).mean()
    wanted |= {
      f'grad_norm/{part}': norm,
      f'update_rms/{part}': rms,
      f'unclipped_fraction/{part}': share,
    }
  assert found.keys() == wanted.keys()
  for name, value in wanted.items():
    np.testing.assert_allclose(found[name], value, rtol=1e-6, err_msg=name)


def test_what_clips_nothing_has_no_share_of_it(trees):
  _, (grads, changes, _) = trees
  stats = role_statistics.measure(_FACTORS, grads, changes, None)
  found = role_statistics.named(_FACTORS, {'lr': 0.1, **stats})
  assert {name.partition('/')[0] for name in found} == {
    'lr',
    'grad_norm',
    'update_rms',
  }
  assert found['lr'] == 0.1


def test_what_is_not_finite_stays_with_its_parts(trees):
  _, (grads, changes, _) = trees
  grads['block_1']['bias'] = jnp.full(3, jnp.nan)
  found = role_statistics.named(
    _FACTORS, role_statistics.measure(_FACTORS, grads, changes, None)
  )
  assert {name for name, value in found.items() if not np.isfinite(value)} == {
    'grad_norm/bias',
    'grad_norm/layer/block_1',
  }

"""Whole matrices, spread over a mesh, against the same on one device."""

import jax
from jax.sharding import NamedSharding, PartitionSpec as P
import numpy as np
import pytest

from steepest.optimizers import spread


def _cube(x):
  """Depends on all of each matrix."""
  return x @ x.mT @ x


@pytest.mark.parametrize(
  'shape, spec',
  [
    # The last ones of three matrices are repeated for the devices left over.
    ((16, 12), P('fsdp')),
    ((12, 16), P(None, ('fsdp', 'data'))),
    # Stacked layers: whole ones, and some that are split over devices.
    ((2, 16, 12), P(None, 'fsdp')),
    ((4, 16, 12), P('data', 'fsdp')),
    ((4, 16, 12), P('data')),
    ((8, 16, 12), P(('fsdp', 'data'), None, None)),
    # Split nowhere: all devices share the work.
    ((16, 12), P()),
  ],
)
def test_spreading_changes_no_result(shape, spec):
  mesh = jax.make_mesh(
    (2, 4), ('data', 'fsdp'), axis_types=2 * (jax.sharding.AxisType.Auto,)
  )
  given = list(np.random.default_rng(0).normal(size=(3, *shape)))
  split = jax.device_put(given, NamedSharding(mesh, spec))
  with jax.set_mesh(mesh):
    found = jax.jit(lambda xs: spread.each(_cube, xs, [spec] * 3))(split)
  for x, y in zip(given, found, strict=True):
    np.testing.assert_allclose(y, _cube(x), rtol=1e-5, atol=1e-5)

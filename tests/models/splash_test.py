"""The kernel for TPUs, interpreted, against the plain formula."""

import functools

from flax import linen as nn
import jax
from jax import numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import numpy as np
import pytest

from steepest.models import attention
from steepest.training import mesh as mesh_lib

_B, _L, _SCALE = 4, 128, 0.3


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
  """Pallas computes what the kernel says without a TPU."""
  kernel = attention.splash_kernel()
  made = functools.partial(kernel.make_splash_mha, interpret=True)
  monkeypatch.setattr(kernel, 'make_splash_mha', made)


def _inputs(heads, kv_heads, features, segments):
  keys = jax.random.split(jax.random.key(0), 5)
  shape = lambda n: (_B, _L, n, features)
  q, k, v, w = (
    jax.random.normal(key, shape(n))
    for key, n in zip(keys, (heads, kv_heads, kv_heads, heads))
  )
  ids = None
  if segments:
    starts_BxL = jax.random.bernoulli(keys[4], 0.03, (_B, _L))
    ids = starts_BxL.cumsum(1).astype(jnp.int32)
  return (q, k, v), w, ids


def _both(fn, given, w, ids):
  """Returns what `fn` gives, and the gradients of a weighted sum of it."""

  def loss(*given):
    y = fn(*given, _SCALE, ids)
    return (y * w).sum(), y

  grads, y = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*given)
  return y, grads


@pytest.mark.parametrize(
  'heads, kv_heads, features, segments',
  [(2, 2, 64, False), (4, 2, 32, True), (2, 1, 128, False)],
)
def test_values_and_gradients_are_the_formulas(
  heads, kv_heads, features, segments
):
  given = _inputs(heads, kv_heads, features, segments)
  got, wanted = (
    _both(fn, *given) for fn in (attention.splash, attention.causal_attention)
  )
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted)):
    np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4)


def test_devices_compute_their_rows_and_heads():
  """As in a training step: on a mesh, and once for each copy of the model."""
  given, w, ids = _inputs(4, 2, 32, True)
  wanted = _both(attention.causal_attention, given, w, ids)
  mesh = jax.make_mesh(
    (2, 2, 2, 1), mesh_lib.AXES, axis_types=(AxisType.Auto,) * 4
  )
  copies = lambda x: x.reshape(2, _B // 2, *x.shape[1:])
  placed = jax.device_put(
    jax.tree.map(copies, (given, w, ids)),
    NamedSharding(mesh, PartitionSpec('data', 'fsdp')),
  )

  def each(given, w, ids):
    return _both(attention.splash, given, w, ids)

  with jax.set_mesh(mesh), nn.logical_axis_rules(mesh_lib.RULES_OF_A_COPY):
    assert attention.splash_serves(_L, ids)
    step = jax.jit(jax.vmap(each, spmd_axis_name='data'))
    got = step(*placed)
    text = step.lower(*placed).compile().as_text()
  assert 'all-gather' not in text and 'all-to-all' not in text
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted)):
    np.testing.assert_allclose(a.reshape(b.shape), b, rtol=2e-4, atol=2e-4)


def test_it_serves_whole_tiles_on_one_device():
  ids = jnp.zeros((_B, _L), jnp.int32)
  assert attention.splash_serves(1024, None) and attention.splash_serves(
    _L, ids
  )
  assert not attention.splash_serves(1000, None)
  assert not attention.splash_serves(_L, jnp.zeros((_B, _L, _L), bool))
  shape = (1, 1, 1, 8)
  mesh = jax.make_mesh(shape, mesh_lib.AXES, axis_types=(AxisType.Auto,) * 4)
  with jax.set_mesh(mesh), nn.logical_axis_rules(mesh_lib.RULES):
    assert not attention.splash_serves(1024, None)

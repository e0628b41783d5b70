"""Which kernel serves on GPUs, and what it is given, with XLA in its place."""

from flax import linen as nn
import jax
from jax import numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import numpy as np
import pytest

from steepest.models import attention, remat
from steepest.training import mesh as mesh_lib

_B, _L, _H, _K, _h, _SCALE = 4, 16, 4, 2, 8, 0.3


@pytest.fixture
def asked(monkeypatch):
  """On a GPU, by JAX's word: the forms of attention that are asked for."""
  found = []
  formula = jax.nn.dot_product_attention

  def serve(q, k, v, implementation, **given):
    mask = given.get('mask')
    found.append((implementation, q.shape, mask is not None and mask.shape))
    # CPUs have no products of halves.
    wide = (x.astype(jnp.float32) for x in (q, k, v))
    return formula(*wide, implementation='xla', **given).astype(q.dtype)

  monkeypatch.setattr(remat, 'platform', lambda: 'gpu')
  monkeypatch.setattr(jax.nn, 'dot_product_attention', serve)
  return found


def _inputs(dtype, length=_L):
  keys = jax.random.split(jax.random.key(0), 4)
  return tuple(
    jax.random.normal(key, (_B, length, n, _h), dtype)
    for key, n in zip(keys, (_H, _K, _K, _H))
  )


def _segments(kind):
  ids_BxL = jnp.cumsum(
    jax.random.bernoulli(jax.random.key(1), 0.2, (_B, _L)), 1
  )
  pairs_BxLxL = ids_BxL[:, :, None] == ids_BxL[:, None]
  return {'none': None, 'ids': ids_BxL, 'pairs': pairs_BxLxL}[kind]


def _gradients(q, k, v, w, ids):
  def loss(*given):
    y = attention.causal_attention(*given, _SCALE, ids)
    return (y * w).astype(jnp.float32).sum(), y

  return jax.grad(loss, (0, 1, 2), has_aux=True)(q, k, v)


def _mesh(*sizes):
  return jax.make_mesh(sizes, mesh_lib.AXES, axis_types=(AxisType.Auto,) * 4)


@pytest.mark.parametrize('kind', ['none', 'ids', 'pairs'])
def test_parts_of_sequences_attend_as_whole_ones(asked, kind):
  given, ids = _inputs(jnp.float16), _segments(kind)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(remat, 'platform', lambda: 'cpu')
    wanted = jax.jit(_gradients)(*given, ids)
  asked.clear()
  mesh = _mesh(1, 2, 2, 2)
  tokens = NamedSharding(mesh, PartitionSpec('fsdp', 'sequence'))
  placed = jax.device_put(given, tokens)

  with jax.set_mesh(mesh), nn.logical_axis_rules(mesh_lib.RULES):
    step = jax.jit(_gradients)
    got = step(*placed, ids)
    text = step.lower(*placed, ids).compile().as_text()
  rows = 1 if kind == 'none' else _B // 2
  form = ('cudnn', (_B // 2, _L // 2, _H // 2, _h), (rows, 1, _L // 2, _L))
  assert set(asked) == {form}
  assert 'all-gather' in text
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted)):
    np.testing.assert_allclose(a, b, rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize(
  'dtype, length, parts, implementation',
  [
    (jnp.bfloat16, 15, 1, 'cudnn'),
    (jnp.bfloat16, 16, 2, 'cudnn'),
    # Of odd parts with a mask cuDNN has no backward pass.
    (jnp.bfloat16, 18, 2, 'xla'),
    (jnp.float32, 16, 1, 'xla'),
    (jnp.float32, 16, 2, 'xla'),
  ],
)
def test_half_precision_is_cudnns(asked, dtype, length, parts, implementation):
  q, k, v, _ = _inputs(dtype, length)
  with jax.set_mesh(_mesh(1, 1, 1, parts)):
    with nn.logical_axis_rules(mesh_lib.RULES):
      fn = lambda q, k, v: attention.causal_attention(q, k, v, _SCALE)
      jax.eval_shape(fn, q, k, v)
  assert {a[0] for a in asked} == {implementation}

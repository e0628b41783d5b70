"""Layers that are stacked are moved as each alone would be."""

import functools

import jax
from jax import numpy as jnp
import numpy as np
import pytest

from steepest.models import layers
from steepest.optimizers import optimizer

_LAYERS = 3
# What they draw is drawn anew for a stack; newcomers_test.py gives them theirs.
_DRAW = ('dion', 'kron')


def _factored(name):
  """Adafactor's means are of sides of 128 or more."""
  return (128, 136) if name == 'adafactor' else (6, 10)


@pytest.mark.parametrize(
  'name', [n for n in optimizer.names() if n not in _DRAW]
)
def test_a_stack_is_moved_layer_by_layer(setup, plain, name):
  kinds = {'kernel': 'hidden', 'gain': 'gain'}
  of_layer = {
    k: plain(kind, decay=float(k == 'kernel')) for k, kind in kinds.items()
  }
  stacked = {
    k: plain(kind, decay=float(k == 'kernel'), layers=_LAYERS)
    for k, kind in kinds.items()
  }
  embedding = {'embedding': plain('embedding')}
  shapes = {'kernel': _factored(name), 'gain': (10,)}
  rng = np.random.default_rng(0)

  def draw(scale):
    # Layers of unlike sizes: no norm of all is that of one.
    return {'embedding': jnp.asarray(rng.normal(size=(20, 6)), 'f')} | {
      f'block_{i}': {
        k: jnp.asarray(scale * 3**i * rng.normal(size=s), 'f')
        for k, s in shapes.items()
      }
      for i in range(_LAYERS)
    }

  names = [f'block_{i}' for i in range(_LAYERS)]
  one = setup(name, {**dict.fromkeys(names, of_layer), **embedding})
  all_ = setup(name, {layers.STACKED: stacked, **embedding})
  update, update_all = (
    jax.jit(functools.partial(of.chain.update, hypers=of.hypers))
    for of in (one, all_)
  )
  params = draw(1.0)
  held = params, one.chain.init(params)
  together = layers.stack(params), all_.chain.init(layers.stack(params))
  for step in range(3):
    grads = draw(0.1)
    *held, stats = update(grads, held[1], held[0], step)
    *together, others = update_all(
      layers.stack(grads), together[1], together[0], step
    )
    stats = one.chain.named(jax.device_get(stats))
    others = all_.chain.named(jax.device_get(others))
    assert stats.keys() == others.keys()
    for key, value in stats.items():
      assert others[key] == pytest.approx(value, rel=1e-4), key
  moved = layers.unstack(together[0])
  jax.tree.map(
    lambda a, b, start: np.testing.assert_allclose(
      a, b, rtol=0, atol=1e-4 * np.abs(b - start).max()
    ),
    moved,
    held[0],
    params,
  )

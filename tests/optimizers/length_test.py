"""Which optimizers can share the first steps of runs of unlike lengths."""

import jax
from jax import numpy as jnp
import numpy as np
import pytest

from steepest.experiments import base
from steepest.models.parametrization import Factors
from steepest.optimizers import build

_SHAPES = {'embedding': (8, 4), 'hidden': (4, 6), 'gain': (4,)}
_STEPS = 5


def _params(steps: int, name: str):
  """Returns the parameters after some steps of a run of `steps`."""
  config = base.get_config()
  base.set_optimizer(config, name)
  config.schedule.update(kind='wsd', warmup_steps=2, decay_fraction=0.5)
  factors = {
    kind: Factors(
      lr=1.0,
      spectral=1.0,
      rho=1.0,
      eps=1.0,
      decay=dict.fromkeys(build.DECAY_MODES, 1.0),
      kind=kind,
    )
    for kind in _SHAPES
  }
  chain = build.build(config.optimizer, config.schedule, factors)
  args = build.hyperparameters(config.optimizer, config.schedule, steps)
  rng = np.random.default_rng(0)
  draw = lambda: {
    kind: jnp.asarray(rng.normal(size=shape), jnp.float32)
    for kind, shape in _SHAPES.items()
  }
  params = draw()
  state, update = chain.init(params), jax.jit(chain.update)
  for step in range(_STEPS):
    params, state, _ = update(draw(), state, params, step, args)
  return jax.device_get(params)


@pytest.mark.parametrize('name', build.names())
def test_first_steps_depend_on_the_length_only_where_it_is_said(name):
  short, long = _params(12, name), _params(24, name)
  equal = all(np.array_equal(short[k], long[k]) for k in short)
  assert equal != hasattr(build.find(name), 'DEPENDS_ON_STEPS')

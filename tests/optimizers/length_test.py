"""Which optimizers can share the first steps of runs of unlike lengths."""

import jax
import numpy as np
import pytest

from steepest.optimizers import optimizer

_STEPS = 5


@pytest.mark.parametrize('name', optimizer.names())
def test_first_steps_depend_on_the_length_only_where_it_is_said(
  name, setup, draw
):
  wsd = {'kind': 'wsd', 'warmup_steps': 2, 'decay_fraction': 0.5}

  chain, of_short = setup(name, steps=12, schedule=wsd)
  _, of_long = setup(name, steps=24, schedule=wsd)
  update = jax.jit(chain.update)

  def run(hypers):
    params = draw(0)
    state = chain.init(params)
    for t in range(_STEPS):
      params, state, _ = update(draw(t + 1), state, params, t, hypers)
    return jax.device_get(params)

  short, long = run(of_short), run(of_long)
  equal = all(np.array_equal(short[k], long[k]) for k in short)
  assert equal != optimizer.find(name).depends_on_steps

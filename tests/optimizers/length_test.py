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

  def run(steps):
    of = setup(name, steps=steps, schedule=wsd)
    params = draw(0)
    state, update = of.chain.init(params), jax.jit(of.chain.update)
    for t in range(_STEPS):
      params, state, _ = update(draw(t + 1), state, params, t, of.hypers)
    return jax.device_get(params)

  short, long = run(12), run(24)
  equal = all(np.array_equal(short[k], long[k]) for k in short)
  assert equal != optimizer.find(name).depends_on_steps

"""Schedules against closed forms in plain Python."""

import math

from hypothesis import given, settings, strategies as st
import jax
from jax import numpy as jnp
import numpy as np

from steepest.optimizers import schedules


def _closed_form(
  kind: str, t: int, steps: int, warmup: int, final: float, decay: float
) -> float:
  if t < warmup:
    return (t + 1) / (warmup + 1)
  if kind == 'constant':
    return 1.0
  start = warmup
  if kind == 'wsd':
    start = max(warmup, math.floor(np.float32(steps * (1 - np.float32(decay)))))
    if t < start:
      return 1.0
  progress = min(max((t - start) / max(steps - 1 - start, 1), 0), 1)
  if kind == 'linear':
    return 1 + (final - 1) * progress
  if kind == 'cosine':
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))
  return 1 - (1 - final) * math.sqrt(progress)


_factor = jax.jit(schedules.factor, static_argnums=0)


@settings(deadline=None, max_examples=150)
@given(
  kind=st.sampled_from(schedules.KINDS),
  steps=st.integers(2, 20_000),
  place=st.floats(0, 1),
  warmup=st.floats(0, 0.9),
  final=st.floats(0, 1),
  decay=st.sampled_from([0.0, 0.125, 0.25, 0.5, 1.0]),
)
def test_equals_the_closed_form(kind, steps, place, warmup, final, decay):
  t, warm = int(place * (steps - 1)), int(warmup * steps)
  got = _factor(
    kind, jnp.int32(t), *map(np.float32, (steps, warm)), final, decay
  )
  wanted = _closed_form(kind, t, steps, warm, final, decay)
  np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=2e-6)

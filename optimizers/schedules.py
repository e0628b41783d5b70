"""Learning-rate schedules: a factor in [0, 1] per step."""

import jax
from jax import numpy as jnp

KINDS = ('constant', 'linear', 'cosine', 'wsd')


def factor(
  kind: str,
  step: jax.Array,
  steps: jax.Array,
  warmup_steps: jax.Array,
  final_fraction: jax.Array,
  decay_fraction: jax.Array,
) -> jax.Array:
  """Returns s_t at step `step`, counted from 0, as float32.

  All kinds rise as (t + 1) / (warmup_steps + 1) up to t = warmup_steps. Then
  `linear` and `cosine` (arXiv 1608.03983) reach `final_fraction` at the last
  step; `wsd` stays at 1 until the last `decay_fraction` of the steps, where it
  falls as 1 - √progress (arXiv 2405.18392); `constant` stays at 1.

  Args:
    kind: one of `KINDS`; the only argument that is not traced.
    step: number of steps before this one.
    steps: steps of the run.
    warmup_steps: steps of warm-up.
    final_fraction: s at the last step.
    decay_fraction: share of the steps in which `wsd` falls.
  """
  t = jnp.asarray(step, jnp.float32)
  warmup = (t + 1) / (warmup_steps + 1)
  if kind == 'constant':
    return jnp.minimum(warmup, 1)
  start = warmup_steps
  if kind == 'wsd':
    start = jnp.maximum(start, jnp.floor(steps * (1 - decay_fraction)))
  progress = jnp.clip((t - start) / jnp.maximum(steps - 1 - start, 1), 0, 1)
  fall = {
    'linear': lambda p: p,
    'cosine': lambda p: (1 - jnp.cos(jnp.pi * p)) / 2,
    'wsd': jnp.sqrt,
  }[kind](progress)
  return jnp.minimum(warmup, 1 - (1 - final_fraction) * fall)

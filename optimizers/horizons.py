"""Hyperparameters as horizons, independent of batch size and run length.

  optimizer.NAME_half_life   b = 2^(-Δ / half-life), for any average's decay
                             rate b (b1, b2, b3 …); Δ: tokens between updates
  optimizer.decay_timescale  decay of 1 / (timescale · steps) per step at the
                             peak learning rate; a share of the run, may be ≥ 1
  schedule.warmup            tokens of warm-up

Half-lives and warm-up are in tokens; values up to 1 are shares of the run. A
horizon above 0 overrides the plain value. Half-lives in tokens stay fixed when
the batch size changes (arXiv 2507.07101); the timescale of decay is that of the
weights as an average of the updates (arXiv 2405.13698, 2505.13738).
"""

from collections.abc import Mapping, Sequence
import math
from typing import Any

from ml_collections import ConfigDict
import numpy as np

from steepest.optimizers.optimizer import Hyper, find

TIMESCALE = 'decay_timescale'
_HALF_LIFE = '_half_life'


def key(name: str, hyper: Hyper) -> str:
  """Returns the key of a hyperparameter's horizon, else its own name."""
  horizons = {'half_life': f'{name}{_HALF_LIFE}', 'timescale': TIMESCALE}
  return horizons[hyper.scale] if hyper.scale in horizons else name


def keys(hyperparameters: Mapping[str, Hyper]) -> set[str]:
  """Returns the keys of all horizons."""
  return {key(n, h) for n, h in hyperparameters.items()} - {*hyperparameters}


def tokens(horizon: float, of_run: float) -> float:
  """Returns a horizon in tokens; it may be given as a share of the run."""
  return horizon * of_run if horizon <= 1 else horizon


def apply(
  optimizer: ConfigDict, schedule: ConfigDict, steps: int, of_step: int
) -> None:
  """Sets the plain values that horizons imply.

  Args:
    optimizer: the slice; unchanged if it sets no horizons, and no b1 or b2
      beside `betas`.
    schedule: the slice.
    steps: number of steps in the run.
    of_step: tokens per step.

  Raises:
    ValueError: a horizon is negative, not a number, or so long that the decay
      rate is 1 in float32.
  """
  of_run = steps * of_step
  found = find(optimizer.name)
  own, mode = found.hyperparameters, found.decay_mode or optimizer.decay_mode
  betas = pair(optimizer.betas)
  # As a search sets those that have no horizon.
  for name in {'b1', 'b2'} & set(optimizer):
    betas[name] = optimizer[name]
    del optimizer[name]
  for name, hyper in own.items():
    if hyper.scale not in ('half_life', 'timescale'):
      continue
    horizon = _given(optimizer, 'optimizer', key(name, hyper))
    if hyper.scale == 'half_life':
      plain = name in betas or (name in optimizer and optimizer[name])
      horizon = horizon or (0.0 if plain else hyper.half_life)
      if not horizon:
        continue
      every = _setting(optimizer, own, hyper.every) if hyper.every else 1
      b = 2 ** (-every * of_step / tokens(horizon, of_run))
      if np.float32(b) >= 1:
        raise ValueError(
          f'optimizer.{key(name, hyper)}={horizon:g}: so long that '
          f'beta for a step of {of_step} tokens rounds to 1'
        )
      if name in ('b1', 'b2'):
        betas[name] = b
      else:
        optimizer[name] = b
    elif horizon:
      decay = 1 / (horizon * steps)
      if mode.startswith('times_'):
        decay /= _setting(optimizer, own, 'lr')
      optimizer[name] = decay
  if betas:
    optimizer.betas = tuple(
      betas[b] if b in betas else own[b].default if b in own else 0.0
      for b in ('b1', 'b2')
    )
  if horizon := _given(schedule, 'schedule', 'warmup'):
    schedule.warmup_steps = round(tokens(horizon, of_run) / of_step)


def pair(betas: Sequence[float] | None) -> dict[str, float]:
  """Returns b1 and b2 of a config's `betas`, {} if it sets none.

  Raises:
    ValueError: they are not two numbers.
  """
  if betas is None:
    return {}
  if len(betas) != 2 or not all(isinstance(b, (int, float)) for b in betas):
    raise ValueError(f'optimizer.betas={betas}: give two numbers')
  return dict(zip(('b1', 'b2'), betas))


def _given(config: ConfigDict, group: str, name: str) -> float:
  """Returns a horizon, 0 if there is none."""
  value = config[name] if name in config else 0.0
  if not isinstance(value, (int, float)) or not 0 <= value < math.inf:
    raise ValueError(f'{group}.{name}={value!r}: give a number, 0 or more')
  return value


def _setting(config: ConfigDict, own: Mapping[str, Hyper], name: str) -> Any:
  """Returns a run's value of a hyperparameter, or the default."""
  held = config[name] if name in config else None
  return own[name].default if held is None else held

"""Sophia's curvature on any device: a step's cost over AdamW's.

    python benchmarks/curvature.py

Alternates AdamW, Sophia-G without an estimate and Sophia-G that estimates
curvature at every step, on all sequences of a batch and on some. A CPU runs on
one core, and its time there is measured, which other processes change least.
From the medians: what one estimate takes over a step of AdamW, and what a run
takes over AdamW's with an estimate every tenth step.
"""

import itertools
import os
import statistics
import time

if hasattr(os, 'sched_setaffinity'):
  from steepest.training import cpu_memory

  # Before JAX starts: one core and its memory, as a study's workers have.
  os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
  cpu_memory.keep()

import jax
from ml_collections import ConfigDict
import numpy as np

from steepest.experiments import base
from steepest.models import config as model_config
from steepest.optimizers import build
from steepest.training import run as assemble

_ROUNDS, _STEPS = 8, 4
_EVERY, _SUBSETS = 10, (1, 2, 4)
_LAYERS, _WIDTHS = (3, 4), (64, 128)
_VOCAB, _BATCH, _CONTEXT = 2048, 16, 128
_NEVER = 2**20


def main() -> None:
  """Prints a line for each size of GPT-2."""
  for layers, width in itertools.product(_LAYERS, _WIDTHS):
    runs: dict[int | str, _Run] = {
      'adamw': _Run(_config(layers, width, 'adamw', 1, _NEVER)),
      'sophia': _Run(_config(layers, width, 'sophia', 1, _NEVER)),
      **{n: _Run(_config(layers, width, 'sophia', n, 1)) for n in _SUBSETS},
    }
    times: dict[int | str, list[float]] = {name: [] for name in runs}
    for _ in range(_ROUNDS):
      for name, run in runs.items():
        times[name] += run.seconds()
    print(f'GPT-2 {layers} layers, width {width}: {_said(times)}', flush=True)


def _said(times: dict[int | str, list[float]]) -> str:
  """Returns what the seconds of a step come to."""

  def over(a: int | str, b: int | str) -> float:
    # Of one round each: they have the same neighbours on the machine.
    rounds = zip(times[a], times[b], times['adamw'])
    return statistics.median((x - y) / adamw for x, y, adamw in rounds)

  plain = 1 + over('sophia', 'adamw')
  estimates = [
    f'on 1 of {n} sequences an estimate takes {over(n, "sophia"):.3f} of it, '
    f'a run {plain + over(n, "sophia") / _EVERY:.3f}'
    for n in _SUBSETS
  ]
  return (
    f'AdamW {statistics.median(times["adamw"]) * 1e3:.1f} ms a step; Sophia-G '
    f'without estimates {plain:.3f} of it; {"; ".join(estimates)}'
  )


def _config(
  layers: int, width: int, optimizer: str, subset: int, every: int
) -> ConfigDict:
  config, _ = base.with_variant(f'gpt2,{optimizer}')
  config.model.update(
    num_layers=layers, width=width, num_heads=width // 16, context=_CONTEXT
  )
  config.batch_size = _BATCH
  config.optimizer.update(hessian_subset=subset, hessian_every=every)
  if jax.default_backend() == 'cpu':
    config.dtype.compute = 'float32'
  return config


class _Run:
  """A run that can go on for a few steps at a time."""

  def __init__(self, config: ConfigDict):
    """Compiles the step and does one."""
    model = model_config.resolve(config.model, _VOCAB, config.dtype)
    self._program = assemble.make_program(config, model)
    tokens = np.random.default_rng(0).integers(
      0, _VOCAB, (_BATCH, _CONTEXT), dtype=np.int32
    )
    put = self._program.put
    self._batch = self._program.put_batch(
      {'inputs': tokens, 'targets': np.roll(tokens, -1, 1)}
    )
    args = build.arguments(config.optimizer, config.schedule, config.steps)
    self._args, self._seed = put(args), put(np.uint32(0))
    self._state = self._program.init(0)
    self.seconds()

  def seconds(self) -> list[float]:
    """Returns the seconds of a step, a mean over a few."""
    on_cpu = jax.default_backend() == 'cpu'
    clock = time.process_time if on_cpu else time.perf_counter
    start = clock()
    for _ in range(_STEPS):
      self._state, _ = self._program.step(
        self._state, self._batch, self._args, self._seed, measure=False
      )
    jax.block_until_ready(self._state)
    return [(clock() - start) / _STEPS]


if __name__ == '__main__':
  main()

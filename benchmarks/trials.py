"""Trials of a search: several as one program against one after the other.

    python benchmarks/trials.py

Alternates the two over several rounds and prints, for each shape and number of
trials, the time of a step of one trial and the ratio. On a CPU one core is
used and CPU time is measured; on an accelerator, wall time, with a larger
shape besides.
"""

from collections.abc import Callable
import os
import statistics
import time
from typing import Any, NamedTuple

if hasattr(os, 'sched_setaffinity'):
  from steepest.training import cpu_memory

  if not cpu_memory.has_accelerator():
    # Before JAX starts: one core and its memory, as a study's workers have.
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    cpu_memory.keep()

import jax
import numpy as np

from steepest.experiments import base
from steepest.models import config as model_config
from steepest.optimizers import build
from steepest.training import run as assemble, trials

_CPU = jax.default_backend() == 'cpu'
_ROUNDS = 5
_STEPS = 6
_COUNTS = (4, 8)


class _Shape(NamedTuple):
  name: str
  layers: int
  width: int
  batch: int
  context: int
  vocab: int
  dtype: str


_SHAPES = [
  _Shape('tiny', 2, 64, 8, 64, 512, 'float32'),
  _Shape('proxy', 3, 32, 8, 128, 2048, 'float32'),
]
if not _CPU:
  _SHAPES.append(_Shape('10 M', 6, 320, 32, 512, 8192, 'bfloat16'))


def main() -> None:
  """Prints a line for each optimizer, shape and number of trials."""
  print(jax.devices()[0].device_kind)
  for shape in _SHAPES:
    for optimizer in ('adamw', 'sophia'):
      for count in _COUNTS:
        alone, together = _measure(shape, optimizer, count)
        print(
          f'{shape.name} {optimizer}, {count} trials: '
          f'{together * 1e3:.2f} ms a step of one trial together, '
          f'{alone * 1e3:.2f} ms one by one, ratio {alone / together:.2f}',
          flush=True,
        )


def _measure(shape: _Shape, optimizer: str, count: int) -> tuple[float, float]:
  """Returns median seconds of a trial's step: one by one, and together."""
  config = base.get_config().unlock()
  base.set_optimizer(config, optimizer)
  config.model.update(
    num_layers=shape.layers,
    width=shape.width,
    num_heads=shape.width // 16,
    context=shape.context,
  )
  config.batch_size = shape.batch
  config.dtype.compute = shape.dtype
  model = model_config.resolve(config.model, shape.vocab, config.dtype)
  program = assemble.make_program(config, model)
  tokens = np.random.default_rng(0).integers(
    0, shape.vocab, (shape.batch, shape.context), dtype=np.int32
  )
  batch = program.put_batch({'inputs': tokens, 'targets': tokens})
  args = program.put(build.arguments(config.optimizer, config.schedule, 1000))
  many = program.put(trials.stack_arguments([args] * count))
  seed = program.put(np.uint32(0))

  def one(state: Any) -> Any:
    return program.step(state, batch, args, seed)[0]

  def all_(states: Any) -> Any:
    return program.step_many(states, batch, many, seed)[0]

  state, states = program.init(0), program.stack(program.init(0), count)
  # Compiled and warm, past a curvature pass.
  for _ in range(11):
    state, states = one(state), all_(states)
  times: dict[str, list[float]] = {'alone': [], 'together': []}
  for _ in range(_ROUNDS):
    seconds, state = _time(one, state, _STEPS * count)
    times['alone'].append(seconds / (_STEPS * count))
    seconds, states = _time(all_, states, _STEPS)
    times['together'].append(seconds / (_STEPS * count))
  return statistics.median(times['alone']), statistics.median(times['together'])


def _time(
  step: Callable[[Any], Any], state: Any, steps: int
) -> tuple[float, Any]:
  clock = time.process_time if _CPU else time.perf_counter
  jax.block_until_ready(state)
  start = clock()
  for _ in range(steps):
    state = step(state)
  jax.block_until_ready(state)
  return clock() - start, state


if __name__ == '__main__':
  main()

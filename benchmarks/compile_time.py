"""Seconds to compile a training step: blocks one by one or as one loop.

    python benchmarks/compile_time.py

Alternates `model.scan_layers` off and on over several rounds, for GPT-2 and
LLaMA of 12 and 32 layers with AdamW, and prints what lowering and compiling
the step takes, what a step takes then, and XLA's temporary memory. Times are
CPU times of one core on a CPU, else wall times. Width 64: it does not change
how much is compiled.
"""

import itertools
import os
import statistics
import time
from typing import NamedTuple

if hasattr(os, 'sched_setaffinity'):
  from steepest.launch import cpu_memory

  # Before JAX starts: one core and its memory, as a study's workers have.
  os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
  cpu_memory.keep()

import jax
import numpy as np

from steepest.experiments import base
from steepest.launch import assemble
from steepest.models import config as model_config
from steepest.optimizers import build

_ROUNDS = 3
_STEPS = 5
_VOCAB, _BATCH, _CONTEXT, _WIDTH = 2048, 16, 128, 64


class Measured(NamedTuple):
  """Seconds of compilation and of a step, bytes besides its arguments."""

  compilation: float
  step: float
  temporaries: int


def main() -> None:
  """Prints a line for each model and depth."""
  # What JAX imports and compiles once a process is in no measurement.
  for scan in (False, True):
    _measure('gpt2', 2, scan)
  for name, layers in itertools.product(('gpt2', 'llama'), (12, 32)):
    found: dict[bool, list[Measured]] = {False: [], True: []}
    for _, scan in itertools.product(range(_ROUNDS), (False, True)):
      found[scan].append(_measure(name, layers, scan))
    plain, loop = (
      Measured(*map(statistics.median, zip(*found[scan])))
      for scan in (False, True)
    )
    print(
      f'{name} {layers} layers: compiled in {plain.compilation:.2f} s, as a '
      f'loop {loop.compilation:.2f} s, ratio '
      f'{plain.compilation / loop.compilation:.2f}; '
      f'{plain.step * 1e3:.1f} ms a step, {loop.step * 1e3:.1f} ms, ratio '
      f'{plain.step / loop.step:.2f}; {plain.temporaries / 1e6:.0f} MB, '
      f'{loop.temporaries / 1e6:.0f} MB',
      flush=True,
    )


def _measure(name: str, layers: int, scan: bool) -> Measured:
  on_cpu = jax.default_backend() == 'cpu'
  clock = time.process_time if on_cpu else time.perf_counter
  config = base.get_config().unlock()
  base.set_model(config, name)
  config.model.update(
    num_layers=layers,
    width=_WIDTH,
    num_heads=_WIDTH // 16,
    context=_CONTEXT,
    scan_layers=scan,
  )
  config.batch_size = _BATCH
  config.mesh.data = 1
  if on_cpu:
    config.dtype.compute = 'float32'
  model = model_config.resolve(config.model, _VOCAB, config.dtype)
  assemble._programs.clear()
  program = assemble.make_program(config, model)
  tokens = np.random.default_rng(0).integers(
    0, _VOCAB, (_BATCH, _CONTEXT), dtype=np.int32
  )
  batch = program.put_batch({'inputs': tokens, 'targets': tokens})
  args = program.put(build.arguments(config.optimizer, config.schedule, 100))
  seed = program.put(np.uint32(0))
  start = clock()
  compiled = program.compile_step(program.state_shapes, batch, args, seed)
  compilation = clock() - start
  # To compile what draws initial values takes long; zeros do.
  zeros = jax.tree.map(
    lambda s: jax.device_put(np.zeros(s.shape, s.dtype), s.sharding),
    program.state_shapes,
  )
  state, _ = program.step(zeros, batch, args, seed)
  jax.block_until_ready(state)
  seconds = []
  for _ in range(_STEPS):
    start = clock()
    state, _ = program.step(state, batch, args, seed)
    jax.block_until_ready(state)
    seconds.append(clock() - start)
  memory = compiled.memory_analysis()
  return Measured(
    compilation, statistics.median(seconds), memory.temp_size_in_bytes
  )


if __name__ == '__main__':
  main()

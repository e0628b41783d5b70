"""Training steps on a CPU: models/matmul.py against plain jnp.dot.

    python benchmarks/weight_gradient.py

Alternates the two forms over several rounds on one core and prints the ratio
of their CPU times for each shape.
"""

import itertools
import os
import statistics
import time

if hasattr(os, 'sched_setaffinity'):
  from steepest.training import cpu_memory

  # Before JAX starts: one core and its memory, as a study's workers have.
  os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
  cpu_memory.keep()

import jax
import numpy as np

from steepest.experiments import base
from steepest.models import config as model_config, matmul
from steepest.optimizers import build
from steepest.training import run as assemble

_ROUNDS = 2
_STEPS = 10
_VOCAB, _BATCH, _CONTEXT = 2048, 16, 128


def main() -> None:
  """Prints a line for each model and width."""
  custom = matmul._product
  plain = lambda x_NxI, w_IxO: x_NxI @ w_IxO
  for model, width in itertools.product(('gpt2', 'llama'), (32, 64)):
    times: dict[str, list[float]] = {'custom': [], 'plain': []}
    for _ in range(_ROUNDS):
      for name, product in (('custom', custom), ('plain', plain)):
        matmul._product = product
        assemble._programs.clear()
        times[name] += _step_seconds(model, width)
    ours, theirs = (statistics.median(times[n]) for n in ('custom', 'plain'))
    print(
      f'{model} width {width}: {ours * 1e3:.1f} ms a step, plain '
      f'{theirs * 1e3:.1f} ms, ratio {theirs / ours:.2f}'
    )


def _step_seconds(name: str, width: int) -> list[float]:
  """Returns the CPU seconds of each step."""
  config = base.get_config().unlock()
  base.set_model(config, name)
  config.model.update(
    num_layers=3, width=width, num_heads=width // 16, context=_CONTEXT
  )
  config.batch_size = _BATCH
  config.dtype.compute = 'float32'
  model = model_config.resolve(config.model, _VOCAB, config.dtype)
  program = assemble.make_program(config, model)
  tokens = np.random.default_rng(0).integers(
    0, _VOCAB, (_BATCH, _CONTEXT), dtype=np.int32
  )
  batch = program.put_batch({'inputs': tokens, 'targets': tokens})
  args = program.put(build.arguments(config.optimizer, config.schedule, _STEPS))
  seed = program.put(np.uint32(0))
  state, _ = program.step(program.init(0), batch, args, seed)
  jax.block_until_ready(state)
  seconds = []
  for _ in range(_STEPS):
    start = time.process_time()
    state, _ = program.step(state, batch, args, seed)
    jax.block_until_ready(state)
    seconds.append(time.process_time() - start)
  return seconds


if __name__ == '__main__':
  main()

"""Training steps on a CPU with and without training/cpu_memory.py.

    python benchmarks/cpu_memory.py

Alternates fresh processes on one core and prints the ratio of the CPU times
of a step for each shape.
"""

import itertools
import statistics
import subprocess
import sys

_ROUNDS = 3
_STEP = """
import os
if hasattr(os, 'sched_setaffinity'):
  os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from steepest.training import cpu_memory
if KEEP: cpu_memory.keep()
import time
import jax
import numpy as np
from steepest.experiments import base
from steepest.training import run as assemble
from steepest.models import config as model_config
from steepest.optimizers import build
config = base.get_config().unlock()
base.set_optimizer(config, OPTIMIZER)
config.model.update(num_layers=3, width=WIDTH, num_heads=WIDTH // 16)
config.model.context = 128
config.batch_size = 16
config.dtype.compute = 'float32'
model = model_config.resolve(config.model, 2048, config.dtype)
program = assemble.make_program(config, model)
tokens = np.random.default_rng(0).integers(0, 2048, (16, 128), dtype=np.int32)
batch = program.put_batch({'inputs': tokens, 'targets': tokens})
args = program.put(build.arguments(config.optimizer, config.schedule, 100))
seed = program.put(np.uint32(0))
state = program.init(0)
for i in range(21):
  if i == 1:
    start = time.process_time()
  state, _ = program.step(state, batch, args, seed)
  jax.block_until_ready(state)
print((time.process_time() - start) / 20)
"""


def main() -> None:
  """Prints a line for each optimizer and width."""
  for optimizer, width in itertools.product(('adamw', 'sophia'), (32, 64)):
    times: dict[bool, list[float]] = {True: [], False: []}
    for _, keep in itertools.product(range(_ROUNDS), (True, False)):
      times[keep].append(_seconds(keep, optimizer, width))
    kept, plain = (statistics.median(times[keep]) for keep in (True, False))
    print(
      f'gpt2 {optimizer} width {width}: {kept * 1e3:.1f} ms a step, '
      f'{plain * 1e3:.1f} ms without, ratio {plain / kept:.2f}'
    )


def _seconds(keep: bool, optimizer: str, width: int) -> float:
  header = f'KEEP, OPTIMIZER, WIDTH = {keep}, {optimizer!r}, {width}\n'
  result = subprocess.run(
    [sys.executable, '-c', header + _STEP],
    capture_output=True,
    text=True,
    check=True,
  )
  return float(result.stdout)


if __name__ == '__main__':
  main()

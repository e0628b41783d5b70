"""Tokens per second on a CPU: a process pinned to each core against one on all.

    python benchmarks/cpu_workers.py

Alternates the two over several rounds on an otherwise idle machine and prints
the ratio for each width.
"""

import os
import statistics
import subprocess
import sys

_ROUNDS = 3
_STEPS = 40
_TRAIN = """
import os, sys, time
cores = os.environ['CORES'].split(',')
os.sched_setaffinity(0, map(int, cores))
from steepest.training import cpu_memory
cpu_memory.keep()
import jax
import numpy as np
from steepest.experiments import base
from steepest.training import run as assemble
from steepest.models import config as model_config
from steepest.optimizers import build
config = base.get_config().unlock()
width, steps = int(os.environ['WIDTH']), int(os.environ['STEPS'])
config.model.update(num_layers=4, width=width, num_heads=width // 16)
config.model.context = 128
config.batch_size = 16
config.dtype.compute = 'float32'
model = model_config.resolve(config.model, 2048, config.dtype)
program = assemble.make_program(config, model)
tokens = np.random.default_rng(0).integers(0, 2048, (16, 128), dtype=np.int32)
batch = program.put_batch({'inputs': tokens, 'targets': tokens})
args = program.put(build.arguments(config.optimizer, config.schedule, 100))
seed = program.put(np.uint32(0))
state, _ = program.step(program.init(0), batch, args, seed)
jax.block_until_ready(state)
# All processes are compiled before any is timed.
print('ready', flush=True)
sys.stdin.readline()
start = time.perf_counter()
for _ in range(steps):
  state, _ = program.step(state, batch, args, seed)
  jax.block_until_ready(state)
print(steps * 16 * 128 / (time.perf_counter() - start))
"""


def main() -> None:
  """Prints a line for each width."""
  cores = [str(core) for core in sorted(os.sched_getaffinity(0))]
  for width in (32, 64, 128):
    pinned, joint = [], []
    for _ in range(_ROUNDS):
      pinned.append(_tokens_per_second(cores, width))
      joint.append(_tokens_per_second([','.join(cores)], width))
    ours, theirs = statistics.median(pinned), statistics.median(joint)
    print(
      f'gpt2 width {width}, {len(cores)} cores: {ours:,.0f} tokens/s pinned, '
      f'{theirs:,.0f} as one process, ratio {ours / theirs:.2f}'
    )


def _tokens_per_second(groups: list[str], width: int) -> float:
  """Returns the sum over processes, one for each group of cores."""
  processes = [
    subprocess.Popen(
      [sys.executable, '-c', _TRAIN],
      env={
        **os.environ,
        'CORES': group,
        'WIDTH': str(width),
        'STEPS': str(_STEPS),
      },
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    for group in groups
  ]
  for process in processes:
    assert process.stdout and process.stdout.readline() == 'ready\n'
  for process in processes:
    assert process.stdin
    process.stdin.write('go\n')
    process.stdin.flush()
  return sum(float(process.communicate()[0]) for process in processes)


if __name__ == '__main__':
  main()

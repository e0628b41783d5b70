"""Compares training speed with PyTorch's on this machine's device.

    python -m benchmarks.throughput --rows=proxy --torch_python=PYTHON

Each round starts two processes, one after the other: benchmarks/jax_step.py
here, and benchmarks/pytorch_baseline.py under PYTHON, which needs only torch.
Prints a Markdown table with medians over the rounds and the median of the
rounds' ratios. Sophia's steps estimate curvature as often as a run does.
--profile also lists our longest operations.
"""

import json
import pathlib
import statistics
import subprocess
import sys
from typing import Any

from absl import app, flags
from rich.console import Console

from benchmarks import shapes

# JAX takes an accelerator's memory only when it is used.
from steepest.training import flops

_ROWS = flags.DEFINE_list(
  'rows', 'proxy', 'Names of rows or of groups (gpu, proxy), comma-separated.'
)
_OPTIMIZERS = flags.DEFINE_list(
  'optimizers', 'adamw', 'Ours; the baseline has AdamW.'
)
_PYTHON = flags.DEFINE_string(
  'torch_python', sys.executable, 'Python with torch; empty: ours alone.'
)
_ROUNDS = flags.DEFINE_integer('rounds', 3, 'Rounds.', lower_bound=1)
_STEPS = flags.DEFINE_integer(
  'steps', 20, 'Steps of a round; the largest models take a quarter.'
)
_REMAT = flags.DEFINE_string('remat', 'none', 'Ours: model.remat.')
_SUBSET = flags.DEFINE_integer(
  'hessian_subset', 1, 'Ours: curvature on one of so many sequences.'
)
_ONE_CORE = flags.DEFINE_bool(
  'one_core', False, 'On a CPU: one core, CPU time, whatever else is running.'
)
_PROFILE = flags.DEFINE_bool('profile', False, 'List the longest operations.')

# Measurements of each side in a round.
_NUMBERS = ('step_seconds', 'compile_seconds', 'bytes')


def main(_: list[str]) -> None:
  """Prints the table."""
  names = [n for word in _ROWS.value for n in shapes.GROUPS.get(word, [word])]
  rows = {**shapes.GPU, **shapes.CPU}
  for name in names:
    if name not in rows:
      raise app.UsageError(f'--rows: {name}: there are {", ".join(rows)}')
  lines, profiles, where = [], [], ''
  with Console(stderr=True).status('') as status:
    for name in names:
      for optimizer in _OPTIMIZERS.value:
        rounds = []
        for i in range(_ROUNDS.value):
          status.update(f'{name} {optimizer} round {i + 1} of {_ROUNDS.value}')
          rounds.append(_measure(rows[name], optimizer))
        where = '; '.join(side['name'] for side in rounds[0])
        lines += _lines(name, rows[name], optimizer, rounds)
        profiles.append((name, optimizer, rounds[-1][0]['operations']))
  print(f'{where}; {_ROUNDS.value} rounds of {_STEPS.value} steps\n')
  print(
    '| | batch | tokens/s | MFU | step ms | memory GB | first step s | ratio |'
  )
  print('|---|---|---|---|---|---|---|---|')
  print('\n'.join(lines))
  print(
    f'\nMFU: {flops.CONVENTION}. The ratio is of tokens/s, ours over '
    "PyTorch's. Memory on a CPU is the process's."
  )
  for name, optimizer, operations in profiles:
    if operations:
      print(f'\n{name} {optimizer}, ms a step:')
      for operation, seconds in operations:
        print(f'  {seconds * 1e3:9.3f}  {operation}')


def _measure(row: shapes.Row, optimizer: str) -> list[dict[str, Any]]:
  """Returns each side's measurements in one round, ours first."""
  shape = row.shape(
    optimizer=optimizer,
    steps=-(-_STEPS.value // (4 if row.large else 1)),
    one_core=_ONE_CORE.value,
    remat=_REMAT.value,
    hessian_subset=_SUBSET.value,
    profile=_PROFILE.value,
  )
  sides = [_run([sys.executable, '-m', 'benchmarks.jax_step'], shape)]
  if _PYTHON.value:
    baseline = str(pathlib.Path(__file__).parent / 'pytorch_baseline.py')
    sides.append(_run([_PYTHON.value, baseline], shape))
  counts = {side['parameters'] for side in sides}
  if len(counts) > 1:
    raise ValueError(f'the two models have {counts} parameters')
  return sides


def _run(command: list[str], shape: dict[str, Any]) -> dict[str, Any]:
  done = subprocess.run(
    [*command, json.dumps(shape)], stdout=subprocess.PIPE, text=True
  )
  if done.returncode:
    raise OSError(f'{command[-1]} failed: see its error above')
  # Libraries may print as well.
  return json.loads(done.stdout.splitlines()[-1])


def _lines(
  name: str, row: shapes.Row, optimizer: str, rounds: list[list[dict[str, Any]]]
) -> list[str]:
  about = rounds[0][0]
  tokens = row.batch * row.context
  lines = []
  names = (f'ours, {optimizer}', 'PyTorch, adamw')
  for whose, side in zip(names, zip(*rounds)):
    of = {key: [each[key] for each in side] for key in _NUMBERS}
    step = statistics.median(of['step_seconds'])
    mfu, ratio = '', ''
    if about['peak_flops']:
      mfu = about['flops_per_token'] * tokens / step / about['peak_flops']
      mfu = f'{mfu:.1%}'
    if not lines and len(rounds[0]) > 1:
      ratios = [b['step_seconds'] / a['step_seconds'] for a, b in rounds]
      ratio = f'{statistics.median(ratios):.2f}'
    lines.append(
      f'| {row.model} {name}, {whose} | {row.batch} × {row.context} '
      f'| {tokens / step:,.0f} | {mfu} | {step * 1e3:.1f} '
      f'| {max(of["bytes"]) / 1e9:.2f} '
      f'| {statistics.median(of["compile_seconds"]):.1f} | {ratio} |'
    )
  return lines


if __name__ == '__main__':
  app.run(main)

"""Training speed side by side with PyTorch, on whatever device there is.

    python benchmarks/throughput.py --rows=proxy --torch_python=PYTHON

Two processes in turn, never at once: benchmarks/jax_step.py here, and
benchmarks/pytorch_baseline.py under PYTHON, which needs only torch. On a CPU
both stay and alternate round by round; on an accelerator, whose memory one of
them fills, each is started anew for each round. Prints one table in Markdown:
medians over the rounds, and the median of the rounds' ratios. Steps of Sophia
estimate curvature as often as a run does. With --profile, the longest
operations of ours besides.
"""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import json
import pathlib
import statistics
import subprocess
import sys
from typing import Any

from absl import app, flags
from rich.console import Console

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

_HERE = pathlib.Path(__file__).parent
_LARGE = 10**9


@dataclasses.dataclass(frozen=True)
class _Row:
  """Shapes, as reference figures have them."""

  model: str
  layers: int
  width: int
  heads: int
  mlp: int
  vocab: int
  batch: int
  context: int
  dtype: str = 'bfloat16'


_GPU = {
  '124m': _Row('gpt2', 12, 768, 12, 3072, 50_304, 64, 1024),
  '124m-12': _Row('gpt2', 12, 768, 12, 3072, 50_304, 12, 1024),
  '51m': _Row('gpt2', 8, 512, 8, 2048, 50_304, 64, 1024),
  '2.65b': _Row('gpt2', 32, 2560, 32, 10_240, 50_304, 4, 2048),
  '2.65b-20': _Row('gpt2', 32, 2560, 20, 10_240, 50_304, 4, 2048),
  'llama': _Row('llama', 12, 768, 12, 2048, 32_000, 64, 1024),
  'llama-2.7b': _Row('llama', 32, 2560, 20, 6912, 32_000, 4, 2048),
}
_CPU = {
  '0.34m': _Row('gpt2', 4, 64, 4, 256, 2048, 16, 128, 'float32'),
  '1.07m': _Row('gpt2', 4, 128, 8, 512, 2048, 16, 128, 'float32'),
  '12.3m': _Row('gpt2', 6, 384, 6, 1536, 4096, 4, 256, 'float32'),
  'llama-0.5m': _Row('llama', 4, 64, 4, 192, 2048, 16, 128, 'float32'),
}
_GROUPS = {'gpu': list(_GPU), 'proxy': list(_CPU)}


class _Child:
  """A process that answers requests."""

  def __init__(self, python: str, file: str, shape: dict[str, Any]):
    self._process = subprocess.Popen(
      [python, str(_HERE / file), json.dumps(shape)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    self.about = self._read()

  def ask(self, request: str) -> dict[str, Any]:
    """Returns the answer to a request."""
    assert self._process.stdin is not None
    self._process.stdin.write(request + '\n')
    self._process.stdin.flush()
    return self._read()

  def close(self) -> None:
    """Ends it; what it held is free afterwards."""
    assert self._process.stdin is not None
    self._process.stdin.close()
    self._process.wait()

  def _read(self) -> dict[str, Any]:
    assert self._process.stdout is not None
    for line in self._process.stdout:
      # Libraries may print too.
      if line.startswith('{'):
        return json.loads(line)
    raise OSError(f'{self._process.args} ended: see its error above')


class _Side:
  """Measurements of one of the two, over the rounds."""

  def __init__(self, open_child: Callable[[], _Child]):
    self._open = open_child
    self._kept: _Child | None = None
    self.about: dict[str, Any] = {}
    self.seconds: list[float] = []
    self.updates: list[float] = []
    self.bytes = 0

  def measure(self, steps: int, keep: bool) -> None:
    """Adds a round."""
    with self._child(keep) as child:
      self.seconds.append(child.ask(f'steps {steps}')['seconds'] / steps)
      # The update's gradients would count as memory of the step.
      self.bytes = max(self.bytes, child.ask('memory')['bytes'])
      update = child.ask(f'optimizer {steps}')['seconds'] / steps
      self.updates.append(update)

  def profile(self, keep: bool) -> dict[str, Any]:
    """Returns the longest operations."""
    with self._child(keep) as child:
      return child.ask('profile')

  def close(self) -> None:
    """Ends the process, if it stays."""
    if self._kept is not None:
      self._kept.close()

  @contextlib.contextmanager
  def _child(self, keep: bool) -> Iterator[_Child]:
    child = self._kept or self._open()
    self.about = self.about or child.about
    self._kept = child if keep else None
    yield child
    if not keep:
      child.close()


def main(_: list[str]) -> None:
  """Prints the table."""
  names = [n for word in _ROWS.value for n in _GROUPS.get(word, [word])]
  rows = {**_GPU, **_CPU}
  for name in names:
    if name not in rows:
      raise app.UsageError(f'--rows: {name}: there are {", ".join(rows)}')
  lines, profiles, where = [], [], ''
  with Console(stderr=True).status('') as status:
    for name in names:
      for optimizer in _OPTIMIZERS.value:
        say = lambda text, n=name, o=optimizer: status.update(f'{n} {o} {text}')
        sides, device, operations = _measure(rows[name], optimizer, say)
        where = f'{device}; {", ".join(s.about["name"] for s in sides)}'
        lines += _lines(name, rows[name], optimizer, sides)
        profiles.append((name, optimizer, operations))
  print(f'{where}; {_ROUNDS.value} rounds of {_STEPS.value} steps\n')
  print(
    '| | batch | tokens/s | MFU | step ms | update ms | memory GB '
    '| first step s | ratio |'
  )
  print('|---|---|---|---|---|---|---|---|---|')
  print('\n'.join(lines))
  print(
    f'\nMFU: {_convention()}. The ratio is of tokens/s, ours over '
    "PyTorch's. Memory on a CPU is the process's."
  )
  for name, optimizer, found in profiles:
    if found:
      print(f'\n{name} {optimizer}, ms a step:')
      for operation, seconds in found['operations']:
        print(f'  {seconds / found["steps"] * 1e3:9.3f}  {operation}')


def _measure(
  row: _Row, optimizer: str, say: Callable[[str], None]
) -> tuple[list[_Side], str, dict[str, Any]]:
  shape = {**dataclasses.asdict(row), 'one_core': _ONE_CORE.value}
  ours = {
    **shape,
    'optimizer': optimizer,
    'remat': _REMAT.value,
    'hessian_subset': _SUBSET.value,
  }
  sides = [_Side(lambda: _Child(sys.executable, 'jax_step.py', ours))]
  if _PYTHON.value:
    baseline = 'pytorch_baseline.py'
    sides.append(_Side(lambda: _Child(_PYTHON.value, baseline, shape)))
  keep, steps = False, _STEPS.value
  try:
    for i in range(_ROUNDS.value):
      for side in sides:
        say(f'round {i + 1} of {_ROUNDS.value}')
        side.measure(steps, keep)
        if i == 0 and side is sides[0]:
          keep = side.about['is_cpu']
          if side.about['parameters'] > _LARGE:
            steps = -(-steps // 4)
    operations = sides[0].profile(keep) if _PROFILE.value else {}
  finally:
    for side in sides:
      side.close()
  counts = {side.about['parameters'] for side in sides}
  if len(counts) > 1:
    raise ValueError(f'the two models have {counts} parameters')
  return sides, sides[0].about['device'], operations


def _lines(
  name: str, row: _Row, optimizer: str, sides: list[_Side]
) -> list[str]:
  about = sides[0].about
  tokens = row.batch * row.context
  lines = []
  for side, whose in zip(sides, (f'ours, {optimizer}', 'PyTorch, adamw')):
    step = statistics.median(side.seconds)
    mfu, ratio = '', ''
    if about['peak_flops']:
      mfu = about['flops_per_token'] * tokens / step / about['peak_flops']
      mfu = f'{mfu:.1%}'
    if side is sides[0] and len(sides) > 1:
      pairs = zip(sides[1].seconds, side.seconds)
      ratio = f'{statistics.median(b / a for b, a in pairs):.2f}'
    lines.append(
      f'| {row.model} {name}, {whose} | {row.batch} × {row.context} '
      f'| {tokens / step:,.0f} | {mfu} | {step * 1e3:.1f} '
      f'| {statistics.median(side.updates) * 1e3:.2f} '
      f'| {side.bytes / 1e9:.2f} | {side.about["compile_seconds"]:.1f} '
      f'| {ratio} |'
    )
  return lines


def _convention() -> str:
  # Imports JAX, which takes an accelerator's memory only when it is used.
  from steepest.training import flops

  return flops.CONVENTION


if __name__ == '__main__':
  app.run(main)

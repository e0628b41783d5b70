"""Finds the faster variants of a training step in ten minutes on one GPU.

    python -m benchmarks.gpu_round.run --part=variants [--torch_python=PYTHON]
    python -m benchmarks.gpu_round.run --part=rest
    python -m benchmarks.gpu_round.run --part=variants --dry_run

The first part alternates the variants of variants.py and PyTorch on three rows
of benchmarks/shapes.py. The second times Sophia-G, with curvature estimated on
the whole batch and on half of it, and Lion beside AdamW; it compares updates
with the bandwidth of a copy and with the plan. Then it prepares shards, trains
60 steps, is killed on the way, resumes, and evaluates. Each part prints a line
of JSON for each result at once, so that a time limit loses nothing; the last
line of a row has the medians. With --dry_run all shapes are tiny, and both
parts run to their last line on a CPU.
"""

from collections.abc import Callable
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

from absl import app, flags

# Before JAX starts: PyTorch, or the runs of the second part, get the rest.
os.environ.setdefault('XLA_PYTHON_CLIENT_MEM_FRACTION', '0.5')

import jax

from benchmarks import jax_step, shapes
from benchmarks.gpu_round import programs, rest, variants
from steepest.training import chips, flops

_PART = flags.DEFINE_enum('part', None, ['variants', 'rest'], 'Which.')
_SECONDS = flags.DEFINE_float(
  'seconds', 0, 'To end within; 0: 340 for the variants, 170 for the rest.'
)
_ROWS = flags.DEFINE_list('rows', '124m,llama,2.65b', 'Of the variants.')
_FORMS = flags.DEFINE_list('forms', None, 'Of a row; default: all it has.')
_PYTHON = flags.DEFINE_string(
  'torch_python', sys.executable, 'Python with torch; empty: ours alone.'
)
_ROUNDS = flags.DEFINE_integer(
  'rounds', 0, 'Of a row at most; 0: as many as its time allows.'
)
_DRY = flags.DEFINE_bool('dry_run', False, 'Tiny shapes, to try it on a CPU.')

_TINY = {
  'layers': 1,
  'width': 32,
  'heads': 2,
  'mlp': 64,
  'vocab': 512,
  'batch': 4,
  'context': 32,
}
# Seconds that a part takes.
_LIMITS = {'variants': 340, 'rest': 170}
# Time of a large row over that of another.
_LARGE = 1.6
# Share of a row's time in which its forms begin to compile.
_COMPILING = 0.45
_PYTORCH = 'PyTorch'
_START = time.monotonic()


class PyTorch:
  """The other process; it compiles while this one does."""

  def __init__(self, python: str):
    self.ended = False
    side = os.path.join(os.path.dirname(__file__), 'pytorch_side.py')
    self._process = subprocess.Popen(
      [python, side], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

  def ask(self, asked: dict[str, Any]) -> None:
    """Sends a request; `answer` waits for what it says."""
    assert self._process.stdin is not None
    try:
      self._process.stdin.write(json.dumps(asked) + '\n')
      self._process.stdin.flush()
    except OSError:
      self.ended = True

  def answer(self) -> dict[str, Any]:
    """Returns the answer; without anything in it once the process has ended."""
    assert self._process.stdout is not None
    line = self._process.stdout.readline()
    self.ended = not line
    return json.loads(line or '{}')

  def seconds(self, steps: int) -> float:
    """Returns the time of so many steps, after one that is not timed."""
    self.ask({'steps': 1})
    self.answer()
    self.ask({'steps': steps})
    return self.answer()['seconds']


def main(_: list[str]) -> None:
  """Prints the lines of a part."""
  part = _PART.value
  until = _START + (_SECONDS.value or _LIMITS[part])
  say(part=part, device=jax.devices()[0].device_kind, jax=jax.__version__)
  if part == 'rest':
    rows = (_shaped(shapes.GPU[name]) for name in ('124m', '2.65b'))
    rest.run(*rows, until, say)
  else:
    torch = _pytorch(_PYTHON.value)
    weights = [_LARGE if shapes.GPU[n].large else 1 for n in _ROWS.value]
    for i, name in enumerate(_ROWS.value):
      now = time.monotonic()
      share = weights[i] / sum(weights[i:])
      _row(name, now + share * (until - now), torch)
  say(done=_PART.value)


def say(**values: Any) -> None:
  """Prints a line of JSON, with the seconds since the start."""
  rounded = {
    k: float(f'{v:.6g}') if isinstance(v, float) else v
    for k, v in values.items()
  }
  at = round(time.monotonic() - _START, 1)
  print(json.dumps({**rounded, 'at': at}), flush=True)


def _shaped(row: shapes.Row) -> shapes.Row:
  return dataclasses.replace(row, **_TINY) if _DRY.value else row


def _pytorch(python: str) -> PyTorch | None:
  if not python:
    return None
  tried = subprocess.run([python, '-c', 'import torch'], capture_output=True)
  if tried.returncode:
    say(note=f'PyTorch is missing: {python} has no torch; ours alone')
    return None
  return PyTorch(python)


def _row(name: str, until: float, torch: PyTorch | None) -> None:
  """Compiles a row's forms, tries each, then times them until `until`."""
  row = _shaped(shapes.GPU[name])
  tell = lambda **values: say(row=name, **values)
  if torch is not None and not torch.ended:
    torch.ask(row.shape())
  trainer = jax_step.Trainer(row.shape())
  known = variants.of_row(name)
  forms = {
    form: (variant, trainer)
    for form, variant in known.items()
    if not _FORMS.value or form in _FORMS.value
  }
  now = time.monotonic()
  compiled = programs.compile_all(forms, now + _COMPILING * (until - now), tell)
  timed = {}
  for form, program in compiled.items():
    with programs.failing(form, tell):
      tell(form=form, **program.first())
      timed[form] = program.seconds
  if torch is not None:
    tell(form=_PYTORCH, **torch.answer(), ended=torch.ended)
    if not torch.ended:
      timed[_PYTORCH] = torch.seconds
  steps = 3 if row.large else 8
  found = programs.rounds(timed, steps, until, tell, _ROUNDS.value)
  trainer.state = None
  _medians(name, row, trainer, found, tell)


def _medians(
  name: str,
  row: shapes.Row,
  trainer: jax_step.Trainer,
  found: dict[str, list[float]],
  tell: Callable[..., None],
) -> None:
  """Says each form's median, beside what was expected of it."""
  medians = {form: statistics.median(all_) for form, all_ in found.items()}
  tokens = row.batch * row.context
  of_token = flops.per_token(trainer.setup.shapes.params, trainer.setup.model)
  peak = chips.peak(jax.devices()[0])
  for form, seconds in medians.items():
    values: dict[str, Any] = {
      'median_ms': 1e3 * seconds,
      'rounds': len(found[form]),
      'tokens_per_second': tokens / seconds,
    }
    if peak:
      values['mfu'] = of_token * tokens / seconds / peak
    if _PYTORCH in medians:
      values['over_pytorch'] = medians[_PYTORCH] / seconds
    if variants.PLAIN in medians:
      values['change_ms'] = 1e3 * (seconds - medians[variants.PLAIN])
    if form in variants.ALONE:
      values['expected_ms'] = variants.ALONE[form].gains[name]
    tell(form=form, **values)


if __name__ == '__main__':
  flags.mark_flag_as_required('part')
  app.run(main)

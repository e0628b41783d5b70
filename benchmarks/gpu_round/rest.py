"""The second part of run.py: what a step's alternatives leave open."""

from collections.abc import Callable, Iterator
import json
import math
import os
import pathlib
import random
import signal
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from typing import Any

import jax

from benchmarks import jax_step, optimizers, shapes
from benchmarks.gpu_round import programs
from benchmarks.gpu_round.variants import Variant
from steepest.optimizers import costs
from steepest.training import chips
from steepest.tuning import plan

# Ours by name: optimizer, and of how many sequences one is used to estimate.
_STEPS = {
  'adamw': ('adamw', 1),
  'lion': ('lion', 1),
  'sophia, whole batch': ('sophia', 1),
  'sophia, half of it': ('sophia', 2),
}
# Of a round; a multiple of the steps from one estimate to the next.
_COUNT = 20
_UPDATES = ('adamw', 'lion', 'sophia')
# Shares of the time after which no step compiles, none is timed, and no other
# update is.
_COMPILED, _TIMED, _UPDATED = 0.15, 0.3, 0.4
# Steps between checkpoints and between rows of a run, and all of them.
_SAVED, _LOGGED, _TRAINED = 20, 5, 60


def run(
  row: shapes.Row, large: shapes.Row, until: float, say: Callable[..., None]
) -> None:
  """Does all of it, and says what it finds.

  Args:
    row: whose steps are timed.
    large: whose updates are timed too.
    until: time.monotonic() to end at.
    say: gets what is to be reported, as keywords.
  """
  start = time.monotonic()
  at = lambda share: start + share * (until - start)
  _steps(row, at(_COMPILED), at(_TIMED), say)
  _updates({'2.65b': large, '124m': row}, at(_UPDATED), say)
  with tempfile.TemporaryDirectory() as folder:
    try:
      _commands(row, pathlib.Path(folder), until, say)
    except (OSError, subprocess.SubprocessError) as error:
      say(what='commands', failed=str(error))


def _steps(
  row: shapes.Row, compile_until: float, until: float, say: Callable[..., None]
) -> None:
  """Times the optimizers' steps in turn; holds them against the plan."""
  forms, planned = {}, {}
  device = jax.devices()[0]
  for name, (optimizer, subset) in _STEPS.items():
    shape = row.shape(optimizer=optimizer, hessian_subset=subset)
    forms[name] = Variant(), jax_step.Trainer(shape)
    config, _ = jax_step.configure(shape)
    planned[name] = plan.plan(config, chips.of(device) or chips.host(), 1)
  compiled = programs.compile_all(forms, compile_until, say)
  timed = {name: program.seconds for name, program in compiled.items()}
  found = programs.rounds(timed, _COUNT, until, say)
  medians = {name: statistics.median(all_) for name, all_ in found.items()}
  for name, seconds in medians.items():
    of = planned[name]
    values = {'median_ms': 1e3 * seconds, 'rounds': len(found[name])}
    if 'adamw' in medians:
      values['over_adamw'] = seconds / medians['adamw']
    if not math.isnan(of.seconds):
      values['planned_ms'] = 1e3 * of.seconds
      values['error_of_time'] = of.seconds / seconds - 1
    values['planned_GB'] = of.peak / 1e9
    values['error_of_memory'] = of.peak / compiled[name].bytes - 1
    say(form=name, **values)
  memory = device.memory_stats()
  if memory:
    # Of all that was compiled and run so far.
    say(what='memory', peak_GB=memory['peak_bytes_in_use'] / 1e9)


def _updates(
  rows: dict[str, shapes.Row], until: float, say: Callable[..., None]
) -> None:
  """Times updates by themselves against the bandwidth of a copy."""
  numbers = min(2**28, 64 * rows['2.65b'].vocab * rows['2.65b'].width)
  bandwidth = optimizers.copy_bandwidth(numbers)
  say(what='copy', GB_per_second=bandwidth / 1e9)
  for name, row in rows.items():
    for optimizer in _UPDATES:
      if time.monotonic() > until:
        say(what='update', row=name, optimizer=optimizer, left_out='no time')
        continue
      setup, hypers = optimizers.setup_of(row, optimizer)
      moved = costs.update_bytes(setup.chain, setup.shapes.params)
      seconds = optimizers.update_seconds(setup, hypers)
      say(
        what='update',
        row=name,
        optimizer=optimizer,
        ms=1e3 * seconds,
        ms_of_bytes=1e3 * moved / bandwidth,
        ratio=seconds * bandwidth / moved,
      )


def _commands(
  row: shapes.Row, folder: pathlib.Path, until: float, say: Callable[..., None]
) -> None:
  """Prepares shards, trains, is killed, goes on, and evaluates."""
  text = pathlib.Path(sysconfig.get_path('stdlib'))
  shards, workdir = folder / 'shards', folder / 'run'
  prepare = ['prepare', f'--input={text}/*.py', '--tokenizer=bpe-train:500']
  prepare.append('--source=python')
  options = {
    'model.num_layers': row.layers,
    'model.width': row.width,
    'model.num_heads': row.heads,
    'model.mlp_dim': row.mlp,
    'model.vocab_size': row.vocab,
    'model.context': row.context,
    'dtype.compute': row.dtype,
    'data.source': f'shards:{shards}',
    'data.epochs': 8,
    'batch_size': row.batch,
    'microbatches': 1,
    'steps': _TRAINED,
    'schedule.warmup_steps': 10,
    'log_every': _LOGGED,
    'checkpoint_every': _SAVED,
    'eval_every': 30,
    'eval_sequences': 32,
    'eval_tasks': '',
  }
  train = ['train', '--config=experiments/gpt2_124m.py:adamw']
  train += [f'--config.{k}={v}' for k, v in options.items()]
  train.append(f'--workdir={workdir}')
  questions = folder / 'tasks'
  questions.mkdir()
  _write_questions(questions / 'arc_easy.jsonl')
  evaluate = ['evaluate', f'--model=ckpt:{workdir}', '--tasks=arc_easy']
  evaluate += [f'--data={questions}', f'--out={folder / "scores"}']

  # This process keeps what it has of the device's memory; what one run compiles
  # the next one finds.
  environment = {
    **os.environ,
    'XLA_PYTHON_CLIENT_MEM_FRACTION': '0.4',
    'JAX_COMPILATION_CACHE_DIR': str(folder / 'compiled'),
  }
  command = lambda of: [sys.executable, '-m', f'launch.{of[0]}', *of[1:]]

  def finish(of: list[str]) -> None:
    start = time.monotonic()
    subprocess.run(
      command(of),
      env=environment,
      stdout=sys.stderr,
      timeout=max(1.0, until - start),
      check=True,
    )
    say(command=of[0], seconds=time.monotonic() - start)

  finish([*prepare, f'--out={shards}'])
  process = subprocess.Popen(command(train), env=environment, stdout=sys.stderr)
  saved = _kill(process, workdir / 'checkpoints', until)
  before = dict(_losses(workdir / 'metrics.jsonl'))
  say(what='killed', checkpoint=saved, row=max(before, default=None))
  finish(train)
  after = dict(_losses(workdir / 'metrics.jsonl'))
  # A row is numbered by the steps before it.
  twice = [step for step in before if saved is not None and step >= saved]
  summary = json.loads((workdir / 'summary.json').read_text())
  say(
    what='resumed',
    steps=summary['steps'],
    rows_run_twice=len(twice),
    largest_difference=max(
      (abs(before[step] - after[step]) for step in twice), default=None
    ),
    first_loss=after[min(after)],
    last_loss=after[max(after)],
    eval_loss=summary['eval_loss'],
    tokens_per_second=summary['tokens_per_second'],
  )
  finish(evaluate)
  scores = json.loads((folder / 'scores/results.json').read_text())
  say(what='scores', **scores['metrics']['arc_easy'])


def _kill(
  process: subprocess.Popen[bytes], checkpoints: pathlib.Path, until: float
) -> int | None:
  """Kills a run that has saved; returns the steps before its checkpoint.

  None: it did not save, or ended before.
  """
  saved: list[int] = []
  while process.poll() is None and time.monotonic() < until and not saved:
    time.sleep(0.01)
    # Under its own name only once it is whole.
    names = [path.name for path in checkpoints.glob('*')]
    saved = [int(name) for name in names if name.isdigit()]
  if process.poll() is not None:
    return None
  process.send_signal(signal.SIGKILL)
  process.wait()
  return max(saved, default=None)


def _losses(path: pathlib.Path) -> Iterator[tuple[int, float]]:
  """Yields step and training loss of the rows that are whole."""
  lines = path.read_text().splitlines(True) if path.exists() else []
  for line in lines:
    if line.endswith('\n'):
      row = json.loads(line)
      yield row['step'], row['train/loss']


def _write_questions(path: pathlib.Path) -> None:
  """Writes sums of two numbers in the form of ARC-Easy."""
  draw = random.Random(0)
  with path.open('w') as out:
    for _ in range(40):
      a, b = draw.randrange(50), draw.randrange(50)
      offered = draw.sample(range(100), 4)
      right = draw.randrange(4)
      offered[right] = a + b
      question: dict[str, Any] = {
        'question': f'What is {a} + {b}?',
        'choices': {'text': [str(n) for n in offered], 'label': list('ABCD')},
        'answerKey': 'ABCD'[right],
      }
      out.write(json.dumps(question) + '\n')

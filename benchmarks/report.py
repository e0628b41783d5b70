"""Measures seconds and memory of a report on 200 runs of 10,000 logged rows.

    python -m benchmarks.report [--runs=200] [--rows=10000] [--values=0]

Runs are written to a temporary directory first, with four benchmarks of 500
questions each. Then one run's metrics are opened again, as when it is started
again near its end, and launch.report runs, each as a process of its own on one
core. A long run alone, whose per-layer statistics are in every tenth row, as
training/loop.py writes them:

    python -m benchmarks.report --runs=1 --rows=500000 --values=36
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

from absl import app, flags
import numpy as np

from steepest.experiments import base

_RUNS = flags.DEFINE_integer('runs', 200, 'Runs, half of them final.')
_ROWS = flags.DEFINE_integer('rows', 10_000, 'Logged rows of a run.')
_VALUES = flags.DEFINE_integer('values', 0, 'Per-layer numbers of a row.')
_EVERY = flags.DEFINE_integer('every', 10, 'One in this many rows has them.')
_OPTIMIZERS = ('adamw', 'lion', 'sophia', 'muon', 'soap')
_TASKS = ('arc_easy', 'arc_challenge', 'hellaswag', 'piqa')
_QUESTIONS = 500
_OPEN = 'metrics.MetricWriter(sys.argv[1], int(sys.argv[2])).close()'


def _write_run(
  path: pathlib.Path, optimizer: str, seed: int, stage: str, lr: float
) -> None:
  path.mkdir(parents=True)
  config = base.get_config()
  base.set_optimizer(config, optimizer)
  config.update({'seed': seed, 'stage': stage, 'steps': _ROWS.value})
  config.optimizer.lr = lr
  (path / 'config.json').write_text(config.to_json())
  rng = np.random.default_rng([len(optimizer), seed])
  tokens = config.batch_size * config.model.context
  loss = 3 + 8 / np.sqrt(np.arange(1, _ROWS.value + 1)) + abs(np.log(lr / 2e-3))
  rows = (
    {
      'step': s,
      'tokens': (s + 1) * tokens,
      'seconds': 0.1 * (s + 1),
      'train/loss': float(loss[s] + rng.normal(0, 0.01)) if s else 11.0,
      'lr': lr,
      'grad_norm': 1.0,
      'tokens_per_second': 1e5,
      **({'eval/loss': float(loss[s])} if s % 500 == 499 else {}),
    }
    for s in range(_ROWS.value)
  )
  more = {f'layers/{i}/update_rms': rng.random() for i in range(_VALUES.value)}
  tail = f', {json.dumps(more)[1:-1]}' if more else ''
  with (path / 'metrics.jsonl').open('w') as out:
    out.writelines(
      f'{json.dumps(row)[:-1]}{"" if row["step"] % _EVERY.value else tail}}}\n'
      for row in rows
    )
  summary = {
    'status': 'finished',
    'steps': _ROWS.value,
    'tokens': _ROWS.value * tokens,
    'seconds': 0.1 * _ROWS.value,
    'data_fingerprint': 'f' * 64,
    'train_loss': float(loss[-1]),
    'eval_loss': float(loss[-1] + rng.normal(0, 0.01)),
    'tokens_per_second': 1e5,
    'flops': 1e15,
    'parameters': 10**8,
  }
  (path / 'summary.json').write_text(json.dumps(summary))
  if stage == 'final':
    _write_scores(path / 'eval', rng)


def _write_scores(path: pathlib.Path, rng: np.random.Generator) -> None:
  path.mkdir()
  right_TxQ = rng.integers(0, 2, size=(len(_TASKS), _QUESTIONS))
  results = {
    'info': {
      'data': {f'{t}.jsonl': {'sha256': 'a' * 64} for t in _TASKS},
      'chance': dict.fromkeys(_TASKS, 0.25),
    },
    'metrics': {
      task: {
        'n': _QUESTIONS,
        'acc': float(right_Q.mean()),
        'acc_stderr': float(right_Q.std() / _QUESTIONS**0.5),
      }
      for task, right_Q in zip(_TASKS, right_TxQ, strict=True)
    },
  }
  (path / 'results.json').write_text(json.dumps(results))
  with (path / 'predictions.jsonl').open('w') as out:
    out.writelines(
      json.dumps(
        {'task': t, 'doc_id': q, 'metric': 'acc', 'pred': 1 - int(r), 'gold': 0}
      )
      + '\n'
      for t, right_Q in zip(_TASKS, right_TxQ, strict=True)
      for q, r in enumerate(right_Q)
    )


def _measure(what: str, *command: str) -> None:
  start = time.perf_counter()
  child = subprocess.Popen(
    [sys.executable, *command],
    stdout=subprocess.DEVNULL,
    preexec_fn=lambda: os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]),
  )
  _, child.returncode, used = os.wait4(child.pid, 0)
  print(
    f'{what}: {time.perf_counter() - start:.1f} s, '
    f'{used.ru_utime + used.ru_stime:.1f} s of the core, '
    f'{used.ru_maxrss / 2**20:.2f} GiB'
    + (', but failed' if child.returncode else ''),
    flush=True,
  )


def main(_: list[str]) -> None:
  with tempfile.TemporaryDirectory() as directory:
    root = pathlib.Path(directory)
    each = _RUNS.value // 2 // len(_OPTIMIZERS)
    for optimizer in _OPTIMIZERS:
      for i in range(each):
        lr = 1e-3 * 2 ** (4 * i / max(each - 1, 1))
        trial = root / f'trials/{optimizer}/{i}'
        _write_run(trial, optimizer, 0, 'tune', lr)
        final = root / f'finals/{optimizer}/seed={i}'
        _write_run(final, optimizer, i, 'final', 2e-3)
    one = root / 'finals/adamw/seed=0'
    if not each:
      _write_run(one, 'adamw', 0, 'final', 2e-3)
    size = (one / 'metrics.jsonl').stat().st_size / 1e6
    code = f'import sys; from steepest.training import metrics; {_OPEN}'
    opened = f'opening {_ROWS.value} rows ({size:.0f} MB) again'
    _measure(opened, '-c', code, str(one), str(_ROWS.value))
    command = ['-m', 'launch.report', f'--runs={root}', f'--out={root}/out']
    _measure(f'{_RUNS.value} runs of {_ROWS.value} rows', *command)


if __name__ == '__main__':
  app.run(main)

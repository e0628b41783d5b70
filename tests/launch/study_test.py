"""Whole studies on the command line, killed and resumed."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from steepest.data import locks, prepare

ROOT = pathlib.Path(__file__).parent.parent.parent
_ONE = '--xla_force_host_platform_device_count=1'


@pytest.fixture(scope='session')
def shards(tmp_path_factory) -> pathlib.Path:
  """Shards of some modules of the standard library."""
  out = tmp_path_factory.mktemp('study') / 'shards'
  import argparse
  import dataclasses

  from rich.console import Console

  files = ','.join(m.__file__ for m in (argparse, dataclasses))
  options = prepare.Options(
    inputs=files,
    tokenizer='bpe-train:300',
    out=out,
    validation_fraction=0.5,
    source='code',
  )
  prepare.prepare(options, Console(stderr=True))
  return out


def _command(
  shards: pathlib.Path, workdir: pathlib.Path, workers: int, **study: object
) -> list[str]:
  values = {
    'data.source': f'shards:{shards}',
    'eval_tasks': '',
    'model.width': 16,
    'model.num_layers': 1,
    'model.context': 16,
    'batch_size': 4,
    'steps': 12,
    'schedule.warmup_steps': 2,
    'eval_sequences': 8,
    'checkpoint_every': 10,
    'study.models': 'gpt2',
    'study.optimizers': 'adamw,sophia',
    'study.target_steps': 40,
    'study.max_extensions': 12,
    **{f'study.{key}': value for key, value in study.items()},
  }
  return [
    sys.executable,
    '-m',
    'launch.study',
    '--config=experiments/quickstart.py',
    f'--workdir={workdir}',
    f'--workers={workers}',
    *(f'--config.{k}={v}' for k, v in values.items()),
  ]


def _start(command: list[str]) -> subprocess.Popen[str]:
  # On one core for all workers, as on two their sums would round otherwise.
  core = min(os.sched_getaffinity(0))
  return subprocess.Popen(
    command,
    cwd=ROOT,
    env={**os.environ, 'XLA_FLAGS': f'{os.environ["XLA_FLAGS"]} {_ONE}'},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    preexec_fn=lambda: os.sched_setaffinity(0, {core}),
  )


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
  process = _start(command)
  out, err = process.communicate(timeout=900)
  return subprocess.CompletedProcess(command, process.returncode, out, err)


def _left(workdir: pathlib.Path) -> dict[str, tuple[object, ...]]:
  """Returns what each run of a study came to."""
  found = {}
  for path in workdir.glob('*/*/*/summary.json'):
    summary = json.loads(path.read_text())
    config = json.loads(path.with_name('config.json').read_text())
    rows = path.with_name('metrics.jsonl').read_text().count('\n')
    assert rows == summary['steps']
    of = config['optimizer']
    values = of['lr'], of['rho'] if 'rho' in of else None
    name = str(path.parent.relative_to(workdir))
    found[name] = *values, summary['status'], summary['eval_loss']
  return found


def _wait_for(process: subprocess.Popen[str], root: pathlib.Path, glob: str):
  while not list(root.glob(glob)):
    assert process.poll() is None, process.communicate()
    time.sleep(0.02)


def test_a_study_survives_kills_of_its_worker_and_of_its_driver(
  shards, tmp_path
):
  """Killed workers are replaced, and so is the driver, by the same command.

  The trials are those of a study that nobody killed, in one process.
  """
  study = {'search': 'sobol', 'trials': 4, 'optimizers': 'sophia'}
  whole, killed = tmp_path / 'whole', tmp_path / 'killed'
  done = _run(_command(shards, whole, 1, **study))
  assert done.returncode == 0, done.stderr
  report = whole / 'report' / 'report.html'
  assert done.stdout.splitlines()[-1] == f'report: {report}'
  assert report.exists()

  process = _start(_command(shards, killed, 2, **study))
  _wait_for(process, killed, 'trials/*/*/metrics.jsonl')
  threads = pathlib.Path(f'/proc/{process.pid}/task').glob('*/children')
  names = {
    pid: pathlib.Path(f'/proc/{pid}/cmdline').read_text()
    for children in threads
    for pid in children.read_text().split()
  }
  workers = [int(pid) for pid, name in names.items() if 'spawn_main' in name]
  assert len(workers) == 2
  os.kill(workers[0], signal.SIGKILL)
  # Killed while a target trains: its search is done, its steps are not.
  _wait_for(process, killed, 'finals/*/*/metrics.jsonl')
  process.kill()
  process.communicate()
  ended = {p: p.stat().st_mtime_ns for p in killed.glob('trials/*/*/s*.json')}
  again = _run(_command(shards, killed, 2, **study))
  assert again.returncode == 0, again.stderr
  assert _left(killed) == _left(whole)
  assert len([name for name in _left(whole) if 'finals' in name]) == 2
  for path, modified in ended.items():
    assert path.stat().st_mtime_ns == modified, f'{path} was done again'

  changed = _run(_command(shards, whole, 1, **{**study, 'trials': 8}))
  assert changed.returncode == 1
  last = changed.stderr.strip().splitlines()[-1]
  assert 'was begun with study.trials=4, asked for 8' in last
  config = json.loads((whole / 'config.json').read_text())
  assert config['study']['trials'] == 4


def test_errors_take_one_line(shards, tmp_path):
  """A cell that fails is named, and so is its reason."""
  study = {'optimizers': 'sophia', 'search': 'grid'}
  command = _command(shards, tmp_path / 'study', 1, **study)
  failed = _run([*command, '--config.study.max_extensions=0'])
  assert failed.returncode != 0
  last = failed.stderr.strip().splitlines()[-1]
  assert last.startswith('error: gpt2-sophia: the best learning rate')
  with locks.hold(tmp_path / 'study', 'at this study'):
    second = _run(command)
  assert second.returncode == 1
  assert f'(process {os.getpid()}, host ' in second.stderr.splitlines()[-1]

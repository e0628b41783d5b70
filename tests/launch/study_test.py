"""Studies: the transfer, and a whole one killed and resumed."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from steepest.data import prepare
from steepest.experiments import quickstart
from steepest.launch import cells
from steepest.models import config as model_config
from steepest.models import parametrization

ROOT = pathlib.Path(__file__).parent.parent.parent


@pytest.mark.parametrize('model', ['gpt2', 'llama'])
def test_targets_are_wider_proxies_under_mup(model):
  config = quickstart.get_config()
  cell = cells.Cell(model, 'sophia')
  proxy = cells.trial_config(config, cell, {'lr': 1e-3})
  target = cells.target_config(config, cell, {'lr': 1e-3}, seed=1)
  assert target.model.width == 2 * proxy.model.width
  shapes = model_config.resolve(target.model, 2048, target.dtype)
  rules = parametrization.resolve(target.parametrization, shapes)
  assert shapes.head_dim == proxy.model.head_dim
  assert shapes.num_heads == 2 * proxy.model.num_heads
  assert shapes.mlp_dim == 2 * proxy.model.mlp_dim
  for fan_in in ('width', 'heads', 'mlp'):
    factors = rules.factors(rules.hidden(fan_in)[0])
    assert (factors.lr, factors.rho, factors.eps) == (0.5, 2.0, 0.5)
  assert rules.readout_multiplier == 0.5
  # The proxy is its own base, where µP is the standard parametrization.
  shapes = model_config.resolve(proxy.model, 2048, proxy.dtype)
  rules = parametrization.resolve(proxy.parametrization, shapes)
  assert rules.factors(rules.hidden('mlp')[0]).lr == 1.0


def test_cells_differ_only_in_their_optimizer():
  config = quickstart.get_config()
  a, b = (
    cells.target_config(config, cells.Cell('llama', o), {}, 0).to_dict()
    for o in ('adamw', 'lion')
  )
  a.pop('optimizer'), b.pop('optimizer')
  assert a == b


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


def _command(shards: pathlib.Path, workdir: pathlib.Path) -> list[str]:
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
    'study.optimizers': 'sophia',
    'study.target_steps': 40,
    'study.max_extensions': 12,
  }
  return [
    sys.executable,
    '-m',
    'launch.study',
    '--config=experiments/quickstart.py',
    f'--workdir={workdir}',
    '--workers=1',
    *(f'--config.{k}={v}' for k, v in values.items()),
  ]


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
  env = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
  return subprocess.run(
    command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=900
  )


def _finals(workdir: pathlib.Path) -> dict[str, tuple[float, float]]:
  found = {}
  for path in workdir.glob('finals/*/*/summary.json'):
    summary = json.loads(path.read_text())
    name = str(path.parent.relative_to(workdir))
    found[name] = summary['train_loss'], summary['eval_loss']
  return found


def test_a_killed_study_goes_on_and_ends_the_same(shards, tmp_path):
  whole, killed = tmp_path / 'whole', tmp_path / 'killed'
  done = _run(_command(shards, whole))
  assert done.returncode == 0, done.stderr
  report = whole / 'report' / 'report.html'
  assert done.stdout.splitlines()[-1] == f'report: {report}'
  assert report.exists()

  env = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
  process = subprocess.Popen(
    _command(shards, killed),
    cwd=ROOT,
    env=env,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  # Killed while a target trains: its search is done, its steps are not.
  while not list(killed.glob('finals/*/*/metrics.jsonl')):
    assert process.poll() is None
    time.sleep(0.02)
  process.send_signal(signal.SIGKILL)
  process.wait()
  trials = {
    p: p.stat().st_mtime_ns for p in killed.glob('trials/*/*/summary.json')
  }
  assert trials
  again = _run(_command(shards, killed))
  assert again.returncode == 0, again.stderr
  assert _finals(killed) == _finals(whole)
  assert len(_finals(whole)) == 2
  for path, modified in trials.items():
    assert path.stat().st_mtime_ns == modified, f'{path} was done again'

  finished = {p: p.stat().st_mtime_ns for p in whole.rglob('metrics.jsonl')}
  third = _run(_command(shards, whole))
  assert third.returncode == 0
  assert finished == {p: p.stat().st_mtime_ns for p in finished}


def test_errors_take_one_line(shards, tmp_path, run_command):
  result = run_command('study', '--config=experiments/tiny.py')
  assert result.returncode != 0
  assert result.stderr.count('\n') == 1
  assert 'no study' in result.stderr
  # A cell that fails is named, and so is its reason.
  command = _command(shards, tmp_path / 'study')
  failed = _run([*command, '--config.study.max_extensions=0'])
  assert failed.returncode != 0
  last = failed.stderr.strip().splitlines()[-1]
  assert last.startswith('error: gpt2-sophia: the best learning rate')

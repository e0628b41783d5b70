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
from steepest.models import config as model_config, parametrization
from steepest.tuning import cells, search

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


def test_all_optimizers_are_those_that_there_are():
  config = quickstart.get_config()
  config.study.optimizers = 'all'
  files = {path.stem for path in (ROOT / 'optimizers').glob('*.py')}
  found = cells.optimizers(config)
  assert {'adamw', 'lion', 'sophia'} <= set(found) <= files
  assert found == sorted(found)
  assert len(cells.cells(config)) == 2 * len(found)
  config.study.optimizers = 'sophia,adamw'
  assert cells.optimizers(config) == ['sophia', 'adamw']
  for wrong, said in (('lino', "did you mean 'lion'"), ('lion,lion', 'once')):
    config.study.optimizers = wrong
    with pytest.raises(ValueError, match=said):
      cells.cells(config)


def test_an_optimizer_without_rates_takes_one_line():
  config = quickstart.get_config().unlock()
  del config.study.lrs_lion
  with pytest.raises(ValueError, match='^study.lrs_lion is missing: give its'):
    search.first_names(config, 'lion')


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
  shards: pathlib.Path, workdir: pathlib.Path, **study: object
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
    'study.optimizers': 'sophia',
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


_SEARCHES = {
  'random': {
    'search': 'random',
    'trials': 6,
    'pruning': 'median',
    'pruning_trials': 2,
    'space_rho': (0.02, 0.2),
    'edge_fraction': 0.0,
  },
  'tpe': {'search': 'tpe', 'trials': 6, 'edge_fraction': 0.0},
}


def _trials(workdir: pathlib.Path) -> dict[str, tuple[object, ...]]:
  found = {}
  for path in workdir.glob('trials/*/*/summary.json'):
    summary = json.loads(path.read_text())
    config = json.loads(path.with_name('config.json').read_text())
    rows = path.with_name('metrics.jsonl').read_text().count('\n')
    assert rows == summary['steps']
    name = str(path.parent.relative_to(workdir))
    values = config['optimizer']['lr'], config['optimizer']['rho']
    found[name] = *values, summary['status'], summary['eval_loss']
  return found


@pytest.mark.slow
@pytest.mark.parametrize('search', ['random', 'tpe'])
def test_a_search_that_was_killed_ends_the_same(shards, tmp_path, search):
  whole, killed = tmp_path / 'whole', tmp_path / 'killed'
  study = {**_SEARCHES[search], 'seeds': 1}
  done = _run(_command(shards, whole, **study))
  assert done.returncode == 0, done.stderr
  env = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
  process = subprocess.Popen(
    _command(shards, killed, **study),
    cwd=ROOT,
    env=env,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  while len(list(killed.glob('trials/*/*/summary.json'))) < 3:
    assert process.poll() is None
    time.sleep(0.01)
  process.send_signal(signal.SIGKILL)
  process.wait()
  again = _run(_command(shards, killed, **study))
  assert again.returncode == 0, again.stderr
  assert _trials(killed) == _trials(whole)
  assert _finals(killed) == _finals(whole)
  if search == 'random':
    assert 'pruned' in {trial[2] for trial in _trials(whole).values()}


@pytest.mark.slow
def test_two_processes_share_a_study(shards, tmp_path):
  workdir = tmp_path / 'study'
  command = _command(shards, workdir, optimizers='adamw,sophia')
  env = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
  processes = [
    subprocess.Popen(
      command,
      cwd=ROOT,
      env=env,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for _ in range(2)
  ]
  while not list(workdir.glob('trials/*/*/summary.json')):
    assert all(process.poll() is None for process in processes)
    time.sleep(0.05)
  # The report can be made at any time.
  report = [sys.executable, '-m', 'launch.report', f'--runs={workdir}']
  early = _run([*report, f'--out={tmp_path / "early"}'])
  assert early.returncode == 0, early.stderr
  assert (tmp_path / 'early' / 'report.html').exists()
  outputs = [process.communicate(timeout=900) for process in processes]
  assert [process.returncode for process in processes] == [0, 0], outputs
  said = [
    line.split('% ')[1].split(':')[0]
    for out, _ in outputs
    for line in out.splitlines()
    if ': loss ' in line or ': diverged' in line
  ]
  runs = [p.parent for p in workdir.glob('*/*/*/summary.json')]
  # Each run was done by one of them, and both did some.
  wanted = sorted(f'{run.parent.name} {run.name}' for run in runs)
  assert sorted(said) == wanted
  assert all(': loss ' in out for out, _ in outputs)
  assert all(out.splitlines()[-1].startswith('report: ') for out, _ in outputs)
  assert len(_finals(workdir)) == 4
  assert not list(workdir.rglob('.lock-*'))


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

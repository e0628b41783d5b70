"""Commands whose directories are in buckets, of a server on this machine."""

import argparse
import importlib.metadata
import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from steepest.data import buckets

_ROOT = pathlib.Path(__file__).parent.parent.parent
_VARIABLES = ('AWS_', 'FSSPEC_', 'STORAGE_', 'CLOUD_STORAGE_', 'GCSFS_')
# Killed where the files of the Nth checkpoint are in the bucket, but not yet
# what says that it is whole. Passes are as frequent as a short run is fast.
_KILLED = """
import importlib, os, signal, sys
from steepest.data import buckets
buckets._PASS = 0.2
opened, told, seals = buckets._Copy.__init__, set(), []
number = int(sys.argv.pop(1))

def open_(copy, *arguments):
  opened(copy, *arguments)
  if id(copy._files) in told:
    return
  told.add(id(copy._files))
  put = copy._files.put_file

  def put_file(path, at):
    seals.extend([at] * at.endswith('/checksums.json'))
    if len(seals) == number:
      os.kill(os.getpid(), signal.SIGKILL)
    put(path, at)

  copy._files.put_file = put_file

buckets._Copy.__init__ = open_
importlib.import_module(f'steepest.launch.{sys.argv.pop(1)}').main()
"""
# On a machine of its own.
_APART = """
import os
os.environ['STEEPEST_CACHE'] += os.environ['STEEPEST_PROCESS']
"""
_SMALL = {
  'model.width': 16,
  'model.num_layers': 1,
  'model.context': 16,
  'steps': 8,
  'checkpoint_every': 2,
}


# Both kinds of buckets, one in each test; tests/data/buckets_test.py has more.
_GOOGLE, _S3 = (
  pytest.mark.parametrize(
    'bucket', [kind, pytest.param(other, marks=pytest.mark.slow)], indirect=True
  )
  for kind, other in (('gs', 's3'), ('s3', 'gs'))
)


@pytest.fixture
def machine(bucket, tmp_path, fork_commands, command_env, compiled_once):
  """Returns what runs commands on a machine, one that is killed or several."""

  def run(name, *commands, killed=0):
    env = {k: v for k, v in os.environ.items() if k.startswith(_VARIABLES)}
    env |= {**compiled_once, 'STEEPEST_CACHE': str(tmp_path / name)}
    if not killed:
      return fork_commands(list(commands), **env)
    ((command, arguments),) = commands
    return subprocess.run(
      [sys.executable, '-c', _KILLED, str(killed), command, *arguments],
      env={**command_env, **env},
      cwd=_ROOT,
      capture_output=True,
      text=True,
      timeout=600,
    )

  return run


def _prepare(out):
  text = f'--input={argparse.__file__}'
  rest = ['--tokenizer=bpe-train:300', '--source=code', '--workers=1']
  return 'prepare', [text, f'--out={out}', '--validation_fraction=0.5', *rest]


def _with(command, config, workdir, values):
  keys = [f'--config.{key}={value}' for key, value in values.items()]
  return command, [f'--config={config}', f'--workdir={workdir}', *keys]


def _rows(directory):
  rows = map(json.loads, (directory / 'metrics.jsonl').open())
  timed = ('second', 'mfu', 'goodput')
  return [
    {k: v for k, v in row.items() if not any(t in k for t in timed)}
    for row in rows
  ]


@_GOOGLE
def test_a_run_that_is_killed_goes_on_elsewhere_bit_for_bit(
  bucket, machine, tmp_path, monkeypatch
):
  shards, local = f'{bucket}-shards', tmp_path / 'local'
  (prepared,) = machine('first', _prepare(shards))
  assert prepared.code == 0, prepared.err
  values = {**_SMALL, 'data.source': f'shards:{shards}'}
  train = lambda at: _with('train', 'experiments/tiny.py:gpt2', at, values)
  killed = machine('first', train(bucket), killed=2)
  assert killed.returncode == -signal.SIGKILL, killed.stderr
  monkeypatch.setenv('STEEPEST_CACHE', str(tmp_path / 'reader'))
  left = buckets.read(bucket)
  steps = sorted(int(p.name) for p in (left / 'checkpoints').iterdir())
  seals = [p.parent.name for p in left.glob('checkpoints/*/checksums.json')]
  assert len(seals) == 1 and len(steps) > 1
  assert not (left / 'summary.json').exists()
  out = tmp_path / 'exported'
  model = f'ckpt:{bucket}'
  done = machine(
    'second',
    train(bucket),
    train(local),
    ('watch', [bucket, '--once']),
    ('export', [f'--model={model}', f'--out={out}']),
    ('prepare', [f'--describe={shards}']),
    train(bucket),
  )
  for result in done:
    assert result.code == 0, result.err
  whole = buckets.read(bucket, buckets.newest)
  assert len(_rows(whole)) == 8 and _rows(whole) == _rows(local)
  # It did go on, and did not begin again.
  env = json.loads((whole / 'env.json').read_text())
  assert env['attempt']['number'] == 2
  seconds = [
    json.loads(line)['seconds'] for line in (whole / 'metrics.jsonl').open()
  ]
  assert seconds == sorted(seconds)
  assert '8/8' in done[2].out and 'finished' in done[2].out
  assert (out / 'model.safetensors').stat().st_size > 0


@pytest.mark.parametrize('bucket', ['s3'], indirect=True)
def test_machines_that_share_nothing_go_on_where_they_were_killed(
  bucket, machine, start_processes, tmp_path, monkeypatch
):
  source = {'data.source': 'flat:tests/golden/tokens.npy'}
  values = {**_SMALL, **source, 'mesh.fsdp': 2, 'batch_size': 4}
  values |= {'steps': 6, 'schedule.kind': 'constant'}
  tiny = 'experiments/tiny.py:gpt2'
  command, arguments = _with('train', tiny, bucket, values)

  def start(name, seals):
    words = ['-c', _APART + _KILLED, str(seals), command, *arguments]
    return start_processes(2, words, STEEPEST_CACHE=str(tmp_path / name))

  first, second = start('killed', 2)
  assert first.wait(timeout=300) == -signal.SIGKILL, first.stderr.read()
  second.kill()
  for process in start('elsewhere', 99):
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
  # Each has written a part, and what both have is whole.
  chunks = {
    name: list((tmp_path / name).glob('**/run/checkpoints/6/state/*/[0-9]*'))
    for name in ('elsewhere0', 'elsewhere1')
  }
  assert all(chunks.values()), chunks
  local, values = tmp_path / 'local', {**values, 'mesh.fsdp': 1}
  done = machine(
    'one',
    _with('train', tiny, local, {**values, 'steps': 8}),
    _with('train', tiny, bucket, {**values, 'steps': 8}),
  )
  for result in done:
    assert result.code == 0, result.err
  monkeypatch.setenv('STEEPEST_CACHE', str(tmp_path / 'reader'))
  whole = buckets.read(bucket)
  losses = [[r['train/loss'] for r in _rows(d)] for d in (whole, local)]
  assert len(losses[0]) == 8
  assert losses[0] == pytest.approx(losses[1], rel=2e-5)
  env = json.loads((whole / 'env.json').read_text())
  assert env['attempt']['number'] == 3
  assert not list(whole.glob('**/*?checksums.json'))


@_S3
def test_a_study_that_is_killed_goes_on_elsewhere(bucket, machine, tmp_path):
  values = {
    **_SMALL,
    'data.source': 'flat:tests/golden/tokens.npy',
    'eval_tasks': '',
    'batch_size': 4,
    'schedule.warmup_steps': 2,
    'study.models': 'gpt2',
    'study.optimizers': 'lion',
    'study.trials': 1,
    'study.seeds': 1,
    'study.target_steps': 8,
    'study.max_extensions': 0,
  }
  command = _with('study', 'experiments/quickstart.py', bucket, values)
  command[1].append('--workers=1')
  # Of a target, which keeps one; trials keep none.
  killed = machine('first', command, killed=1)
  assert killed.returncode == -signal.SIGKILL, killed.stderr
  page = tmp_path / 'page'
  again, shown, report = machine(
    'second',
    command,
    ('watch', [bucket, '--once']),
    ('report', [f'--runs={bucket}', f'--out={page}']),
  )
  assert again.code == 0, again.err
  assert report.code == 0, report.err
  assert '2 finished' in shown.out
  assert (page / 'report.html').exists()


@pytest.mark.parametrize('bucket', ['gs'], indirect=True)
def test_a_pack_takes_what_is_in_buckets(bucket, machine, tmp_path):
  have, shards = tmp_path / 'have.txt', f'{bucket}-shards'
  names = sorted({d.name for d in importlib.metadata.distributions()})
  have.write_text(''.join(f'{name} 1.0\n' for name in names))
  with buckets.staged(bucket, 'busy') as stage:
    stage.directory.mkdir(parents=True)
    (stage.directory / 'metrics.jsonl').write_text('1\n')
  source = {'data.source': f'shards:{shards}'}
  command, arguments = _with('pack', 'experiments/tiny.py', bucket, source)
  arguments += [f'--have={have}', f'--out={tmp_path}/pack']
  prepared, packed = machine('one', _prepare(shards), (command, arguments))
  assert prepared.code == 0, prepared.err
  assert packed.code == 0, packed.err
  recipe = json.loads((tmp_path / 'pack' / 'recipe.json').read_text())
  inside = tmp_path / 'pack' / recipe['data']['source'].removeprefix('shards:')
  assert (inside / 'manifest.json').exists()
  [rows] = (tmp_path / 'pack').glob('*/metrics.jsonl')
  assert rows.read_text() == '1\n'


def test_targets_go_where_the_study_is(fork_commands):
  study = ['--config=experiments/quickstart.py', '--workdir=gs://a/b/']
  words = ['--targets=files', '--dry_run', '--nocheck']
  (result,) = fork_commands([('study', [*study, *words])])
  assert result.code == 0, result.err
  assert '"workdir": "gs://a/b/finals/' in result.out
  assert '--workdir=gs://a/b/finals/' in result.out


def test_what_cannot_be_in_a_bucket_is_refused(fork_commands):
  tiny = '--config=experiments/tiny.py'
  results = fork_commands(
    [
      ('pack', [tiny, '--out=gs://a/b.tar']),
      ('train', [tiny, '--workdir=az://a/b']),
    ]
  )
  for result, said in zip(
    results,
    (
      '--out=gs://a/b.tar: takes only local paths',
      'az://a/b: give a directory, gs://BUCKET/PATH or s3://BUCKET/PATH',
    ),
  ):
    assert result.code == 1 and said in result.err
    assert result.err.count('error: ') == 1

"""Directories in buckets, against a server of each kind on this machine."""

import os
import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from steepest.data import buckets, leases, pipeline

# A process that holds a directory, says so and waits to be killed.
_HOLDER = """
import sys, time
from steepest.data import buckets
with buckets.staged(sys.argv[1], 'busy there') as stage:
  stage.directory.mkdir(parents=True, exist_ok=True)
  (stage.directory / 'rows.jsonl').write_text('1\\n')
  stage.push()
  print('held', flush=True)
  time.sleep(600)
"""


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
  """Moves to another machine: another cache."""

  def move(name):
    monkeypatch.setenv('STEEPEST_CACHE', str(tmp_path / name))

  move('first')
  return move


def _write(directory, files):
  for name, text in files.items():
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _files(directory):
  paths = (p for p in directory.rglob('*') if p.is_file())
  return {p.relative_to(directory).as_posix(): p.read_text() for p in paths}


def test_what_one_machine_leaves_another_finds(bucket, caches):
  first = {
    'config.json': '{}',
    'metrics.jsonl': '1\n',
    'a/b c%é': 'x' * 6000000,
  }
  with buckets.staged(bucket, 'busy') as stage:
    _write(stage.directory, {**first, 'old': '0', '.lock': 'here alone'})
    stage.push()
    (stage.directory / 'old').unlink()
    with (stage.directory / 'metrics.jsonl').open('a') as file:
      file.write('2\n')
  caches('second')
  with buckets.staged(bucket, 'busy') as stage:
    assert _files(stage.directory) == {**first, 'metrics.jsonl': '1\n2\n'}
    _write(stage.directory, {'config.json': '{"a": 1}'})
    (stage.directory / 'a' / 'b c%é').unlink()
  # Back where it was: the bucket counts, not what is left there.
  caches('first')
  read = buckets.read(bucket)
  assert _files(read) == {'config.json': '{"a": 1}', 'metrics.jsonl': '1\n2\n'}
  with buckets.staged(bucket, 'busy') as stage:
    assert _files(stage.directory) == {**_files(read), '.lock': 'here alone'}


def test_the_machine_that_wrote_it_gets_nothing_again(bucket, monkeypatch):
  """Its disk is the nearer of two tiers."""
  files = {'checkpoints/1/state': 'x', 'checkpoints/1/checksums.json': '{}'}
  with buckets.staged(bucket, 'busy') as stage:
    _write(stage.directory, files)
  store = buckets._Copy(bucket, 'write')._files
  monkeypatch.setattr(store, 'get', lambda *paths: pytest.fail(str(paths)))
  with buckets.staged(bucket, 'busy') as stage:
    assert _files(stage.directory) == files


def test_a_second_writer_is_refused_until_the_first_is_killed(
  bucket, monkeypatch
):
  monkeypatch.setattr(leases, '_LEASE', 60.0)
  command = [sys.executable, '-c', _HOLDER, bucket]
  holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
  try:
    assert holder.stdout.readline() == 'held\n'
    with pytest.raises(OSError, match=rf'busy there \(process {holder.pid}, '):
      with buckets.staged(bucket, 'busy there'):
        pass
  finally:
    holder.kill()
    holder.wait()
  with buckets.staged(bucket, 'busy there') as stage:
    assert _files(stage.directory) == {'rows.jsonl': '1\n'}


def test_an_owner_of_another_machine_is_given_up_without_signs_of_life(
  bucket, monkeypatch
):
  monkeypatch.setattr(leases, '_LEASE', 2.0)
  elsewhere = iter(['there', 'here'])
  monkeypatch.setattr(leases, '_machine', lambda: next(elsewhere))
  lost = leases.Lease(buckets._Copy(bucket, 'write'), 'busy')
  lost.take(False)
  with buckets.staged(bucket, 'busy'):
    # Back on the network, it sees that it is too late.
    ended = []
    monkeypatch.setattr(os, '_exit', ended.append)
    lost.beat()
    assert ended == [1]


def test_of_many_that_come_at_once_one_gets_it(bucket, monkeypatch):
  monkeypatch.setattr(leases, '_LEASE', 3.0)
  locks = [leases.Lease(buckets._Copy(bucket, 'x'), 'busy') for _ in range(4)]
  got, ended = [], threading.Event()

  def take(lock):
    try:
      lock.take(False)
    except OSError:
      return
    got.append(lock)
    while not ended.wait(0.2):
      lock.beat()

  threads = [threading.Thread(target=take, args=(lock,)) for lock in locks]
  for thread in threads:
    thread.start()
  while sum(thread.is_alive() for thread in threads) > 1:
    time.sleep(0.1)
  ended.set()
  for thread in threads:
    thread.join()
  assert len(got) == 1


def test_a_seal_gets_there_after_what_it_stands_for(bucket, monkeypatch):
  order = []
  copy = buckets._Copy(bucket, 'write')

  def told(do):
    def tell(*paths):
      at = paths[-1]
      order.append([at] if isinstance(at, str) else sorted(at))
      do(*paths)

    return tell

  for name in ('put', 'put_file', 'rm'):
    held = getattr(copy._files, name)
    monkeypatch.setattr(copy._files, name, told(held))
  seal = '{"files": {}}'
  _write(copy.directory, {'checkpoints/1/state': 'x', 'metrics.jsonl': '1\n'})
  _write(copy.directory, {'checkpoints/1/checksums.json': seal})
  _write(copy.directory, {'checkpoints/2.orbax-checkpoint-tmp/state': 'y'})
  copy.push()
  at = bucket.partition('://')[2] + '/'
  assert [[p.removeprefix(at) for p in paths] for paths in order] == [
    ['checkpoints/1/state', 'metrics.jsonl'],
    ['checkpoints/1/checksums.json'],
  ]
  order.clear()
  # The one that replaces it is there before it goes, its seal first.
  _write(copy.directory, {'checkpoints/2/state': 'y'})
  _write(copy.directory, {'checkpoints/2/checksums.json': seal})
  for name in ('state', 'checksums.json'):
    (copy.directory / 'checkpoints' / '1' / name).unlink()
  # A file that goes while the others are taken keeps both for the next pass.
  with monkeypatch.context() as patch:
    patch.setattr(copy, '_names', lambda names=copy._names: names() | {'lost'})
    copy.push()
  assert [path.removeprefix(at) for path in order.pop()] == [
    'checkpoints/2/state'
  ]
  assert not order
  copy.push()
  assert [[p.removeprefix(at) for p in paths] for paths in order] == [
    ['checkpoints/2/checksums.json'],
    ['checkpoints/1/checksums.json'],
    ['checkpoints/1/state'],
  ]


@pytest.mark.parametrize('mode', ['full', 'sampled', 'size'])
def test_batches_are_those_of_the_local_copy(
  shards_dir, data_config, bucket, mode
):
  arguments = {
    'context': 64,
    'batch_size': 4,
    'steps': 3,
    'seed': 0,
    'eval_sequences': 2,
  }
  with buckets.staged(bucket, 'busy') as stage:
    shutil.copytree(shards_dir, stage.directory)
  data_config.verify = mode
  data_config.source = f'shards:{shards_dir}'
  local = pipeline.open_data(data_config, **arguments)
  data_config.source = f'shards:{bucket}'
  remote = pipeline.open_data(data_config, **arguments)
  assert remote.fingerprint == local.fingerprint
  for name, array in local.batch(2).items():
    np.testing.assert_array_equal(remote.batch(2)[name], array)
  assert remote.validation().keys() == local.validation().keys()
  data_config.source = f'shards:{bucket}-nothing'
  with pytest.raises(FileNotFoundError, match='nothing'):
    pipeline.open_data(data_config, **arguments)


def test_choices():
  names = {
    *('config.json', 'checkpoints/2/a', 'checkpoints/2/checksums.json'),
    *('checkpoints/10/a', 'checkpoints/10/checksums.json', 'checkpoints/11/a'),
    *('t/0/summary.json', 't/0/checkpoints/1/a', 't/1/checkpoints/1/a'),
  }
  seals = {f'checkpoints/{n}/checksums.json' for n in (2, 10)}
  kept = {'config.json', 't/0/summary.json', *seals}
  assert buckets.rows(names) == kept
  assert buckets.newest(names) == {*kept, 'checkpoints/10/a'}
  assert buckets.unfinished(names) == names - {'t/0/checkpoints/1/a'}
  study = {'finals/a/seed=0/checkpoints/1/a', 'trials/a/0/checkpoints/1/a'}
  assert buckets.trials(study) == {'trials/a/0/checkpoints/1/a'}


@pytest.mark.parametrize('path', ['az://a/b', 'gs://', 'gs://a', 's3://a/'])
def test_other_addresses_are_refused(path):
  with pytest.raises(ValueError, match=f'{path}: give a directory, gs://'):
    buckets.is_address(path)

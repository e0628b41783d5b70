"""Preparation that is stopped, refused and resumed writes the same bytes."""

import dataclasses
import itertools
import os
import pathlib
import random
import resource
import signal
import subprocess
import sys
import time

import pytest

from steepest.data import locks, manifest as manifests, prepare
from steepest.data.preparing import tokenize

_ROOT = pathlib.Path(__file__).parent.parent.parent


@pytest.fixture(scope='module')
def texts(tmp_path_factory, corpus) -> pathlib.Path:
  """Some megabytes in two files, so that there are several chunks."""
  folder = tmp_path_factory.mktemp('texts')
  lines = corpus.read_text().splitlines()
  copies = (
    line.replace('"text": "', f'"text": "{name} {copy} ')
    for name, copy, line in itertools.product('a', range(6), lines)
  )
  content = list(copies)
  half = len(content) // 3
  (folder / 'a.jsonl').write_text('\n'.join(content[:half]) + '\n{"bad"\n')
  (folder / 'b.jsonl').write_text('\n'.join(content[half:]) + '\n')
  return folder


@pytest.fixture(scope='module')
def options(texts, shards_dir, tmp_path_factory) -> prepare.Options:
  return prepare.Options(
    f'{texts}/*.jsonl',
    f'hf:{shards_dir}',
    tmp_path_factory.mktemp('whole') / 'out',
    shard_tokens=100 * 2048,
  )


@pytest.fixture(scope='module')
def whole(options, console) -> dict[str, bytes]:
  """What one go in one process writes."""
  manifest = prepare.prepare(options, console)
  assert len(manifest.shards) > 4
  return _bytes(options.out)


def _bytes(directory: pathlib.Path) -> dict[str, bytes]:
  return {p.name: p.read_bytes() for p in directory.iterdir()}


def _start(
  options: prepare.Options, out: pathlib.Path, workers: int = 2
) -> subprocess.Popen:
  arguments = {**dataclasses.asdict(options), 'out': out, 'workers': workers}
  arguments['input'] = arguments.pop('inputs')
  return subprocess.Popen(
    [
      sys.executable,
      '-m',
      'launch.prepare',
      *(f'--{k}={v}' for k, v in arguments.items()),
    ],
    cwd=_ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def _children(pid: int) -> list[int]:
  found = []
  for stat in pathlib.Path('/proc').glob('[0-9]*/stat'):
    try:
      fields = stat.read_text().rpartition(')')[2].split()
    except OSError:
      continue
    if int(fields[1]) == pid:
      found.append(int(stat.parent.name))
  return found


def _kill(process: subprocess.Popen) -> None:
  children = _children(process.pid)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  deadline = time.monotonic() + 20
  while any(pathlib.Path(f'/proc/{pid}/cmdline').exists() for pid in children):
    assert time.monotonic() < deadline, 'workers outlive their parent'
    time.sleep(0.05)


def test_killed_in_each_stage_it_ends_the_same(options, whole, tmp_path):
  out = tmp_path / 'out'
  part = tmp_path / '.out.part'
  for stage in ('chunks/*/*.json', 'sorted.json', 'done/*.json'):
    process = _start(options, out)
    while not list(part.glob(stage)):
      assert process.poll() is None, process.communicate()
      time.sleep(0.01)
    _kill(process)
  assert not out.exists()
  done = _start(options, out)
  _, errors = done.communicate()
  assert done.returncode == 0, errors
  assert _bytes(out) == whole
  assert [p.name for p in tmp_path.iterdir()] == ['out']


@pytest.mark.slow
def test_killed_anywhere_it_ends_the_same(options, whole, tmp_path):
  started = time.monotonic()
  _start(options, tmp_path / 'timed').communicate()
  seconds = time.monotonic() - started
  generator = random.Random(0)
  for number in range(20):
    out = tmp_path / str(number)
    for kill in range(1 + number % 2):
      process = _start(options, out, 1 + (number + kill) % 2)
      time.sleep(generator.uniform(0, seconds))
      _kill(process)
    process = _start(options, out, 1)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert _bytes(out) == whole, number
    assert not (tmp_path / f'.{number}.part').exists()


@pytest.mark.parametrize('stage', ['chunks', 'shards'])
def test_full_disk_leaves_nothing_half_written(
  options, whole, tmp_path, console, monkeypatch, stage
):
  options = dataclasses.replace(options, out=tmp_path / 'out')
  limit = 100_000
  if stage == 'shards':
    monkeypatch.setattr(
      'steepest.data.prepare._CHUNK_BYTES', (1 << 17, 1 << 17)
    )
    limit = max(map(len, whole.values())) - 1000
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
  try:
    with pytest.raises(
      OSError, match='no space is left for .*to resume'
    ) as error:
      prepare.prepare(options, console)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert '\n' not in str(error.value)
  part = tmp_path / '.out.part'
  assert not options.out.exists()
  assert (part / 'out').exists() == (stage == 'shards')
  assert not list(part.rglob('*.*.part'))
  prepare.prepare(options, console)
  assert _bytes(options.out) == whole


def test_a_second_process_is_refused(options, tmp_path, console):
  options = dataclasses.replace(options, out=tmp_path / 'out')
  with locks.hold(prepare.unfinished(options.out), 'preparing it'):
    with pytest.raises(OSError, match='another process is preparing'):
      prepare.prepare(options, console)


def test_a_link_stays_and_a_mount_point_is_refused(options, tmp_path, console):
  (tmp_path / 'disk' / 'out').mkdir(parents=True)
  (tmp_path / 'link').symlink_to(tmp_path / 'disk' / 'out')
  prepare.prepare(dataclasses.replace(options, out=tmp_path / 'link'), console)
  assert (tmp_path / 'link').is_symlink()
  assert (tmp_path / 'disk' / 'out' / 'manifest.json').exists()
  mounted = dataclasses.replace(options, out=pathlib.Path('/proc'))
  with pytest.raises(ValueError, match='--out=/proc: is a mount point'):
    prepare.prepare(mounted, console)


def test_changed_inputs_keep_what_is_before_them(
  options, texts, tmp_path, console, monkeypatch
):
  monkeypatch.setattr('steepest.data.prepare._CHUNK_BYTES', (1 << 18, 1 << 18))
  folder = tmp_path / 'texts'
  folder.mkdir()
  for name in ('a.jsonl', 'b.jsonl'):
    (folder / name).write_bytes((texts / name).read_bytes())
  with (folder / 'b.jsonl').open('a') as file:
    file.write('{"bad"\n' * 2000)
  options = dataclasses.replace(
    options, inputs=f'{folder}/*.jsonl', out=tmp_path / 'out'
  )
  with pytest.raises(ValueError, match='more than --max_rejected=0.01'):
    prepare.prepare(options, console)
  part = tmp_path / '.out.part'
  before = {p: os.stat(p).st_mtime_ns for p in part.glob('chunks/*/*.json')}
  (folder / 'b.jsonl').write_bytes((texts / 'b.jsonl').read_bytes())
  kept = []
  real = tokenize.keep

  def keep(*arguments):
    real(*arguments)
    kept.extend(part.glob('chunks/*/*.json'))

  monkeypatch.setattr('steepest.data.preparing.tokenize.keep', keep)
  manifest = prepare.prepare(options, console)
  assert 0 < len(kept) < len(before)
  assert manifest.rejected == 1
  again = dataclasses.replace(options, out=tmp_path / 'again')
  prepare.prepare(again, console)
  assert _bytes(again.out) == _bytes(options.out)


def test_parts_of_the_documents_give_the_same(
  options, whole, tmp_path, console, monkeypatch
):
  """Duplicates and order do not depend on what fits into memory."""
  monkeypatch.setattr('steepest.data.preparing.sorting._PART', 50)
  monkeypatch.setattr('steepest.data.preparing.sorting._CANDIDATES', 1)
  options = dataclasses.replace(options, out=tmp_path / 'out')
  prepare.prepare(options, console)
  assert _bytes(options.out) == whole
  assert manifests.load(options.out).rejected == 1

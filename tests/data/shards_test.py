"""Shards: what a damaged or unfitting directory says, and what is read."""

import dataclasses
import itertools
import json
import pathlib
import resource
import shutil

from etils import epath
import numpy as np
import pytest

from steepest.data import (
  checks,
  files,
  manifest as manifests,
  pipeline,
  prepare,
  shards,
  tokenizers,
)


@pytest.fixture
def copy(shards_dir, tmp_path) -> pathlib.Path:
  return shutil.copytree(shards_dir, tmp_path / 'copy')


def _open(directory, config, **changed):
  config.source = f'shards:{directory}'
  arguments = {
    'context': 64,
    'batch_size': 2,
    'steps': 1,
    'seed': 0,
    'eval_sequences': 1,
    **changed,
  }
  return pipeline.open_data(config, **arguments)


# ---------------------------------------------------------------- refusals


def _second(directory: pathlib.Path) -> pathlib.Path:
  return sorted(directory.glob('train-*.array_record'))[1]


def _flip(path: pathlib.Path, *places: int) -> None:
  content = bytearray(path.read_bytes())
  for at in places:
    content[at] ^= 1
  path.write_bytes(content)


def _flip_inside(directory):
  """In a place that the sampled checksum reads, too."""
  path = _second(directory)
  _flip(path, (path.stat().st_size - 4096) * 8 // 15)


def _cut_short(directory):
  _second(directory).write_bytes(_second(directory).read_bytes()[:-1])


def _flip_the_first_and_lose_the_last(directory):
  """Sizes of all shards come before any checksum."""
  first, *_, last = sorted(directory.glob('*.array_record'))
  _flip(first, -1)
  last.unlink()


def _swap(directory):
  """Two whole shards of the same size, under each other's name."""
  held = [s for s in manifests.load(directory).shards if s.split == 'train']
  first, second = next(
    (directory / a.name, directory / b.name)
    for a, b in itertools.combinations(held, 2)
    if a.bytes == b.bytes and a.records == b.records
  )
  first.rename(directory / 'aside')
  second.rename(first)
  (directory / 'aside').rename(second)


def _claim_a_record_more(directory):
  manifest = manifests.load(directory)
  first, second, *rest = manifest.shards
  second = dataclasses.replace(second, records=second.records + 1)
  manifest = dataclasses.replace(manifest, shards=[first, second, *rest])
  manifests.save(manifest, directory)


def _write_an_id_too_large(directory, at=-1):
  manifest = manifests.load(directory)
  first, second, *rest = manifest.shards
  tokens = np.full(second.records * 2048 + 1, 9, '<u2')
  tokens[at] = 512
  shards.write(directory / second.name, tokens, 2048)
  path = epath.Path(directory / second.name)
  second = dataclasses.replace(
    second,
    bytes=path.stat().length,
    sha256=files.sha256(path),
    sampled_sha256=files.sampled_sha256(path),
  )
  manifest = dataclasses.replace(manifest, shards=[first, second, *rest])
  manifests.save(manifest, directory)


def _save_another_tokenizer(directory):
  tokenizers.train_bpe(iter(['some other text']), 260).save(directory)


def _manifest(**changed):
  def change(directory):
    path = directory / 'manifest.json'
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **changed}))

  return change


def _move_the_shards_out(directory):
  """Whole ones, under names that lead out of the directory."""
  path = directory / 'manifest.json'
  content = json.loads(path.read_text())
  there = directory.with_name('there')
  there.mkdir()
  for shard in content['shards']:
    (directory / shard['name']).rename(there / shard['name'])
    shard['name'] = f'../there/{shard["name"]}'
  path.write_text(json.dumps(content))


_nothing = lambda directory: None


@pytest.mark.parametrize('mode', ['full', 'sampled'])
@pytest.mark.parametrize(
  ('change', 'arguments', 'message'),
  [
    (lambda d: _second(d).unlink(), {}, 'train-00001.* is missing'),
    (_cut_short, {}, 'train-00001.* bytes, its manifest says'),
    (_flip_inside, {}, 'train-00001.*another checksum'),
    (_flip_the_first_and_lose_the_last, {}, 'is missing'),
    (_swap, {}, 'has another checksum'),
    (_claim_a_record_more, {}, r'has \d+ records of .2049. tokens'),
    (_write_an_id_too_large, {}, 'holds token id 512'),
    (_save_another_tokenizer, {}, 'is not the tokenizer bpe-train:512'),
    (lambda d: (d / 'tokenizer.json').unlink(), {}, 'tokenizer.json'),
    (_nothing, {'tokenizer_sha256': '0' * 64}, 'the model with another'),
    (_nothing, {'vocab_size': 500}, 'vocabulary of 512, but the model 500'),
    (_nothing, {'context': 100}, 'use one of 2048, 1024, 512, .*1$'),
    (_nothing, {'context': 4096}, 'use one of 2048, 1024, 512, .*1$'),
    (_nothing, {'context': 0}, 'use one of 2048, 1024, 512, .*1$'),
    (_manifest(version=9), {}, 'version 9'),
    (_manifest(more=1), {}, "unknown field 'more'"),
    (lambda d: (d / 'manifest.json').write_text('{'), {}, 'is damaged'),
    (lambda d: (d / 'manifest.json').unlink(), {}, 'no manifest.json'),
    (_move_the_shards_out, {}, r"a shard named '\.\./there/"),
  ],
)
def test_what_is_damaged_or_does_not_fit_is_one_line(
  copy, data_config, mode, change, arguments, message
):
  change(copy)
  data_config.verify = mode
  with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
    _open(copy, data_config, **arguments)
  assert '\n' not in str(error.value)


def test_an_id_too_large_inside_a_shard_ends_at_its_batch(copy, data_config):
  """Checksums of all bytes are checked, ids of two records."""
  _write_an_id_too_large(copy, at=2048 + 9)
  held = manifests.load(copy).shards
  count = sum(s.records for s in held if s.split == 'train')
  data = _open(copy, data_config, context=2048, batch_size=1, steps=count)
  with pytest.raises(ValueError) as error:
    for _ in data.train(0):
      pass
  said = 'the data hold token id 512 but the vocabulary ends at 511: '
  assert str(error.value) == f'{said}prepare them again'


def test_each_of_four_processes_checks_its_part(copy, monkeypatch):
  """What one misses another has; together they read every file once."""
  manifest = manifests.load(copy)
  read = []
  sha256 = files.sha256
  monkeypatch.setattr(
    checks.files, 'sha256', lambda path: read.append(path.name) or sha256(path)
  )
  for i in range(4):
    checks.verify(epath.Path(copy), manifest, 'auto', (i, 4))
  assert sorted(read) == sorted(s.name for s in manifest.shards)
  _flip_inside(copy)
  for i in (0, 2, 3):
    checks.verify(epath.Path(copy), manifest, 'full', (i, 4))
  with pytest.raises(ValueError, match='train-00001.*another checksum'):
    checks.verify(epath.Path(copy), manifest, 'full', (1, 4))


def test_large_shards_are_sampled_and_said_to_be(copy, monkeypatch, capsys):
  """A flipped bit between the samples is missed, one in a sample is not."""
  monkeypatch.setattr(checks, '_LARGE', 1)
  manifest = manifests.load(copy)
  _flip(_second(copy), 4096)
  checks.verify(epath.Path(copy), manifest, 'auto')
  assert capsys.readouterr().err.count('16 places of every shard') == 1
  _flip_inside(copy)
  with pytest.raises(ValueError, match='train-00001.*another checksum'):
    checks.verify(epath.Path(copy), manifest, 'auto', (1, 4))
  assert not capsys.readouterr().err


def test_what_fits_is_opened(copy, data_config):
  sha256 = manifests.load(copy).tokenizer.sha256
  data = _open(copy, data_config, tokenizer_sha256=sha256, vocab_size=520)
  assert data.vocab_size == 512
  data_config.verify = 'none'
  with pytest.raises(ValueError, match="'auto', 'full', 'sampled' or"):
    _open(copy, data_config)
  _flip_inside(copy)
  data_config.verify = 'size'
  _open(copy, data_config)


def test_older_manifests_are_read_but_have_no_samples(copy, data_config):
  content = json.loads((copy / 'manifest.json').read_text())
  for name in ('validation', 'contaminated', 'program'):
    del content[name]
  for shard in content['shards']:
    del shard['sampled_sha256']
  content['version'] = 1
  content['lengths'] = {'json': [1, 2]}
  (copy / 'manifest.json').write_text(json.dumps(content))
  data = _open(copy, data_config)
  assert data.bytes_per_token.keys() == content['sources'].keys()
  data_config.verify = 'sampled'
  with pytest.raises(ValueError, match='has no sampled checksums'):
    _open(copy, data_config)


# ----------------------------------------------------------------- reading


@pytest.mark.parametrize('context', [1, 32, 2048])
def test_every_dividing_context_reads_the_same_tokens(shards_dir, context):
  manifest = manifests.load(shards_dir)
  held = manifest.select('train', 'email')
  assert len(held) > 1
  windows = shards.ShardWindows(shards_dir, manifest, held, context)
  whole = shards.ShardWindows(shards_dir, manifest, held, 2048)
  read = windows.read(range(2 * 2048 // context))
  expected = np.concatenate([whole.read([0])[0, :-1], whole.read([1])[0]])
  np.testing.assert_array_equal(read[:, :-1].ravel(), expected[:-1])
  assert len(windows) == len(whole) * 2048 // context


def test_tokens_of_four_bytes_are_read_as_written(shards_dir, tmp_path):
  tokens = np.random.default_rng(0).integers(0, 1 << 32, 3 * 2048 + 1)
  tokens = tokens.astype('<u4')
  name = 'train-00000-of-00001.array_record'
  shards.write(tmp_path / name, tokens, 2048)
  shard = manifests.Shard(
    name,
    'train',
    'x',
    records=3,
    tokens=6144,
    documents=1,
    bytes=(tmp_path / name).stat().st_size,
    sha256=files.sha256(epath.Path(tmp_path / name)),
  )
  base = manifests.load(shards_dir)
  manifest = dataclasses.replace(
    base,
    shards=[shard],
    dtype='uint32',
    tokenizer=dataclasses.replace(base.tokenizer, vocab_size=1 << 32),
  )
  checks.verify(epath.Path(tmp_path), manifest, 'full')
  windows = shards.ShardWindows(tmp_path, manifest, [shard], 1024)
  assert len(windows) == 6
  for i in range(6):
    expected = tokens[i * 1024 : i * 1024 + 1025]
    np.testing.assert_array_equal(windows.read([i])[0], expected)


def test_a_damaged_record_is_never_read_as_something_else(shards_dir, copy):
  manifest = manifests.load(copy)
  held = manifest.select('train', 'email')
  whole = shards.ShardWindows(epath.Path(shards_dir), manifest, held, 2048)
  numbers = range(len(whole))
  content = _second(copy).read_bytes()
  generator = np.random.default_rng(0)
  found = 0
  for at in generator.integers(0, len(content), 30):
    damaged = bytearray(content)
    damaged[at] ^= 1 << int(generator.integers(8))
    _second(copy).write_bytes(damaged)
    windows = shards.ShardWindows(epath.Path(copy), manifest, held, 2048)
    try:
      read = windows.read(numbers)
    except ValueError as error:
      assert f'{_second(copy)} is damaged' in str(error)
      assert '\n' not in str(error)
      found += 1
    else:
      np.testing.assert_array_equal(read, whole.read(numbers))
  assert found > 4


@pytest.mark.parametrize('away', ['moved', 'short', 'for ever', 'damaged'])
def test_storage_that_is_away_is_waited_for(
  copy, data_config, monkeypatch, capsys, away
):
  """Shards come back after two tries, or never; damage is not waited for."""
  wanted = _open(copy, data_config).batch(0)
  data = _open(copy, data_config)
  kept = {path: path.read_bytes() for path in copy.glob('train-*')}
  for path in kept:
    if away == 'damaged':
      _flip(path, *range(0, len(kept[path]), 50))
    elif away == 'short':
      path.write_bytes(b'')
    else:
      path.unlink()
  waits = []

  def sleep(seconds):
    waits.append(seconds)
    if away in ('moved', 'short') and len(waits) == 2:
      for path, content in kept.items():
        path.write_bytes(content)

  monkeypatch.setattr(shards.time, 'sleep', sleep)
  if away == 'for ever':
    with pytest.raises(OSError, match='train-0.* cannot be read: restore'):
      data.batch(0)
    assert sum(waits) == 120
  elif away == 'damaged':
    with pytest.raises(ValueError, match='shard .*train-0.* is damaged'):
      data.batch(0)
    assert not waits
  else:
    got = data.batch(0)
    assert waits == [1, 2]
    np.testing.assert_array_equal(got['inputs'], wanted['inputs'])
    assert 'cannot be read' in capsys.readouterr().err


def test_more_shards_than_open_files_are_read(
  corpus, shards_dir, tmp_path, console, data_config, monkeypatch
):
  options = prepare.Options(
    str(corpus), f'hf:{shards_dir}', tmp_path / 'out', shard_tokens=2048
  )
  count = len(prepare.prepare(options, console).shards)
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  held = len(list(pathlib.Path('/proc/self/fd').iterdir()))
  monkeypatch.setattr(shards, '_OPEN_SHARDS', 32)
  assert count > 32 + 50
  try:
    resource.setrlimit(resource.RLIMIT_NOFILE, (held + 32 + 50, hard))
    data = _open(
      options.out, data_config, context=2048, batch_size=1, steps=count // 2
    )
    for _ in data.train(0):
      pass
  finally:
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_index_of_many_shards_is_not_kept(shards_dir, tmp_path):
  """Hard links of one shard stand for a corpus of 20 million records."""
  tokens = np.resize(np.arange(1 << 16, dtype='<u2'), 20_000 * 2048 + 1)
  shards.write(tmp_path / '0', tokens, 2048)
  base = manifests.load(shards_dir)
  held = []
  for i in range(1000):
    if i:
      (tmp_path / str(i)).hardlink_to(tmp_path / '0')
    held.append(
      dataclasses.replace(
        base.shards[0],
        name=str(i),
        records=20_000,
        bytes=(tmp_path / '0').stat().st_size,
      )
    )
  manifest = dataclasses.replace(base, shards=held)
  memory = lambda: int(pathlib.Path('/proc/self/statm').read_text().split()[1])
  windows = shards.ShardWindows(epath.Path(tmp_path), manifest, held, 2048)
  before = memory()
  for i in range(0, 1000, 50):
    numbers = [shard * 20_000 + shard for shard in range(i, i + 50)]
    for number, window in zip(numbers, windows.read(numbers)):
      first = number % 20_000 * 2048
      np.testing.assert_array_equal(window, tokens[first : first + 2049])
  # Ten bytes of each record, as without a limit, are 200 MB.
  assert (memory() - before) * resource.getpagesize() < 100e6

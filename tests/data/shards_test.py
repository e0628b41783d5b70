"""What a damaged or unfitting directory of shards says at open."""

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
  checksums,
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


def _shard(directory: pathlib.Path) -> pathlib.Path:
  return sorted(directory.glob('train-*.array_record'))[1]


def test_missing_shard_is_named(copy, data_config):
  _shard(copy).unlink()
  with pytest.raises(FileNotFoundError, match='train-00001.*is missing'):
    _open(copy, data_config)


def test_shard_that_is_cut_short_is_named(copy, data_config):
  content = _shard(copy).read_bytes()
  _shard(copy).write_bytes(content[:-1])
  with pytest.raises(ValueError, match=f'has {len(content) - 1} bytes'):
    _open(copy, data_config)


def test_flipped_bit_is_found_by_the_checksum(copy, data_config):
  content = bytearray(_shard(copy).read_bytes())
  content[len(content) // 2] ^= 1
  _shard(copy).write_bytes(content)
  with pytest.raises(ValueError, match='train-00001.*another checksum'):
    _open(copy, data_config)
  data_config.verify = 'size'
  _open(copy, data_config)
  data_config.verify = 'none'
  with pytest.raises(ValueError, match="'full', 'sampled' or 'size'"):
    _open(copy, data_config)


def test_sizes_of_all_shards_come_before_any_checksum(copy, data_config):
  first, *_, last = sorted(copy.glob('*.array_record'))
  content = bytearray(first.read_bytes())
  content[-1] ^= 1
  first.write_bytes(content)
  last.unlink()
  with pytest.raises(FileNotFoundError, match=last.name):
    _open(copy, data_config)


def test_other_tokenizers_are_refused(copy, data_config):
  other = tokenizers.train_bpe(iter(['some other text']), 260)
  sha256 = manifests.load(copy).tokenizer.sha256
  _open(copy, data_config, tokenizer_sha256=sha256)
  with pytest.raises(ValueError, match='the model with another'):
    _open(copy, data_config, tokenizer_sha256=other.sha256)
  other.save(copy)
  with pytest.raises(ValueError, match='is not the tokenizer bpe-train:512'):
    _open(copy, data_config)
  (copy / 'tokenizer.json').unlink()
  with pytest.raises(FileNotFoundError, match='tokenizer.json'):
    _open(copy, data_config)


def test_small_vocabularies_are_refused(shards_dir, data_config):
  with pytest.raises(ValueError, match='vocabulary of 512, the model 500'):
    _open(shards_dir, data_config, vocab_size=500)
  data = _open(shards_dir, data_config, vocab_size=520)
  assert data.vocab_size == 512


def test_contexts_that_do_not_divide_name_those_that_do(
  shards_dir, data_config
):
  for context in (100, 4096, 0):
    with pytest.raises(ValueError, match=r'use one of 2048, 1024, 512, .*1$'):
      _open(shards_dir, data_config, context=context)


@pytest.mark.parametrize('context', [1, 32, 2048])
def test_every_dividing_context_reads_the_same_stream(shards_dir, context):
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
    sha256=checksums.sha256(epath.Path(tmp_path / name)),
  )
  manifest = dataclasses.replace(
    manifests.load(shards_dir), shards=[shard], dtype='uint32'
  )
  checks.verify(epath.Path(tmp_path), manifest, 'full')
  windows = shards.ShardWindows(tmp_path, manifest, [shard], 1024)
  assert len(windows) == 6
  for i in range(6):
    expected = tokens[i * 1024 : i * 1024 + 1025]
    np.testing.assert_array_equal(windows.read([i])[0], expected)


def test_damaged_manifests_are_one_line(copy, data_config):
  path = copy / 'manifest.json'
  content = json.loads(path.read_text())
  for text, message in (
    (json.dumps({**content, 'version': 9}), 'version 9'),
    (json.dumps({**content, 'more': 1}), 'damaged'),
    ('{', 'damaged'),
  ):
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
      _open(copy, data_config)
    assert '\n' not in str(error.value)
  path.unlink()
  with pytest.raises(FileNotFoundError, match='no manifest.json'):
    _open(copy, data_config)


def _manifest(directory: pathlib.Path, **changed) -> None:
  """Changes the manifest of a directory."""
  manifest = dataclasses.replace(manifests.load(directory), **changed)
  manifests.save(manifest, directory)


def test_shards_of_another_folder_are_not_read(copy, data_config):
  """Whole ones, under a name that leads out of the directory."""
  path = copy / 'manifest.json'
  content = json.loads(path.read_text())
  there = copy.with_name('there')
  there.mkdir()
  for shard in content['shards']:
    (copy / shard['name']).rename(there / shard['name'])
    shard['name'] = f'../there/{shard["name"]}'
  path.write_text(json.dumps(content))
  with pytest.raises(ValueError, match=r"a shard named '\.\./there/"):
    _open(copy, data_config)


@pytest.mark.parametrize('mode', ['full', 'sampled'])
def test_swapped_shards_are_named(copy, data_config, mode):
  held = [s for s in manifests.load(copy).shards if s.split == 'train']
  first, second = next(
    (a, b)
    for a, b in itertools.combinations(held, 2)
    if a.bytes == b.bytes and a.records == b.records
  )
  (copy / first.name).rename(copy / 'aside')
  (copy / second.name).rename(copy / first.name)
  (copy / 'aside').rename(copy / second.name)
  data_config.verify = mode
  with pytest.raises(ValueError, match=f'{first.name} has another checksum'):
    _open(copy, data_config)


@pytest.mark.parametrize('mode', ['full', 'sampled'])
def test_manifests_of_other_records_name_the_shard(copy, data_config, mode):
  data_config.verify = mode
  _open(copy, data_config)
  held = manifests.load(copy).shards
  more = dataclasses.replace(held[1], records=held[1].records + 1)
  _manifest(copy, shards=[held[0], more, *held[2:]])
  with pytest.raises(
    ValueError, match=f'{more.name} has {more.records - 1} records of .2049.'
  ):
    _open(copy, data_config)


@pytest.mark.parametrize('mode', ['full', 'sampled'])
def test_ids_beyond_the_vocabulary_are_found_at_open(copy, data_config, mode):
  manifest = manifests.load(copy)
  shard = manifest.shards[1]
  tokens = np.full(shard.records * 2048 + 1, 9, '<u2')
  tokens[-1] = 512
  shards.write(copy / shard.name, tokens, 2048)
  path = epath.Path(copy / shard.name)
  shard = dataclasses.replace(
    shard,
    bytes=(copy / shard.name).stat().st_size,
    sha256=checksums.sha256(path),
    sampled_sha256=checksums.sampled(path),
  )
  _manifest(copy, shards=[manifest.shards[0], shard, *manifest.shards[2:]])
  data_config.verify = mode
  with pytest.raises(ValueError, match=f'{shard.name} holds token id 512'):
    _open(copy, data_config)


def test_older_manifests_are_read_but_have_no_samples(copy, data_config):
  content = json.loads((copy / 'manifest.json').read_text())
  for name in ('validation', 'contaminated', 'lengths', 'program'):
    del content[name]
  for shard in content['shards']:
    del shard['sampled_sha256']
  content['version'] = 1
  (copy / 'manifest.json').write_text(json.dumps(content))
  data = _open(copy, data_config)
  assert data.bytes_per_token.keys() == content['sources'].keys()
  data_config.verify = 'sampled'
  with pytest.raises(ValueError, match='has no sampled checksums'):
    _open(copy, data_config)


def test_a_damaged_record_is_never_read_as_something_else(shards_dir, copy):
  manifest = manifests.load(copy)
  held = manifest.select('train', 'email')
  whole = shards.ShardWindows(epath.Path(shards_dir), manifest, held, 2048)
  numbers = range(len(whole))
  content = _shard(copy).read_bytes()
  generator = np.random.default_rng(0)
  found = 0
  for at in generator.integers(0, len(content), 30):
    damaged = bytearray(content)
    damaged[at] ^= 1 << int(generator.integers(8))
    _shard(copy).write_bytes(damaged)
    windows = shards.ShardWindows(epath.Path(copy), manifest, held, 2048)
    try:
      read = windows.read(numbers)
    except ValueError as error:
      assert f'{_shard(copy)} is damaged' in str(error)
      assert '\n' not in str(error)
      found += 1
    else:
      np.testing.assert_array_equal(read, whole.read(numbers))
  assert found > 4


@pytest.mark.parametrize('away', ['moved', 'short'])
def test_storage_that_is_away_is_waited_for(
  copy, data_config, monkeypatch, capsys, away
):
  """Two tries fail, then the shards are back."""
  wanted = _open(copy, data_config).batch(0)
  data = _open(copy, data_config)
  files = sorted(copy.glob('train-*'))
  kept = [path.read_bytes() for path in files]
  for path in files:
    path.unlink() if away == 'moved' else path.write_bytes(b'')
  waits = []

  def sleep(seconds):
    waits.append(seconds)
    if len(waits) == 2:
      for path, content in zip(files, kept):
        path.write_bytes(content)

  monkeypatch.setattr(shards.time, 'sleep', sleep)
  got = data.batch(0)
  assert waits == [1, 2]
  np.testing.assert_array_equal(got['inputs'], wanted['inputs'])
  assert 'cannot be read' in capsys.readouterr().err


def test_storage_that_stays_away_is_named(copy, data_config, monkeypatch):
  data = _open(copy, data_config)
  for path in copy.glob('train-*'):
    path.unlink()
  waits = []
  monkeypatch.setattr(shards.time, 'sleep', waits.append)
  with pytest.raises(OSError, match='shard .*train-0.* cannot be read: bring'):
    data.batch(0)
  assert sum(waits) == 120


def test_a_damaged_record_is_not_waited_for(copy, data_config, monkeypatch):
  data = _open(copy, data_config)
  for path in copy.glob('train-*'):
    content = bytearray(path.read_bytes())
    for at in range(0, len(content), 50):
      content[at] ^= 1
    path.write_bytes(content)
  monkeypatch.delattr(shards.time, 'sleep')
  with pytest.raises(ValueError, match='shard .*train-0.* is damaged'):
    data.batch(0)


def test_more_shards_than_open_files_are_read(
  corpus, shards_dir, tmp_path, console, data_config, monkeypatch
):
  options = prepare.Options(
    str(corpus), f'hf:{shards_dir}', tmp_path / 'out', shard_tokens=2048
  )
  count = len(prepare.prepare(options, console).shards)
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  held = len(list(pathlib.Path('/proc/self/fd').iterdir()))
  assert count > 100
  try:
    resource.setrlimit(resource.RLIMIT_NOFILE, (held + 50, hard))
    data = _open(
      options.out, data_config, context=2048, batch_size=1, steps=count // 2
    )
    for _ in data.train(0):
      pass
  finally:
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
  monkeypatch.setattr(resource, 'getrlimit', lambda what: (300, 300))
  with pytest.raises(OSError, match='the system allows 300 files'):
    _open(options.out, data_config)

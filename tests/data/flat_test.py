"""Flat token files against the bytes of the three formats."""

import hashlib
import io
import json
import os

import numpy as np
import pytest

from steepest.data import flat


def test_npy_and_both_kinds_of_bin_hold_the_same_tokens(tmp_path):
  tokens = np.arange(1000, dtype=np.uint16)
  np.save(tmp_path / 'a.npy', tokens)
  tokens.tofile(tmp_path / 'b.bin')
  header = np.zeros(256, np.int32)
  header[:3] = 20240520, 1, 1000
  (tmp_path / 'c.bin').write_bytes(header.tobytes() + tokens.tobytes())
  header[:3] = 20240801, 7, 1000
  wide = tokens.astype(np.uint32)
  (tmp_path / 'd.bin').write_bytes(header.tobytes() + wide.tobytes())
  for name in ('a.npy', 'b.bin', 'c.bin', 'd.bin'):
    read = flat.open_tokens(tmp_path / name)
    np.testing.assert_array_equal(read, tokens)
    assert flat.contents(tmp_path / name).max_id == 999


def test_each_of_four_processes_reads_its_part(tmp_path, monkeypatch):
  """Together they read every token once, and find what one would find."""
  tokens = np.random.default_rng(0).integers(0, 5000, 950).astype(np.uint16)
  tokens.tofile(tmp_path / 'a.bin')
  assert flat.contents(tmp_path / 'a.bin').sha256 == _sha256(tokens)
  monkeypatch.setattr(flat, '_PIECE', 100)
  read, real = [], flat._read_piece
  monkeypatch.setattr(
    flat, '_read_piece', lambda path, i: read.append(i) or real(path, i)
  )
  # Other pieces than above: the same file at another time.
  os.utime(tmp_path / 'a.bin', (1, 1))
  parts = [flat.check(tmp_path / 'a.bin', (i, 4)) for i in range(4)]
  assert sorted(read) == list(range(10))
  assert [len(part) for part in parts] == [3, 3, 2, 2]
  hashes = ','.join(_sha256(tokens[i : i + 100]) for i in range(0, 950, 100))
  heard = json.loads(json.dumps(parts))
  assert flat.join(heard) == (hashes, tokens.max())


def _sha256(tokens):
  return hashlib.sha256(tokens.tobytes()).hexdigest()


def _npy(array):
  file = io.BytesIO()
  np.save(file, array)
  return file.getvalue()


_HEADER = np.array([20240520, 1, 1000, *[0] * 253], '<i4').tobytes()


@pytest.mark.parametrize(
  ('name', 'content', 'message'),
  [
    ('x.npy', b'no array', 'not a readable .npy'),
    ('x.npy', _npy(np.array([{}])), 'not a readable .npy'),
    ('x.npy', _npy(np.arange(9)), 'int64'),
    ('x.bin', b'odd', 'an odd number'),
    ('x.bin', b'', 'no tokens'),
    ('x.bin', _HEADER + bytes(1998), 'header of 1000 tokens'),
    ('x.txt', b'text', 'neither .npy nor .bin'),
  ],
)
def test_other_files_are_refused(tmp_path, name, content, message):
  (tmp_path / name).write_bytes(content)
  with pytest.raises(ValueError, match=message):
    flat.open_tokens(tmp_path / name)
  with pytest.raises(FileNotFoundError, match='nowhere.npy'):
    flat.open_tokens(tmp_path / 'nowhere.npy')


def test_contents_notice_a_changed_file(tmp_path):
  path = tmp_path / 'a.npy'
  np.save(path, np.arange(9, dtype=np.uint16))
  before = flat.contents(path)
  np.save(path, np.arange(1, 10, dtype=np.uint16))
  after = flat.contents(path)
  assert after.max_id == 9 and before.sha256 != after.sha256

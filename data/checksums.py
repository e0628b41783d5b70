"""Hashes of files, local or in a bucket; an unchanged one is read once."""

import functools
import hashlib
import os
from typing import NamedTuple

from etils import epath

# Places of a file that the sampled hash takes, and bytes of each.
_SAMPLES = 16
_SAMPLE_BYTES = 4096


class Stamp(NamedTuple):
  """What changes when a file does; `mtime` is in ns, in a bucket in s."""

  bytes: int
  mtime: int


def stamp(path: epath.Path) -> Stamp:
  """Returns size and time of a file."""
  if '://' not in os.fspath(path):
    stat = os.stat(path)
    return Stamp(stat.st_size, stat.st_mtime_ns)
  held = path.stat()
  return Stamp(held.length, held.mtime)


def sha256(path: epath.Path) -> str:
  """Returns the hash of a whole file."""
  return _sha256(path, stamp(path))


def sampled(path: epath.Path) -> str:
  """Returns the hash of a file's size and of places all over it."""
  return _sampled(path, stamp(path))


@functools.lru_cache(maxsize=65536)
def _sha256(path: epath.Path, held: Stamp) -> str:
  del held  # It only tells a changed file from a known one.
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


@functools.lru_cache(maxsize=65536)
def _sampled(path: epath.Path, held: Stamp) -> str:
  digest = hashlib.sha256(held.bytes.to_bytes(8, 'little'))
  with path.open('rb') as file:
    for i in range(_SAMPLES):
      file.seek(max(held.bytes - _SAMPLE_BYTES, 0) * i // (_SAMPLES - 1))
      digest.update(file.read(_SAMPLE_BYTES))
  return digest.hexdigest()

"""Files: written atomically, and hashed once.

A hash is cached as long as the file, local or in a bucket, keeps its size and
modification time.
"""

from collections.abc import Callable, Iterable, Iterator
import contextlib
import errno
import functools
import hashlib
import os
import pathlib
from typing import Any, NamedTuple, TypeVar

from etils import epath

_T = TypeVar('_T')
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Places that the sampled hash reads in a file, and bytes at each.
_SAMPLES = 16
_SAMPLE_BYTES = 4096


def write(path: pathlib.Path, pieces: Iterable[Any]) -> None:
  """Writes bytes or contiguous arrays, one after the other, as a file.

  Raises:
    OSError: the disk is full; nothing is left of the file.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  # If two processes write the same file, the last one wins.
  part = path.with_name(f'{path.name}.{os.getpid()}.part')
  try:
    with part.open('wb') as file:
      for piece in pieces:
        file.write(piece)
    os.replace(part, path)
  finally:
    part.unlink(missing_ok=True)


@contextlib.contextmanager
def room_for(part: pathlib.Path) -> Iterator[None]:
  """Makes the error of a full disk say what to do.

  Args:
    part: directory of unfinished work, which the same command resumes.

  Raises:
    OSError: the disk is full.
  """
  try:
    yield
  except OSError as error:
    if error.errno in _NO_SPACE:
      raise OSError(
        f'no space is left for {part} ({error.strerror}): free some and run '
        'the same command again to resume; or delete it'
      ) from error
    raise


class Stamp(NamedTuple):
  """A file's size and modification time (ns; in a bucket s)."""

  bytes: int
  mtime: int


def stamp(path: epath.Path) -> Stamp:
  """Returns the stamp of a file."""
  if '://' not in os.fspath(path):
    stat = os.stat(path)
    return Stamp(stat.st_size, stat.st_mtime_ns)
  remote = path.stat()
  return Stamp(remote.length, remote.mtime)


def once(fn: Callable[..., _T]) -> Callable[..., _T]:
  """Caches fn(path, …) as long as the file keeps its size and time."""

  @functools.lru_cache(maxsize=65536)
  def known(path: epath.Path, stamp: Stamp, *args: Any) -> _T:
    del stamp  # A cache key: distinguishes a changed file.
    return fn(path, *args)

  @functools.wraps(fn)
  def remembered(path: epath.Path, *args: Any) -> _T:
    return known(path, stamp(path), *args)

  return remembered


@once
def sha256(path: epath.Path) -> str:
  """Returns the hash of a whole file."""
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


@once
def sampled_sha256(path: epath.Path) -> str:
  """Returns the hash of a file's size and of 16 places spread over it."""
  size = stamp(path).bytes
  digest = hashlib.sha256(size.to_bytes(8, 'little'))
  with path.open('rb') as file:
    for i in range(_SAMPLES):
      file.seek(max(size - _SAMPLE_BYTES, 0) * i // (_SAMPLES - 1))
      digest.update(file.read(_SAMPLE_BYTES))
  return digest.hexdigest()

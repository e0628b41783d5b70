"""Token shards in ArrayRecord files: written once, read in windows.

R is a record's tokens less the one it shares with the next, T the context,
N the tokens of a stream.
"""

import bisect
from collections.abc import Sequence
import errno
import itertools
import os
import pathlib
import resource
import sys
import time

from array_record.python import array_record_data_source, array_record_module
from etils import epath
import numpy as np

from steepest.data import manifest as manifests

# Seconds between tries to read a shard: two minutes in all.
_WAITS = (1, 2, 4, 8, 15, 30, 60)

# Files that a process may have open beside the shards.
_OTHER_FILES = 256


class ShardWindows:
  """Windows of T + 1 tokens in the shards of one source and split."""

  def __init__(
    self,
    directory: epath.Path,
    manifest: manifests.Manifest,
    shards: Sequence[manifests.Shard],
    context: int,
  ):
    self._context = context
    self._dtype = np.dtype(manifest.dtype).newbyteorder('<')
    self._per_record = manifest.record_tokens // context
    self._length = self._per_record * sum(s.records for s in shards)
    # With its range of records a file need not be opened to count them.
    self._paths = [f'{directory / s.name}[0:{s.records}]' for s in shards]
    self._files = [directory / s.name for s in shards]
    self._sizes = [s.bytes for s in shards]
    self._ends = list(itertools.accumulate(s.records for s in shards))
    if shards:
      self._open()

  def __len__(self) -> int:
    return self._length

  def read(self, numbers: Sequence[int]) -> np.ndarray:
    """Returns some windows, [n, T + 1]; each record is read once.

    Storage that is away for a while is waited for.

    Raises:
      OSError: a shard still cannot be read.
      ValueError: a shard is damaged there.
    """
    located = [divmod(i, self._per_record) for i in numbers]
    records = self._read(list(dict.fromkeys(record for record, _ in located)))
    windows = np.empty((len(located), self._context + 1), self._dtype)
    for window, (record, part) in zip(windows, located):
      window[:] = np.frombuffer(
        records[record],
        self._dtype,
        self._context + 1,
        part * self._context * self._dtype.itemsize,
      )
    return windows

  def _open(self) -> None:
    self._records = array_record_data_source.ArrayRecordDataSource(self._paths)

  def _read(self, records: list[int]) -> dict[int, bytes]:
    path, reason = self._files[0], 'now and then'
    for wait in (*_WAITS, None):
      try:
        return dict(zip(records, self._records.__getitems__(records)))
      except RuntimeError:
        # A reader that failed once would fail for ever.
        self._open()
      shard = self._failing(records)
      if shard is None:
        continue
      number, reason = shard
      path = self._files[number]
      if _is_there(path, self._sizes[number]):
        # A checksum inside the file does not match.
        raise ValueError(
          f'shard {path} is damaged: copy it again or prepare the text again '
          f'({reason})'
        )
      if wait is None:
        break
      print(
        f'warning: shard {path} cannot be read ({reason}); trying again in '
        f'{wait} s',
        file=sys.stderr,
      )
      time.sleep(wait)
    raise OSError(
      f'shard {path} cannot be read: bring it back and run the same command '
      f'again ({reason})'
    )

  def _failing(self, records: Sequence[int]) -> tuple[int, str] | None:
    """Returns the number of the first shard that cannot be read, and why."""
    for record in records:
      try:
        self._records.__getitems__([record])
      except RuntimeError as error:
        number = bisect.bisect_right(self._ends, record)
        self._open()
        return number, ' '.join(str(error).split())
    return None


def _is_there(path: epath.Path, size: int) -> bool:
  """Whether a file is as long as it was and gives all its bytes."""
  try:
    with path.open('rb') as file:
      return size == sum(len(c) for c in iter(lambda: file.read(1 << 20), b''))
  except OSError:
    return False


def allow_files(count: int) -> None:
  """Lets this process have so many shards open at a time.

  Raises:
    OSError: the system does not allow as many.
  """
  needed = count + _OTHER_FILES
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  unlimited = resource.RLIM_INFINITY
  if soft in (unlimited, max(soft, needed)):
    return
  if hard not in (unlimited, max(hard, needed)):
    raise OSError(
      f'{count} shards are open at a time, the system allows {hard} files: '
      'raise that (ulimit -Hn) or prepare with a larger --shard_tokens'
    )
  resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def write(path: pathlib.Path, tokens_N: np.ndarray, record_tokens: int) -> None:
  """Writes the records of a stream of records · R + 1 tokens.

  Args:
    path: the file.
    tokens_N: the tokens, in the type in which they are stored.
    record_tokens: R.

  Raises:
    OSError: the disk is full; nothing is left of the file.
  """
  part = path.with_name(f'{path.name}.{os.getpid()}.part')
  try:
    # One record a group: any record is read without its neighbours.
    writer = array_record_module.ArrayRecordWriter(str(part), 'group_size:1')
    try:
      for start in range(0, len(tokens_N) - 1, record_tokens):
        writer.write(tokens_N[start : start + record_tokens + 1].tobytes())
      writer.close()
    except RuntimeError as error:
      # It gives no errno: on a full disk, or one that cannot be written.
      raise OSError(errno.ENOSPC, str(error), str(part)) from error
    os.replace(part, path)
  finally:
    part.unlink(missing_ok=True)

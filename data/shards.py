"""Token shards in ArrayRecord files: written once, read in windows.

R is a record's tokens minus the one shared with the next record, T the context,
N the tokens of a stream.
"""

import bisect
from collections.abc import Sequence
from concurrent import futures
import errno
import functools
import itertools
import math
import os
import pathlib
import sys
import time

from array_record.python import array_record_module
from etils import epath
import numpy as np

from steepest.data import manifest as manifests

# Seconds between attempts to read a shard: two minutes in all.
_WAITS = (1, 2, 4, 8, 15, 30, 60)

# Most shards kept open, and most records in them: their index takes ten bytes
# of memory per record. It is compressed in the file, and opening reads all of
# it, so that a shard not kept open costs about a millisecond per record read.
_OPEN_SHARDS = 128
_OPEN_RECORDS = 1 << 21
# Shards read in parallel, and bytes read from a file at a time.
_THREADS = 16
_BUFFER_BYTES = 8192


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
    self._directory, self._shards = directory, shards
    self._ends = list(itertools.accumulate(s.records for s in shards))
    # The limits for all shards together are divided among the sources.
    count = max(len(manifest.shards), 1)
    records = max(sum(s.records for s in manifest.shards), 1)
    share = min(_OPEN_SHARDS / count, _OPEN_RECORDS / records)
    self._reader = functools.lru_cache(math.ceil(len(shards) * share))(
      self._open
    )

  def __len__(self) -> int:
    return self._length

  def read(self, numbers: Sequence[int]) -> np.ndarray:
    """Returns n windows, [n, T + 1]; reads each record once.

    Waits for storage that is temporarily away.

    Raises:
      OSError: a shard still cannot be read.
      ValueError: a shard is damaged at these windows.
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

  def _open(self, number: int) -> array_record_module.ArrayRecordReader:
    return array_record_module.ArrayRecordReader(
      os.fspath(self._directory / self._shards[number].name),
      options='readahead_buffer_size:0,footer_prefetch_bytes:0',
      file_reader_buffer_size=_BUFFER_BYTES,
    )

  def _read(self, records: list[int]) -> dict[int, bytes]:
    groups: dict[int, list[int]] = {}
    for record in records:
      number = bisect.bisect_right(self._ends, record)
      groups.setdefault(number, []).append(record)
    try:
      with futures.ThreadPoolExecutor(_THREADS) as pool:
        found = list(pool.map(self._read_shard, groups, groups.values()))
    except RuntimeError:
      found = [self._read_patiently(n, group) for n, group in groups.items()]
    read = itertools.chain.from_iterable(found)
    return dict(zip(itertools.chain.from_iterable(groups.values()), read))

  def _read_shard(self, number: int, records: list[int]) -> list[bytes]:
    first = self._ends[number] - self._shards[number].records
    return self._reader(number).read([r - first for r in records])

  def _read_patiently(self, number: int, records: list[int]) -> list[bytes]:
    """Reads records of a shard, which may be temporarily away."""
    shard = self._shards[number]
    path = self._directory / shard.name
    for wait in (*_WAITS, None):
      # A reader that failed once would fail forever.
      self._reader.cache_clear()
      try:
        return self._read_shard(number, records)
      except RuntimeError as error:
        reason = ' '.join(str(error).split())
      if _is_there(path, shard.bytes):
        # A checksum inside the file does not match.
        raise ValueError(
          f'shard {path} is damaged: copy it again or prepare the text again '
          f'({reason})'
        )
      if wait is not None:
        print(
          f'warning: shard {path} cannot be read ({reason}); trying again in '
          f'{wait} s',
          file=sys.stderr,
        )
        time.sleep(wait)
    raise OSError(
      f'shard {path} cannot be read: restore it and run the same command '
      f'again ({reason})'
    )


def _is_there(path: epath.Path, size: int) -> bool:
  """Whether a file has its former size and all its bytes can be read."""
  try:
    with path.open('rb') as file:
      return size == sum(len(c) for c in iter(lambda: file.read(1 << 20), b''))
  except OSError:
    return False


def write(path: pathlib.Path, tokens_N: np.ndarray, record_tokens: int) -> None:
  """Writes the records of a stream of records · R + 1 tokens.

  Args:
    path: the file.
    tokens_N: the tokens, in their dtype on disk.
    record_tokens: R.

  Raises:
    OSError: the disk is full; nothing is left of the file.
  """
  part = path.with_name(f'{path.name}.{os.getpid()}.part')
  try:
    # One record per group: any record can be read without its neighbours.
    writer = array_record_module.ArrayRecordWriter(str(part), 'group_size:1')
    try:
      for start in range(0, len(tokens_N) - 1, record_tokens):
        writer.write(tokens_N[start : start + record_tokens + 1].tobytes())
      writer.close()
    except RuntimeError as error:
      # The writer sets no errno if the disk is full or cannot be written.
      raise OSError(errno.ENOSPC, str(error), str(part)) from error
    os.replace(part, path)
  finally:
    part.unlink(missing_ok=True)

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

from array_record.python import array_record_data_source
from array_record.python import array_record_module
from etils import epath
import numpy as np

from steepest.data import manifest as manifests


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
    paths = [f'{directory / s.name}[0:{s.records}]' for s in shards]
    self._files = [directory / s.name for s in shards]
    self._ends = list(itertools.accumulate(s.records for s in shards))
    self._records = (
      array_record_data_source.ArrayRecordDataSource(paths) if paths else None
    )

  def __len__(self) -> int:
    return self._length

  def read(self, numbers: Sequence[int]) -> np.ndarray:
    """Returns some windows, [n, T + 1]; each record is read once.

    Raises:
      ValueError: a shard is damaged there.
    """
    assert self._records is not None, 'no shards, no windows'
    located = [divmod(i, self._per_record) for i in numbers]
    records = list(dict.fromkeys(record for record, _ in located))
    try:
      held = dict(zip(records, self._records.__getitems__(records)))
    except RuntimeError as error:  # A checksum inside the file does not match.
      raise self._damaged(records) from error
    windows = np.empty((len(located), self._context + 1), self._dtype)
    for window, (record, part) in zip(windows, located):
      window[:] = np.frombuffer(
        held[record],
        self._dtype,
        self._context + 1,
        part * self._context * self._dtype.itemsize,
      )
    return windows

  def _damaged(self, records: Sequence[int]) -> ValueError:
    """Finds the shard that could not be read."""
    assert self._records is not None
    for record in records:
      path = self._files[bisect.bisect_right(self._ends, record)]
      try:
        self._records[record]
      except RuntimeError as error:
        reason = ' '.join(str(error).split())
        return ValueError(
          f'shard {path} is damaged: copy it again or prepare the text again '
          f'({reason})'
        )
    return ValueError(f'a shard beside {path} could not be read: try again')


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

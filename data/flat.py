"""One flat token file: `.npy`, or the `.bin` of nanoGPT and llm.c.

T is the context, n a number of windows, N the tokens of a file.
"""

from collections.abc import Sequence
import hashlib
import os
import pathlib
from typing import NamedTuple

import numpy as np

from steepest.data import files

# llm.c's header: 256 int32, of which magic, version and number of tokens are
# used (dev/data/data_common.py there).
_HEADER = 256
_LLMC: dict[tuple[int, int], np.dtype] = {
  (20240520, 1): np.dtype('<u2'),
  (20240801, 7): np.dtype('<u4'),
}
_CHUNK = 1 << 24


class Contents(NamedTuple):
  """A token file's hash and largest token id."""

  sha256: str
  max_id: int


class FlatWindows:
  """Windows of T + 1 tokens; window i starts at token i·T."""

  def __init__(self, tokens_N: np.ndarray, context: int):
    self._tokens_N = tokens_N
    self._context = context

  def __len__(self) -> int:
    return max(len(self._tokens_N) - 1, 0) // self._context

  def read(self, numbers: Sequence[int]) -> np.ndarray:
    """Returns some windows, [n, T + 1]."""
    size = self._context
    return np.stack(
      [self._tokens_N[i * size : (i + 1) * size + 1] for i in numbers]
    )


def open_tokens(path: pathlib.Path) -> np.ndarray:
  """Maps a token file into memory.

  Args:
    path: one-dimensional `.npy` of uint16 or uint32; `.bin` of raw uint16
      (nanoGPT), or with llm.c's header, recognized by its magic number.

  Returns:
    The tokens, uint16 or uint32[N], read from disk on use.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is of another kind, or truncated.
  """
  if not path.is_file():
    raise FileNotFoundError(f'no token file {path}: check data.source')
  if path.suffix == '.npy':
    return _open_npy(path)
  if path.suffix == '.bin':
    return _open_bin(path)
  raise ValueError(
    f'{path} is neither .npy nor .bin: data.source=flat: reads .npy of '
    'uint16 or uint32 and the .bin of nanoGPT and llm.c'
  )


@files.once
def contents(path: pathlib.Path) -> Contents:
  """Reads a file and returns its hash and largest token id."""
  tokens_N = open_tokens(path)
  digest, max_id = hashlib.sha256(), 0
  for start in range(0, len(tokens_N), _CHUNK):
    chunk = np.ascontiguousarray(tokens_N[start : start + _CHUNK])
    digest.update(chunk.data)
    max_id = max(max_id, int(chunk.max()))
  return Contents(digest.hexdigest(), max_id)


def _open_npy(path: pathlib.Path) -> np.ndarray:
  try:
    tokens_N = np.load(path, mmap_mode='r', allow_pickle=False)
  except Exception as error:  # A damaged header raises what a tokenizer does.
    # NumPy quotes the whole header, which may be most of the file.
    reason = str(error)[:200]
    raise ValueError(f'{path} is not a readable .npy file: {reason}') from error
  if tokens_N.ndim != 1 or tokens_N.dtype not in (np.uint16, np.uint32):
    raise ValueError(
      f'{path} holds {tokens_N.dtype} of shape {tokens_N.shape}: save one '
      'dimension of uint16 or uint32'
    )
  return tokens_N


def _open_bin(path: pathlib.Path) -> np.ndarray:
  size = os.path.getsize(path)
  header = np.fromfile(path, '<i4', _HEADER)
  dtype: np.dtype = np.dtype('<u2')
  offset = 0
  if len(header) == _HEADER and (key := (header[0], header[1])) in _LLMC:
    dtype, offset = _LLMC[key], header.nbytes
    if size != offset + int(header[2]) * dtype.itemsize:
      raise ValueError(
        f'{path} has {size} bytes where its header of {header[2]} tokens '
        f'requires {offset + int(header[2]) * dtype.itemsize}: copy it again'
      )
  elif size % dtype.itemsize:
    raise ValueError(f'{path} has {size} bytes, an odd number: not uint16')
  if size == offset:
    raise ValueError(f'{path} holds no tokens')
  return np.memmap(path, dtype, 'r', offset)

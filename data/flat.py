"""One flat token file: `.npy`, or the `.bin` of nanoGPT and llm.c.

T is the context, n a number of windows, N the tokens of a file.
"""

from collections.abc import Iterable, Sequence
from concurrent import futures
import functools
import hashlib
import itertools
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np

from steepest.data import files

# llm.c's header: 256 int32, of which magic, version and number of tokens are
# used (dev/data/data_common.py there).
_HEADER = 256
_LLMC: dict[tuple[int, int], np.dtype] = {
  (20240520, 1): np.dtype('<u2'),
  (20240801, 7): np.dtype('<u4'),
}
# Tokens of a piece, which is hashed by itself, and pieces read in parallel.
_PIECE = 1 << 27
_THREADS = 4


class Contents(NamedTuple):
  """The hash of a file's tokens, or of a piece of them, and the largest id."""

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


def check(path: pathlib.Path, part: tuple[int, int] = (0, 1)) -> list[Contents]:
  """Reads pieces of a file; a process reads an unchanged one only once.

  Args:
    path: of the token file.
    part: (i, n) for pieces i, i + n, …: what one of n processes reads.

  Raises:
    FileNotFoundError, ValueError: as `open_tokens`.
  """
  count = max(1, -(-len(open_tokens(path)) // _PIECE))
  with futures.ThreadPoolExecutor(_THREADS) as pool:
    read = functools.partial(_read_piece, path)
    return list(pool.map(read, range(count)[part[0] :: part[1]]))


def join(checked: Sequence[Iterable[Sequence[Any]]]) -> Contents:
  """Returns a file's contents from what each of n processes read of it.

  Takes results of `check`, also as JSON has them. The hash is that of all
  tokens if they are one piece, else the hashes of all pieces.
  """
  # Process i read pieces i, i + n, …
  pieces = [
    Contents(*piece)
    for row in itertools.zip_longest(*checked)
    for piece in row
    if piece is not None
  ]
  return Contents(
    ','.join(piece.sha256 for piece in pieces), max(p.max_id for p in pieces)
  )


def contents(path: pathlib.Path) -> Contents:
  """Reads a whole file, once."""
  return join([check(path)])


@files.once
def _read_piece(path: pathlib.Path, number: int) -> Contents:
  tokens_N = open_tokens(path)[number * _PIECE :][:_PIECE]
  return Contents(
    hashlib.sha256(np.ascontiguousarray(tokens_N).data).hexdigest(),
    int(tokens_N.max(initial=0)),
  )


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

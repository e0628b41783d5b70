"""Files that are there whole or not at all."""

from collections.abc import Iterable
import os
import pathlib
from typing import Any


def write(path: pathlib.Path, pieces: Iterable[Any]) -> None:
  """Writes bytes or contiguous arrays, one after the other, as a file.

  Raises:
    OSError: the disk is full; nothing is left of it.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  # Of two processes that write the same file, the last one stays.
  part = path.with_name(f'{path.name}.{os.getpid()}.part')
  try:
    with part.open('wb') as file:
      for piece in pieces:
        file.write(piece)
    os.replace(part, path)
  finally:
    part.unlink(missing_ok=True)

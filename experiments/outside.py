"""Files outside the repository that a configuration names by their path."""

from collections.abc import Sequence
import functools
import importlib.util
import os
import pathlib
import re
import sys
import types


def is_path(name: str) -> bool:
  """Returns whether a name is the path of a file, such as './mine.py'."""
  return name.endswith('.py')


def stem(name: str) -> str:
  """Returns the stem of a path, and a name as it is."""
  return pathlib.Path(name).stem if is_path(name) else name


def absolute(names: str) -> str:
  """Returns names separated by commas, the paths among them absolute.

  A limit may follow a path, './trivia.py:100'.

  Raises:
    ValueError: a path would hold a comma.
  """
  return ','.join(map(_absolute, names.split(',')))


def _absolute(word: str) -> str:
  match = re.fullmatch(r'\s*(.+\.py)((?::\d+)?)\s*', word)
  if match is None:
    return word
  path = os.path.abspath(match[1])
  if ',' in path:
    raise ValueError(f'{path}: the path of a file may hold no comma')
  return path + match[2]


def load(
  what: str, path: str, contents: Sequence[str] = ()
) -> types.ModuleType:
  """Returns a file as a module, loaded once.

  Args:
    what: stands before the path in errors, such as 'model.name='.
    path: of the file.
    contents: what it must define.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it cannot be imported, or lacks one of `contents`.
  """
  if not pathlib.Path(path).is_file():
    raise FileNotFoundError(f'{what}{path}: there is no such file')
  try:
    module = _load(pathlib.Path(path).resolve())
  # SystemExit: of a script that was given by mistake.
  except (Exception, SystemExit) as error:
    text = ' '.join(str(error).split())
    raise ValueError(
      f'{what}{path} cannot be imported: {type(error).__name__}: {text}'
    ) from error
  if missing := [name for name in contents if not hasattr(module, name)]:
    raise ValueError(f'{what}{path}: the file has no {", ".join(missing)}')
  return module


@functools.cache
def _load(path: pathlib.Path) -> types.ModuleType:
  spec = importlib.util.spec_from_file_location(f'file {path}', path)
  assert spec is not None and spec.loader is not None  # It ends in .py.
  module = importlib.util.module_from_spec(spec)
  # Dataclasses look their module up while it is imported.
  sys.modules[spec.name] = module
  try:
    spec.loader.exec_module(module)
  except BaseException:
    del sys.modules[spec.name]
    raise
  return module

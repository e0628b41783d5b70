"""Loads Python files that a configuration names by path."""

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
  """Returns the stem of a path; returns a name unchanged."""
  return pathlib.Path(name).stem if is_path(name) else name


def absolute(name: str) -> str:
  """Makes a path absolute; returns a name unchanged.

  A limit may follow the path: './trivia.py:100'.
  """
  match = re.fullmatch(r'\s*(.+\.py)((?::\d+)?)\s*', name)
  return name if match is None else os.path.abspath(match[1]) + match[2]


def absolute_each(names: str) -> str:
  """Applies `absolute` to comma-separated names.

  Raises:
    ValueError: an absolute path contains a comma.
  """
  found = [absolute(name) for name in names.split(',')]
  for path in found:
    if ',' in path:
      raise ValueError(f'{path}: give a path without a comma')
  return ','.join(found)


def load(
  what: str, path: str, contents: Sequence[str] = ()
) -> types.ModuleType:
  """Returns a file as a module, loaded once.

  Args:
    what: precedes the path in errors, such as 'model.name='.
    path: of the file.
    contents: names that it must define.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it cannot be imported, or lacks one of `contents`.
  """
  if not pathlib.Path(path).is_file():
    raise FileNotFoundError(f'{what}{path}: no such file')
  try:
    module = _load(pathlib.Path(path).resolve())
  # SystemExit: a script was given by mistake.
  except (Exception, SystemExit) as error:
    text = ' '.join(str(error).split())
    raise ValueError(
      f'{what}{path} cannot be imported: {type(error).__name__}: {text}'
    ) from error
  if missing := [name for name in contents if not hasattr(module, name)]:
    raise ValueError(
      f'{what}{path}: the file does not define {", ".join(missing)}'
    )
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

"""A run's environment: versions, devices, commit."""

import importlib.metadata
import os
import pathlib
import platform
import subprocess
import sys
from typing import Any

import jax

# File in a source copy without repository: the commit that it was made from.
COMMIT = 'COMMIT'
_PACKAGES = (
  'steepest',
  'jax',
  'jaxlib',
  'flax',
  'optax',
  'orbax-checkpoint',
  'grain',
  'numpy',
)


def describe() -> dict[str, Any]:
  """Returns the contents of env.json, which names no machine or person."""
  devices = jax.devices()
  return {
    'versions': {p: importlib.metadata.version(p) for p in _PACKAGES},
    'python': platform.python_version(),
    'system': platform.platform(terse=True),
    'platform': devices[0].platform,
    'device_kind': devices[0].device_kind,
    'devices': [str(d) for d in devices],
    'process_count': jax.process_count(),
    'cpu_cores': _usable_cores(),
    'git_commit': git_commit(),
    'command': [pathlib.Path(sys.argv[0]).stem, *sys.argv[1:]],
  }


def git_commit() -> str | None:
  """Returns the commit of the source, with `+` if files differ from it."""
  root = pathlib.Path(__file__).resolve().parent.parent
  if (root / COMMIT).is_file():
    return (root / COMMIT).read_text('utf-8').strip() or None
  try:
    # No locks: people and other runs may use the index as a run starts.
    git = lambda *a: subprocess.run(
      ['git', '--no-optional-locks', *a],
      cwd=root,
      capture_output=True,
      text=True,
      check=True,
    ).stdout.strip()
    # A package installed inside another project's repository has no commit.
    if pathlib.Path(git('rev-parse', '--show-toplevel')) != root:
      return None
    dirty = git('status', '--porcelain', '--untracked-files=no')
    return git('rev-parse', 'HEAD') + ('+' if dirty else '')
  except (OSError, subprocess.CalledProcessError):
    return None


def _usable_cores() -> int:
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1

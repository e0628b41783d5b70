"""Text to token shards: locked, complete or not there, done once."""

import dataclasses
import errno
import os
import pathlib
import shutil
from typing import Any

from rich import console as rich_console, progress as rich_progress

from steepest.data import manifest as manifests
from steepest.data.preparing import inputs, job, stages
from steepest.data.preparing.options import Options

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def prepare(
  options: Options,
  console: rich_console.Console,
  cache: pathlib.Path | None = None,
) -> manifests.Manifest:
  """Writes a directory of shards, or finds that it is there already.

  The directory appears, complete, at the end. The same input and options give
  the same bytes, on any number of cores and however often it was stopped.

  Raises:
    FileNotFoundError: a glob matches nothing, a tokenizer is missing.
    FileExistsError: the directory holds something else.
    OSError: the disk is full, or another process writes the directory.
    ValueError: unreadable input, or too little of it.
  """
  options.check()
  found = inputs.find(options.inputs)
  named = [{'name': i.name, 'bytes': i.bytes} for i in found]
  if (held := _existing(options, named)) is not None:
    # It may have been stopped just before it cleaned up.
    job.clear(options.out)
    return held
  with job.lock(options.out) as part:
    # Another process may have finished it before this one got the lock.
    if (held := _existing(options, named)) is not None:
      shutil.rmtree(part)
      return held
    try:
      with _progress(console) as progress:
        manifest = stages.Stages(options, found, part, progress).write(cache)
    except OSError as error:
      if error.errno in _NO_SPACE:
        raise OSError(
          f'no space is left for {part} ({error.strerror}): free some and run '
          'the same command again, it goes on from there; or delete it'
        ) from error
      raise
    finally:
      if not (part / 'runs').exists():
        shutil.rmtree(part)
    os.replace(part / 'out', options.out)
    shutil.rmtree(part)
  return manifest


def _progress(console: rich_console.Console) -> rich_progress.Progress:
  return rich_progress.Progress(
    rich_progress.TextColumn('{task.description}'),
    rich_progress.BarColumn(),
    rich_progress.TaskProgressColumn(),
    rich_progress.TimeElapsedColumn(),
    console=console,
  )


def _existing(
  options: Options, named: list[dict[str, Any]]
) -> manifests.Manifest | None:
  out = options.out
  if not out.exists() or (out.is_dir() and not any(out.iterdir())):
    return None
  if not (out / manifests.NAME).is_file():
    raise FileExistsError(
      f'{out} exists and is no directory of shards: choose another --out'
    )
  held = manifests.load(out)
  defaults = {f.name: f.default for f in dataclasses.fields(Options)}
  # A directory may be older than an option.
  command = {**defaults, **held.command}
  differ = [k for k, v in options.command().items() if command[k] != v]
  if held.inputs != named:
    differ.append('the input files')
  if differ:
    raise FileExistsError(
      f'{out} was prepared with other arguments ({", ".join(differ)}): choose '
      'another --out or delete it'
    )
  return held

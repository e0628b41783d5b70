"""The directory of an unfinished preparation: one process at a time."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import fcntl
import itertools
import json
import os
import pathlib
import shutil
from typing import Any

from steepest.data import files
from steepest.data.preparing import inputs, runs

_LOCK = 'lock'
_NAME = 'job.json'


@contextlib.contextmanager
def lock(out: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields the directory beside `out` for its preparation, locked.

  The lock goes with the process, however that ends.

  Raises:
    OSError: another process has it.
  """
  part = _part(out)
  while True:
    part.mkdir(parents=True, exist_ok=True)
    try:
      file = (part / _LOCK).open('w')
    except FileNotFoundError:
      continue  # Its owner has just finished.
    with file:
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError as error:
        raise OSError(
          f'another process is preparing {out}: wait for it, or choose another '
          '--out'
        ) from error
      if not _same(file.fileno(), part / _LOCK):
        continue
      yield part
      return


def clear(out: pathlib.Path) -> None:
  """Removes what a preparation that has ended left beside `out`."""
  if _part(out).exists():
    # Another process that has it cleans up itself.
    with contextlib.suppress(OSError), lock(out) as part:
      shutil.rmtree(part)


def resume(
  part: pathlib.Path,
  command: Mapping[str, Any],
  found: Sequence[inputs.Input],
) -> None:
  """Keeps what the same command left in the directory, and nothing else.

  Where inputs have changed, the runs of those before the first such one stay.
  """
  job = {'command': dict(command), 'inputs': [list(i[:3]) for i in found]}
  path = part / _NAME
  held = json.loads(path.read_text('utf-8')) if path.exists() else {}
  same = 0
  # Compared as it would be read again.
  job = json.loads(json.dumps(job))
  if held.keys() == job.keys() and held['command'] == job['command']:
    pairs = zip(held['inputs'], job['inputs'])
    same = len(list(itertools.takewhile(lambda p: p[0] == p[1], pairs)))
  if held != job:
    # A tokenizer that is trained here is one of all inputs.
    same *= not str(command['tokenizer']).startswith('bpe-train:')
    kept = [_LOCK, _NAME, *(['runs', 'tokenizer'] if same else [])]
    for left in part.iterdir():
      if left.name not in kept:
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    runs.keep(part / 'runs', runs.Position(same, 0))
    files.write(path, [json.dumps(job).encode()])
  for left in part.rglob('*.part'):
    left.unlink(missing_ok=True)


def _part(out: pathlib.Path) -> pathlib.Path:
  return out.with_name(f'.{out.name}.part')


def _same(descriptor: int, path: pathlib.Path) -> bool:
  """Whether an open file is still the one of that name."""
  try:
    return os.path.samestat(os.fstat(descriptor), os.stat(path))
  except FileNotFoundError:
    return False

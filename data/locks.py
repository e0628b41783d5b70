"""Limits a directory to one writing process at a time."""

from collections.abc import Iterator
import contextlib
import datetime
import errno
import fcntl
import json
import os
import pathlib
import socket
import typing

NAME = '.lock'
# Errors of file systems without locks.
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextlib.contextmanager
def hold(directory: pathlib.Path, what: str) -> Iterator[None]:
  """Holds a directory, created if missing, while the body runs.

  Uses flock, which ends with its process, however that ends: at once on this
  machine and, on a network file system, when the server gives up a lost one. No
  clock is read. On a file system without locks nothing is held.

  Args:
    directory: to write to; one created here and left empty is removed again.
    what: the activity there, for the message.

  Raises:
    OSError: another process has it; the message says which.
  """
  made = [p for p in (directory, *directory.parents) if not p.exists()]
  while True:
    directory.mkdir(parents=True, exist_ok=True)
    try:
      file = (directory / NAME).open('a+', encoding='utf-8')
    except FileNotFoundError:
      continue  # Its owner has just removed the directory.
    with file:
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError as error:
        raise OSError(
          f'{directory}: another process is {what} ({_owner(file)}): wait for '
          'it, stop it, or choose another directory'
        ) from error
      except OSError as error:
        if error.errno not in _UNSUPPORTED:
          raise
        yield
        return
      try:
        here = os.stat(directory / NAME)
      except FileNotFoundError:
        continue  # Its owner finished between the two steps above.
      if not os.path.samestat(os.fstat(file.fileno()), here):
        continue
      _sign(file)
      try:
        yield
      finally:
        # Fails if the directory is gone, or holds what was written.
        with contextlib.suppress(OSError):
          os.unlink(directory / NAME)
          for path in made:
            path.rmdir()
      return


def holder(directory: pathlib.Path, above: int = 0) -> str:
  """Says whether a process holds a directory, according to lock files.

  Tries no lock: that would get in the way of a process that starts.

  Args:
    directory: to look at.
    above: levels above it that may be locked for it, as a study's directory is
      for its runs.

  Returns:
    'none' without a file; else 'alive' or 'dead' for a process of this machine,
    'elsewhere' if that cannot be told.
  """
  for place in (directory, *directory.absolute().parents[:above]):
    try:
      owner = json.loads((place / NAME).read_text('utf-8'))
      if owner['host'] != socket.gethostname():
        return 'elsewhere'
      os.kill(int(owner['process']), 0)
      return 'alive'
    except FileNotFoundError:
      continue
    except ProcessLookupError:
      return 'dead'
    except PermissionError:
      # The process is another user's.
      return 'alive'
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
      return 'elsewhere'
  return 'none'


def _sign(file: typing.TextIO) -> None:
  """Records who has the lock."""
  now = datetime.datetime.now(datetime.UTC)
  owner = {
    'process': os.getpid(),
    'host': socket.gethostname(),
    'since': now.isoformat(timespec='seconds'),
  }
  # A full disk does not matter here.
  with contextlib.suppress(OSError):
    file.truncate(0)
    file.write(json.dumps(owner))
    file.flush()


def _owner(file: typing.TextIO) -> str:
  """Returns who has the lock, in words."""
  file.seek(0)
  try:
    return ', '.join(f'{k} {v}' for k, v in json.loads(file.read()).items())
  except (ValueError, AttributeError):
    # Its owner has only just taken it.
    return 'starting'

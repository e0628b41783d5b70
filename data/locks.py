"""One process at a time in a directory that it writes to."""

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
# Of file systems that have no locks.
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextlib.contextmanager
def hold(directory: pathlib.Path, what: str) -> Iterator[None]:
  """Holds a directory, made if it is missing, while the body runs.

  By flock: it ends with its process, however that ends, at once on this machine
  and, on a network file system, when the server gives a lost machine up. No
  clock is read. Where a file system has no locks nothing is held.

  Args:
    directory: that is written to; one made for nothing goes again.
    what: is being done there, for the message.

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
        continue  # Its owner left between the two steps above.
      if not os.path.samestat(os.fstat(file.fileno()), here):
        continue
      _sign(file)
      try:
        yield
      finally:
        # Not there where the directory is gone, or holds what was written.
        with contextlib.suppress(OSError):
          os.unlink(directory / NAME)
          for path in made:
            path.rmdir()
      return


def holder(directory: pathlib.Path, above: int = 0) -> str:
  """Says whether a process is at a directory, by what lock files say.

  No lock is tried: it would be in the way of a process that starts.

  Args:
    directory: that is written to.
    above: directories above it that may be held for it, as a study's are for
      its runs.

  Returns:
    'none' without a file; else 'alive' or 'dead' of a process of this machine,
    and 'elsewhere' where that cannot be told.
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
      # Another user's.
      return 'alive'
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
      return 'elsewhere'
  return 'none'


def _sign(file: typing.TextIO) -> None:
  """Writes down who has the lock."""
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
    # It has only just taken it.
    return 'starting'

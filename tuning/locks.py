"""Locks on directories, so that processes that share a study share its work.

The holder of a directory has a file `.lock-N` in it and touches it again and
again. A lock expires when it has not been touched for a while, or at once
when its process is known to have ended; whoever comes next makes `.lock-N+1`,
which only one of them can.
"""

from collections.abc import Callable, Iterator
import contextlib
import hashlib
import json
import os
import pathlib
import re
import socket
import threading
import time
from types import TracebackType
from typing import Protocol
import uuid

_NAME = re.compile(r'\.lock-(\d+)')


class Clock(Protocol):
  """The time by which locks expire."""

  def now(self) -> float: ...

  def touch(self, path: pathlib.Path) -> None: ...


class FileClock:
  """The file system's clock, which all machines that share it agree on."""

  def __init__(self, directory: pathlib.Path, token: str):
    directory.mkdir(parents=True, exist_ok=True)
    self._probe = directory / f'.clock-{token}'
    self._probe.touch()

  def now(self) -> float:
    self._probe.touch()
    return self._probe.stat().st_mtime

  def touch(self, path: pathlib.Path) -> None:
    os.utime(path)

  def close(self) -> None:
    self._probe.unlink(missing_ok=True)


class Locks:
  """The locks that this process holds.

  As a context manager it touches them in the background and gives them back
  at the end.
  """

  def __init__(
    self,
    root: pathlib.Path,
    seconds: float,
    clock: Clock | None = None,
    owner: dict[str, object] | None = None,
  ):
    """Holds no lock yet.

    Args:
      root: where the clock's file is kept.
      seconds: after which a lock that was not touched expires.
      clock: by default the file system's.
      owner: by default this process; see `describe_owner`.
    """
    self._token = uuid.uuid4().hex
    self._seconds = seconds
    self._clock = clock or FileClock(root, self._token)
    self._owner = owner or describe_owner()
    self._held: dict[pathlib.Path, tuple[pathlib.Path, float]] = {}
    self._guard = threading.RLock()
    self._stop = threading.Event()
    self._thread = threading.Thread(target=self._beat_on, daemon=True)
    self._lost: pathlib.Path | None = None

  def __enter__(self) -> 'Locks':
    self._thread.start()
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    self._stop.set()
    self._thread.join()
    for directory in list(self._held):
      self.release(directory)
    if isinstance(self._clock, FileClock):
      self._clock.close()

  def take(self, directory: pathlib.Path) -> bool:
    """Takes a directory's lock unless somebody holds it."""
    with self._guard:
      if directory in self._held:
        return False
      directory.mkdir(parents=True, exist_ok=True)
      found = _locks(directory)
      if any(self._alive(path) for path in found.values()):
        return False
      own = directory / f'.lock-{max(found, default=0) + 1}'
      if not self._make(own):
        return False
      # Somebody who saw fewer locks may have made a lower one meanwhile.
      others = [p for p in _locks(directory).values() if p != own]
      if any(self._alive(path) for path in others):
        own.unlink(missing_ok=True)
        return False
      self._held[directory] = own, self._clock.now()
      return True

  def release(self, directory: pathlib.Path) -> None:
    """Gives a lock back; those that expired before it go too."""
    with self._guard:
      own, _ = self._held.pop(directory)
      number = int(own.name.rpartition('-')[2])
      for n, path in sorted(_locks(directory).items()):
        if n <= number:
          path.unlink(missing_ok=True)

  @contextlib.contextmanager
  def hold(self, directory: pathlib.Path) -> Iterator[bool]:
    """Holds a lock for a moment; yields whether it could be had."""
    held = self.take(directory)
    try:
      yield held
    finally:
      if held:
        self.release(directory)

  @contextlib.contextmanager
  def wait(
    self,
    directory: pathlib.Path,
    sleep: Callable[[float], None] = time.sleep,
  ) -> Iterator[None]:
    """Holds a lock for a moment, once whoever has it gives it back."""
    while not self.take(directory):
      self.check()
      sleep(0.2)
    try:
      yield
    finally:
      self.release(directory)

  def beat(self) -> None:
    """Touches all locks and notes one that was taken over meanwhile."""
    with self._guard:
      now = self._clock.now()
      for directory, (own, touched) in self._held.items():
        try:
          self._clock.touch(own)
        except FileNotFoundError:
          self._lost = directory
          continue
        # Touched first: whoever takes over looks for living locks afterwards.
        if now - touched > 0.8 * self._seconds:
          if max(_locks(directory)) > int(own.name.rpartition('-')[2]):
            self._lost = directory
        self._held[directory] = own, now

  def check(self) -> None:
    """Raises a ValueError if a lock was lost to another process."""
    if self._lost is not None:
      raise ValueError(
        f'{self._lost} was taken over by another process, since this one did '
        f'not answer for {self._seconds:.0f} seconds: start it again, with a '
        'longer --lock_timeout if it was not suspended'
      )

  def _beat_on(self) -> None:
    while not self._stop.wait(self._seconds / 5):
      # A storage fault may pass; the lock expires if it does not.
      with contextlib.suppress(OSError):
        self.beat()

  def _make(self, path: pathlib.Path) -> bool:
    """Makes a lock in one step, with its content; only one can."""
    temporary = path.with_name(f'.take-{self._token}')
    text = json.dumps(self._owner)
    temporary.write_text(text, 'utf-8')
    self._clock.touch(temporary)
    try:
      os.link(temporary, path)
    except FileExistsError:
      return False
    except OSError:
      # A file system without links. Whoever sees the file before its text
      # takes its owner for alive.
      try:
        with path.open('x', encoding='utf-8') as file:
          file.write(text)
      except FileExistsError:
        return False
      self._clock.touch(path)
    finally:
      temporary.unlink()
    return True

  def _alive(self, path: pathlib.Path) -> bool:
    try:
      age = self._clock.now() - path.stat().st_mtime
      text = path.read_text('utf-8')
    except FileNotFoundError:
      return False
    if age > self._seconds:
      return False
    return not text or not _ended(json.loads(text), self._owner)


def describe_owner() -> dict[str, object]:
  """Returns what tells this process from any other.

  The machine, hashed: name, boot and process namespace; the process: its
  number and when it started.
  """
  machine = [socket.gethostname()]
  boot = pathlib.Path('/proc/sys/kernel/random/boot_id')
  with contextlib.suppress(OSError):
    machine.append(boot.read_text('utf-8'))
  with contextlib.suppress(OSError):
    machine.append(os.readlink('/proc/self/ns/pid'))
  digest = hashlib.sha256('|'.join(machine).encode()).hexdigest()[:16]
  pid = os.getpid()
  return {'machine': digest, 'process': pid, 'started': _started(pid)}


def _ended(owner: dict[str, object], reader: dict[str, object]) -> bool:
  """Returns whether a lock's owner ran on this machine and is gone."""
  if owner['machine'] != reader['machine']:
    return False
  pid = int(str(owner['process']))
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return True
  except PermissionError:
    return False
  return _started(pid) != owner['started']


def _started(pid: int) -> str | None:
  """Returns when a process started, in ticks since boot.

  None where the system does not say, or the process has ended.
  """
  try:
    stat = pathlib.Path(f'/proc/{pid}/stat').read_text('utf-8')
  except OSError:
    return None
  # The name, in brackets, may hold anything.
  fields = stat.rpartition(')')[2].split()
  return None if fields[0] == 'Z' else fields[19]


def _locks(directory: pathlib.Path) -> dict[int, pathlib.Path]:
  found = {}
  for path in directory.iterdir():
    if match := _NAME.fullmatch(path.name):
      found[int(match[1])] = path
  return found

"""The right to write to a directory in a bucket, which no machine can lock.

A process creates a new `.lock.N` by a conditional put; the largest N holds the
lease. Its owner rewrites the object every ten seconds. A lease expires if it is
not written for a minute, or if its process on this machine is gone: no two
clocks are compared. An owner that finds a later lease exits at once; an upload
then under way may still arrive, which a checkpoint's checksums reveal.
"""

from collections.abc import Iterator
import contextlib
import datetime
import json
import os
import pathlib
import re
import socket
import sys
import time
from typing import Any
import uuid

# Scheme → its client package.
PACKAGES = {'gs': 'gcsfs', 's3': 's3fs'}
# Names of locks, which a number follows.
_NAME = '.lock.'
# Seconds between heartbeats, and without one until an owner is given up.
BEAT, _LEASE = 10.0, 60.0


class Objects:
  """The objects of a directory in a bucket; all methods raise OSError.

  Attributes:
    address: of the directory.
  """

  def __init__(self, address: str):
    """Reads and writes nothing yet."""
    # Do not ask for the kind of bucket, for which gcsfs would load gRPC.
    os.environ.setdefault('GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT', 'false')
    import fsspec

    self.address = address.rstrip('/')
    scheme, _, self._root = self.address.partition('://')
    try:
      self._files = fsspec.filesystem(scheme, use_listings_cache=False)
    except ImportError as error:
      raise OSError(
        f"{address} needs {PACKAGES[scheme]}: pip install 'steepest[buckets]'"
      ) from error

  def exists(self, address: str) -> bool:
    """Returns whether an object exists at an address in the bucket."""
    with self._named():
      return bool(self._files.exists(address))

  def locks(self) -> dict[int, str]:
    """Returns the lock objects, number → name."""
    with self._named():
      try:
        found = self._files.ls(self._root, detail=False)
      except FileNotFoundError:
        return {}
    names = [path.rpartition('/')[2] for path in found]
    ours = [n for n in names if re.fullmatch(r'\.lock\.\d+', n)]
    return {int(name.removeprefix(_NAME)): name for name in ours}

  def write(self, name: str, content: bytes, new: bool = False) -> bool:
    """Writes an object; with `new`, only if there is none. Returns success."""
    with self._named():
      if not new:
        self._files.pipe_file(self._at(name), content)
        return True
      try:
        self._files.pipe_file(self._at(name), content, mode='create')
        return True
      except Exception:
        # The libraries raise different errors if it exists, and a retried put
        # may find its own object.
        found = self.content(name)
        if found is None:
          raise
        return found == content

  def content(self, name: str) -> bytes | None:
    """Returns the content of an object, None if there is none."""
    with self._named():
      try:
        return bytes(self._files.cat_file(self._at(name)))
      except FileNotFoundError:
        return None

  def remove(self, name: str) -> None:
    """Removes an object, which may be gone already."""
    with self._named(), contextlib.suppress(FileNotFoundError):
      self._files.rm_file(self._at(name))

  def _at(self, name: str) -> str:
    return f'{self._root}/{name}'

  @contextlib.contextmanager
  def _named(self) -> Iterator[None]:
    """Turns the libraries' errors into one line that has the address."""
    try:
      yield
    except FileNotFoundError:
      raise
    except Exception as error:
      said = ' '.join(str(error).split()) or type(error).__name__
      if said.startswith(self.address):
        raise
      raise OSError(f'{self.address}: {said}') from error


class Lease:
  """The right to write to a directory in a bucket."""

  def __init__(self, objects: Objects, what: str):
    self._objects, self._what = objects, what
    self._number = 0
    self._beats = 0
    self._me = {
      'id': uuid.uuid4().hex,
      'process': os.getpid(),
      'host': socket.gethostname(),
      'machine': _machine(),
      'since': _now(),
    }

  def take(self, takes_over: bool) -> None:
    """Takes the lease.

    Raises:
      OSError: a live process has it, and it is not taken over.
    """
    while True:
      before = max(self._objects.locks().items(), default=(0, ''))
      if before[0] and not takes_over and self._lives(before[1]):
        raise OSError(
          f'{self._objects.address}: another process is {self._what} '
          f'({self._owner(before[1])}): wait for it, stop it, or choose '
          'another directory'
        )
      self._number = before[0] + 1
      if self._objects.write(self._name, self._content(), new=True):
        # A process with an outdated listing may have created an older one.
        if max(self._objects.locks()) == self._number:
          break
        self._objects.remove(self._name)
    if before[0] and takes_over:
      # Wait until the former owner has seen this lock, or is gone.
      while self._lives(before[1]):
        pass
    for number, name in self._objects.locks().items():
      if number < self._number:
        self._objects.remove(name)

  def beat(self) -> None:
    """Sends a heartbeat; ends the process if another has the lease."""
    newest = max(self._objects.locks().items(), default=(self._number, ''))
    if newest[0] > self._number:
      print(
        f'error: {self._objects.address}: another process has taken this over '
        f'({self._owner(newest[1])}): this one stops',
        file=sys.stderr,
        flush=True,
      )
      os._exit(1)
    self._beats += 1
    self._objects.write(self._name, self._content())

  def release(self) -> None:
    """Releases the lease; its object stays, so that numbers only grow."""
    with contextlib.suppress(OSError):
      self._objects.write(self._name, b'{}')

  @property
  def _name(self) -> str:
    return f'{_NAME}{self._number:06d}'

  def _content(self) -> bytes:
    return json.dumps(self._me | {'beat': self._beats}).encode()

  def _lives(self, name: str) -> bool:
    """Returns whether an owner sends a heartbeat within the lease."""
    first = self._objects.content(name)
    if first is None or not (owner := _parse(first)):
      return False
    if owner.get('machine') == self._me['machine'] and not _runs(owner):
      return False
    end = time.monotonic() + _LEASE
    while time.monotonic() < end:
      time.sleep(_LEASE / 60)
      now = self._objects.content(name)
      if now != first:
        return now is not None and bool(_parse(now))
    return False

  def _owner(self, name: str) -> str:
    owner = _parse(self._objects.content(name) or b'')
    shown = ('process', 'host', 'since')
    return ', '.join(f'{k} {owner[k]}' for k in shown if k in owner)


def _parse(content: bytes) -> dict[str, Any]:
  """Returns the owner of a lock; {}: nobody, or a damaged object."""
  try:
    owner = json.loads(content)
  except ValueError:
    return {}
  return owner if isinstance(owner, dict) else {}


def _runs(owner: dict[str, Any]) -> bool:
  """Whether a process of this machine runs, as far as one can know."""
  try:
    os.kill(int(owner['process']), 0)
  except ProcessLookupError:
    return False
  except (OSError, KeyError, TypeError, ValueError, OverflowError):
    pass
  return True


def _machine() -> str:
  """Returns an id shared by processes that can see each other."""
  with contextlib.suppress(OSError):
    boot = pathlib.Path('/proc/sys/kernel/random/boot_id').read_text('ascii')
    return f'{boot.strip()} {os.stat("/proc/self/ns/pid").st_ino}'
  # Another system: only heartbeats tell who is alive.
  return uuid.uuid4().hex


def _now() -> str:
  return datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')

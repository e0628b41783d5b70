"""Directories in buckets, gs:// and s3://, through a copy on this machine.

Neither store can append, rename or lock, and Orbax refuses s3://. So runs,
studies and reports write to a local directory, as always, and a thread uploads
its changes every few seconds. Only the bucket counts: a command that starts, on
any machine, first makes its copy equal to it.

At any time the bucket holds a state that a killed run could leave on a disk:

* JSON files mark something as complete: a checkpoint's checksums, a summary, a
  manifest. They go last, in the order in which they were written, and only
  those that were there before the other files were listed.
* Objects are removed after everything written before their files' removal.
* Objects are replaced whole. Files that are written once are sent from hard
  links, so that a checkpoint removed meanwhile still gets there.

One process writes to a directory (data/leases.py). If the processes of its run
share no disk, each has a copy, and adds only what no other one writes.
"""

from collections.abc import Callable, Iterator, Set
import contextlib
import datetime
import fcntl
import json
import os
import pathlib
import re
import shutil
import sys
import tempfile
import threading
import time
from typing import Any

from steepest.data import downloads, leases

# Seconds between two passes.
_PASS = 10.0
# Tries of a listing whose objects a writer has just removed.
_TRIES = 5
# Files of this machine only: locks and incomplete files.
_OWN = re.compile(
  r'(^|/)(\.lock[^/]*|\.[^/]*\.(tmp|checksums\.json)'
  r'|[^/]*(\.part|\.lock|\.orbax-checkpoint-tmp[^/]*))(/|$)'
)
# Files that grow in place, rather than being written elsewhere and renamed.
_GROWS = re.compile(r'(\.jsonl|\.log|tfevents[^/]*)$')
_LARGE = re.compile(r'(.*/)?(checkpoints|programs|data)/')
# What all processes of a run write in a checkpoint if each has a directory.
_COMMON = re.compile(
  r'(.*/)?checkpoints/\d+/(?!state/(.*/)?[\d.]+$|\d+\.checksums\.json$)'
)
_SEAL = re.compile(r'(.*/)?checkpoints/(\d+)/checksums\.json')

# Names of a directory's objects → those to copy here.
Choice = Callable[[Set[str]], Set[str]]


def is_address(path: str | os.PathLike[str]) -> bool:
  """Returns whether a path is an address in a bucket.

  Raises:
    ValueError: its scheme is another storage's, or it lacks a path.
  """
  scheme, found, rest = os.fspath(path).partition('://')
  if not found:
    return False
  bucket, _, name = rest.partition('/')
  if scheme not in leases.PACKAGES or not bucket or not name.strip('/'):
    raise ValueError(
      f'{path}: give a directory, gs://BUCKET/PATH or s3://BUCKET/PATH'
    )
  return True


def everything(names: Set[str]) -> Set[str]:
  """Chooses all objects."""
  return names


def rows(names: Set[str]) -> Set[str]:
  """Chooses what reports and displays read: all but large files."""
  return {n for n in names if not _LARGE.match(n) or _SEAL.fullmatch(n)}


def newest(names: Set[str]) -> Set[str]:
  """Chooses a run with only its newest complete checkpoint."""
  seals = [m for m in map(_SEAL.fullmatch, names) if m and not m[1]]
  steps = [int(seal[2]) for seal in seals]
  of = f'checkpoints/{max(steps, default=None)}/'
  return rows(names) | {name for name in names if name.startswith(of)}


def unfinished(names: Set[str]) -> Set[str]:
  """Chooses a study without the checkpoints of ended runs."""
  found = set()
  for name in names:
    run, inside, _ = name.partition('/checkpoints/')
    if not (inside and f'{run}/summary.json' in names):
      found.add(name)
  return found


def trials(names: Set[str]) -> Set[str]:
  """Chooses `unfinished` without targets' checkpoints: they train elsewhere."""
  of_targets = re.compile('finals/.*/checkpoints/')
  return {name for name in unfinished(names) if not of_targets.match(name)}


def read(
  path: str | os.PathLike[str], choice: Choice = everything
) -> pathlib.Path:
  """Returns a directory, or an up-to-date copy of one in a bucket.

  Raises:
    OSError: it does not exist or cannot be read.
  """
  if not is_address(path):
    return pathlib.Path(path)
  copy = _Copy(os.fspath(path), 'read')
  copy.index.parent.mkdir(parents=True, exist_ok=True)
  # One of a job's processes on a machine downloads what all of them read.
  with copy.index.with_suffix('.lock').open('a') as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    copy.load()
    if not copy.pull(choice):
      raise FileNotFoundError(f'{path}: not found')
  return copy.directory


def part(names: Set[str]) -> Set[str]:
  """Chooses what a process adds to a run, if it has a directory of its own.

  Of a checkpoint that is the chunks of arrays, and their checksums; the first
  process adds the rest.
  """
  return {name for name in names if not _COMMON.match(name)}


class Stage:
  """A directory that a command writes to.

  Attributes:
    directory: on this machine.
    stop: set once the `stop` object of `staged` exists.
  """

  def __init__(
    self,
    directory: pathlib.Path,
    address: str = '',
    copy: '_Copy | None' = None,
  ):
    self.directory = directory
    self.stop = threading.Event()
    self._address, self._copy = address, copy
    self._guard = threading.Lock()

  def address(self, path: str | os.PathLike[str]) -> str:
    """Returns a text with paths in the directory turned into addresses."""
    text = os.fspath(path)
    if not self._address:
      return text
    return text.replace(str(self.directory), self._address)

  def push(self) -> None:
    """Returns once everything in the directory is in the bucket.

    Raises:
      OSError: it could not be uploaded.
    """
    if self._copy is not None:
      with self._guard:
        self._copy.push()

  def pull(self, directory: pathlib.Path, choice: Choice = rows) -> None:
    """Downloads what others wrote below a directory.

    Raises:
      OSError: it cannot be read.
    """
    if self._copy is not None:
      below = directory.relative_to(self.directory).as_posix() + '/'
      with self._guard:
        self._copy.pull(choice, below)


def for_records(path: str) -> str:
  """Returns the path of shards for ArrayRecord, which reads gs:// itself."""
  return os.fspath(read(path)) if path.startswith('s3://') else path


def copy_of(address: str, kind: str = 'write') -> pathlib.Path:
  """Returns the path of `staged`'s copy, whether or not it exists.

  Args:
    address: of a directory in a bucket.
    kind: of the copy.
  """
  scheme, _, path = address.rstrip('/').partition('://')
  return downloads.cache_dir().absolute() / 'buckets' / kind / scheme / path


@contextlib.contextmanager
def staged(
  path: str | os.PathLike[str],
  what: str,
  choice: Choice = everything,
  takes_over: bool = False,
  stop: str = '',
) -> Iterator[Stage]:
  """Holds a directory in a bucket and keeps it equal to the copy it yields.

  Args:
    path: of the directory; one on this machine is yielded as it is.
    what: the activity there, for the message.
    choice: what to copy here first.
    takes_over: whether to evict a live owner, and to delete the copy at the
      end.
    stop: address of an object that sets `Stage.stop`.

  Raises:
    OSError: another process has it (the message says which), or the changes
      could not be uploaded.
  """
  if not is_address(path):
    yield Stage(pathlib.Path(path))
    return
  address = os.fspath(path).rstrip('/')
  slot = os.environ.get('STEEPEST_SLOT') if takes_over else None
  copy = _Copy(address, 'write' if slot is None else f'write-{slot}')
  lock = leases.Lease(copy, what)
  lock.take(takes_over)
  ended = threading.Event()
  stage = Stage(copy.directory, address, copy)
  threads: list[threading.Thread] = []

  def every(seconds: float, do: Callable[[], None], said: str) -> None:
    while not ended.wait(seconds):
      try:
        do()
      except (OSError, ValueError) as error:
        print(f'warning: {said}: {error}', file=sys.stderr, flush=True)

  def beat() -> None:
    lock.beat()
    if stop and copy.exists(stop):
      stage.stop.set()

  def start(*arguments: Any) -> None:
    threads.append(threading.Thread(target=every, args=arguments, daemon=True))
    threads[-1].start()

  failed = True
  try:
    start(leases.BEAT, beat, 'no sign of life')
    copy.load()
    copy.pull(choice, prune=True)
    start(_PASS, stage.push, 'not in the bucket yet')
    try:
      yield stage
      failed = False
    finally:
      # This waits for a pass under way.
      try:
        stage.push()
      except OSError as error:
        said = f'{error}: the bucket is incomplete; run the same command again'
        if not failed:
          raise OSError(said) from error
        print(f'warning: {said}', file=sys.stderr)
  finally:
    ended.set()
    for thread in threads:
      thread.join()
    lock.release()
  # No pass may see this, or it would remove the objects too.
  if takes_over:
    shutil.rmtree(copy.directory, ignore_errors=True)
    copy.index.unlink(missing_ok=True)


@contextlib.contextmanager
def joined(address: str, kind: str) -> Iterator[Stage]:
  """Gives a process its own copy of a directory that another one `staged`.

  What it changes there is uploaded by `Stage.push` and at the end.

  Args:
    address: of the directory.
    kind: of the copy.

  Raises:
    OSError: it cannot be read, or the changes could not be uploaded.
  """
  copy = _Copy(address, kind, part)
  copy.load()
  copy.pull(everything, prune=True)
  stage = Stage(copy.directory, address, copy)
  yield stage
  stage.push()


class _Copy(leases.Objects):
  """A directory in a bucket and its copy.

  Attributes:
    directory: of the copy.
    index: file that maps the copy's files to their objects.
  """

  def __init__(self, address: str, kind: str, uploads: Choice = everything):
    """Transfers nothing yet.

    Args:
      address: of the directory.
      kind: of the copy: copies for reading and for writing are separate.
      uploads: which files to upload.
    """
    super().__init__(address)
    self._uploads = uploads
    self._home = downloads.cache_dir().absolute() / 'buckets'
    self.directory = copy_of(address, kind)
    index = copy_of(address, f'{kind}-index')
    self.index = index.with_name(f'{index.name}.json')
    # Name → the object's tag, then size and time (ns) of the file.
    self._known: dict[str, list[Any]] = {}

  def load(self) -> None:
    """Reads the index; a damaged one counts as none."""
    self._known = {}
    with contextlib.suppress(OSError, ValueError):
      self._known = dict(json.loads(self.index.read_text('utf-8')))

  def pull(self, choice: Choice, below: str = '', prune: bool = False) -> bool:
    """Makes files equal to the chosen objects.

    Args:
      choice: of objects.
      below: prefix to limit this to: a folder with a slash.
      prune: whether to remove all files that are not chosen.

    Returns:
      Whether there are any objects.
    """
    for left in reversed(range(_TRIES)):
      found = self._list(below)
      chosen = choice(found.keys())
      try:
        self._get({n: o for n, o in found.items() if n in chosen})
        break
      except FileNotFoundError:
        # Its writer has removed it meanwhile.
        if not left:
          raise
    if prune:
      old = self._names() - chosen
      # Objects not chosen must not count as files removed here.
      self._known = {n: v for n, v in self._known.items() if n in chosen}
    else:
      old = {n for n in self._known.keys() - found if n.startswith(below)}
    for name in old:
      (self.directory / name).unlink(missing_ok=True)
      self._known.pop(name, None)
    self._save()
    return bool(found)

  def push(self) -> None:
    """Makes the bucket equal to the files."""
    if self._known and not self.directory.is_dir():
      raise OSError(f'{self.directory} is gone: its objects in the bucket stay')
    gone = [n for n in self._known if not (self.directory / n).exists()]
    # Listed first, so that what they stand for is there.
    seals = {n for n in self._names() if n.endswith('.json')}
    others = {n for n in self._names() if not n.endswith('.json')}
    names = self._uploads(others | seals)
    self._home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=self._home) as outgoing:
      taken: dict[str, tuple[str, list[int]]] = {}
      whole = True
      for i, name in enumerate(names):
        try:
          stamp = _stamp(self.directory / name)
          if name in self._known and self._known[name][1:] == stamp:
            continue
          taken[name] = _take(self.directory / name, f'{outgoing}/{i}'), stamp
        except FileNotFoundError:
          # Removed meanwhile: upload no JSON file that may vouch for it, and
          # remove nothing that it may replace.
          whole, gone = False, []
      rest = [name for name in taken if name not in seals]
      with self._named():
        if rest:
          self._files.put(
            [taken[name][0] for name in rest], [self._at(n) for n in rest]
          )
        by_time = sorted(taken.keys() & seals, key=lambda n: taken[n][1][1])
        for name in by_time if whole else ():
          self._files.put_file(taken[name][0], self._at(name))
          rest.append(name)
    with self._named():
      for of in (True, False):
        if old := [self._at(n) for n in gone if n.endswith('.json') == of]:
          with contextlib.suppress(FileNotFoundError):
            self._files.rm(old)
    if rest or gone:
      found = self._list()
      for name in gone:
        del self._known[name]
      for name in rest:
        if name in found:
          self._known[name] = [_tag(found[name]), *taken[name][1]]
      self._save()

  def _list(self, below: str = '') -> dict[str, dict[str, Any]]:
    """Returns the objects by name.

    Raises:
      ValueError: a name points outside the directory.
    """
    at = self._at(below).rstrip('/')
    with self._named():
      try:
        objects = self._files.find(at, detail=True)
      except FileNotFoundError:
        return {}
    found = {}
    for path, about in objects.items():
      name = path.removeprefix(f'{self._root}/')
      if name == path or name.endswith('/') or _OWN.search(name):
        continue
      if {'..', '.', ''} & set(name.split('/')):
        raise ValueError(f'{self.address}: an object named {name!r}')
      found[name] = about
    return found

  def _get(self, wanted: dict[str, dict[str, Any]]) -> None:
    """Downloads the objects that the copy does not have yet."""
    left = [n for n, about in wanted.items() if not self._has(n, about)]
    if not left:
      return
    left.sort(key=lambda n: (n.endswith('.json'), n))
    self._home.mkdir(parents=True, exist_ok=True)
    size = sum(int(wanted[name]['size']) for name in left)
    free = shutil.disk_usage(self._home).free
    if size > free:
      raise OSError(
        f'{self.address}: its {size:,} bytes do not fit into {self._home}, '
        f'which has {free:,} free: set STEEPEST_CACHE to a larger disk'
      )
    with tempfile.TemporaryDirectory(dir=self._home) as incoming:
      paths = [f'{incoming}/{i}' for i in range(len(left))]
      with self._named():
        self._files.get([self._at(name) for name in left], paths)
      for name, path in zip(left, paths):
        target = self.directory / name
        target.parent.mkdir(parents=True, exist_ok=True)
        os.utime(path, (_time(wanted[name]),) * 2)
        os.replace(path, target)
        self._known[name] = [_tag(wanted[name]), *_stamp(target)]

  def _has(self, name: str, about: dict[str, Any]) -> bool:
    if name not in self._known or self._known[name][0] != _tag(about):
      return False
    try:
      return self._known[name][1:] == _stamp(self.directory / name)
    except FileNotFoundError:
      return False

  def _names(self) -> set[str]:
    """Returns the files to upload."""
    found = set()
    for place, folders, files in os.walk(self.directory):
      at = os.path.relpath(place, self.directory)
      prefix = '' if at == '.' else f'{at}/'
      folders[:] = [f for f in folders if not _OWN.search(f'{prefix}{f}/')]
      found |= {f'{prefix}{f}' for f in files if not _OWN.search(prefix + f)}
    return found

  def _save(self) -> None:
    self.index.parent.mkdir(parents=True, exist_ok=True)
    part = self.index.with_suffix(f'.{os.getpid()}.tmp')
    part.write_text(json.dumps(self._known), 'utf-8')
    os.replace(part, self.index)


def _stamp(path: pathlib.Path) -> list[int]:
  stat = path.stat()
  return [stat.st_size, stat.st_mtime_ns]


def _tag(about: dict[str, Any]) -> str:
  """Returns a tag that changes whenever an object is written."""
  for key in ('generation', 'ETag', 'etag'):
    if about.get(key):
      return str(about[key])
  raise ValueError(f'an object without generation or ETag: {about}')


def _time(about: dict[str, Any]) -> float:
  """Returns the time at which an object was written."""
  for key in ('LastModified', 'mtime'):
    if isinstance(about.get(key), datetime.datetime):
      return float(about[key].timestamp())
  return time.time()


def _take(path: pathlib.Path, to: str) -> str:
  """Links a file as it is now, or copies what it has grown to."""
  try:
    if not _GROWS.search(path.name):
      os.link(path, to)
      return to
  except FileNotFoundError:
    raise
  except OSError:
    pass  # The file system has no links.
  shutil.copyfile(path, to)
  return to

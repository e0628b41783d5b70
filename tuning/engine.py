"""Runs jobs on slots, in the shape of `concurrent.futures.Executor`.

A slot is what one run needs. One slot is this process itself; of several on one
machine each is a spawned process, on a CPU pinned to a core of its own, since
one process on each core does more than one process on all of them. Workers stay
warm: what a slot has compiled serves its next job. Jobs and results are JSON
values; whatever lasts stands in the directories of the runs, so that a job that
is started again goes on where its checkpoints are.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from concurrent.futures import process
import contextlib
import datetime
import fcntl
import functools
import json
import multiprocessing
from multiprocessing import connection
import os
import pathlib
import signal
import socket
import threading
import traceback
from typing import Any

from steepest.training import processes

# How often a job is started again after its worker died.
_RESTARTS = 2


class JobFailedError(ValueError):
  """A job raised an error, or its worker died again and again."""


class Engine:
  """Some slots; as a context manager it ends their processes."""

  def __init__(
    self,
    slots: int,
    cores: Sequence[int] = (),
    logs: pathlib.Path | None = None,
  ):
    """Starts nothing yet.

    Args:
      slots: jobs that run at once; 1: in this process.
      cores: to which slots are pinned in turn; (): to none.
      logs: directory of what workers print; None: where this process prints.
    """
    self.slots = slots
    self._cores = cores
    self._logs = logs
    self._executors: dict[int, process.ProcessPoolExecutor] = {}
    self._load = [0] * slots
    self._guard = threading.RLock()
    self._context = multiprocessing.get_context('spawn')
    # Workers leave when its other end is closed, however this process ends.
    self._theirs, self._ours = self._context.Pipe(duplex=False)
    self._closed = False

  def __enter__(self) -> 'Engine':
    return self

  def __exit__(self, *_: object) -> None:
    with self._guard:
      self._closed = True
    self._ours.close()
    for executor in list(self._executors.values()):
      executor.shutdown(wait=True, cancel_futures=True)
    self._theirs.close()

  def submit(
    self, slot: int, function: Callable[[Any], Any], job: Any
  ) -> futures.Future[Any]:
    """Starts a job; with a single slot it has ended when this returns.

    Args:
      slot: where; its jobs run one after another.
      function: of a module, which workers import.
      job: its argument.

    Returns:
      A future of what the function returns. It raises JobFailedError if the
      function raised an error, or if its worker died three times.
    """
    result: futures.Future[Any] = futures.Future()
    self._load[slot] += 1
    if self.slots > 1:
      self._start(slot, function, job, result, 0)
    else:
      self._settle(slot, result, *_call(function, job, False))
    return result

  def run(
    self, function: Callable[[Any], Any], tasks: Iterable[Any]
  ) -> Iterator[Any]:
    """Yields the results of some tasks as they are ready.

    Args:
      function: of a module, which workers import.
      tasks: drawn only when a slot is about to need one.

    Raises:
      JobFailedError: as `submit`.
    """
    iterator = iter(tasks)
    pending: set[futures.Future[Any]] = set()
    # A second task waits at each process, so that none is idle in between.
    depth = 2 if self.slots > 1 else 1
    more = True
    while more or pending:
      while more and len(pending) < depth * self.slots:
        try:
          task = next(iterator)
        except StopIteration:
          more = False
          break
        slot = self._load.index(min(self._load))
        pending.add(self.submit(slot, function, task))
      done, pending = futures.wait(pending, None, futures.FIRST_COMPLETED)
      for future in done:
        yield future.result()

  def _start(
    self,
    slot: int,
    function: Callable[[Any], Any],
    job: Any,
    result: futures.Future[Any],
    restarts: int,
  ) -> None:
    with self._guard:
      if self._closed:
        return
      if slot not in self._executors:
        core = self._cores[slot % len(self._cores)] if self._cores else None
        log = None if self._logs is None else self._logs / f'worker-{slot}.log'
        self._executors[slot] = process.ProcessPoolExecutor(
          1, self._context, _begin, (self._theirs, core, log)
        )
      executor = self._executors[slot]
      try:
        future = executor.submit(_call, function, job, self._logs is not None)
      except process.BrokenProcessPool:
        # It died between two jobs.
        del self._executors[slot]
        self._start(slot, function, job, result, restarts)
        return

    def ended(future: futures.Future[Any]) -> None:
      error = future.exception()
      if error is None:
        self._settle(slot, result, *future.result())
        return
      with self._guard:
        # Only this slot's executor is broken; the next start makes another.
        if self._executors.get(slot) is executor:
          del self._executors[slot]
      if restarts < _RESTARTS:
        self._start(slot, function, job, result, restarts + 1)
        return
      where = '' if self._logs is None else f', see {self._logs}'
      self._settle(
        slot,
        result,
        None,
        f'its worker died {restarts + 1} times (out of memory?){where}',
      )

    future.add_done_callback(ended)

  def _settle(
    self, slot: int, result: futures.Future[Any], value: Any, error: str | None
  ) -> None:
    with self._guard:
      self._load[slot] -= 1
    if error is None:
      result.set_result(value)
    else:
      result.set_exception(JobFailedError(error))


def _call(
  function: Callable[[Any], Any], job: Any, logs: bool
) -> tuple[Any, str | None]:
  """Returns a job's result and None, or None and its error in one line.

  Errors are sent as text, since not all of them can be pickled; where workers
  have logs, these get the traceback.
  """
  try:
    return function(job), None
  except Exception as error:
    if logs:
      traceback.print_exc()
    text = ' '.join(str(error).split())
    kind = type(error).__name__
    known = isinstance(error, (ValueError, OSError))
    return None, text if known else f'{kind}: {text}'


def _begin(
  open_end: connection.Connection,
  core: int | None,
  log: pathlib.Path | None,
) -> None:
  """Prepares a worker, before it imports JAX."""
  # Ctrl-C reaches all processes of a terminal; the driver ends this one.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  os.environ['TOKENIZERS_PARALLELISM'] = 'false'
  if log is not None:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open('ab') as file:
      for descriptor in (1, 2):
        os.dup2(file.fileno(), descriptor)
  if core is not None:
    # JAX's thread pools follow the cores that they are given.
    os.sched_setaffinity(0, {core})
  parent = multiprocessing.parent_process()
  assert parent is not None

  def watch(sentinel: int) -> None:
    connection.wait([open_end, sentinel])
    os._exit(1)

  watcher = functools.partial(watch, parent.sentinel)
  threading.Thread(target=watcher, daemon=True).start()


def pinned_cores() -> list[int]:
  """Returns the cores for one worker each; [] where workers share a device."""
  if not hasattr(os, 'sched_setaffinity') or processes.has_accelerator():
    return []
  return sorted(os.sched_getaffinity(0))


@contextlib.contextmanager
def lock(workdir: pathlib.Path) -> Iterator[None]:
  """Holds a directory for one driver; the lock goes when its process ends.

  Raises:
    OSError: another process has it; the message says which.
  """
  workdir.mkdir(parents=True, exist_ok=True)
  with (workdir / '.driver').open('a+', encoding='utf-8') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      file.seek(0)
      text = file.read()
      # Whoever has just taken it may not have written yet.
      who = json.loads(text) if text.startswith('{') else {}
      said = ', '.join(f'{key} {value}' for key, value in who.items())
      raise OSError(
        f'{workdir}: another process is at this study ({said or "starting"}): '
        'wait for it or stop it'
      ) from error
    file.truncate(0)
    now = datetime.datetime.now(datetime.UTC)
    who = {
      'process': os.getpid(),
      'host': socket.gethostname(),
      'since': now.isoformat(timespec='seconds'),
    }
    file.write(json.dumps(who))
    file.flush()
    yield

"""Runs jobs on slots, with an interface like `concurrent.futures.Executor`.

A slot is what one run needs: a core, or some GPUs or TPU chips of one machine.
A single slot is this process itself; several on one machine are spawned
processes that see only their own devices. Workers stay warm: what a slot has
compiled serves its next job. Jobs and results are JSON values; all lasting
state is in the run directories, so that a restarted job resumes from its
checkpoints.
"""

import abc
import collections
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from concurrent.futures import process
import functools
import multiprocessing
from multiprocessing import connection
import os
import pathlib
import signal
import threading
import traceback
from typing import Any, NamedTuple

from steepest.training import processes

# How often a job is restarted after its worker died.
_RESTARTS = 2
# Chips of a TPU process → their topology; other numbers have none.
_TPU_BOUNDS = {1: '1,1,1', 2: '1,2,1', 4: '2,2,1'}


class JobFailedError(ValueError):
  """A job raised an error, or its worker died repeatedly."""


class WorkerDied(Exception):
  """The worker of a slot died during a job.

  Attributes:
    slot: on which to retry the job; None: the same.
  """

  def __init__(self, slot: int | None = None):
    super().__init__()
    self.slot = slot


class Place(NamedTuple):
  """The resources of a slot's process.

  Attributes:
    cores: that it is pinned to; (): any.
    variables: environment variables that select its devices.
  """

  cores: tuple[int, ...] = ()
  variables: Mapping[str, str] = {}


class Engine(abc.ABC):
  """Some slots; as a context manager it stops their workers on exit."""

  def __init__(self) -> None:
    """Starts nothing yet."""
    self._threads: dict[int, futures.ThreadPoolExecutor] = {}
    # Slot → number of its unfinished jobs.
    self._load: collections.Counter[int] = collections.Counter()
    self._guard = threading.Lock()
    self._closed = False

  def __enter__(self) -> 'Engine':
    return self

  def __exit__(self, *_: object) -> None:
    self._closed = True
    self._stop()
    for thread in self._threads.values():
      thread.shutdown(wait=True, cancel_futures=True)

  @property
  @abc.abstractmethod
  def slots(self) -> Sequence[int]:
    """Numbers of the slots available now."""

  @abc.abstractmethod
  def _call(
    self, slot: int, function: Callable[[Any], Any], job: Any
  ) -> tuple[Any, str | None]:
    """Returns the result of `call` on a slot; raises WorkerDied."""

  @abc.abstractmethod
  def _stop(self) -> None:
    """Stops all workers, whatever they are doing."""

  def submit(
    self, slot: int, function: Callable[[Any], Any], job: Any
  ) -> futures.Future[Any]:
    """Starts a job; in-process, it has ended when this returns.

    Args:
      slot: to run on; its jobs run one after another.
      function: at module level, for workers to import.
      job: its argument.

    Returns:
      A future of the function's result. It raises JobFailedError if the
      function raised an error, or if its worker died three times.
    """
    if slot not in self._threads:
      self._threads[slot] = futures.ThreadPoolExecutor(1)
    self._count(slot, 1)
    future = self._threads[slot].submit(self._run, slot, function, job)
    future.add_done_callback(lambda _: self._count(slot, -1))
    return future

  def _count(self, slot: int, change: int) -> None:
    with self._guard:
      self._load[slot] += change

  def run(
    self, function: Callable[[Any], Any], tasks: Iterable[Any]
  ) -> Iterator[Any]:
    """Yields the results of tasks as they complete.

    Args:
      function: at module level, for workers to import.
      tasks: drawn only when a slot is about to need one.

    Raises:
      JobFailedError: as `submit`.
    """
    iterator = iter(tasks)
    pending: set[futures.Future[Any]] = set()
    more = True
    while more or pending:
      # Queue a second task per slot, so that none is idle in between.
      while more and len(pending) < 2 * len(self.slots):
        try:
          task = next(iterator)
        except StopIteration:
          more = False
          break
        slot = min(self.slots, key=lambda slot: self._load[slot])
        pending.add(self.submit(slot, function, task))
      done, pending = futures.wait(pending, None, futures.FIRST_COMPLETED)
      for future in done:
        yield future.result()

  def _run(self, slot: int, function: Callable[[Any], Any], job: Any) -> Any:
    """Returns a job's result; restarts it if its worker dies."""
    deaths = 0
    while deaths <= _RESTARTS:
      try:
        value, error = self._call(slot, function, job)
      except WorkerDied as death:
        if self._closed:
          raise JobFailedError('stopped') from death
        if death.slot is None:
          deaths += 1
        else:
          # Its machine is gone, which says nothing about the job.
          slot = death.slot
        continue
      if error is not None:
        raise JobFailedError(error)
      return value
    raise JobFailedError(
      f'its worker died {deaths} times (out of memory?){self._hint()}'
    )

  def _hint(self) -> str:
    """Says where to find more."""
    return ''


class InProcess(Engine):
  """One slot: this process itself."""

  slots = (0,)

  def submit(
    self, slot: int, function: Callable[[Any], Any], job: Any
  ) -> futures.Future[Any]:
    """Does a job; see Engine."""
    result: futures.Future[Any] = futures.Future()
    value, error = self._call(slot, function, job)
    if error is None:
      result.set_result(value)
    else:
      result.set_exception(JobFailedError(error))
    return result

  def run(
    self, function: Callable[[Any], Any], tasks: Iterable[Any]
  ) -> Iterator[Any]:
    """Does tasks one after another; see Engine."""
    return (self.submit(0, function, task).result() for task in tasks)

  def _call(
    self, slot: int, function: Callable[[Any], Any], job: Any
  ) -> tuple[Any, str | None]:
    return call(function, job, False)

  def _stop(self) -> None:
    pass


class Processes(Engine):
  """Several slots on this machine, one process each."""

  def __init__(self, places: Sequence[Place], logs: pathlib.Path | None = None):
    """Starts nothing yet.

    Args:
      places: of the slots.
      logs: directory for the workers' output; None: this process's output.
    """
    super().__init__()
    self._places = places
    self._logs = logs
    # One dead worker breaks a whole executor, so each has its own.
    self._executors: dict[int, process.ProcessPoolExecutor] = {}
    self._context = multiprocessing.get_context('spawn')
    # Workers exit when our end is closed, however this process ends.
    self._theirs, self._ours = self._context.Pipe(duplex=False)

  @property
  def slots(self) -> Sequence[int]:
    return range(len(self._places))

  def _call(
    self, slot: int, function: Callable[[Any], Any], job: Any
  ) -> tuple[Any, str | None]:
    # A worker that died between two jobs costs no attempt.
    while not self._closed:
      if slot not in self._executors:
        log = None if self._logs is None else self._logs / f'worker-{slot}.log'
        self._executors[slot] = process.ProcessPoolExecutor(
          1,
          self._context,
          _begin,
          (self._theirs, slot, self._places[slot], log),
        )
      executor = self._executors[slot]
      try:
        future = executor.submit(call, function, job, self._logs is not None)
      except process.BrokenProcessPool:
        del self._executors[slot]
        continue
      try:
        return future.result()
      except process.BrokenProcessPool as error:
        del self._executors[slot]
        raise WorkerDied from error
    raise WorkerDied

  def _stop(self) -> None:
    self._ours.close()
    for executor in list(self._executors.values()):
      executor.shutdown(wait=True, cancel_futures=True)
    self._theirs.close()

  def _hint(self) -> str:
    return '' if self._logs is None else f', see {self._logs}'


def local(places: Sequence[Place], logs: pathlib.Path | None = None) -> Engine:
  """Returns an engine of slots on this machine; `logs` as for Processes."""
  return InProcess() if len(places) == 1 else Processes(places, logs)


def call(
  function: Callable[[Any], Any], job: Any, logs: bool
) -> tuple[Any, str | None]:
  """Returns a job's result and None, or None and its error in one line.

  Errors are sent as text, since not all can be pickled; workers with logs write
  the traceback there.
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


def enter(
  slot: int, place: Place, log: pathlib.Path | None, node: str = ''
) -> None:
  """Makes this process the worker of a slot, before it imports JAX."""
  # Ctrl-C reaches all processes of a terminal; the driver stops this one.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  os.environ.update(
    place.variables, TOKENIZERS_PARALLELISM='false', STEEPEST_SLOT=str(slot)
  )
  if node:
    os.environ['STEEPEST_NODE'] = node
  if log is not None:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open('ab') as file:
      for descriptor in (1, 2):
        os.dup2(file.fileno(), descriptor)
  if place.cores:
    # JAX sizes its thread pools by the process's cores.
    os.sched_setaffinity(0, place.cores)


def _begin(
  open_end: connection.Connection,
  slot: int,
  place: Place,
  log: pathlib.Path | None,
) -> None:
  # Signals to all of a job's processes are handled by the driver.
  signal.signal(signal.SIGTERM, signal.SIG_IGN)
  enter(slot, place, log)
  parent = multiprocessing.parent_process()
  assert parent is not None

  def watch(sentinel: int) -> None:
    connection.wait([open_end, sentinel])
    os._exit(1)

  watcher = functools.partial(watch, parent.sentinel)
  threading.Thread(target=watcher, daemon=True).start()


class Machine:
  """This machine.

  Attributes:
    machine: number of devices; 1 for CPUs, with one device per process.
  """

  def __init__(self, workers: int = 0):
    """Looks at this machine's devices; `workers` as `most` of `places`."""
    platform, devices = processes.local_devices()
    self.machine = 1 if platform == 'cpu' else len(devices)
    self._workers = workers

  def __enter__(self) -> 'Machine':
    return self

  def __exit__(self, *_: object) -> None:
    pass

  def engine(self, size: int, most: int, logs: pathlib.Path) -> Engine:
    """Returns up to `most` slots of `size` devices each."""
    return local(places(size, self._workers)[:most], logs)


def machines(address: str, workers: int = 0) -> Any:
  """Returns a source of engines: this machine, or a Ray cluster.

  Args:
    address: '', or as for ray_engine.Cluster.
    workers: most slots; 0: as many as fit.

  Raises:
    OSError: Ray is not installed or not running.
  """
  if not address:
    return Machine(workers)
  try:
    from steepest.tuning import ray_engine
  except ImportError as error:
    raise OSError(
      f"--engine={address} needs Ray: pip install 'steepest[ray]'"
    ) from error
  return ray_engine.Cluster(address, workers)


def places(size: int, most: int = 0) -> list[Place]:
  """Returns the slots of this machine, of `size` devices each.

  On a CPU a device is a core.

  Args:
    size: devices of a slot.
    most: slots wanted; 0: as many as fit. On a CPU, any number is possible; an
      explicit one is not pinned to cores.

  Raises:
    ValueError: there is none, or TPU chips cannot be grouped like that.
  """
  platform, devices = processes.local_devices()
  if platform == 'cpu':
    flags = cpu_devices(size)
    if most:
      return [Place(variables=flags)] * most
    cores = [int(core) for core in devices]
    count = max(1, len(cores) // size)
    pinned = hasattr(os, 'sched_setaffinity') and len(cores) >= size
    at = lambda i: tuple(cores[i * size : (i + 1) * size]) if pinned else ()
    return [Place(at(i), flags) for i in range(count)]
  count = len(devices) // size
  if not count:
    raise ValueError(
      f'a run of {size} devices: this machine has {len(devices)}; use a '
      'smaller mesh (study.trial_mesh, study.target)'
    )
  count = min(count, most or count)
  groups = [devices[i * size : (i + 1) * size] for i in range(count)]
  if platform == 'gpu':
    return [
      Place(variables={'CUDA_VISIBLE_DEVICES': ','.join(group)})
      for group in groups
    ]
  if len(groups) > 1 and size not in _TPU_BOUNDS:
    raise ValueError(
      f'{size} TPU chips per run: part of a machine can have '
      f'{", ".join(map(str, _TPU_BOUNDS))}'
    )
  return [
    Place(
      variables={
        'TPU_VISIBLE_CHIPS': ','.join(group),
        'TPU_CHIPS_PER_PROCESS_BOUNDS': _TPU_BOUNDS[size],
        'TPU_PROCESS_BOUNDS': '1,1,1',
      }
      if len(groups) > 1
      else {}
    )
    for group in groups
  ]


def cpu_devices(size: int) -> dict[str, str]:
  """Returns the variables that give a process `size` CPU devices."""
  flag = f'--xla_force_host_platform_device_count={size}'
  given = os.environ.get('XLA_FLAGS', '')
  if size == 1 or 'host_platform_device_count' in given:
    return {}
  return {'XLA_FLAGS': f'{given} {flag}'.strip()}

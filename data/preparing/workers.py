"""Independent tasks on all cores, a bounded number of them at a time."""

from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
import itertools
import multiprocessing
from multiprocessing import connection
import os
import signal
import threading
from typing import TypeVar

_Task = TypeVar('_Task')
_Result = TypeVar('_Result')


def cores() -> int:
  """Returns the cores that this process may use."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def run(
  function: Callable[[_Task], _Result], tasks: Iterable[_Task], workers: int
) -> Iterator[_Result]:
  """Yields the results of some tasks as they are ready.

  Args:
    function: of a module, as workers import it.
    tasks: drawn only when a worker is about to need one.
    workers: processes; 1: this one.

  Raises:
    OSError: a worker was killed.
  """
  if workers == 1:
    yield from map(function, tasks)
    return
  # A fork would copy the locks of this process's threads.
  context = multiprocessing.get_context('spawn')
  pool = futures.ProcessPoolExecutor(workers, context, _begin)
  iterator = iter(tasks)
  pending: set[futures.Future[_Result]] = set()
  ahead = workers + workers // 2 + 1
  try:
    while True:
      for task in itertools.islice(iterator, ahead - len(pending)):
        pending.add(pool.submit(function, task))
      if not pending:
        return
      done, pending = futures.wait(pending, None, futures.FIRST_COMPLETED)
      for future in done:
        yield future.result()
  except futures.process.BrokenProcessPool as error:
    raise OSError(
      'a worker process was killed, perhaps for want of memory: run the same '
      'command again with fewer --workers, it goes on from there'
    ) from error
  finally:
    pool.shutdown(wait=True, cancel_futures=True)


def _begin() -> None:
  """Prepares a worker: one thread, gone as soon as its parent is."""
  os.environ['TOKENIZERS_PARALLELISM'] = 'false'
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  parent = multiprocessing.parent_process()
  assert parent is not None

  def watch() -> None:
    connection.wait([parent.sentinel])
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()

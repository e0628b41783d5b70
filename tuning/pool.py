"""Worker processes, each with its own JAX, that take jobs one by one.

On a CPU one process pinned to each core does more than one process on all of
them (docs/performance.md).
"""

from collections.abc import Iterator
import json
import os
import pathlib
import queue
import subprocess
import sys
import threading
from typing import IO, Any


class Pool:
  """Processes of tuning/worker.py.

  A message is a dictionary with `worker`; tuning/worker.py has the rest.
  """

  def __init__(self, workers: int, pinned: bool, logs: pathlib.Path):
    """Starts the processes.

    Args:
      workers: how many.
      pinned: whether each gets a core of its own.
      logs: directory for what they write to stderr.
    """
    logs.mkdir(parents=True, exist_ok=True)
    cores = sorted(os.sched_getaffinity(0)) if pinned else []
    self._messages: queue.Queue[dict[str, Any]] = queue.Queue()
    self._logs: list[IO[str]] = []
    self._processes = []
    for i in range(workers):
      core = [str(cores[i % len(cores)])] if pinned else []
      log = (logs / f'worker-{i}.log').open('a', encoding='utf-8')
      process = subprocess.Popen(
        [sys.executable, '-m', 'steepest.tuning.worker', *core],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
      )
      self._logs.append(log)
      self._processes.append(process)
      threading.Thread(target=self._listen, args=(i,), daemon=True).start()

  def __len__(self) -> int:
    return len(self._processes)

  def __enter__(self) -> 'Pool':
    return self

  def __exit__(self, *_: object) -> None:
    for process in self._processes:
      process.kill()
      process.wait()
    for log in self._logs:
      log.close()

  def start(self, worker: int, job: dict[str, Any]) -> None:
    """Hands a job to a worker that has none."""
    pipe = self._processes[worker].stdin
    assert pipe is not None
    pipe.write(json.dumps(job) + '\n')
    pipe.flush()

  def messages(self) -> Iterator[dict[str, Any]]:
    """Yields what the workers say, in the order in which it arrives.

    Raises:
      ChildProcessError: a worker ended.
    """
    while True:
      message = self.next_message(None)
      assert message is not None
      yield message

  def next_message(self, seconds: float | None) -> dict[str, Any] | None:
    """Returns the next message; None if there is none for so long.

    Raises:
      ChildProcessError: a worker ended.
    """
    try:
      message = self._messages.get(timeout=seconds)
    except queue.Empty:
      return None
    if message['kind'] == 'ended':
      i = message['worker']
      code = self._processes[i].wait()
      raise ChildProcessError(
        f'worker {i} ended with status {code}: see {self._logs[i].name}; '
        'run the same command again to go on'
      )
    return message

  def _listen(self, worker: int) -> None:
    pipe = self._processes[worker].stdout
    assert pipe is not None
    for line in pipe:
      self._messages.put({**json.loads(line), 'worker': worker})
    self._messages.put({'kind': 'ended', 'worker': worker})

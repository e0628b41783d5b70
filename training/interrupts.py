"""What ends a run before its last step: signals, and a step that hangs."""

from collections.abc import Callable, Iterator
import contextlib
import faulthandler
import json
import os
import pathlib
import signal
import socket
import sys
import tempfile
import threading
import time
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

from steepest.data import buckets

# EX_TEMPFAIL of sysexits.h: nothing is wrong; run the same command again.
EXIT_CODE = 75
# Seconds between checks of the step.
_TICK = 0.05
# Seconds that processes have to report where they are.
_ANSWER = 15.0
# Most processes to name.
_NAMED = 3


class Stopped(Exception):
  """A run stopped after `steps` steps, as requested."""

  def __init__(self, message: str, steps: int):
    super().__init__(message)
    self.steps = steps


class StopSignals:
  """Turns SIGTERM and SIGINT into a request that the training loop reads.

  The first signal requests a stop; a second one, or the end of the grace time,
  exits at once with EXIT_CODE. If one of several processes gets the signal, all
  learn of it at the same step, through JAX's coordination service.
  """

  def __init__(self, grace_seconds: float):
    """Does nothing yet.

    Args:
      grace_seconds: from the first signal until it exits without a checkpoint;
        0: no limit.
    """
    self._grace = grace_seconds
    self._asked: str | None = None
    self._before: dict[int, object] = {}

  def __enter__(self) -> 'StopSignals':
    self._several = jax.process_count() > 1
    # With several processes, the coordination service handles SIGTERM.
    wanted = (
      (signal.SIGINT,) if self._several else (signal.SIGTERM, signal.SIGINT)
    )
    for number in wanted:
      self._before[number] = signal.signal(number, self._receive)
    return self

  def __exit__(self, *error: object) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)  # type: ignore[arg-type]

  def requested(self, steps: int) -> bool:
    """Returns whether to stop after `steps` steps; called once per step."""
    if self._several:
      if not multihost_utils.reached_preemption_sync_point(steps):
        return False
      self._begin('a signal to one of the processes')
    return self._asked is not None

  def _receive(self, number: int, frame: FrameType | None) -> None:
    if self._asked is not None:
      os._exit(EXIT_CODE)
    if self._several:
      # Tell the others too.
      self._asked = 'SIGINT'
      os.kill(os.getpid(), signal.SIGTERM)
      return
    self._begin(signal.Signals(number).name)

  def _begin(self, what: str) -> None:
    self._asked = what
    print(
      f'{what}: finishing the step and saving; once more leaves at once',
      file=sys.stderr,
      flush=True,
    )
    if self._grace:
      timer = threading.Timer(self._grace, os._exit, (EXIT_CODE,))
      timer.daemon = True
      timer.start()


class StallTimer:
  """Watches for steps that do not end, in a separate thread.

  If one of several processes hangs, the others wait for it inside a collective
  operation, which nothing in their own program can interrupt. So the first
  process whose step takes too long writes a report of where it is, with its
  threads' stacks; the others see the report and write theirs; each names the
  process that hangs and exits, and their launcher restarts all.

  Attributes:
    paused: seconds in which this process did not run at all, as far as the
      thread could see.
  """

  def __init__(
    self,
    seconds: float,
    directory: pathlib.Path,
    where: Callable[[], dict[str, Any]],
    tell: Callable[[str, bool], None],
    stage: buckets.Stage | None = None,
  ):
    """Does nothing yet.

    Args:
      seconds: longest time for one step; 0: no limit.
      directory: gets a report from each process. It belongs to this start
        only: others that see it act once it exists.
      where: says what this process is 'doing', for how many 'seconds', at which
        'step', and whether it 'waits' for others there.
      tell: (one line, whether this process speaks for all).
      stage: brings the others' reports if they see another directory.
    """
    self.paused = 0.0
    self._seconds = seconds
    self._directory = directory
    self._where = where
    self._tell = tell
    self._stage = stage or buckets.Stage(directory)
    # Seconds that the current step has taken.
    self._taken: list[float] | None = None
    self._over = threading.Event()
    self._thread: threading.Thread | None = None

  def __enter__(self) -> 'StallTimer':
    self._index, self._count = jax.process_index(), jax.process_count()
    self._watched = threading.get_ident()
    if self._seconds or self._count > 1:
      self._thread = threading.Thread(target=self._watch, daemon=True)
      self._thread.start()
    return self

  def __exit__(self, *error: object) -> None:
    self._over.set()
    if self._thread is not None:
      self._thread.join()

  @contextlib.contextmanager
  def step(self) -> Iterator[None]:
    """Context for one step, which has to end in time."""
    self._taken = [0.0]
    try:
      yield
    finally:
      self._taken = None

  def _watch(self) -> None:
    before, unseen = time.monotonic(), 0.0
    while not self._over.wait(_TICK):
      passed = time.monotonic() - before
      before += passed
      # A process that was stopped, or had no core, did not wait for others.
      late = passed - _TICK
      self.paused += late if late > _TICK / 5 else 0.0
      taken = self._taken
      if not self._seconds:
        continue
      if taken is not None:
        taken[0] += min(passed, 1.0)
      unseen += passed
      hangs = taken is not None and taken[0] > self._seconds
      if not hangs and self._count > 1 and unseen > min(5, self._seconds / 4):
        unseen, hangs = 0.0, self._directory.exists()
      if hangs:
        self._leave()

  def _leave(self) -> None:
    # Exits even if the file system hangs.
    last = threading.Timer(4 * _ANSWER, os._exit, (1,))
    last.daemon = True
    last.start()
    try:
      self._write_report()
      found, speaks = self._read_reports()
    except OSError as error:
      found, speaks = f'there is no report: {error}', False
    self._tell(
      f'process {self._index} of {self._count}: a step has not ended in '
      f'{self._seconds:g} s; {found}; run the same command again to go on from '
      'the last checkpoint',
      speaks,
    )
    if self._index == 0 and self._count > 1:
      # The others need it until they exit.
      time.sleep(1)
    os._exit(1)

  def _write_report(self) -> None:
    frame = sys._current_frames()[self._watched]
    report = self._where() | {
      'host': socket.gethostname(),
      'at': f'{frame.f_code.co_filename}:{frame.f_lineno}',
    }
    self._directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile('w+', encoding='utf-8') as file:
      faulthandler.dump_traceback(file)
      file.seek(0)
      text = f'{json.dumps(report)}\n\n{file.read()}'
    name = f'process-{self._index}.txt'
    unfinished = self._directory / f'.{name}'
    unfinished.write_text(text, 'utf-8')
    unfinished.replace(self._directory / name)

  def _read_reports(self) -> tuple[str, bool]:
    """Returns which process hangs where, and whether this one reports it."""
    end = time.monotonic() + _ANSWER
    paths = [self._directory / f'process-{i}.txt' for i in range(self._count)]
    self._stage.push()
    while not all(p.exists() for p in paths) and time.monotonic() < end:
      time.sleep(0.2)
      self._stage.pull(self._directory)
    reports = {
      i: json.loads(path.read_text('utf-8').partition('\n')[0])
      for i, path in enumerate(paths)
      if path.exists()
    }
    silent = [i for i in range(self._count) if i not in reports]
    late = [i for i in reports if not reports[i]['waits']] or list(reports)
    found = [f'process {i} does not answer' for i in silent] or [
      f'process {i} on {r["host"]} hangs ({r["doing"]} for '
      f'{r["seconds"]:.0f} s, step {r["step"]}, {r["at"]})'
      for i, r in reports.items()
      if i in late
    ]
    more = f' and {len(found) - _NAMED} more' if len(found) > _NAMED else ''
    return (
      f'{", ".join(found[:_NAMED])}{more} (stacks of all: {self._directory})',
      self._index == min(reports),
    )

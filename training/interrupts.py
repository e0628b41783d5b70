"""What ends a run before its last step: signals, and a step that hangs."""

from collections.abc import Iterator
import contextlib
import os
import signal
import sys
import threading
import time
from types import FrameType

import jax
from jax.experimental import multihost_utils

# EX_TEMPFAIL of sysexits.h: nothing is wrong, run the same command again.
EXIT_CODE = 75


class Stopped(Exception):
  """A run that was asked to stop did so after `steps` steps."""

  def __init__(self, message: str, steps: int):
    super().__init__(message)
    self.steps = steps


class StopSignals:
  """Turns SIGTERM and SIGINT into a request that the training loop reads.

  The first signal asks; a second one, or the end of the grace time, leaves at
  once with EXIT_CODE. Of several processes, all learn of the signal to one of
  them at the same step, through JAX's coordination service.
  """

  def __init__(self, grace_seconds: float):
    """Does nothing yet.

    Args:
      grace_seconds: from the first signal to leaving without a checkpoint; 0:
        as long as it takes.
    """
    self._grace = grace_seconds
    self._asked: str | None = None
    self._before: dict[int, object] = {}

  def __enter__(self) -> 'StopSignals':
    self._several = jax.process_count() > 1
    # With several processes, SIGTERM is the coordination service's to see.
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
    """Returns whether to stop after `steps` steps; called once a step."""
    if self._several:
      if not multihost_utils.reached_preemption_sync_point(steps):
        return False
      self._begin('a signal to one of the processes')
    return self._asked is not None

  def _receive(self, number: int, frame: FrameType | None) -> None:
    if self._asked is not None:
      os._exit(EXIT_CODE)
    if self._several:
      # So that the others hear of it too.
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
  """Watches for steps that do not end, in a thread of its own.

  Where one of several processes hangs, the others wait for it inside a
  collective operation, which nothing in their own program can leave; so they
  say who they are and exit, and whoever started them starts all again.
  """

  def __init__(self, seconds: float, who: str):
    """Does nothing yet.

    Args:
      seconds: that one step may take; 0: any time.
      who: this process, for the message.
    """
    self._seconds = seconds
    self._who = who
    self._deadline: float | None = None
    self._over = threading.Event()
    self._thread: threading.Thread | None = None

  def __enter__(self) -> 'StallTimer':
    if self._seconds:
      self._thread = threading.Thread(target=self._watch, daemon=True)
      self._thread.start()
    return self

  def __exit__(self, *error: object) -> None:
    self._over.set()
    if self._thread is not None:
      self._thread.join()

  @contextlib.contextmanager
  def step(self) -> Iterator[None]:
    """What is inside has to end in time."""
    self._deadline = time.monotonic() + self._seconds
    try:
      yield
    finally:
      self._deadline = None

  def _watch(self) -> None:
    while not self._over.wait(min(1.0, self._seconds / 4)):
      deadline = self._deadline
      if deadline is not None and time.monotonic() > deadline:
        print(
          f'error: {self._who}: a step has not ended in {self._seconds:g} s; '
          'is another process gone? run the same command again to go on from '
          'the last checkpoint',
          file=sys.stderr,
          flush=True,
        )
        os._exit(1)

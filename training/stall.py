"""Ends a process whose training has come to a standstill."""

from collections.abc import Iterator
import contextlib
import os
import sys
import threading
import time
from types import TracebackType


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

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
  ) -> None:
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

"""TensorBoard events, written where there is room for them.

tensorboardX's own SummaryWriter hands events to a thread; on a full disk that
thread ends and the training waits for it for ever.
"""

import pathlib
import time
from typing import Any

from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2


class Board:
  """Event files of one run; after an error, a new file is begun."""

  def __init__(self, workdir: pathlib.Path, first_step: int):
    """Opens nothing yet.

    Args:
      workdir: of the run.
      first_step: the step that comes next; TensorBoard drops what earlier
        files have of it and later ones.
    """
    self._workdir = workdir
    self._first_step = first_step
    self._writer: EventsWriter | None = None

  def add_scalar(self, name: str, value: float, step: int) -> None:
    """Writes a number.

    Raises:
      OSError: there is no room; what was added since `flush` may be lost.
    """
    self._add(step, summary=summary.scalar(name, value))

  def add_text(self, name: str, text: str, step: int) -> None:
    """Writes a text, Markdown or HTML. Raises as `add_scalar`."""
    self._add(step, summary=summary.text(name, text))

  def flush(self) -> None:
    """Returns once all is on disk. Raises as `add_scalar`."""
    self._try(lambda writer: writer.flush())

  def close(self) -> None:
    """Flushes and closes. Raises as `add_scalar`."""
    if self._writer is not None:
      self._try(lambda writer: writer.close())

  def _add(self, step: int, **values: Any) -> None:
    event = event_pb2.Event(wall_time=time.time(), step=step, **values)
    self._try(lambda writer: writer.write_event(event))

  def _try(self, do: Any) -> None:
    if self._writer is None:
      # Files of the same second would have the same name.
      count = len(list(self._workdir.glob('events.out.tfevents.*')))
      self._writer = EventsWriter(str(self._workdir / 'events'), f'.{count}')
      start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
      if self._first_step:
        self._add(self._first_step, session_log=start)
    try:
      do(self._writer)
    except OSError:
      self._writer = None
      raise

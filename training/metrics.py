"""What a run writes beside its checkpoints: metrics, TensorBoard, events.

The writers' methods are those of clu.metric_writers, which needs TensorFlow.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import itertools
import json
import os
import pathlib
import sys
import time
from typing import Any, Protocol

from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2

from steepest.data import reading, terminal

EVENTS = 'events.jsonl'
_DELETE = 'delete that line'
# Bytes read at a time when counting lines.
_BLOCK = 1 << 20


class Writer(Protocol):
  """Receives the training loop's metrics."""

  def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None: ...

  def write_texts(self, step: int, texts: Mapping[str, str]) -> None: ...

  def write_hparams(self, hparams: Mapping[str, Any]) -> None: ...

  def flush(self) -> None: ...

  def close(self) -> None: ...


class MetricWriter:
  """Writes metrics.jsonl and TensorBoard events of one run.

  Each step is in metrics.jsonl once: opening the writer cuts off rows of steps
  that a restart will repeat. If the disk is full, rows are kept until there is
  room; TensorBoard events are dropped.
  """

  def __init__(
    self,
    workdir: str | os.PathLike[str],
    first_step: int,
    warn: Callable[[str], None] | None = None,
  ):
    """Opens the files.

    Args:
      workdir: the run's directory.
      first_step: the next step; earlier rows are kept.
      warn: told of TensorBoard events that could not be written.
    """
    self._path = pathlib.Path(workdir) / 'metrics.jsonl'
    if self._path.exists():
      _, size = rows_before(workdir, first_step)
      with _named(self._path):
        os.truncate(self._path, size)
    # Unbuffered, to know what was written when the disk is full.
    self._file = self._path.open('ab', buffering=0)
    self._waiting = b''
    self._tensorboard = TensorBoardWriter(self._path.parent, first_step)
    self._warn = warn or (lambda text: None)

  def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
    """Writes one row; values are finite numbers, logged unrounded."""
    row = {'step': step, **scalars}
    self._waiting += json.dumps(row, allow_nan=False).encode() + b'\n'
    # If the disk is full now, the next row tries again.
    with contextlib.suppress(OSError):
      self._write_waiting()
    with self._tensorboard_may_fail():
      for name, value in scalars.items():
        self._tensorboard.add(step, summary=summary.scalar(name, value))

  def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
    """Writes texts to TensorBoard."""
    with self._tensorboard_may_fail():
      for name, text in texts.items():
        self._tensorboard.add(step, summary=summary.text(name, text))

  def write_hparams(self, hparams: Mapping[str, Any]) -> None:
    """Writes hyperparameters to TensorBoard as a table."""
    rows = ''.join(f'| {k} | {v} |\n' for k, v in hparams.items())
    self.write_texts(0, {'config': f'| key | value |\n|---|---|\n{rows}'})

  def flush(self) -> None:
    """Returns once all rows are on disk.

    Raises:
      OSError: they are not; the next row tries again.
    """
    with self._tensorboard_may_fail():
      self._tensorboard.flush()
    with _named(self._path):
      self._write_waiting()
      os.fsync(self._file.fileno())

  def close(self) -> None:
    """Flushes and closes; raises like `flush`."""
    try:
      self.flush()
    finally:
      self._file.close()
      with self._tensorboard_may_fail():
        self._tensorboard.close()

  def _write_waiting(self) -> None:
    while self._waiting:
      written = self._file.write(self._waiting)
      self._waiting = self._waiting[written:]

  @contextlib.contextmanager
  def _tensorboard_may_fail(self) -> Iterator[None]:
    try:
      yield
    except OSError as error:
      self._warn(f'TensorBoard events are not written: {error}')


class TensorBoardWriter:
  """TensorBoard event files of one run; an error starts a new file.

  tensorboardX's own SummaryWriter hands events to a thread; on a full disk that
  thread ends and training waits for it forever.
  """

  def __init__(self, workdir: pathlib.Path, first_step: int):
    """Opens nothing yet.

    Args:
      workdir: the run's directory.
      first_step: the next step; TensorBoard drops earlier files' events of
        this step and later ones.
    """
    self._workdir = workdir
    self._first_step = first_step
    self._writer: EventsWriter | None = None

  def add(self, step: int, **values: Any) -> None:
    """Writes an event with fields of TensorBoard's protocol.

    Raises:
      OSError: the disk is full; events since the last `flush` may be lost.
    """
    event = event_pb2.Event(wall_time=time.time(), step=step, **values)
    self._try(lambda writer: writer.write_event(event))

  def flush(self) -> None:
    """Returns once everything is on disk; raises like `add`."""
    self._try(lambda writer: writer.flush())

  def close(self) -> None:
    """Flushes and closes; raises like `add`."""
    if self._writer is not None:
      self._try(lambda writer: writer.close())

  def _try(self, do: Any) -> None:
    if self._writer is None:
      # Two files of the same second would share a name.
      count = len(list(self._workdir.glob('events.out.tfevents.*')))
      self._writer = EventsWriter(str(self._workdir / 'events'), f'.{count}')
      start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
      if self._first_step:
        self.add(self._first_step, session_log=start)
    try:
      do(self._writer)
    except OSError:
      self._writer = None
      raise


class Events:
  """Appends to events.jsonl of a run and writes to stderr.

  Neither fails if the disk is full: nothing relies on events.
  """

  def __init__(self, workdir: str | os.PathLike[str], writes: bool):
    """Opens nothing yet.

    Args:
      workdir: the run's directory.
      writes: False for processes that leave writing to another.
    """
    self._path = pathlib.Path(workdir) / EVENTS
    self._writes = writes

  def add(self, kind: str, step: int, text: str) -> None:
    """Writes one event.

    Args:
      kind: 'checkpoint' or 'metrics'.
      step: the run's step.
      text: one line for people.
    """
    if not self._writes:
      return
    event = {'step': step, 'kind': kind, 'text': text, 'time': time.time()}
    with contextlib.suppress(OSError):
      line = terminal.escape(f'{kind} at step {step}: {text}')
      print(line, file=sys.stderr, flush=True)
    with (
      contextlib.suppress(OSError),
      self._path.open('a', encoding='utf-8') as file,
    ):
      file.write(json.dumps(event) + '\n')


def read_rows(workdir: str | os.PathLike[str]) -> list[dict[str, Any]]:
  """Returns the complete rows of metrics.jsonl; none if there is no file.

  Raises:
    ValueError: a row is damaged.
  """
  path = pathlib.Path(workdir) / 'metrics.jsonl'
  if not path.exists():
    return []
  with path.open('rb') as file:
    # A killed run may leave half a line at the end.
    whole = (line for line in file if line.endswith(b'\n'))
    rows = reading.objects(whole, str(path), hint=_DELETE)
    return [_checked(row, path) for row in rows]


def last_rows(
  workdir: str | os.PathLike[str], share: float
) -> list[dict[str, Any]]:
  """Returns the last rows of metrics.jsonl: a share of all, at least one.

  Raises:
    ValueError: one of them is damaged.
  """
  path = pathlib.Path(workdir) / 'metrics.jsonl'
  if not path.exists():
    return []
  count = max(1, round(_count_lines(path, path.stat().st_size) * share))
  last = itertools.islice(_backwards(path), count)
  return [row for _, row in last][::-1]


def rows_before(
  workdir: str | os.PathLike[str], first_step: int
) -> tuple[int, int]:
  """Returns the number and bytes of the rows of earlier steps.

  Parses only the rows after them, since a run may have a million.

  Raises:
    ValueError: a row is damaged.
  """
  path = pathlib.Path(workdir) / 'metrics.jsonl'
  if path.exists():
    for end, row in _backwards(path):
      if row['step'] < first_step:
        return _count_lines(path, end), end
  return 0, 0


def _backwards(path: pathlib.Path) -> Iterator[tuple[int, dict[str, Any]]]:
  """Yields each row with its end offset, last row first."""
  for end, row in reading.objects_backwards(path, _DELETE):
    yield end, _checked(row, path)


def _checked(row: dict[str, Any], path: pathlib.Path) -> dict[str, Any]:
  kinds = {'step': 'count', 'train/loss': '?number'}
  where = f'{path}, a row of step {reading.shown(row.get("step"))}'
  reading.require(row, kinds, where, _DELETE)
  return row


def _count_lines(path: pathlib.Path, size: int) -> int:
  """Returns how many lines end within the first `size` bytes of a file."""
  count = 0
  with path.open('rb') as file:
    while size > 0 and (content := file.read(min(size, _BLOCK))):
      count, size = count + content.count(b'\n'), size - len(content)
  return count


def write_json(path: str | os.PathLike[str], value: Any) -> None:
  """Writes JSON to a temporary file beside `path`, then renames it."""
  path = pathlib.Path(path)
  temporary = path.with_name(f'.{path.name}.tmp')
  with _named(path):
    temporary.write_text(json.dumps(value, indent=2) + '\n', 'utf-8')
  os.replace(temporary, path)


@contextlib.contextmanager
def _named(path: pathlib.Path) -> Iterator[None]:
  """Adds the file's name to write errors, such as a full disk."""
  try:
    yield
  except OSError as error:
    raise OSError(error.errno, error.strerror, str(path)) from error

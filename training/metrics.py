"""Writers of metrics: JSONL and TensorBoard.

The methods are those of clu.metric_writers, which needs TensorFlow.
"""

from collections.abc import Mapping, Sequence
import json
import os
import pathlib
from typing import Any, Protocol

import tensorboardX


class Writer(Protocol):
  """What the training loop writes to."""

  def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None: ...

  def write_texts(self, step: int, texts: Mapping[str, str]) -> None: ...

  def write_hparams(self, hparams: Mapping[str, Any]) -> None: ...

  def flush(self) -> None: ...

  def close(self) -> None: ...


class Writers:
  """Hands everything to each of several writers, in order."""

  def __init__(self, writers: Sequence[Writer]):
    self._writers = writers

  def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
    for writer in self._writers:
      writer.write_scalars(step, scalars)

  def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
    for writer in self._writers:
      writer.write_texts(step, texts)

  def write_hparams(self, hparams: Mapping[str, Any]) -> None:
    for writer in self._writers:
      writer.write_hparams(hparams)

  def flush(self) -> None:
    for writer in self._writers:
      writer.flush()

  def close(self) -> None:
    for writer in self._writers:
      writer.close()


class MetricWriter:
  """Writes metrics.jsonl and TensorBoard events of one run.

  Each step stands once in metrics.jsonl: rows of steps that a restart will do
  again are cut off when the writer opens.
  """

  def __init__(self, workdir: str | os.PathLike[str], first_step: int):
    """Opens the files.

    Args:
      workdir: of the run.
      first_step: the step that comes next; earlier rows are kept.
    """
    self._path = pathlib.Path(workdir) / 'metrics.jsonl'
    if self._path.exists():
      _keep_rows_before(self._path, first_step)
    self._file = self._path.open('a', encoding='utf-8')
    self._board = tensorboardX.SummaryWriter(
      str(workdir), purge_step=first_step or None
    )

  def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
    """Writes one row; values are finite numbers, logged unrounded."""
    row = {'step': step, **scalars}
    self._file.write(json.dumps(row, allow_nan=False) + '\n')
    for name, value in scalars.items():
      self._board.add_scalar(name, value, step)

  def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
    """Writes texts to TensorBoard."""
    for name, text in texts.items():
      self._board.add_text(name, text, step)

  def write_hparams(self, hparams: Mapping[str, Any]) -> None:
    """Writes hyperparameters to TensorBoard as a table."""
    rows = ''.join(f'| {k} | {v} |\n' for k, v in hparams.items())
    self.write_texts(0, {'config': f'| key | value |\n|---|---|\n{rows}'})

  def flush(self) -> None:
    """Returns once all rows are on disk."""
    self._file.flush()
    os.fsync(self._file.fileno())
    self._board.flush()

  def close(self) -> None:
    """Flushes and closes."""
    self.flush()
    self._file.close()
    self._board.close()


def read_rows(workdir: str | os.PathLike[str]) -> list[dict[str, Any]]:
  """Returns the complete rows of metrics.jsonl; none if there is no file."""
  path = pathlib.Path(workdir) / 'metrics.jsonl'
  if not path.exists():
    return []
  lines = path.read_text('utf-8').splitlines(keepends=True)
  # A killed run may leave half a line at the end.
  return [json.loads(line) for line in lines if line.endswith('\n')]


def write_json(path: str | os.PathLike[str], value: Any) -> None:
  """Writes JSON to a temporary name beside `path`, then renames."""
  path = pathlib.Path(path)
  temporary = path.with_name(f'.{path.name}.tmp')
  temporary.write_text(json.dumps(value, indent=2) + '\n', 'utf-8')
  os.replace(temporary, path)


def _keep_rows_before(path: pathlib.Path, first_step: int) -> None:
  rows = [r for r in read_rows(path.parent) if r['step'] < first_step]
  temporary = path.with_name(f'.{path.name}.tmp')
  temporary.write_text(''.join(json.dumps(row) + '\n' for row in rows), 'utf-8')
  os.replace(temporary, path)

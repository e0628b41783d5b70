"""A progress bar for a whole sweep and a line for each of its workers."""

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from steepest.tuning import progress


class Bars:
  """Shows bars on a terminal; elsewhere only what is said."""

  def __init__(self, title: str, workers: int):
    self.console = Console()
    self._bar = Progress(
      TextColumn('{task.description}'),
      BarColumn(bar_width=24),
      TextColumn('{task.fields[status]}'),
      console=self.console,
      disable=not self.console.is_terminal,
    )
    add = lambda name: self._bar.add_task(name, total=1.0, status='starting')
    self._all = add(title)
    self._workers = [add(f'worker {i}') for i in range(workers)]

  def __enter__(self) -> Self:
    self._bar.start()
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    self._bar.stop()

  def show_row(self, name: str, message: Mapping[str, Any]) -> float:
    """Shows a row of a worker's run and returns the share that is done."""
    row, steps = message['row'], message['steps']
    done = row['step'] + 1
    self._bar.update(
      self._workers[message['worker']],
      description=name,
      completed=done / steps,
      status=f'step {done}/{steps} {progress.describe(row)}',
    )
    return float(done / steps)

  def show_all(self, done: float, status: str) -> None:
    """Shows how much of the sweep is done."""
    self._bar.update(self._all, completed=done, status=status)

"""What a run shows in the terminal while it goes on."""

from types import TracebackType
from typing import Any

from ml_collections import ConfigDict
import rich.console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class Training:
  """A progress bar; without a terminal, a line every tenth of the run."""

  def __init__(self, config: ConfigDict, workdir: str):
    self._steps = config.steps
    self._workdir = workdir
    self._console = rich.console.Console()
    self._bar = Progress(
      TextColumn('{task.description}'),
      BarColumn(),
      TextColumn('{task.completed:.0f}/{task.total:.0f}'),
      TextColumn('{task.fields[status]}'),
      TimeRemainingColumn(),
      console=self._console,
      disable=not self._console.is_terminal,
    )
    self._task = self._bar.add_task(
      f'{config.model.name} {config.optimizer.name}',
      total=config.steps,
      status='compiling',
    )

  def __enter__(self) -> 'Training':
    self._bar.start()
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    self._bar.stop()

  def finish(self, summary: dict[str, Any]) -> None:
    """Prints where the run ended."""
    loss = summary['eval_loss']
    validation = '' if loss is None else f', validation loss {loss:.4f}'
    self._console.print(
      f'{summary["steps"]} steps, {summary["tokens"]:,} tokens, train loss '
      f'{summary["train_loss"]:.4f}{validation}: {self._workdir}',
      highlight=False,
      soft_wrap=True,
    )

  def on_row(self, row: dict[str, Any]) -> None:
    """Shows a logged row."""
    done = row['step'] + 1
    status = describe(row)
    self._bar.update(self._task, completed=done, status=status)
    tenth = max(1, self._steps // 10)
    if not self._console.is_terminal and done % tenth == 0:
      self._console.print(
        f'step {done}/{self._steps} {status}', highlight=False, soft_wrap=True
      )


def describe(row: dict[str, Any]) -> str:
  """Returns loss, tokens/s and MFU of a row in a few words."""
  mfu = f'{row["mfu"]:.1%}' if 'mfu' in row else 'n/a'
  loss = 'update skipped'
  if 'train/loss' in row:
    loss = f'loss {row["train/loss"]:.3f}'
  evaluated = f' val {row["eval/loss"]:.3f}' if 'eval/loss' in row else ''
  return f'{loss}{evaluated} {row["tokens_per_second"]:,.0f} tok/s mfu {mfu}'

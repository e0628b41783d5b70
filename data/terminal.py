"""A terminal that shows text literally, whatever names and files hold."""

from collections.abc import Iterator
from typing import Any

from rich.console import Console as RichConsole, ConsoleOptions
from rich.segment import Segment
from tqdm import auto, tqdm


class Console(RichConsole):
  """Ignores markup, and shows control characters as escapes.

  Paths, optimizers' names and rows of runs are untrusted text: brackets in them
  must not set styles, nor escape sequences move the cursor.
  """

  def __init__(self, columns: int | None = None, **options: Any):
    """Opens standard output.

    Args:
      columns: width if it is no terminal; None: rich's default.
      **options: for rich's console.
    """
    super().__init__(markup=False, emoji=False, highlight=False, **options)
    if columns is not None and not self.is_terminal:
      self.width = columns

  def render(
    self, renderable: object, options: ConsoleOptions | None = None
  ) -> Iterator[Segment]:
    """Yields the segments to print, with only printable characters."""
    for text, style, control in super().render(renderable, options):  # type: ignore[arg-type]
      yield Segment(text if control else escape(text), style, control)


def progress(description: str, unit: str, total: int | None = None) -> tqdm:
  """Returns a bar: on stderr, a widget in a notebook, silent in a pipe."""
  console = Console(stderr=True)
  return auto.tqdm(
    desc=escape(description),
    unit=unit,
    total=total,
    dynamic_ncols=True,
    disable=not (console.is_terminal or console.is_jupyter),
  )


def escape(text: str) -> str:
  """Returns `text` with unprintable characters escaped."""
  return ''.join(
    c
    if c.isprintable() or c in '\n\t\N{NO-BREAK SPACE}'
    else c.encode('unicode_escape').decode()
    for c in text
  )

"""Shows runs while they train, in the terminal.

    python -m launch.watch runs/gpt2-124m-lion runs/study

Any number of runs, and of directories that hold some, such as a study: step,
loss and its slope in nats a thousand steps, tokens/s, MFU, time spent waiting
for data, newest checkpoint and its age, time left, and what wants attention.
All is read from their directories, or from buckets: it may run on any machine
that sees them.
--once prints one view and ends. Ctrl-C ends the watching, not the runs.
"""

import sys
import time
from typing import TYPE_CHECKING

from absl import flags

from steepest.launch import cli

if TYPE_CHECKING:
  from rich.table import Table

  from steepest.data.terminal import Console


def main() -> None:
  """The command."""
  once = flags.DEFINE_bool('once', False, 'Print one view and end.')
  every = flags.DEFINE_float(
    'every', 2.0, 'Seconds between views.', lower_bound=0.1
  )
  roots: list[str] = []
  cli.run(lambda: _watch(roots, once.value, every.value), __doc__, roots)


def _watch(roots: list[str], once: bool, every: float) -> None:
  if not roots:
    raise ValueError('of which runs? give their directories')
  from rich.live import Live

  from steepest.data.terminal import Console

  console = Console(columns=160)
  if once or not console.is_terminal:
    console.print(_view(roots, None))
    return
  try:
    with Live(_fit(roots, console), console=console, screen=True) as live:
      while True:
        time.sleep(every)
        live.update(_fit(roots, console))
  except KeyboardInterrupt:
    # The last view stays on the terminal.
    console.print(_view(roots, None))
    sys.exit(0)


def _fit(roots: list[str], console: 'Console') -> 'Table':
  # Title and heading take two lines; alarms may take a second line a run.
  return _view(roots, console.height - 4)


def _view(roots: list[str], rows: int | None) -> 'Table':
  from steepest.data import buckets
  from steepest.tuning import status

  places = [str(buckets.read(root, buckets.rows)) for root in roots]
  now = time.time()
  found = [status.read(run, now) for run in status.find(places)]
  return status.table(found, rows)


if __name__ == '__main__':
  main()

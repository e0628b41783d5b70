"""Shows runs in the terminal while they train.

    python -m launch.watch runs/gpt2-124m-lion runs/study

Takes any number of runs and of directories of runs, such as studies. Shows
step, loss and its slope in nats per thousand steps, tokens/s, MFU, time spent
waiting for data, newest checkpoint and its age, time left, and alarms. It only
reads directories or buckets, so it works on any machine that sees them. --once
prints one view and exits. Ctrl-C ends the display, not the runs.
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
  once = flags.DEFINE_bool('once', False, 'Print one view and exit.')
  every = flags.DEFINE_float(
    'every', 2.0, 'Seconds between views.', lower_bound=0.1
  )
  roots: list[str] = []
  cli.run(lambda: _watch(roots, once.value, every.value), __doc__, roots)


def _watch(roots: list[str], once: bool, every: float) -> None:
  if not roots:
    raise ValueError('no runs: give their directories')
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
  # Title and heading take two lines; two more leave room for wrapped alarms.
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

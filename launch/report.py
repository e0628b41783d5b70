"""Compares runs: writes a page that opens offline, and prints its tables.

    python -m launch.report --runs=runs/study --out=runs/study/report

Directories are searched for runs; those with stage=final are compared, those
with stage=tune give the learning-rate curves. Runs may still be under way.
"""

import sys

from absl import flags
from rich.console import Console

from steepest.launch import cli


def main() -> None:
  """The command."""
  runs = flags.DEFINE_list(
    'runs', [], 'Run directories, or directories that hold some.'
  )
  out = flags.DEFINE_string(
    'out', None, 'Directory for report.html and report.json.'
  )
  cli.run(lambda: _report(runs.value, out.value), __doc__)


def _report(paths: list[str], out: str | None) -> None:
  if not paths:
    raise ValueError('--runs is missing: give --runs=DIR,…')
  if not out:
    raise ValueError('--out is missing: give --out=DIR')
  # --help need not wait for the plot library.
  from steepest.eval import comparison
  from steepest.eval import report

  result = comparison.compare(comparison.load_runs(paths))
  command = ['python', '-m', 'launch.report', *sys.argv[1:]]
  path = report.write(result, out, command)
  console = Console()
  if not console.is_terminal:
    console = Console(width=120)
  report.print_table(result, console)
  print(f'report: {path}')


if __name__ == '__main__':
  main()

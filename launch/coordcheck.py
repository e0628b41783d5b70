"""Checks that training changes activations equally at every size (µP).

    python -m launch.coordcheck --model=gpt2 --optimizer=lion \\
        --widths=32,64,128,256 --parametrization=mup --out=runs/coordcheck

Trains about 10 steps on the source of Python's standard library at each width
with several seeds; wider models have more heads. On log-log scales it fits the
slope over width of each activation's change, of the updates and of Sophia's
curvature, and judges each. --depths does the same over layers, at the first
width. Writes coordcheck.json and coordcheck.html to --out; exits 0 if every
slope is allowed, 1 if not.
"""

import pathlib
import sys
from typing import Any

from absl import flags
import rich.console
import rich.table
from rich.text import Text

from steepest.data import terminal
from steepest.launch import cli


def main() -> None:
  """The command."""
  enum = flags.DEFINE_enum
  found = {
    'model': flags.DEFINE_string(
      'model', 'gpt2', 'gpt2, llama (files in models/), or ./mine.py.'
    ),
    'optimizer': flags.DEFINE_string(
      'optimizer', 'adamw', 'A file in optimizers/, or ./mine.py.'
    ),
    'widths': flags.DEFINE_list(
      'widths',
      ['32', '64', '128', '256'],
      'Widths, each a multiple of the first, the base; a factor of two is '
      'too small for the allowed slopes.',
    ),
    'depths': flags.DEFINE_list(
      'depths',
      [],
      'Numbers of layers to check as well; the first is the base, and the '
      'depth at which widths are checked. Default: 2 layers, no check.',
    ),
    'parametrization': enum(
      'parametrization', 'mup', ['mup', 'sp'], 'Parametrization to check.'
    ),
    'depth_rule': enum(
      'depth_rule',
      'none',
      ['none', 'completep', 'depth_mup'],
      'Depth rule of mup, for --depths.',
    ),
    'steps': flags.DEFINE_integer(
      'steps', 10, 'Optimizer steps; Sophia needs more than 4.', lower_bound=1
    ),
    'seeds': flags.DEFINE_integer('seeds', 3, 'Runs per size.', lower_bound=1),
    'out': cli.define_required('out', 'Directory for the results.', 'DIR'),
  }
  check = lambda: _check({k: f.value for k, f in found.items()})
  write = lambda: cli.write(found['out'], check)
  cli.run(write, __doc__, addresses=('out',))


def _check(values: dict[str, Any]) -> None:
  sizes = {
    'width': _sizes('widths', values['widths'], 2),
    'depth': _sizes('depths', values['depths'], 0) or (2,),
  }
  # JAX takes seconds to start; --help need not wait.
  from steepest.experiments import outside
  from steepest.report import coordinates as report
  from steepest.tuning import coordinates

  settings = coordinates.Settings(
    model=values['model'],
    optimizer=values['optimizer'],
    kind=values['parametrization'],
    depth_rule=values['depth_rule'],
    widths=sizes['width'],
    depths=sizes['depth'],
    steps=values['steps'],
    seeds=values['seeds'],
  )
  console = terminal.Console(columns=120)
  rows = coordinates.check(settings, console)
  out = pathlib.Path(values['out'])
  coordinates.write(rows, settings, out)
  page = report.write(
    out,
    f'Coordinate check: {outside.stem(settings.model)}, '
    f'{outside.stem(settings.optimizer)}, {settings.kind}',
    coordinates.describe(settings),
  )
  _print(rows, console)
  failed = [row.quantity for row in rows if not row.passed]
  judged = sum(row.band is not None for row in rows)
  verdict = (
    f'failed: {len(failed)} of {judged} slopes ({", ".join(failed)})'
    if failed
    else f'passed: all {judged} slopes'
  )
  print(f'coordinate check {verdict}: {page}')
  sys.exit(1 if failed else 0)


def _sizes(flag: str, words: list[str], least: int) -> tuple[int, ...]:
  """Returns a flag's sizes.

  Raises:
    ValueError: they do not increase.
  """
  try:
    sizes = tuple(int(word) for word in words)
  except ValueError:
    sizes = ()
  good = len(sizes) == len(words) >= least and len(sizes) != 1
  if not good or list(sizes) != sorted(set(sizes)) or min(sizes, default=1) < 1:
    raise ValueError(
      f'--{flag}={",".join(words)}: give two or more increasing numbers'
    )
  return sizes


def _print(rows: list[Any], console: rich.console.Console) -> None:
  table = rich.table.Table(box=None, pad_edge=False)
  for name in ('quantity', 'slope', 'allowed', 'verdict', 'reason'):
    table.add_column(name, overflow='fold', no_wrap=name != 'reason')
  for row in rows:
    if row.band is not None:
      error = '' if row.error != row.error else f' ± {row.error:.2f}'
      table.add_row(
        f'{row.quantity} over {row.axis}',
        f'{row.slope:+.2f}{error}',
        str(row.band),
        'passes' if row.passed else Text('FAILS', style='bold red'),
        row.words,
      )
  console.print(table)


if __name__ == '__main__':
  main()

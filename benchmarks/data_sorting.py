"""What telling apart and ordering of documents costs, without their text.

    python benchmarks/data_sorting.py 4 16

Makes up tables of so many million documents, a tenth of them duplicates, in
runs of 50,000, and prints time, memory and disk of launch.prepare's second
stage for each number.
"""

import json
import multiprocessing
import os
import pathlib
import resource
import sys
import tempfile
import time

import numpy as np

from steepest.data import files
from steepest.data.preparing import runs, tables

_RUN = 50_000
_SOURCES = 7


def main() -> None:
  """Prints a line for each number of documents."""
  # A process each, so that the one before is not in the peak.
  context = multiprocessing.get_context('spawn')
  for millions in map(int, sys.argv[1:]):
    process = context.Process(target=_sort, args=(millions * 1_000_000,))
    process.start()
    process.join()


def _sort(documents: int) -> None:
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
  with tempfile.TemporaryDirectory() as folder:
    directory = pathlib.Path(folder)
    held = _make_up(directory / 'runs', documents)
    start = time.perf_counter(), time.process_time()
    sorting = tables.Tables(directory / 'tables', directory / 'runs', held, 0)
    found = sorting.sort(lambda: None)
    parts = _size(directory / 'tables')
    sorting.split(found, tables.Split(1 << 18, 0.05))
    seconds = time.perf_counter() - start[0]
    processor = time.process_time() - start[1]
    print(
      f'{documents / 1e6:.0f} M documents, {found.duplicates:,} duplicates: '
      f'{seconds:.0f} s, {processor / documents * 1e6:.2f} µs of a core each, '
      f'on disk {_size(directory / "runs") / documents:.0f} bytes each and at '
      f'most {parts / documents:.0f} more; memory at most '
      f'{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000:.0f} MB '
      f'({before:.0f} before); load {os.getloadavg()[0]:.1f}',
      flush=True,
    )


def _make_up(directory: pathlib.Path, documents: int) -> list[runs.Run]:
  generator = np.random.default_rng(0)
  held = []
  names = [f'source-{i}' for i in range(_SOURCES)]
  for number in range(documents // _RUN):
    table_D = np.zeros(_RUN, runs.TABLE)
    for half in ('high', 'low'):
      table_D[half] = generator.integers(0, 1 << 64, _RUN, np.uint64)
    # The first run comes again and again, a tenth of it each time.
    if number:
      table_D[: _RUN // 10] = runs.load_table(directory, 0)[: _RUN // 10]
    table_D['length'] = 1063
    table_D['bytes'] = 4500
    table_D['offset'] = 1063 * np.arange(_RUN)
    table_D['source'] = table_D['low'] % _SOURCES
    path = runs.tokens_path(directory, number).with_suffix('.table')
    files.write(path, [table_D.data])
    run = runs.Run(runs.Position(0, 0), names, _RUN, 1063 * _RUN, 0, None, {})
    files.write(path.with_suffix('.json'), [json.dumps(run).encode()])
    held.append(run)
  return held


def _size(directory: pathlib.Path) -> int:
  return sum(p.stat().st_size for p in directory.rglob('*') if p.is_file())


if __name__ == '__main__':
  main()

"""What telling apart and ordering of documents costs, without their text.

    python benchmarks/data_sorting.py 4 16

Makes up indices of so many million documents, a tenth of them duplicates, in
chunks of 50,000, and prints time, memory and disk of launch.prepare's second
stage for each number.
"""

import multiprocessing
import os
import pathlib
import resource
import sys
import tempfile
import time

import numpy as np

from steepest.data.preparing import sorting, tokenize

_CHUNK = 50_000
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
    chunks = _make_up(directory / 'chunks', documents)
    start = time.perf_counter(), time.process_time()
    sorter = sorting.Sorting(
      directory / 'sorted', directory / 'chunks', chunks, 0
    )
    found = sorter.sort(lambda: None)
    parts = _size(directory / 'sorted')
    sorter.split(found, sorting.Validation(1 << 18, 0.05))
    seconds = time.perf_counter() - start[0]
    processor = time.process_time() - start[1]
    print(
      f'{documents / 1e6:.0f} M documents, {found.duplicates:,} duplicates: '
      f'{seconds:.0f} s, {processor / documents * 1e6:.2f} µs of a core each, '
      f'on disk {_size(directory / "chunks") / documents:.0f} bytes each and '
      f'at most {parts / documents:.0f} more; memory at most '
      f'{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000:.0f} MB '
      f'({before:.0f} before); load {os.getloadavg()[0]:.1f}',
      flush=True,
    )


def _make_up(directory: pathlib.Path, documents: int) -> list[tokenize.Chunk]:
  generator = np.random.default_rng(0)
  chunks = []
  names = [f'source-{i}' for i in range(_SOURCES)]
  for number in range(documents // _CHUNK):
    index_D = np.zeros(_CHUNK, tokenize.INDEX)
    for half in ('high', 'low'):
      index_D[half] = generator.integers(0, 1 << 64, _CHUNK, np.uint64)
    # The first chunk comes again and again, a tenth of it each time.
    if number:
      first_D = tokenize.load_index(directory, 0)
      index_D[: _CHUNK // 10] = first_D[: _CHUNK // 10]
    index_D['length'] = 1063
    index_D['bytes'] = 4500
    index_D['offset'] = 1063 * np.arange(_CHUNK)
    index_D['source'] = index_D['low'] % _SOURCES
    chunk = tokenize.Chunk(
      tokenize.Position(0, 0), names, _CHUNK, 1063 * _CHUNK, 0, None, {}
    )
    tokenize.save(directory, number, chunk, index_D, [])
    chunks.append(chunk)
  return chunks


def _size(directory: pathlib.Path) -> int:
  return sum(p.stat().st_size for p in directory.rglob('*') if p.is_file())


if __name__ == '__main__':
  main()

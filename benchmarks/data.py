"""Reading, tokenizing and sorting data: against the alternatives, and alone.

    python -m launch.prepare --input='corpus/*.jsonl' --tokenizer=gpt2 \\
        --out=shards --shard_tokens=8388608
    python benchmarks/data.py read 'corpus/*.jsonl' shards
    python benchmarks/data.py sort 4 16

`read` compares tokenizing, per second of one core's time, and shuffled windows,
per second on the clock from one process; rounds of the sides alternate. Then it
reads for long and prints the memory. `sort` makes up indices of so many million
documents, a tenth of them duplicates, and prints time, memory and disk of
launch.prepare's second stage.
"""

import argparse
from collections.abc import Callable
import multiprocessing
import os
import pathlib
import resource
import statistics
import tempfile
import time

# One thread, as each process of a preparation has.
os.environ['TOKENIZERS_PARALLELISM'] = 'false'

from array_record.python import array_record_data_source
from etils import epath
from ml_collections import ConfigDict
import numpy as np
import tokenizers as hf

from steepest.data import manifest as manifests, pipeline
from steepest.data.preparing import documents, sorting, tokenize

_ROUNDS = 5
# Text of each file that is tokenized, in bytes.
_TEXT = 1 << 20
_TOKENS = 20_000_000
_LONG = 1_000_000_000
_BATCH = 512
# Documents of a made-up chunk, and sources.
_CHUNK = 50_000
_SOURCES = 7


def main() -> None:
  """Prints a line for each comparison."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  commands = parser.add_subparsers(dest='command', required=True)
  read = commands.add_parser('read')
  read.add_argument('text', help='globs of the text, comma-separated')
  read.add_argument('shards', type=pathlib.Path, help='their directory')
  sort = commands.add_parser('sort')
  sort.add_argument('millions', type=int, nargs='+', help='of documents')
  arguments = parser.parse_args()
  load = lambda: print(f'load: {os.getloadavg()[0]:.1f} on {os.cpu_count()}')
  load()
  if arguments.command == 'read':
    _tokenizing(arguments.text, arguments.shards)
    for context in (1024, 2048):
      _reading(arguments.shards, context)
    _memory(arguments.shards)
  else:
    # A process each, so that the one before is not in the peak.
    context = multiprocessing.get_context('spawn')
    for millions in arguments.millions:
      process = context.Process(target=_sort, args=(millions * 1_000_000,))
      process.start()
      process.join()
  load()


def _tokenizing(text: str, shards: pathlib.Path) -> None:
  """Compares tokenize.write with a plain encode_batch of its text."""
  blocks = [
    next(iter(found.blocks(_TEXT)))
    for found in documents.find(text)
    if found.bytes
  ]
  texts = [
    item.text
    for block in blocks
    for _, item in documents.parse(block)
    if isinstance(item, documents.Document)
  ]
  size = sum(len(t.encode()) for t in texts) / 1e6
  backend = hf.Tokenizer.from_file(str(shards / 'tokenizer.json'))
  with tempfile.TemporaryDirectory() as folder:
    rules = tokenize.Rules(pathlib.Path(folder), shards, '', 0, '', ())
    task = tokenize.Task(0, blocks, tokenize.Position(0, 0))
    ours, plain, fast = _alternate(
      lambda: tokenize.write(rules, task),
      lambda: backend.encode_batch(texts),
      lambda: backend.encode_batch_fast(texts),
      clock=time.process_time,
    )
  print(
    f'tokenizing {size:.1f} MB, of one core: launch.prepare {size / ours:.2f} '
    f'MB/s (reading, hashing and writing included), tokenizers.encode_batch '
    f'{size / plain:.2f} MB/s, encode_batch_fast {size / fast:.2f} MB/s: '
    f'{plain / ours:.2f} and {fast / ours:.2f} times as fast'
  )


def _reading(shards: pathlib.Path, context: int) -> None:
  """Compares shuffled windows with reads that do nothing else."""
  steps = _TOKENS // (_BATCH * context)
  manifest = manifests.load(shards)
  source = max(manifest.sources, key=lambda n: manifest.sources[n].tokens)
  held = manifest.select('train', source)
  records = array_record_data_source.ArrayRecordDataSource(
    [str(epath.Path(shards) / s.name) for s in held]
  )
  dtype = np.dtype(manifest.dtype)
  generator = np.random.default_rng(0)
  with tempfile.NamedTemporaryFile() as file:
    flat = np.concatenate([np.frombuffer(r, dtype)[:-1] for r in records])
    flat.tofile(file)
    file.flush()
    mapped = np.memmap(file.name, dtype, 'r')

    def grain_windows() -> None:
      data = _open(shards, context, steps)
      for _ in data.train(0):
        pass

    def batched_records() -> None:
      count = steps * _BATCH * context // manifest.record_tokens
      for chosen in np.array_split(
        generator.integers(0, len(records), count), steps
      ):
        for record in records.__getitems__(chosen.tolist()):
          np.frombuffer(record, dtype).astype(np.int32)

    def mapped_windows() -> None:
      for _ in range(steps):
        starts = generator.integers(0, len(mapped) - context - 1, _BATCH)
        np.stack([mapped[s : s + context + 1] for s in starts]).astype(np.int32)

    grain, batched, memmap = _alternate(
      grain_windows, batched_records, mapped_windows, clock=time.perf_counter
    )
  tokens = steps * _BATCH * context / 1e6
  print(
    f'shuffled windows of {context}: Grain {tokens / grain:.1f} M tokens/s, '
    f'ArrayRecord alone in batches {tokens / batched:.1f}, np.memmap '
    f'{tokens / memmap:.1f}: {batched / grain:.2f} and {memmap / grain:.2f} '
    'times as fast'
  )


def _memory(shards: pathlib.Path) -> None:
  """Reads for long and prints the resident memory."""
  context = 1024
  steps = _LONG // (_BATCH * context)
  data = _open(shards, context, steps)
  marks = {steps // 10, steps // 2, steps - 1}
  held = []
  start = time.perf_counter()
  for step, _ in enumerate(data.train(0)):
    if step in marks:
      held.append(_resident())
  seconds = time.perf_counter() - start
  shown = ', '.join(f'{megabytes:.0f}' for megabytes in held)
  print(
    f'resident memory after 10 %, 50 % and 100 % of {_LONG / 1e6:.0f} M tokens '
    f'in {seconds:.0f} s: {shown} MB, at most '
    f'{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000:.0f}'
  )


def _open(shards: pathlib.Path, context: int, steps: int) -> pipeline.Data:
  # As many passes as that takes.
  held = sum(
    s.tokens for s in manifests.load(shards).shards if s.split == 'train'
  )
  config = ConfigDict(
    {
      'source': f'shards:{shards}',
      'mixture': '',
      'shuffle': True,
      'epochs': 1 + steps * _BATCH * context // held * 11 // 10,
      'verify': 'full',
      'mask_documents': False,
    }
  )
  return pipeline.open_data(
    config,
    context=context,
    batch_size=_BATCH,
    steps=steps,
    seed=0,
    eval_sequences=0,
  )


def _resident() -> float:
  """Returns megabytes in use that are of no file."""
  status = pathlib.Path('/proc/self/status').read_text()
  line = next(l for l in status.splitlines() if l.startswith('RssAnon'))
  return int(line.split()[1]) / 1000


def _alternate(
  *functions: Callable[[], object], clock: Callable[[], float]
) -> list[float]:
  """Returns the median of the seconds that each function takes."""
  seconds: list[list[float]] = [[] for _ in functions]
  for _ in range(_ROUNDS + 1):
    for function, taken in zip(functions, seconds):
      start = clock()
      function()
      taken.append(clock() - start)
  # The first round fills caches.
  return [statistics.median(taken[1:]) for taken in seconds]


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
      f'({before:.0f} before)',
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

"""Tokenizing and reading data, against the alternatives.

    python -m launch.prepare --input='corpus/*.jsonl' --tokenizer=gpt2 \\
        --out=shards --shard_tokens=8388608
    python benchmarks/data.py 'corpus/*.jsonl' shards

Compares tokenizing, per second of one core's time, and shuffled windows, per
second on the clock from one process; rounds of the sides alternate.
"""

import argparse
from collections.abc import Callable
import os
import pathlib
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
from steepest.data.preparing import documents, tokenize

_ROUNDS = 5
# Text of each file that is tokenized, in bytes.
_TEXT = 1 << 20
_TOKENS = 20_000_000
_BATCH = 512


def main() -> None:
  """Prints a line for each comparison."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('text', help='globs of the text, comma-separated')
  parser.add_argument('shards', type=pathlib.Path, help='their directory')
  arguments = parser.parse_args()
  load = lambda: print(f'load: {os.getloadavg()[0]:.1f} on {os.cpu_count()}')
  load()
  _tokenizing(arguments.text, arguments.shards)
  for context in (1024, 2048):
    _reading(arguments.shards, context)
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


if __name__ == '__main__':
  main()

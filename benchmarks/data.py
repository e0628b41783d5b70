"""Compares tokenizing and reading data with alternatives.

    python -m launch.prepare --input='corpus/*.jsonl' --tokenizer=gpt2 \\
        --out=shards --shard_tokens=8388608
    python benchmarks/data.py 'corpus/*.jsonl' shards

Compares tokenizing, per second of one core's time, and reading shuffled
windows, per second of wall-clock time in one process; the sides alternate.
Prints how much text a process that reads for others hands out per second of its
time, how much if tasks read for themselves, and the time to write a shard.
"""

import argparse
from collections.abc import Callable
import gzip
import os
import pathlib
import statistics
import tempfile
import time

# One thread, as in each process of a preparation.
os.environ['TOKENIZERS_PARALLELISM'] = 'false'

from array_record.python import array_record_data_source
from etils import epath
from ml_collections import ConfigDict
import numpy as np
import tokenizers as hf
import zstandard

from steepest.data import files, manifest as manifests, pipeline, shards
from steepest.data.preparing import documents, options, parsing, tokenize
from steepest.tuning import engine

_ROUNDS = 5
# Bytes of text tokenized from each file.
_TEXT = 1 << 20
_TOKENS = 20_000_000
# Bytes read for others, in chunks like a preparation's.
_FED, _CHUNK = 1 << 27, 1 << 22
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
  _feeding(arguments.text)
  _cutting(arguments.shards)
  for context in (1024, 2048):
    _reading(arguments.shards, context)
  load()


def _tokenizing(text: str, home: pathlib.Path) -> None:
  """Compares tokenize.write with plain encode_batch of the same text."""
  pieces = [
    next(found.pieces(_TEXT)) for found in documents.find(text) if found.bytes
  ]
  blocks = [next(documents.blocks(piece, _TEXT)) for piece in pieces]
  texts = [
    text
    for block in blocks
    for _, item in parsing.parse(block)
    if isinstance(item, parsing.Document)
    for text in parsing.pieces(item.text)
  ]
  size = sum(len(t.encode()) for t in texts) / 1e6
  backend = hf.Tokenizer.from_file(str(home / 'tokenizer.json'))
  with tempfile.TemporaryDirectory() as folder:
    directory = pathlib.Path(folder)
    most = options.DOCUMENT_BYTES
    rules = tokenize.Rules(directory, _TEXT, most, home, '', 0, '', ())
    task = tokenize.Task(0, pieces)
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


def _feeding(text: str) -> None:
  """Compares a process that reads for others with tasks that read."""
  found = [f for f in documents.find(text) if f.name.endswith('.jsonl')]
  content = b''.join(pathlib.Path(f.name).read_bytes() for f in found)
  content *= -(-_FED // len(content))
  size = len(content) / 1e6
  with (
    tempfile.TemporaryDirectory() as folder,
    engine.local([engine.Place()] * 2) as pool,
  ):
    for suffix, compress in (
      ('', bytes),
      ('.gz', gzip.compress),
      ('.zst', zstandard.compress),
    ):
      path = pathlib.Path(folder) / f'text.jsonl{suffix}'
      path.write_bytes(compress(content))
      (one,) = documents.find(str(path))
      whole = documents.Piece(one.name, one.bytes)
      blocks = lambda whole=whole: documents.blocks(whole, _CHUNK)
      pieces = lambda one=one: one.pieces(_CHUNK)
      fed, apart = _alternate(
        lambda blocks=blocks: list(pool.run(_take, blocks())),
        lambda pieces=pieces: list(pool.run(_read, pieces())),
        clock=time.process_time,
      )
      print(
        f'{size:.0f} MB of jsonl{suffix}: a process that reads for others '
        f'gives them {size / fed:.0f} MB per second of its time, one whose '
        f'tasks read {size / apart:.0f}'
      )


def _take(block: parsing.Block) -> int:
  return block.bytes


def _read(piece: documents.Piece) -> int:
  return sum(block.bytes for block in documents.blocks(piece, _CHUNK))


def _cutting(home: pathlib.Path) -> None:
  """Times writing a shard and its checksums, as the third stage does."""
  manifest = manifests.load(home)
  held = max(manifest.shards, key=lambda s: s.tokens)
  path = epath.Path(home) / held.name
  source = array_record_data_source.ArrayRecordDataSource([str(path)])
  dtype = np.dtype(manifest.dtype)
  records = [np.frombuffer(source[i], dtype) for i in range(len(source))]
  tokens_N = np.concatenate([r[:-1] for r in records] + [records[-1][-1:]])
  with tempfile.TemporaryDirectory() as folder:
    out = pathlib.Path(folder) / held.name

    def cut() -> None:
      shards.write(out, tokens_N, manifest.record_tokens)
      files.sha256(epath.Path(out))
      files.sampled_sha256(epath.Path(out))

    (seconds,) = _alternate(cut, clock=time.process_time)
  print(
    f'a shard of {held.tokens / 1e6:.1f} M tokens: '
    f'{held.tokens / seconds / 1e6:.1f} M tokens per second of one core'
  )


def _reading(home: pathlib.Path, context: int) -> None:
  """Compares shuffled windows with reads that do nothing else."""
  steps = _TOKENS // (_BATCH * context)
  manifest = manifests.load(home)
  source = max(manifest.sources, key=lambda n: manifest.sources[n].tokens)
  held = manifest.select('train', source)
  records = array_record_data_source.ArrayRecordDataSource(
    [str(epath.Path(home) / s.name) for s in held]
  )
  dtype = np.dtype(manifest.dtype)
  generator = np.random.default_rng(0)
  with tempfile.NamedTemporaryFile() as file:
    flat = np.concatenate([np.frombuffer(r, dtype)[:-1] for r in records])
    flat.tofile(file)
    file.flush()
    mapped = np.memmap(file.name, dtype, 'r')

    def grain_windows() -> None:
      data = _open(home, context, steps)
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


def _open(home: pathlib.Path, context: int, steps: int) -> pipeline.Data:
  # In as many passes as needed.
  held = sum(
    s.tokens for s in manifests.load(home).shards if s.split == 'train'
  )
  config = ConfigDict(
    {
      'source': f'shards:{home}',
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
  """Returns the median seconds of each function."""
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

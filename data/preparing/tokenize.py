"""Token chunks: some megabytes of text as tokens, and an index of documents.

D is the documents of a chunk, in the order of the input. Tokens lie by source
and in the shuffled order, so that a shard reads each chunk in one sweep.
"""

import collections
from collections.abc import Iterable, Iterator
import functools
import hashlib
import json
import pathlib
from typing import Any, NamedTuple

import numpy as np

from steepest.data import (
  decontamination,
  files,
  manifest as manifests,
  tokenizers,
)
from steepest.data.preparing import documents

# Hash in two halves, first token in the chunk's file, tokens, UTF-8 bytes, and
# the number of the source in the chunk's own list.
INDEX = np.dtype(
  [
    ('high', '<u8'),
    ('low', '<u8'),
    ('offset', '<u8'),
    ('length', '<u4'),
    ('bytes', '<u4'),
    ('source', '<u4'),
  ]
)
# Characters that are tokenized at a time.
_CHARACTERS = 1 << 20


class Position(NamedTuple):
  """A place in the inputs: before a block of one of them."""

  input: int
  block: int


class Task(NamedTuple):
  """The blocks of a chunk, and where the next one begins."""

  number: int
  blocks: list[documents.Block]
  after: Position


class Rules(NamedTuple):
  """What decides the chunks, but the text.

  Attributes:
    directory: of the chunks.
    tokenizer: directory of the tokenizer.json.
    source: the source of all documents; '': as the files say.
    seed: fixes the order of documents.
    decontaminate: '', or what becomes of documents that repeat a benchmark:
      'drop' or 'report'.
    benchmarks: files of the benchmarks.
  """

  directory: pathlib.Path
  tokenizer: pathlib.Path
  source: str
  seed: int
  decontaminate: str
  benchmarks: tuple[pathlib.Path, ...]


class Chunk(NamedTuple):
  """What became of the lines of a chunk.

  Attributes:
    after: where the next chunk begins.
    sources: names of the sources in the index.
    documents: rows of the index.
    tokens: of all documents.
    rejected: lines that give no document.
    first_reject: the first of them.
    contaminated: documents by source that repeat a benchmark.
  """

  after: Position
  sources: list[str]
  documents: int
  tokens: int
  rejected: int
  first_reject: dict[str, Any] | None
  contaminated: dict[str, int]


def tasks(
  found: list[documents.Input], size: int, number: int, start: Position
) -> Iterator[Task]:
  """Yields the chunks from some place of the inputs on.

  Args:
    found: the inputs.
    size: bytes of a chunk, which ends with the block that reaches it.
    number: of the first chunk.
    start: where it begins.
  """
  blocks: list[documents.Block] = []
  total = 0
  for i in range(start.input, len(found)):
    skipped = start.block if i == start.input else 0
    for j, block in enumerate(found[i].blocks(size)):
      if j < skipped:
        continue
      if total >= size:
        yield Task(number, blocks, Position(i, j))
        number, blocks, total = number + 1, [], 0
      blocks.append(block)
      total += block.bytes
  if blocks:
    yield Task(number, blocks, Position(len(found), 0))


def load(directory: pathlib.Path, number: int) -> Chunk | None:
  """Returns a chunk that is on disk, None where it is not."""
  path = _path(directory, number, 'json')
  if not path.exists():
    return None
  chunk = Chunk(**json.loads(path.read_text('utf-8')))
  return chunk._replace(after=Position(*chunk.after))


def load_all(directory: pathlib.Path) -> list[Chunk]:
  """Returns the chunks on disk up to the first that is missing."""
  chunks: list[Chunk] = []
  while (chunk := load(directory, len(chunks))) is not None:
    chunks.append(chunk)
  return chunks


def load_index(directory: pathlib.Path, number: int) -> np.ndarray:
  """Returns the documents of a chunk, INDEX[D]."""
  return np.fromfile(_path(directory, number, 'index'), INDEX)


def load_lines(
  directory: pathlib.Path, numbers: Iterable[int], kind: str
) -> Iterator[bytes]:
  """Yields the 'rejects' or the 'contaminated' lines of some chunks."""
  for number in numbers:
    path = _path(directory, number, kind)
    if path.exists():
      yield path.read_bytes()


def keep(directory: pathlib.Path, before: Position) -> None:
  """Discards the chunks that do not end before a place of the inputs."""
  number = 0
  while (chunk := load(directory, number)) and chunk.after <= before:
    number += 1
  for path in directory.glob('*/*'):
    if int(path.name.partition('.')[0]) >= number:
      path.unlink(missing_ok=True)


def tokens_path(directory: pathlib.Path, number: int) -> pathlib.Path:
  """Returns the file of a chunk's tokens."""
  return _path(directory, number, 'tokens')


def save(
  directory: pathlib.Path,
  number: int,
  chunk: Chunk,
  index_D: np.ndarray,
  tokens: Iterable[np.ndarray],
) -> None:
  """Writes a chunk; its .json comes last and says that it is complete."""
  files.write(tokens_path(directory, number), (t.data for t in tokens))
  files.write(_path(directory, number, 'index'), [index_D.data])
  text = json.dumps(chunk._asdict())
  files.write(_path(directory, number, 'json'), [text.encode()])


def order_keys(high_D: np.ndarray, seed: int) -> np.ndarray:
  """Returns uint64[D], in whose order the seed puts documents of these hashes.

  The order depends on neither the files nor their order.
  """
  key = hashlib.sha256(str(seed).encode()).digest()[:8]
  x = high_D ^ np.frombuffer(key, '<u8')
  # Finalizer of SplitMix64, so that other seeds give unrelated orders.
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))


def write(rules: Rules, task: Task) -> tuple[int, Chunk]:
  """Tokenizes and writes a chunk; returns its number and what it holds."""
  tokenizer = _tokenizer(rules.tokenizer)
  dtype = manifests.token_dtype(tokenizer.vocab_size)
  kept, rejects, contaminated = _read(rules, task.blocks)
  index_D = np.zeros(len(kept), INDEX)
  names: dict[str, int] = {}
  tokens: list[np.ndarray] = []
  for row, (document, ids) in zip(index_D, _encode(tokenizer, kept, dtype)):
    text = document.text.encode()
    digest = hashlib.sha256(text).digest()
    row['high'], row['low'] = np.frombuffer(digest[:16], '<u8')
    row['length'], row['bytes'] = len(ids), len(text)
    row['source'] = names.setdefault(document.source, len(names))
    tokens.append(ids)
  order_D = np.lexsort(
    (order_keys(index_D['high'], rules.seed), index_D['source'])
  )
  ends_D = np.cumsum(index_D['length'][order_D], dtype=np.uint64)
  index_D['offset'][order_D] = ends_D - index_D['length'][order_D]
  chunk = Chunk(
    task.after,
    list(names),
    len(kept),
    int(index_D['length'].sum(dtype=np.int64)),
    len(rejects),
    rejects[0] if rejects else None,
    dict(collections.Counter(line['source'] for line in contaminated)),
  )
  with files.room_for(rules.directory.parent):
    for kind, lines in (('rejects', rejects), ('contaminated', contaminated)):
      if lines:
        content = ((json.dumps(line) + '\n').encode() for line in lines)
        files.write(_path(rules.directory, task.number, kind), content)
    in_order = (tokens[i] for i in order_D)
    save(rules.directory, task.number, chunk, index_D, in_order)
  return task.number, chunk


def _path(directory: pathlib.Path, number: int, kind: str) -> pathlib.Path:
  # A directory of some hundred thousand files would be slow.
  return directory / f'{number // 1000:05d}' / f'{number:08d}.{kind}'


def _read(
  rules: Rules, blocks: Iterable[documents.Block]
) -> tuple[
  list[documents.Document], list[dict[str, Any]], list[dict[str, Any]]
]:
  """Returns documents, rejects and contaminated documents of some blocks."""
  kept: list[documents.Document] = []
  rejects, contaminated = [], []
  for block in blocks:
    lines, found = [], []
    for line, item in documents.parse(block):
      if isinstance(item, documents.Reject):
        rejects.append(item._asdict())
      else:
        lines.append(line)
        found.append(item._replace(source=rules.source or item.source))
    repeated = [False] * len(found)
    if rules.decontaminate:
      known = _benchmarks(rules.benchmarks)
      repeated = known.repeated_in([d.text for d in found])
    for line, document, repeats in zip(lines, found, repeated):
      if repeats:
        about = {'file': block.file, 'line': line, 'source': document.source}
        contaminated.append({**about, 'quoted': documents.quote(document.text)})
      if not repeats or rules.decontaminate == 'report':
        kept.append(document)
  return kept, rejects, contaminated


def _encode(
  tokenizer: tokenizers.Tokenizer,
  kept: list[documents.Document],
  dtype: np.dtype,
) -> Iterator[tuple[documents.Document, np.ndarray]]:
  batch: list[documents.Document] = []
  characters = 0
  for i, document in enumerate(kept):
    batch.append(document)
    characters += len(document.text)
    if characters >= _CHARACTERS or i + 1 == len(kept):
      ids = tokenizer.encode_documents([d.text for d in batch])
      yield from zip(batch, (np.array(d, dtype) for d in ids))
      batch, characters = [], 0


@functools.lru_cache(maxsize=1)
def _tokenizer(directory: pathlib.Path) -> tokenizers.Tokenizer:
  return tokenizers.load(f'hf:{directory}')


@functools.lru_cache(maxsize=1)
def _benchmarks(
  paths: tuple[pathlib.Path, ...],
) -> decontamination.Benchmarks:
  return decontamination.Benchmarks(decontamination.texts(paths))

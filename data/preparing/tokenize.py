"""Token chunks: the tokens of some megabytes of text, and a document index.

D is the number of documents in a chunk, indexed in the order of the input.
Tokens are stored by source in shuffled order, so that a shard reads each chunk
sequentially.
"""

import collections
from collections.abc import Iterable, Iterator
import functools
import hashlib
import itertools
import json
import pathlib
import tempfile
from typing import IO, Any, NamedTuple

import numpy as np

from steepest.data import (
  decontamination,
  files,
  manifest as manifests,
  tokenizers,
)
from steepest.data.preparing import documents, parsing

# Hash in two halves, position of the first token in the chunk's file, tokens,
# UTF-8 bytes, and the source's number in the chunk's list.
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
# Bits of a chunk's number for its place in the task; 20 are for the task.
_PART_BITS = 12
MOST_TASKS = 1 << 20
# Characters tokenized at a time.
_CHARACTERS = 1 << 20
# Bytes of tokens copied at a time.
_COPIED = 1 << 20


class Task(NamedTuple):
  """Pieces that one process reads and turns into chunks."""

  number: int
  pieces: list[documents.Piece]


class Rules(NamedTuple):
  """Everything but the text that determines the chunks.

  Attributes:
    directory: of the chunks.
    size: bytes of text after which a chunk ends, with the current block.
    most: maximum bytes of a document.
    tokenizer: directory of the tokenizer.json.
    source: the source of all documents; '': as the files say.
    seed: fixes the order of documents.
    decontaminate: what to do with documents that repeat a benchmark: '',
      'drop' or 'report'.
    benchmarks: files of the benchmarks.
  """

  directory: pathlib.Path
  size: int
  most: int
  tokenizer: pathlib.Path
  source: str
  seed: int
  decontaminate: str
  benchmarks: tuple[pathlib.Path, ...]


class Chunk(NamedTuple):
  """Contents of a chunk, and the lines that gave no document.

  Attributes:
    number: sorts chunks in the order of the input: the task's number in the
      upper bits, then the chunk's number in the task.
    sources: names of the sources in the index.
    documents: rows of the index.
    tokens: of all documents.
    rejected: lines that give no document.
    first_reject: the first of them.
    contaminated: documents by source that repeat a benchmark.
  """

  number: int
  sources: list[str]
  documents: int
  tokens: int
  rejected: int
  first_reject: dict[str, Any] | None
  contaminated: dict[str, int]


class Done(NamedTuple):
  """A finished task.

  Attributes:
    task: the task.
    lines: in each of its pieces that is a block of lines, 0 in others.
    chunks: that it wrote.
  """

  task: Task
  lines: list[int]
  chunks: list[Chunk]


def tasks(found: Iterable[documents.Input], size: int) -> Iterator[Task]:
  """Yields the tasks of some inputs; small files are read together.

  Args:
    found: the inputs.
    size: bytes of a block of lines, and of small files together.
  """
  pieces: list[documents.Piece] = []
  number, total = 0, 0
  for one in found:
    for piece in one.pieces(size):
      # The size of a dataset's piece is unknown.
      held = piece.bytes or size
      if pieces and total + held > size:
        yield Task(number, pieces)
        number, pieces, total = number + 1, [], 0
      pieces.append(piece)
      total += held
  if pieces:
    yield Task(number, pieces)


def load(directory: pathlib.Path, task: Task) -> Done | None:
  """Returns a finished task; None if it is not on disk."""
  path = _done(directory, task.number)
  if not path.exists():
    return None
  pieces, lines, chunks = json.loads(path.read_text('utf-8'))
  if [documents.Piece(*piece) for piece in pieces] != task.pieces:
    # The inputs were others.
    return None
  return Done(task, lines, [Chunk(**chunk) for chunk in chunks])


def load_index(directory: pathlib.Path, number: int) -> np.ndarray:
  """Returns the documents of a chunk, INDEX[D]."""
  return np.fromfile(_path(directory, number, 'index'), INDEX)


def load_lines(
  directory: pathlib.Path, finished: Iterable[Done], kind: str
) -> Iterator[bytes]:
  """Yields the 'rejects' or 'contaminated' lines of tasks, in their order.

  Numbers them within their files, now that all lines before are counted.
  """
  before: collections.Counter[str] = collections.Counter()
  for done in finished:
    for chunk in done.chunks:
      path = _path(directory, chunk.number, kind)
      for line in path.open('rb') if path.exists() else ():
        row = json.loads(line)
        row['line'] += before[row['file']]
        yield (json.dumps(row) + '\n').encode()
    for piece, count in zip(done.task.pieces, done.lines):
      before[piece.input] += count


def keep(directory: pathlib.Path, inputs: Iterable[str]) -> None:
  """Discards the tasks that have read other inputs than these."""
  same = set(inputs)
  for path in directory.glob('*/*.json'):
    pieces, _, _ = json.loads(path.read_text('utf-8'))
    if not all(name in same for name, *_ in pieces):
      path.unlink()


def tokens_path(directory: pathlib.Path, number: int) -> pathlib.Path:
  """Returns the file of a chunk's tokens."""
  return _path(directory, number, 'tokens')


def save(
  directory: pathlib.Path,
  number: int,
  index_D: np.ndarray,
  tokens: Iterable[bytes],
) -> None:
  """Writes the documents of a chunk."""
  files.write(tokens_path(directory, number), tokens)
  files.write(_path(directory, number, 'index'), [index_D.data])


def order_keys(high_D: np.ndarray, seed: int) -> np.ndarray:
  """Returns uint64[D], sort keys that shuffle documents by hash and seed.

  The order depends on neither the files nor their order.
  """
  key = hashlib.sha256(str(seed).encode()).digest()[:8]
  x = high_D ^ np.frombuffer(key, '<u8')
  # Finalizer of SplitMix64, so that other seeds give unrelated orders.
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))


def write(rules: Rules, task: Task) -> Done:
  """Reads, tokenizes and writes the chunks of a task; returns what they hold.

  Raises:
    ValueError: a file is damaged, or has too many chunks.
  """
  chunks: list[Chunk] = []
  lines: list[int] = []
  blocks: list[parsing.Block] = []

  def flush() -> None:
    if len(chunks) >> _PART_BITS:
      raise ValueError(
        f'{task.pieces[-1].input} has more text than '
        f'{rules.size << _PART_BITS} bytes: divide it'
      )
    number = (task.number << _PART_BITS) + len(chunks)
    chunks.append(_write(rules, number, blocks))
    blocks.clear()

  with files.room_for(rules.directory.parent):
    for piece in task.pieces:
      lines.append(0)
      for block in documents.blocks(piece, rules.size, rules.most):
        blocks.append(block)
        if piece.end and isinstance(block.content, (bytes, bytearray)):
          lines[-1] += block.content.count(b'\n')
        # A large one is to be freed before the next is read.
        del block
        if sum(b.bytes for b in blocks) >= rules.size:
          flush()
    if blocks:
      flush()
    # It says that all of the task is there.
    said = [task.pieces, lines, [chunk._asdict() for chunk in chunks]]
    path = _done(rules.directory, task.number)
    files.write(path, [json.dumps(said).encode()])
  return Done(task, lines, chunks)


def _write(rules: Rules, number: int, blocks: Iterable[parsing.Block]) -> Chunk:
  """Tokenizes and writes a chunk; returns what it holds."""
  tokenizer = _tokenizer(rules.tokenizer)
  dtype = manifests.token_dtype(tokenizer.vocab_size)
  kept, rejects, contaminated = _read(rules, blocks)
  index_D = np.zeros(len(kept), INDEX)
  names: dict[str, int] = {}
  # Tokens in the order of the input, which may take more room than there is.
  with tempfile.TemporaryFile(dir=rules.directory.parent) as file:
    for row, (document, parts) in zip(index_D, _encode(tokenizer, kept)):
      text = document.text
      text = text.encode() if isinstance(text, str) else text
      digest = hashlib.sha256(text).digest()
      row['high'], row['low'] = np.frombuffer(digest[:16], '<u8')
      for ids in parts:
        row['length'] += len(ids)
        file.write(ids.astype(dtype).data)
      row['bytes'] = len(text)
      row['source'] = names.setdefault(document.source, len(names))
    order_D = np.lexsort(
      (order_keys(index_D['high'], rules.seed), index_D['source'])
    )
    ends_D = np.cumsum(index_D['length'][order_D], dtype=np.uint64)
    index_D['offset'][order_D] = ends_D - index_D['length'][order_D]
    held_D = index_D['length'].astype(np.int64) * dtype.itemsize
    tokens = _in_order(file, held_D, order_D)
    save(rules.directory, number, index_D, tokens)
  for kind, lines in (('rejects', rejects), ('contaminated', contaminated)):
    path = _path(rules.directory, number, kind)
    # Of an earlier state of the input.
    path.unlink(missing_ok=True)
    if lines:
      files.write(path, ((json.dumps(line) + '\n').encode() for line in lines))
  return Chunk(
    number,
    list(names),
    len(kept),
    int(index_D['length'].sum(dtype=np.int64)),
    len(rejects),
    rejects[0] if rejects else None,
    dict(collections.Counter(line['source'] for line in contaminated)),
  )


def _in_order(
  file: IO[bytes], held_D: np.ndarray, order_D: np.ndarray
) -> Iterator[bytes]:
  """Yields the bytes of documents in another order than the file's."""
  begins_D = np.cumsum(held_D) - held_D
  for i in order_D:
    file.seek(int(begins_D[i]))
    rest = int(held_D[i])
    while rest:
      yield (content := file.read(min(rest, _COPIED)))
      rest -= len(content)


def _path(directory: pathlib.Path, number: int, kind: str) -> pathlib.Path:
  task, part = number >> _PART_BITS, number & ((1 << _PART_BITS) - 1)
  # A directory of some hundred thousand files would be slow.
  return directory / f'{task // 1000:05d}' / f'{task:08d}-{part:04d}.{kind}'


def _done(directory: pathlib.Path, task: int) -> pathlib.Path:
  return directory / f'{task // 1000:05d}' / f'{task:08d}.json'


def _read(
  rules: Rules, blocks: Iterable[parsing.Block]
) -> tuple[list[parsing.Document], list[dict[str, Any]], list[dict[str, Any]]]:
  """Returns documents, rejects and contaminated documents of some blocks."""
  kept: list[parsing.Document] = []
  rejects, contaminated = [], []
  for block in blocks:
    lines, found = [], []
    for line, item in parsing.parse(block):
      item = _cuttable(rules, block, line, item)
      if isinstance(item, parsing.Reject):
        rejects.append(item._asdict())
      else:
        lines.append(line)
        found.append(item._replace(source=rules.source or item.source))
    repeated = [False] * len(found)
    if rules.decontaminate:
      repeated = _repeated(rules, [d.text for d in found])
    for line, document, repeats in zip(lines, found, repeated):
      if repeats:
        about = {'file': block.file, 'line': line, 'source': document.source}
        quoted = parsing.quote(next(parsing.pieces(document.text)))
        contaminated.append({**about, 'quoted': quoted})
      if not repeats or rules.decontaminate == 'report':
        kept.append(document)
  return kept, rejects, contaminated


def _cuttable(
  rules: Rules,
  block: parsing.Block,
  line: int,
  item: parsing.Document | parsing.Reject,
) -> parsing.Document | parsing.Reject:
  """Returns the parsed document, or a reject if its text cannot be cut."""
  if isinstance(item, parsing.Document):
    try:
      collections.deque(_parts(rules, item.text), 0)
    except ValueError as error:
      quoted = parsing.quote(item.text)
      return parsing.Reject(block.file, line, str(error), quoted)
  return item


def _parts(rules: Rules, text: str | parsing.Utf8) -> Iterator[str]:
  return _tokenizer(rules.tokenizer).parts(parsing.pieces(text))


def _repeated(rules: Rules, texts: list[str | parsing.Utf8]) -> list[bool]:
  """Returns which texts repeat a benchmark; reads long ones part by part."""
  known = _benchmarks(rules.benchmarks)
  short = iter(known.repeated_in([t for t in texts if isinstance(t, str)]))
  return [
    next(short)
    if isinstance(text, str)
    else known.repeated_in_parts(_parts(rules, text))
    for text in texts
  ]


def _encode(
  tokenizer: tokenizers.Tokenizer, kept: list[parsing.Document]
) -> Iterator[tuple[parsing.Document, Iterable[np.ndarray]]]:
  """Yields documents with their tokens, in parts."""
  # A batch ends with the document that makes it large enough.
  sizes = itertools.accumulate(len(document.text) for document in kept)
  batches = [size // _CHARACTERS for size in sizes]
  numbered = zip(kept, [0, *batches])
  for (_, short), group in itertools.groupby(
    numbered, lambda of: (of[1], isinstance(of[0].text, str))
  ):
    found = [document for document, _ in group]
    if short:
      batch = [str(document.text) for document in found]
      for document, ids in zip(found, tokenizer.encode_documents(batch)):
        yield document, [ids]
    else:
      for document in found:
        pieces = parsing.pieces(document.text)
        yield document, tokenizer.encode_parts(pieces)


@functools.lru_cache(maxsize=1)
def _tokenizer(directory: pathlib.Path) -> tokenizers.Tokenizer:
  return tokenizers.load(f'hf:{directory}')


@functools.lru_cache(maxsize=1)
def _benchmarks(
  paths: tuple[pathlib.Path, ...],
) -> decontamination.Benchmarks:
  return decontamination.Benchmarks(decontamination.texts(paths))

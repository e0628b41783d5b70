"""A run: some megabytes of text as tokens, and a table of its documents.

D is the documents of a run, in the order of the input. The tokens lie by
source and by shuffled order, so that a shard reads each run in one sweep.
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
from steepest.data.preparing import arrange, documents, inputs

# Hash in two halves, first token in the run's file, tokens, UTF-8 bytes, and
# the number of the source in the run's own list.
TABLE = np.dtype(
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
  """The blocks of a run, and where the next one begins."""

  number: int
  blocks: list[documents.Block]
  after: Position


class Rules(NamedTuple):
  """What decides the runs, but the text.

  Attributes:
    directory: of the runs.
    tokenizer: directory of the tokenizer.json.
    source: the source of all documents; '': as the files tell.
    seed: fixes the order of documents.
    decontaminate: '' or what is done with documents that repeat a benchmark,
      'drop' or 'report'.
    benchmarks: their files.
  """

  directory: pathlib.Path
  tokenizer: pathlib.Path
  source: str
  seed: int
  decontaminate: str
  benchmarks: tuple[pathlib.Path, ...]


class Run(NamedTuple):
  """What became of a run's lines.

  Attributes:
    after: where the next run begins.
    sources: names of the table's sources.
    documents: rows of the table.
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
  found: list[inputs.Input], size: int, number: int, start: Position
) -> Iterator[Task]:
  """Yields the runs from some place of the inputs on.

  Args:
    found: the inputs.
    size: bytes of a run; a run ends with the block that reaches it.
    number: of the first run.
    start: where it begins.
  """
  blocks: list[documents.Block] = []
  held = 0
  for i in range(start.input, len(found)):
    skipped = start.block if i == start.input else 0
    for j, block in enumerate(found[i].blocks(size)):
      if j < skipped:
        continue
      if held >= size:
        yield Task(number, blocks, Position(i, j))
        number, blocks, held = number + 1, [], 0
      blocks.append(block)
      held += block.bytes
  if blocks:
    yield Task(number, blocks, Position(len(found), 0))


def load(directory: pathlib.Path, number: int) -> Run | None:
  """Returns a run that is on disk, None where it is not."""
  path = _path(directory, number, 'json')
  if not path.exists():
    return None
  run = Run(**json.loads(path.read_text('utf-8')))
  return run._replace(after=Position(*run.after))


def load_table(directory: pathlib.Path, number: int) -> np.ndarray:
  """Returns the documents of a run, TABLE[D]."""
  return np.fromfile(_path(directory, number, 'table'), TABLE)


def load_lines(
  directory: pathlib.Path, numbers: Iterable[int], kind: str
) -> Iterator[bytes]:
  """Yields the 'rejects' or the 'contaminated' lines of some runs."""
  for number in numbers:
    path = _path(directory, number, kind)
    if path.exists():
      yield path.read_bytes()


def keep(directory: pathlib.Path, before: Position) -> None:
  """Discards the runs that do not end before a place of the inputs."""
  number = 0
  while (run := load(directory, number)) and run.after <= before:
    number += 1
  for path in directory.glob('*/*'):
    if int(path.name.partition('.')[0]) >= number:
      path.unlink(missing_ok=True)


def tokens_path(directory: pathlib.Path, number: int) -> pathlib.Path:
  """Returns the file of a run's tokens."""
  return _path(directory, number, 'tokens')


def write(rules: Rules, task: Task) -> tuple[int, Run]:
  """Writes a run; its .json comes last and says that it is complete."""
  tokenizer = _tokenizer(rules.tokenizer)
  dtype = manifests.token_dtype(tokenizer.vocab_size)
  kept, rejects, contaminated = _read(rules, task.blocks)
  table_D = np.zeros(len(kept), TABLE)
  names: dict[str, int] = {}
  tokens: list[np.ndarray] = []
  for row, (document, ids) in zip(table_D, _encode(tokenizer, kept, dtype)):
    text = document.text.encode()
    digest = hashlib.sha256(text).digest()
    row['high'], row['low'] = np.frombuffer(digest[:16], '<u8')
    row['length'], row['bytes'] = len(ids), len(text)
    row['source'] = names.setdefault(document.source, len(names))
    tokens.append(ids)
  order_D = np.lexsort(
    (arrange.keys(table_D['high'], rules.seed), table_D['source'])
  )
  ends_D = np.cumsum(table_D['length'][order_D], dtype=np.uint64)
  table_D['offset'][order_D] = ends_D - table_D['length'][order_D]
  directory, number = rules.directory, task.number
  files.write(
    _path(directory, number, 'tokens'), (tokens[i].data for i in order_D)
  )
  files.write(_path(directory, number, 'table'), [table_D.data])
  for kind, lines in (('rejects', rejects), ('contaminated', contaminated)):
    if lines:
      content = ((json.dumps(line) + '\n').encode() for line in lines)
      files.write(_path(directory, number, kind), content)
  repeats = collections.Counter(line['source'] for line in contaminated)
  run = Run(
    task.after,
    list(names),
    len(kept),
    int(table_D['length'].sum(dtype=np.int64)),
    len(rejects),
    rejects[0] if rejects else None,
    dict(repeats),
  )
  held = json.dumps(run._asdict()).encode()
  files.write(_path(directory, number, 'json'), [held])
  return number, run


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

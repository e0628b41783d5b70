"""Documents out of local files, and out of datasets of the hub and of TFDS.

JSON lines, Parquet and plain text are read in blocks, which are parsed apart,
in any process.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
import glob
import io
import itertools
import json
import os
import pathlib
from typing import Any, NamedTuple

import pyarrow as pa
from pyarrow import parquet

from steepest.data import downloads

_JSON_LINES = ('.jsonl', '.json', '.ndjson')
_COMPRESSED = {'.gz': 'gzip', '.zst': 'zstd'}
# What is read of a record.
_COLUMNS = ('text', 'meta', 'source')
# Rows in a block of a Parquet file or of a dataset; bytes in one of lines.
_ROWS = 512
_BLOCK = 1 << 20
# Characters of a rejected line that are quoted.
_QUOTED = 200


class Document(NamedTuple):
  """A text and where it comes from."""

  text: str
  source: str


class Reject(NamedTuple):
  """A line or row that gives no document."""

  file: str
  line: int
  reason: str
  quoted: str


class Block(NamedTuple):
  """A piece of a file that is parsed at once.

  Attributes:
    file: name under which rejects are reported.
    stem: source of the documents that name none.
    first: number of its first line or row.
    content: lines of JSON, one document's bytes (`text`), or rows.
    text: whether the content is one document.
  """

  file: str
  stem: str
  first: int
  content: bytes | pa.RecordBatch | list[dict[str, Any]]
  text: bool = False

  @property
  def bytes(self) -> int:
    """About its size."""
    if isinstance(self.content, list):
      return sum(len(str(row.get('text'))) for row in self.content)
    if isinstance(self.content, bytes):
      return len(self.content)
    return self.content.nbytes


class Input(NamedTuple):
  """A file or a dataset.

  Attributes:
    name: path, or 'hf:…' or 'tfds:…'.
    bytes: size of a file, 0 for a dataset.
    mtime_ns: of a file, 0 for a dataset.
    blocks: yields its blocks, those of lines about as large as asked; the
      same ones each time.
  """

  name: str
  bytes: int
  mtime_ns: int
  blocks: Callable[[int], Iterator[Block]]


def find(spec: str) -> list[Input]:
  """Returns the inputs of a comma-separated list, sorted, each once.

  Args:
    spec: globs of local files, 'hf:DATASET[:CONFIG[:SPLIT]]' (a dataset of
      the Hugging Face hub, or a local directory of that layout) and
      'tfds:NAME[:SPLIT]' (a TFDS dataset with a text, or the directory of a
      prepared one). SPLIT is 'train' by default.

  Raises:
    FileNotFoundError: a glob matches no file.
    OSError: a package that reads the dataset is missing.
  """
  found: dict[str, Input] = {}
  for item in spec.split(','):
    kind, _, name = item.partition(':')
    if kind in ('hf', 'tfds') and name:
      rows = _hub_rows(name) if kind == 'hf' else _tfds_rows(name)
      found[item] = Input(item, 0, 0, _dataset_blocks(item, rows))
    else:
      found |= {str(path): _file(path) for path in _paths(item)}
  return sorted(found.values(), key=lambda i: pathlib.PurePath(i.name))


def read(found: Iterable[Input]) -> Iterator[Document | Reject]:
  """Yields the documents of some inputs, in order.

  A `.jsonl` (also `.gz`, `.zst`) or `.parquet` file holds one in each line or
  row, under `text`; any other file is one document. The source is
  `meta.redpajama_set_name`, else `meta.source`, else `source`, else the
  file's name without its suffixes.

  Raises:
    ValueError: a file as a whole is damaged.
  """
  for one in found:
    for block in one.blocks(_BLOCK):
      for _, item in parse(block):
        yield item


def _blocks(path: pathlib.Path, size: int) -> Iterator[Block]:
  """Yields a file in blocks of whole lines, about `size` bytes each.

  Raises:
    ValueError: the file as a whole is damaged.
  """
  kinds = [s.lower() for s in path.suffixes]
  try:
    if kinds and kinds[-1] == '.parquet':
      yield from _row_blocks(path)
    elif any(kind in _JSON_LINES for kind in kinds[-2:]):
      yield from _line_blocks(path, size)
    else:
      with _open(path) as file:
        yield Block(str(path), _stem(path), 1, file.read(), text=True)
  except (pa.ArrowException, OSError, EOFError) as error:
    raise ValueError(f'{path} is damaged or cut short: {error}') from error


def parse(block: Block) -> Iterator[tuple[int, Document | Reject]]:
  """Yields line number and document of each line, row or text of a block."""
  content = block.content
  if block.text:
    assert isinstance(content, bytes)
    yield 1, _document(block, 1, content)
  elif isinstance(content, bytes):
    for number, line in enumerate(content.split(b'\n'), block.first):
      if line.strip():
        yield number, _from_line(block, number, line)
  else:
    rows = content if isinstance(content, list) else content.to_pylist()
    for number, row in enumerate(rows, block.first):
      yield number, _from_record(block, number, row)


def quote(line: str | bytes) -> str:
  """Returns the beginning of a line in ASCII, by Python's own quoting."""
  return ascii(line[:_QUOTED])


# ------------------------------------------------------------------- files


def _paths(pattern: str) -> list[pathlib.Path]:
  paths = map(pathlib.Path, glob.glob(pattern, recursive=True))
  files = [p for p in paths if p.is_file()]
  if not files:
    hint = ': write DIR/*' if pathlib.Path(pattern).is_dir() else ''
    raise FileNotFoundError(f'no file matches --input={pattern!r}{hint}')
  return files


def _file(path: pathlib.Path) -> Input:
  stat = path.stat()
  return Input(
    str(path),
    stat.st_size,
    stat.st_mtime_ns,
    lambda size: _blocks(path, size),
  )


def _stem(path: pathlib.Path) -> str:
  """Returns a file's name without the suffixes of its formats."""
  known = (*_JSON_LINES, *_COMPRESSED, '.parquet')
  while path.suffix.lower() in known:
    path = path.with_suffix('')
  return path.stem


def _open(path: pathlib.Path) -> io.BufferedIOBase:
  compression = _COMPRESSED.get(path.suffix.lower())
  if compression is None:
    return path.open('rb')
  # Unlike gzip's and zstandard's readers, Arrow's raises where a file of
  # either format is cut short.
  return io.BufferedReader(pa.input_stream(str(path), compression), 1 << 20)


def _line_blocks(path: pathlib.Path, size: int) -> Iterator[Block]:
  with _open(path) as file:
    number = 1
    while content := file.read(size):
      content += file.readline()
      yield Block(str(path), _stem(path), number, content)
      number += content.count(b'\n')


def _row_blocks(path: pathlib.Path) -> Iterator[Block]:
  with parquet.ParquetFile(path) as file:
    names = set(file.schema_arrow.names)
    if 'text' not in names:
      raise ValueError(f'{path} has no column `text`')
    columns = [c for c in _COLUMNS if c in names]
    number = 1
    for rows in file.iter_batches(_ROWS, columns=columns):
      yield Block(str(path), _stem(path), number, rows)
      number += len(rows)


# ---------------------------------------------------------------- datasets


def _dataset_blocks(
  name: str, read: Callable[[], Iterable[Mapping[str, Any]]]
) -> Callable[[int], Iterator[Block]]:
  """Returns a function that yields the rows of a dataset as blocks."""
  stem = pathlib.PurePath(name.split(':')[1]).name

  def blocks(size: int) -> Iterator[Block]:
    del size  # Rows are counted: their sizes are known only later.
    try:
      rows = iter(read())
      for first in itertools.count(1, _ROWS):
        batch = [_plain(row) for row in itertools.islice(rows, _ROWS)]
        if not batch:
          return
        yield Block(name, stem, first, batch)
    except Exception as error:  # Those of a library, which share no class.
      line = downloads.first_line(error)
      raise OSError(f'--input={name}: {line}') from error

  return blocks


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
  """Keeps the columns that are read; TFDS gives text as bytes."""
  return {
    k: row[k].decode(errors='surrogateescape')
    if isinstance(row[k], bytes)
    else row[k]
    for k in _COLUMNS
    if k in row
  }


def _hub_rows(name: str) -> Callable[[], Iterable[Mapping[str, Any]]]:
  try:
    import datasets
  except ImportError as error:
    raise OSError(
      f'--input=hf:{name} needs the package datasets: pip install '
      "'steepest[hub]'"
    ) from error
  dataset, config, split, *rest = [*name.split(':'), '', '', '']
  if rest[0]:
    raise ValueError(
      f'--input=hf:{name}: write hf:DATASET, hf:DATASET:CONFIG or '
      'hf:DATASET:CONFIG:SPLIT'
    )
  return lambda: datasets.load_dataset(
    dataset, config or None, split=split or 'train', streaming=True
  )


def _tfds_rows(name: str) -> Callable[[], Iterable[Mapping[str, Any]]]:
  dataset, _, split = name.partition(':')

  def read() -> Iterable[Mapping[str, Any]]:
    import tensorflow_datasets as tfds

    if os.path.isdir(dataset):
      builder = tfds.builder_from_directory(dataset)
      return builder.as_data_source(split=split or 'train')
    return tfds.data_source(dataset, split=split or 'train')

  return read


# ----------------------------------------------------------------- records


def _from_line(block: Block, number: int, line: bytes) -> Document | Reject:
  try:
    record = json.loads(line)
  except (ValueError, RecursionError):
    return _reject(block, number, 'no JSON', line)
  if not isinstance(record, dict):
    return _reject(block, number, 'no JSON object', line)
  return _from_record(block, number, record)


def _from_record(
  block: Block, number: int, record: dict[str, Any]
) -> Document | Reject:
  text = record.get('text')
  if not isinstance(text, str):
    return _reject(block, number, 'no `text`', str(record))
  return _document(block, number, text, _source(record))


def _document(
  block: Block, number: int, text: str | bytes, source: str | None = None
) -> Document | Reject:
  try:
    # A lone surrogate, which JSON can spell, has no UTF-8 either.
    text = text.decode() if isinstance(text, bytes) else text
    text.encode()
  except UnicodeError:
    return _reject(block, number, 'no Unicode', text)
  if not text.strip():
    return _reject(block, number, 'empty', text)
  return Document(text, source or block.stem)


def _source(record: dict[str, Any]) -> str | None:
  meta = record.get('meta')
  if isinstance(meta, str):
    try:
      meta = json.loads(meta)
    except ValueError:
      meta = None
  if not isinstance(meta, dict):
    meta = {}
  named = (
    meta.get('redpajama_set_name'),
    meta.get('source'),
    record.get('source'),
  )
  return next((n for n in named if isinstance(n, str) and n), None)


def _reject(
  block: Block, number: int, reason: str, line: str | bytes
) -> Reject:
  return Reject(block.file, number, reason, quote(line))

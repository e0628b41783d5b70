"""Documents out of files: JSON lines, Parquet and plain text."""

from collections.abc import Iterator
import io
import json
import pathlib
from typing import Any, NamedTuple

import pyarrow as pa
from pyarrow import parquet

_JSON_LINES = ('.jsonl', '.json', '.ndjson')
_COMPRESSED = {'.gz': 'gzip', '.zst': 'zstd'}
# What is read of a record.
COLUMNS = ('text', 'meta', 'source')
# Rows of a Parquet file in a block; bytes of one of lines.
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
    file: name that rejects are told under.
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


def read(path: pathlib.Path) -> Iterator[Document | Reject]:
  """Yields the documents of a file, in order.

  A `.jsonl` (also `.gz`, `.zst`) or `.parquet` file holds one in each line or
  row, under `text`; any other file is one document. The source is
  `meta.redpajama_set_name`, else `meta.source`, else `source`, else the
  file's name without its suffixes.

  Raises:
    ValueError: the file as a whole is damaged.
  """
  for block in blocks(path, _BLOCK):
    for _, item in parse(block):
      yield item


def blocks(path: pathlib.Path, size: int) -> Iterator[Block]:
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
        yield Block(str(path), stem(path), 1, file.read(), text=True)
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


def stem(path: pathlib.Path) -> str:
  """Returns a file's name without the suffixes of its formats."""
  known = (*_JSON_LINES, *_COMPRESSED, '.parquet')
  while path.suffix.lower() in known:
    path = path.with_suffix('')
  return path.stem


def quote(line: str | bytes) -> str:
  """Returns the beginning of a line in ASCII, by Python's own quoting."""
  return ascii(line[:_QUOTED])


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
      yield Block(str(path), stem(path), number, content)
      number += content.count(b'\n')


def _row_blocks(path: pathlib.Path) -> Iterator[Block]:
  with parquet.ParquetFile(path) as file:
    held = set(file.schema_arrow.names)
    if 'text' not in held:
      raise ValueError(f'{path} has no column `text`')
    columns = [c for c in COLUMNS if c in held]
    number = 1
    for rows in file.iter_batches(_ROWS, columns=columns):
      yield Block(str(path), stem(path), number, rows)
      number += len(rows)


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

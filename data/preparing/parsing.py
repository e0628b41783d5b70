"""Turns lines of JSON, rows and texts into documents, or into rejects."""

from collections.abc import Iterable, Iterator, Mapping
import json
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import compute

from steepest.data import reading
from steepest.data.preparing.options import DOCUMENT_BYTES

# Fields of a record that are read beside its text.
COLUMNS = ('meta', 'source')
# Longer texts, in bytes, stay UTF-8; as a str one may take four times as many.
_LONG = 1 << 20
# Quoted characters of a rejected line.
_QUOTED = 200
# Fields of `meta` that name a source.
_SOURCES = ('redpajama_set_name', 'source')

Utf8 = bytes | bytearray | memoryview


class Document(NamedTuple):
  """A text and where it comes from.

  Attributes:
    text: the text, or the UTF-8 of a long one.
    source: name of its source.
  """

  text: str | Utf8
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
    first: number of its first line or row; of lines, counted from where the
      piece begins.
    content: lines of JSON, one document's bytes (`text`), or rows.
    text: whether the content is one document.
    field: of a line or row that holds the text.
    most: bytes of a document or a line at most.
  """

  file: str
  stem: str
  first: int
  content: bytes | bytearray | pa.RecordBatch | list[dict[str, Any]]
  text: bool = False
  field: str = 'text'
  most: int = DOCUMENT_BYTES

  @property
  def bytes(self) -> int:
    """About its size."""
    if isinstance(self.content, list):
      return sum(size_of(row, self.field) for row in self.content)
    if isinstance(self.content, (bytes, bytearray)):
      return len(self.content)
    return self.content.nbytes


def parse(block: Block) -> Iterator[tuple[int, Document | Reject]]:
  """Yields line number and document of each line, row or text of a block."""
  content = block.content
  if block.text:
    assert isinstance(content, (bytes, bytearray))
    yield block.first, _document(block, block.first, content)
  elif isinstance(content, (bytes, bytearray)):
    for number, (begin, end) in enumerate(_lines(content), block.first):
      if end - begin > reading.MOST_PARSED:
        yield number, _from_long_line(block, number, content, begin, end)
      elif (line := bytes(content[begin:end])).strip():
        yield number, _from_line(block, number, line)
  else:
    rows = content if isinstance(content, list) else _rows(content)
    for number, row in enumerate(rows, block.first):
      yield number, _from_record(block, number, row)


def pieces(text: str | Utf8) -> Iterator[str]:
  """Yields a text in pieces, each of which ends before a blank or line break.

  Raises:
    ValueError: the text is not UTF-8, or a long stretch has neither.
  """
  if isinstance(text, str):
    yield text
    return
  begin = 0
  while begin < len(text):
    piece = bytes(text[begin : begin + _LONG])
    if begin + len(piece) < len(text):
      piece = piece[: max(piece.rfind(b' '), piece.rfind(b'\n'), 0)]
      if not piece:
        raise ValueError(f'no place to cut it within {_LONG} bytes')
    yield piece.decode()
    begin += len(piece)


def quote(line: str | Utf8) -> str:
  """Returns the beginning of a line in ASCII, by Python's own quoting."""
  line = line[:_QUOTED]
  return ascii(line if isinstance(line, str) else bytes(line))


def size_of(row: Mapping[str, Any], field: str) -> int:
  """Returns the length of a row's text, 0 if it has none."""
  text = row.get(field)
  return len(text) if isinstance(text, (str, bytes)) else 0


def _lines(content: bytes | bytearray) -> Iterator[tuple[int, int]]:
  """Yields where each line begins and ends."""
  begin = 0
  while (end := content.find(b'\n', begin)) >= 0:
    yield begin, end
    begin = end + 1
  yield begin, len(content)


def _rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
  """Yields rows whose texts are bytes, which may be no UTF-8.

  Whatever else a row holds, such as dates that Python has none for, stays
  unread.
  """
  columns = dict(zip(batch.schema.names, batch.columns, strict=True))
  values: dict[str, Iterable[Any]] = {}
  for name, column in columns.items():
    if name == 'meta' and pa.types.is_struct(column.type):
      inner = [column.type.field(i).name for i in range(column.type.num_fields)]
      fields = {
        n: _texts(compute.struct_field(column, n))
        for n in _SOURCES
        if n in inner
      }
      rows = zip(*fields.values()) if fields else [()] * len(column)
      values[name] = (dict(zip(fields, row)) for row in rows)
    else:
      values[name] = _texts(column)
  for row in zip(*values.values()):
    yield dict(zip(values, row))


def _texts(column: pa.Array) -> Iterator[bytes | memoryview | None]:
  """Yields the UTF-8 of texts; long ones are not copied."""
  rows: Iterable[int | None] = range(len(column))
  if pa.types.is_dictionary(column.type):
    column, rows = column.dictionary, column.indices.to_pylist()
  large = pa.types.is_large_string(column.type)
  if not large and not pa.types.is_string(column.type):
    yield from (None for _ in rows)
    return
  # From Arrow's own buffers, as its scalars are copies.
  _, ends, held = column.buffers()
  ends_N = np.frombuffer(ends or b'', np.int64 if large else np.int32)
  ends_N = ends_N[column.offset :]
  valid = column.is_valid()
  for i in rows:
    if i is None or not valid[i].as_py():
      yield None
      continue
    text = memoryview(held or b'')[ends_N[i] : ends_N[i + 1]]
    yield text if len(text) > _LONG else bytes(text)


def _from_line(block: Block, number: int, line: bytes) -> Document | Reject:
  if len(line) > block.most:
    return _reject(block, number, f'longer than {block.most} bytes', line)
  try:
    record = reading.parse(line)
  except ValueError:
    return _reject(block, number, 'no JSON', line)
  if not isinstance(record, dict):
    return _reject(block, number, 'no JSON object', line)
  return _from_record(block, number, record)


def _from_long_line(
  block: Block, number: int, content: bytes | bytearray, begin: int, end: int
) -> Document | Reject:
  quoted = bytes(content[begin : min(end, begin + _QUOTED)])
  if end - begin > block.most:
    return _reject(block, number, f'longer than {block.most} bytes', quoted)
  try:
    record, cut = reading.parse_long(content, begin, end)
    if not isinstance(record, dict):
      return _reject(block, number, 'no JSON object', quoted)
    for key in (block.field, *COLUMNS):
      held = record.get(key)
      if isinstance(held, str) and held in cut:
        record[key] = reading.unescaped(content, *cut[held])
  except UnicodeEncodeError:
    return _reject(block, number, 'no Unicode', quoted)
  except ValueError as error:
    reason = str(error) if type(error) is ValueError else 'no JSON'
    return _reject(block, number, reason, quoted)
  return _from_record(block, number, record)


def _from_record(
  block: Block, number: int, record: dict[str, Any]
) -> Document | Reject:
  text = record.get(block.field)
  reason = f'no `{block.field}`'
  if isinstance(text, (str, Utf8)):
    try:
      return _document(block, number, text, _source(record))
    except ValueError:
      reason = 'no source to be read'
  short = {
    k: v[:_QUOTED] if isinstance(v, (str, bytes)) else v
    for k, v in record.items()
    if not isinstance(v, (bytearray, memoryview))
  }
  return _reject(block, number, reason, str(short))


def _document(
  block: Block, number: int, text: str | Utf8, source: str | None = None
) -> Document | Reject:
  if len(text) > block.most:
    return _reject(block, number, f'longer than {block.most} bytes', text)
  try:
    # A lone surrogate, which JSON can spell, has no UTF-8 either.
    held = text.encode() if isinstance(text, str) else text
    if len(held) > block.most:
      return _reject(block, number, f'longer than {block.most} bytes', text)
    if len(held) > _LONG:
      text = held
    elif not isinstance(text, str):
      text = str(held, 'utf-8')
    # Not any(), as every piece has to be UTF-8.
    if not sum(bool(piece.strip()) for piece in pieces(text)):
      return _reject(block, number, 'empty', text)
  except UnicodeError:
    return _reject(block, number, 'no Unicode', text)
  except ValueError as error:
    return _reject(block, number, str(error), text)
  return Document(text, source or block.stem)


def _source(record: dict[str, Any]) -> str | None:
  """Returns what a record says of its source, None where it says nothing.

  Raises:
    ValueError: the source is not Unicode, nested too deeply, or too long.
  """
  meta = record.get('meta')
  if isinstance(meta, (str, Utf8)):
    if len(meta) > reading.MOST_PARSED:
      raise ValueError('too long')
    try:
      meta = reading.parse(meta if isinstance(meta, str) else bytes(meta))
    except json.JSONDecodeError:
      meta = None
  if not isinstance(meta, dict):
    meta = {}
  for name in (*(meta.get(key) for key in _SOURCES), record.get('source')):
    if isinstance(name, (str, Utf8)):
      if len(name) > _LONG:
        raise ValueError('too long')
      name = name if isinstance(name, str) else str(name, 'utf-8')
      name.encode()
      # Of each line's own path, the first folder.
      folder = name.strip('/').partition('/')[0]
      if folder and not folder.endswith(':'):
        return folder
  return None


def _reject(block: Block, number: int, reason: str, line: str | Utf8) -> Reject:
  return Reject(block.file, number, reason, quote(line))

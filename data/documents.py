"""Documents out of files: JSON lines, Parquet and plain text."""

from collections.abc import Iterator
import glob
import io
import json
import pathlib
from typing import Any, NamedTuple

import pyarrow as pa
from pyarrow import parquet

_JSON_LINES = ('.jsonl', '.json', '.ndjson')
_COMPRESSED = {'.gz': 'gzip', '.zst': 'zstd'}
# Rows of a Parquet file that are in memory at a time.
_ROWS = 512
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


def find(patterns: str) -> list[pathlib.Path]:
  """Returns the files of some comma-separated globs, sorted, each once.

  Raises:
    FileNotFoundError: a glob matches no file.
  """
  found: set[pathlib.Path] = set()
  for pattern in patterns.split(','):
    paths = map(pathlib.Path, glob.glob(pattern, recursive=True))
    files = {p for p in paths if p.is_file()}
    if not files:
      hint = ': write DIR/*' if pathlib.Path(pattern).is_dir() else ''
      raise FileNotFoundError(f'no file matches --input={pattern!r}{hint}')
    found |= files
  return sorted(found)


def read(path: pathlib.Path) -> Iterator[Document | Reject]:
  """Yields the documents of a file, in order.

  A `.jsonl` (also `.gz`, `.zst`) or `.parquet` file holds one in each line or
  row, under `text`; any other file is one document. The source is
  `meta.redpajama_set_name`, else `meta.source`, else `source`, else the
  file's name without its suffixes.

  Raises:
    ValueError: the file as a whole is damaged.
  """
  kinds = [s.lower() for s in path.suffixes]
  try:
    if kinds and kinds[-1] == '.parquet':
      yield from _read_parquet(path)
    elif any(kind in _JSON_LINES for kind in kinds[-2:]):
      yield from _read_lines(path)
    else:
      with _open(path) as file:
        yield _document(path, 1, file.read())
  except (pa.ArrowException, OSError, EOFError) as error:
    raise ValueError(f'{path} is damaged or cut short: {error}') from error


def stem(path: pathlib.Path) -> str:
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


def _read_lines(path: pathlib.Path) -> Iterator[Document | Reject]:
  with _open(path) as file:
    for number, line in enumerate(file, 1):
      if not line.strip():
        continue
      try:
        record = json.loads(line)
      except (ValueError, RecursionError):
        yield _reject(path, number, 'no JSON', line)
        continue
      if not isinstance(record, dict):
        yield _reject(path, number, 'no JSON object', line)
        continue
      yield _from_record(path, number, record)


def _read_parquet(path: pathlib.Path) -> Iterator[Document | Reject]:
  with parquet.ParquetFile(path) as file:
    held = set(file.schema_arrow.names)
    if 'text' not in held:
      raise ValueError(f'{path} has no column `text`')
    columns = [c for c in ('text', 'meta', 'source') if c in held]
    number = 0
    for rows in file.iter_batches(_ROWS, columns=columns):
      for record in rows.to_pylist():
        number += 1
        yield _from_record(path, number, record)


def _from_record(
  path: pathlib.Path, number: int, record: dict[str, Any]
) -> Document | Reject:
  text = record.get('text')
  if not isinstance(text, str):
    return _reject(path, number, 'no `text`', str(record))
  return _document(path, number, text, _source(record))


def _document(
  path: pathlib.Path, number: int, text: str | bytes, source: str | None = None
) -> Document | Reject:
  try:
    # A lone surrogate, which JSON can spell, has no UTF-8 either.
    text = text.decode() if isinstance(text, bytes) else text
    text.encode()
  except UnicodeError:
    return _reject(path, number, 'no Unicode', text)
  if not text.strip():
    return _reject(path, number, 'empty', text)
  return Document(text, source or stem(path))


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
  path: pathlib.Path, number: int, reason: str, line: str | bytes
) -> Reject:
  # Python's own quoting: ASCII, whatever the line holds.
  return Reject(str(path), number, reason, ascii(line[:_QUOTED]))

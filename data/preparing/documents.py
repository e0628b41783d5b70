"""Documents out of local files, and out of datasets of the hub and of TFDS.

An input is divided into pieces, each of which a process reads by itself: a
block of lines, a compressed or other file, a file or some rows of a dataset. A
piece is read in blocks, which are parsed at once.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import contextlib
import difflib
import glob
import importlib.util
import io
import itertools
import json
import os
import pathlib
from typing import Any, NamedTuple

import pyarrow as pa
from pyarrow import compute, parquet

from steepest.data import downloads, reading
from steepest.data.preparing.options import DOCUMENT_BYTES, SAMPLES

_JSON_LINES = ('.jsonl', '.json', '.ndjson')
_COMPRESSED = {'.gz': 'gzip', '.zst': 'zstd'}
# What is read of a record beside its text.
_COLUMNS = ('meta', 'source')
# Documents of an input that is one text, at least, and bytes of one at most.
_CUTS = 64
_CUT = 1 << 16
# Rows in a block of a Parquet file or of a dataset; bytes in one of lines.
_ROWS = 512
_ROW_BYTES = 1 << 25
_BLOCK = 1 << 20
# Rows of a TFDS dataset that a process reads at a time.
_PIECE_ROWS = 8192
# Characters of a rejected line that are quoted.
_QUOTED = 200
# Fields of `meta` that name a source.
_SOURCES = ('redpajama_set_name', 'source')


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
  content: bytes | pa.RecordBatch | list[dict[str, Any]]
  text: bool = False
  field: str = 'text'
  most: int = DOCUMENT_BYTES

  @property
  def bytes(self) -> int:
    """About its size."""
    if isinstance(self.content, list):
      return sum(len(str(row.get(self.field))) for row in self.content)
    if isinstance(self.content, bytes):
      return len(self.content)
    return self.content.nbytes


class Piece(NamedTuple):
  """A part of an input, which is read by itself.

  Attributes:
    input: the input's name.
    bytes: about its size on the disk, 0 where that is not known.
    begin: first byte of a file of lines, whose lines are those that begin in
      the piece; first row of a TFDS dataset; number of a file of a hub's.
    end: where the next piece begins; 0: the piece is the whole input.
    field: of a line or row that holds the text.
    cut: bytes of a document, about, that a text is cut into at ends of lines;
      0: it is one document.
  """

  input: str
  bytes: int
  begin: int = 0
  end: int = 0
  field: str = 'text'
  cut: int = 0


class Input(NamedTuple):
  """A file or a dataset.

  Attributes:
    name: path, or 'hf:…' or 'tfds:…'.
    bytes: size of a file, 0 for a dataset.
    mtime_ns: of a file, 0 for a dataset.
    field, cut: as of its pieces.
  """

  name: str
  bytes: int
  mtime_ns: int
  field: str = 'text'
  cut: int = 0

  def pieces(self, size: int) -> Iterator[Piece]:
    """Yields its pieces, those of lines of `size` bytes; the same each time.

    Raises:
      OSError: a dataset cannot be opened.
    """
    whole = Piece(self.name, self.bytes, 0, 0, self.field, self.cut)
    kind, name = _dataset(self.name)
    if kind:
      for begin, end in _dataset_pieces(self.name, kind, name):
        yield whole._replace(begin=begin, end=end)
    elif _is_lines(path := pathlib.Path(self.name)) and not _compression(path):
      for begin in range(0, self.bytes, size):
        end = min(begin + size, self.bytes)
        yield whole._replace(bytes=end - begin, begin=begin, end=end)
    else:
      yield whole


def find(spec: str, field: str = 'text') -> list[Input]:
  """Returns the inputs of a comma-separated list, sorted, each once.

  An input that is one file of text is cut into documents, so that some of them
  can be kept for validation.

  Args:
    spec: globs of local files, names of options.SAMPLES,
      'hf:DATASET[:CONFIG[:SPLIT]]' (a dataset of the Hugging Face hub, or a
      local directory of that layout) and 'tfds:NAME[:SPLIT]' (a TFDS dataset
      with a text, or a prepared one's directory). SPLIT is 'train' by default.
    field: of a record that holds the text.

  Raises:
    FileNotFoundError: a glob matches no file.
    OSError: a package that reads the dataset is missing.
  """
  found: dict[str, Input] = {}
  for item in spec.split(','):
    item = SAMPLES[item][0] if item in SAMPLES else item
    kind, name = _dataset(item)
    if kind:
      if kind == 'hf':
        _check_hub(name)
      found[item] = Input(item, 0, 0, field)
    else:
      found |= {str(p): _file(p, field) for p in _paths(item)}
  if len(found) == 1:
    [(name, one)] = found.items()
    if one.mtime_ns and _is_text(pathlib.Path(name)):
      found[name] = one._replace(cut=min(_CUT, one.bytes // _CUTS + 1))
  return sorted(found.values(), key=lambda i: pathlib.PurePath(i.name))


def read(
  found: Iterable[Input], most: int = DOCUMENT_BYTES
) -> Iterator[Document | Reject]:
  """Yields the documents of some inputs, in order.

  A `.jsonl` (also `.gz`, `.zst`) or `.parquet` file holds one in each line or
  row; any other file is one document, or is cut into some. The source is
  `meta.redpajama_set_name`, else `meta.source`, else `source`, else the
  file's name without its suffixes. Of a source that is a path, such as
  cc/2019-30/en_head_0000.json.gz/line14, the first folder counts.

  Raises:
    ValueError: a file as a whole is damaged.
  """
  for one in found:
    piece = Piece(one.name, one.bytes, 0, 0, one.field, one.cut)
    for block in blocks(piece, _BLOCK, most):
      for _, item in parse(block):
        yield item


def blocks(
  piece: Piece, size: int, most: int = DOCUMENT_BYTES
) -> Iterator[Block]:
  """Yields a piece in blocks of whole lines, about `size` bytes each.

  Args:
    piece: of an input.
    size: of a block.
    most: bytes of a document or a line; no more are kept of a longer one, which
      becomes a reject.

  Raises:
    OSError: a dataset cannot be read.
    ValueError: a file as a whole is damaged.
  """
  kind, name = _dataset(piece.input)
  found = _blocks(piece, size, most)
  if kind:
    found = _dataset_blocks(piece, kind, name)
  for block in found:
    yield block._replace(field=piece.field, most=most)


def _blocks(piece: Piece, size: int, most: int) -> Iterator[Block]:
  path = pathlib.Path(piece.input)
  try:
    if path.suffix.lower() == '.parquet':
      yield from _row_blocks(path, piece.field)
    elif piece.end:
      yield from _lines_within(path, piece, most)
    elif _is_lines(path):
      yield from _line_blocks(path, size, most)
    elif piece.cut:
      for block in _line_blocks(path, piece.cut, most):
        yield block._replace(text=True)
    else:
      with _open(path) as file:
        content = file.read(most + 1)
        yield Block(str(path), _stem(path), 1, content, text=True)
  except (pa.ArrowException, OSError, EOFError, UnicodeError) as error:
    raise ValueError(f'{path} is damaged or cut short: {error}') from error


def parse(block: Block) -> Iterator[tuple[int, Document | Reject]]:
  """Yields line number and document of each line, row or text of a block."""
  content = block.content
  if block.text:
    assert isinstance(content, bytes)
    yield block.first, _document(block, block.first, content)
  elif isinstance(content, bytes):
    for number, line in enumerate(content.split(b'\n'), block.first):
      if line.strip():
        yield number, _from_line(block, number, line)
  else:
    rows = content if isinstance(content, list) else _rows(content)
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
    if near := difflib.get_close_matches(pattern, SAMPLES, 1):
      hint = f'; did you mean {near[0]}?'
    raise FileNotFoundError(f'no file matches --input={pattern!r}{hint}')
  return files


def _file(path: pathlib.Path, field: str) -> Input:
  stat = path.stat()
  return Input(str(path), stat.st_size, stat.st_mtime_ns, field)


def _is_text(path: pathlib.Path) -> bool:
  return not _is_lines(path) and path.suffix.lower() != '.parquet'


def _is_lines(path: pathlib.Path) -> bool:
  return any(s.lower() in _JSON_LINES for s in path.suffixes[-2:])


def _compression(path: pathlib.Path) -> str | None:
  return _COMPRESSED.get(path.suffix.lower())


def lines_before(name: str, begin: int) -> int:
  """Returns how many lines of a file begin before a byte of it."""
  count, last = 0, b'\n'
  with open(name, 'rb') as file:
    while begin > 0 and (content := file.read(min(begin, _BLOCK))):
      count, last = count + content.count(b'\n'), content[-1:]
      begin -= len(content)
  return count + (last != b'\n')


def _stem(path: pathlib.Path) -> str:
  """Returns a file's name without the suffixes of its formats."""
  known = (*_JSON_LINES, *_COMPRESSED, '.parquet')
  while path.suffix.lower() in known:
    path = path.with_suffix('')
  return path.stem


def _open(path: pathlib.Path) -> io.BufferedIOBase:
  compression = _compression(path)
  if compression is None:
    return path.open('rb')
  # Unlike gzip's and zstandard's readers, Arrow's raises where a file of
  # either format is cut short.
  return io.BufferedReader(pa.input_stream(str(path), compression), 1 << 20)


def _lines_within(
  path: pathlib.Path, piece: Piece, most: int
) -> Iterator[Block]:
  """Yields one block of the lines that begin in a piece."""
  with _open(path) as file:
    if piece.begin:
      # The line that holds the byte before belongs to the piece before.
      file.seek(piece.begin - 1)
      _skip_line(file)
    if (rest := piece.end - file.tell()) > 0:
      content = _finish_line(file, file.read(rest), most)
      yield Block(str(path), _stem(path), 1, content)


def _line_blocks(path: pathlib.Path, size: int, most: int) -> Iterator[Block]:
  with _open(path) as file:
    number = 1
    while content := file.read(size):
      content = _finish_line(file, content, most)
      yield Block(str(path), _stem(path), number, content)
      number += content.count(b'\n')


def _finish_line(file: io.BufferedIOBase, content: bytes, most: int) -> bytes:
  """Returns content to the end of its last line, of one too long enough."""
  have = len(content) - (content.rfind(b'\n') + 1)
  rest = file.readline(max(0, most + 1 - have)) if have else b''
  if have + len(rest) > most and not rest.endswith(b'\n'):
    _skip_line(file)
    rest += b'\n'
  return content + rest


def _skip_line(file: io.BufferedIOBase) -> None:
  while (part := file.readline(_BLOCK)) and not part.endswith(b'\n'):
    pass


def _row_blocks(path: pathlib.Path, field: str) -> Iterator[Block]:
  with parquet.ParquetFile(path) as file:
    names = file.schema_arrow.names
    if field not in names:
      raise ValueError(
        f'{path} has no column `{field}`: --text_field=COLUMN of '
        f'{", ".join(names)}'
      )
    columns = [c for c in (field, *_COLUMNS) if c in names]
    number = 1
    for group in range(file.num_row_groups):
      about = file.metadata.row_group(group)
      # Rows of large documents are read a few at a time.
      fit = _ROW_BYTES * about.num_rows // max(1, about.total_byte_size)
      count = min(max(1, fit), _ROWS)
      for rows in file.iter_batches(count, [group], columns):
        yield Block(str(path), _stem(path), number, rows)
        number += len(rows)


def _rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
  """Yields rows whose texts are bytes, which may be no UTF-8.

  Whatever else a row holds, such as dates that Python has none for, stays
  unread.
  """
  columns = dict(zip(batch.schema.names, batch.columns, strict=True))
  values: dict[str, list[Any]] = {}
  for name, column in columns.items():
    if name == 'meta' and pa.types.is_struct(column.type):
      inner = [column.type.field(i).name for i in range(column.type.num_fields)]
      fields = {
        n: _texts(compute.struct_field(column, n))
        for n in _SOURCES
        if n in inner
      }
      rows = zip(*fields.values()) if fields else [()] * len(column)
      values[name] = [dict(zip(fields, row)) for row in rows]
    else:
      values[name] = _texts(column)
  for row in zip(*values.values()):
    yield dict(zip(values, row))


def _texts(column: pa.Array) -> list[bytes | None]:
  kind = column.type
  if pa.types.is_dictionary(kind):
    column, kind = column.dictionary_decode(), kind.value_type
  if pa.types.is_string(kind) or pa.types.is_large_string(kind):
    return column.cast(pa.large_binary()).to_pylist()
  return [None] * len(column)


# ---------------------------------------------------------------- datasets


def _dataset(name: str) -> tuple[str, str]:
  """Returns 'hf' or 'tfds' and what follows; '' and '' of a file."""
  kind, _, rest = name.partition(':')
  return (kind, rest) if kind in ('hf', 'tfds') and rest else ('', '')


def _dataset_pieces(
  item: str, kind: str, name: str
) -> Iterator[tuple[int, int]]:
  """Yields where each piece of a dataset begins and ends."""
  with _told(item):
    if kind == 'hf':
      ends = range(1, _hub(name).num_shards + 1)
    else:
      count = len(_tfds(name))
      ends = range(_PIECE_ROWS, count + _PIECE_ROWS, _PIECE_ROWS)
  for end in ends:
    yield end - ends.step, end


def _dataset_blocks(piece: Piece, kind: str, name: str) -> Iterator[Block]:
  """Yields the rows of a piece of a dataset.

  Rows of a hub's dataset are counted within each of its files.
  """
  item, stem = piece.input, pathlib.PurePath(name.partition(':')[0]).name
  first = 1
  with _told(item):
    rows: Any
    if kind == 'hf':
      rows = _hub(name)
      if piece.end:
        rows = rows.shard(num_shards=rows.num_shards, index=piece.begin)
        item = f'{item}#{piece.begin}'
    else:
      source = _tfds(name)
      end = min(piece.end or len(source), len(source))
      rows = (source[i] for i in range(piece.begin, end))
      first = piece.begin + 1
    iterator = iter(rows)
    # Rows are counted: their sizes are known only later.
    for number in itertools.count(first, _ROWS):
      batch = [
        _plain(row, piece.field) for row in itertools.islice(iterator, _ROWS)
      ]
      if not batch:
        return
      yield Block(item, stem, number, batch)


@contextlib.contextmanager
def _told(item: str) -> Iterator[None]:
  """Tells errors of a dataset's library, which share no class, in a line."""
  try:
    yield
  except Exception as error:
    line = downloads.first_line(error)
    raise OSError(f'--input={item}: {line}') from error


def _plain(row: Mapping[str, Any], field: str) -> dict[str, Any]:
  """Keeps the columns that are read; TFDS gives text as bytes."""
  return {
    k: row[k].decode(errors='surrogateescape')
    if isinstance(row[k], bytes)
    else row[k]
    for k in (field, *_COLUMNS)
    if k in row
  }


def _check_hub(name: str) -> None:
  """Raises where a dataset of the hub cannot be read or is not well named."""
  if importlib.util.find_spec('datasets') is None:
    raise OSError(
      f"--input=hf:{name} needs datasets: pip install 'steepest[hub]'"
    )
  if name.count(':') > 2:
    raise ValueError(
      f'--input=hf:{name}: write hf:DATASET, hf:DATASET:CONFIG or '
      'hf:DATASET:CONFIG:SPLIT'
    )


def _hub(name: str) -> Any:
  """Opens a dataset of the hub as a stream."""
  import datasets

  dataset, config, split, *_ = [*name.split(':'), '', '']
  return datasets.load_dataset(
    dataset, config or None, split=split or 'train', streaming=True
  )


def _tfds(name: str) -> Sequence[Mapping[str, Any]]:
  """Opens a dataset of TFDS, any row of which can be read."""
  import tensorflow_datasets as tfds

  dataset, _, split = name.partition(':')
  if os.path.isdir(dataset):
    builder = tfds.builder_from_directory(dataset)
    return builder.as_data_source(split=split or 'train')
  return tfds.data_source(dataset, split=split or 'train')


# ----------------------------------------------------------------- records


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


def _from_record(
  block: Block, number: int, record: dict[str, Any]
) -> Document | Reject:
  text = record.get(block.field)
  if not isinstance(text, (str, bytes)):
    return _reject(block, number, f'no `{block.field}`', str(record))
  try:
    source = _source(record)
  except ValueError:
    return _reject(block, number, 'no source to be read', str(record))
  return _document(block, number, text, source)


def _document(
  block: Block, number: int, text: str | bytes, source: str | None = None
) -> Document | Reject:
  if len(text) > block.most:
    return _reject(block, number, f'longer than {block.most} bytes', text)
  try:
    # A lone surrogate, which JSON can spell, has no UTF-8 either.
    text = text.decode() if isinstance(text, bytes) else text
    size = len(text.encode())
  except UnicodeError:
    return _reject(block, number, 'no Unicode', text)
  if size > block.most:
    return _reject(block, number, f'longer than {block.most} bytes', text)
  if not text.strip():
    return _reject(block, number, 'empty', text)
  return Document(text, source or block.stem)


def _source(record: dict[str, Any]) -> str | None:
  """Returns what a record says of its source, None where it says nothing.

  Raises:
    ValueError: it is no Unicode, or nested too deeply.
  """
  meta = record.get('meta')
  if isinstance(meta, (str, bytes)):
    try:
      meta = reading.parse(meta)
    except json.JSONDecodeError:
      meta = None
  if not isinstance(meta, dict):
    meta = {}
  for name in (*(meta.get(key) for key in _SOURCES), record.get('source')):
    if isinstance(name, (str, bytes)):
      name = name.decode() if isinstance(name, bytes) else name
      name.encode()
      # Of each line's own path, the first folder.
      folder = name.strip('/').partition('/')[0]
      if folder and not folder.endswith(':'):
        return folder
  return None


def _reject(
  block: Block, number: int, reason: str, line: str | bytes
) -> Reject:
  return Reject(block.file, number, reason, quote(line))

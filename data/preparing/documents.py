"""Documents from local files and from Hugging Face and TFDS datasets.

An input is divided into pieces that processes read independently: a block of
lines, a compressed or other file, a file or some rows of a dataset. A piece is
read in blocks, each parsed at once.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import contextlib
import difflib
import glob
import importlib.util
import io
import os
import pathlib
from typing import Any, NamedTuple

import pyarrow as pa
from pyarrow import parquet

from steepest.data import downloads, reading
from steepest.data.preparing import parsing
from steepest.data.preparing.options import DOCUMENT_BYTES, SAMPLES

_JSON_LINES = ('.jsonl', '.json', '.ndjson')
_COMPRESSED = {'.gz': 'gzip', '.zst': 'zstd'}
# Documents of an input that is one text, at least, and bytes of one at most.
_CUTS = 64
_CUT = 1 << 16
# Rows in a block of a Parquet file or of a dataset; bytes in one of lines.
_ROWS = 512
_ROW_BYTES = 1 << 25
_BLOCK = 1 << 20
# Rows of a TFDS dataset that a process reads at a time.
_PIECE_ROWS = 8192


class Piece(NamedTuple):
  """A part of an input that is read independently.

  Attributes:
    input: the input's name.
    bytes: approximate size on disk; 0 if unknown.
    begin: first byte in a file of lines, where a line belongs to the piece it
      begins in; first row of a TFDS dataset; file number of a hub dataset.
    end: where the next piece begins; 0: the piece is the whole input.
    field: of a line or row that holds the text.
    cut: approximate bytes of the documents that a text is cut into, at line
      ends; 0: the text is one document.
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
) -> Iterator[parsing.Document | parsing.Reject]:
  """Yields the documents of some inputs, in order.

  A `.jsonl` (also `.gz`, `.zst`) or `.parquet` file holds one in each line or
  row; any other file is one document, or is cut into several. The source is
  `meta.redpajama_set_name`, else `meta.source`, else `source`, else the
  file's name without its suffixes. If it is a path, such as
  cc/2019-30/en_head_0000.json.gz/line14, its first folder is the source.

  Raises:
    ValueError: a file as a whole is damaged.
  """
  for one in found:
    piece = Piece(one.name, one.bytes, 0, 0, one.field, one.cut)
    for block in blocks(piece, _BLOCK, most):
      for _, item in parsing.parse(block):
        yield item


def blocks(
  piece: Piece, size: int, most: int = DOCUMENT_BYTES
) -> Iterator[parsing.Block]:
  """Yields a piece in blocks of whole lines, about `size` bytes each.

  Args:
    piece: of an input.
    size: of a block.
    most: maximum bytes of a document or line; a longer one is rejected, and no
      more than these are kept.

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
    # Otherwise two would be in memory while the next is read.
    del block


def _blocks(piece: Piece, size: int, most: int) -> Iterator[parsing.Block]:
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
        yield parsing.Block(str(path), _stem(path), 1, content, text=True)
  except MemoryError as error:
    raise ValueError(f'{path}: takes too much memory') from error
  except (pa.ArrowException, OSError, EOFError, UnicodeError) as error:
    raise ValueError(f'{path} is damaged or cut short: {error}') from error


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
  """Returns the number of a file's lines that begin before a byte."""
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
  # Unlike gzip's and zstandard's readers, Arrow's raises if the file is
  # truncated.
  return io.BufferedReader(pa.input_stream(str(path), compression), 1 << 20)


def _lines_within(
  path: pathlib.Path, piece: Piece, most: int
) -> Iterator[parsing.Block]:
  """Yields one block of the lines that begin in a piece."""
  with _open(path) as file:
    if piece.begin:
      # The line of the previous byte belongs to the previous piece.
      file.seek(piece.begin - 1)
      _skip_line(file)
    if (rest := piece.end - file.tell()) > 0:
      content = _finish_line(file, file.read(rest), most)
      yield parsing.Block(str(path), _stem(path), 1, content)


def _line_blocks(
  path: pathlib.Path, size: int, most: int
) -> Iterator[parsing.Block]:
  with _open(path) as file:
    number = 1
    while begun := file.read(size):
      content = _finish_line(file, begun, most)
      yield parsing.Block(str(path), _stem(path), number, content)
      number += content.count(b'\n')


def _finish_line(
  file: io.BufferedIOBase, content: bytes, most: int
) -> bytes | bytearray:
  """Extends content to the end of its last line, or until that is too long."""
  have = len(content) - (content.rfind(b'\n') + 1)
  if not have:
    return content
  # A bytearray grows in place.
  whole = bytearray(content)
  while have <= most:
    part = file.readline(min(_BLOCK, most + 1 - have))
    whole += part
    have += len(part)
    if not part or part.endswith(b'\n'):
      return whole
  _skip_line(file)
  whole += b'\n'
  return whole


def _skip_line(file: io.BufferedIOBase) -> None:
  while (part := file.readline(_BLOCK)) and not part.endswith(b'\n'):
    pass


def _row_blocks(path: pathlib.Path, field: str) -> Iterator[parsing.Block]:
  with _table(path, reading.allocated()) as file:
    names = file.schema_arrow.names
    about = file.metadata
  # After opening the file: the stacks of Arrow's threads count as well.
  before = reading.allocated()
  if field not in names:
    raise ValueError(
      f'{path} has no column `{field}`: --text_field=COLUMN of '
      f'{", ".join(names)}'
    )
  columns = [c for c in (field, *parsing.COLUMNS) if c in names]
  number = 1
  for group in range(about.num_row_groups):
    # Rows with large documents are read a few at a time.
    held = about.row_group(group)
    fit = _ROW_BYTES * held.num_rows // max(1, held.total_byte_size)
    count = min(max(1, fit), _ROWS)
    for rows in _batches(path, group, columns, count, before):
      if rows is None:
        raise ValueError(f'{path}, row {number}: takes too much memory')
      number += len(rows)
      yield parsing.Block(str(path), _stem(path), number - len(rows), rows)
      del rows


def _table(path: pathlib.Path, before: int) -> parquet.ParquetFile:
  with reading.memory_limit(before):
    # Pages are read one by one, however large a group of rows is.
    return parquet.ParquetFile(path, buffer_size=_BLOCK)


def _batches(
  path: pathlib.Path, group: int, columns: list[str], count: int, before: int
) -> Iterator[pa.RecordBatch | None]:
  """Yields a group's rows within bounded memory; None where one does not fit.

  Args:
    path: of the file.
    group: number of the group.
    columns: to read.
    count: rows of a batch. If they do not fit, rows are read one by one.
    before: bytes that the process had allocated before.
  """
  done = 0
  for size in (count, 1):
    left = done
    with _table(path, before) as file:
      batches = file.iter_batches(size, [group], columns, use_threads=False)
      try:
        while True:
          with reading.memory_limit(before):
            if (rows := next(batches, None)) is None:
              return
          if left <= 0:
            yield rows
            done += len(rows)
          left -= len(rows)
          del rows
      except MemoryError:
        continue
  yield None


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


def _dataset_blocks(
  piece: Piece, kind: str, name: str
) -> Iterator[parsing.Block]:
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
    batch: list[dict[str, Any]] = []
    size = 0
    for row in rows:
      kept = (piece.field, *parsing.COLUMNS)
      batch.append({k: row[k] for k in kept if k in row})
      size += parsing.size_of(row, piece.field)
      if len(batch) == _ROWS or size >= _ROW_BYTES:
        yield parsing.Block(item, stem, first, batch)
        first, batch, size = first + len(batch), [], 0
    if batch:
      yield parsing.Block(item, stem, first, batch)


@contextlib.contextmanager
def _told(item: str) -> Iterator[None]:
  """Puts errors of a dataset's library, which share no class, into one line."""
  try:
    yield
  except Exception as error:
    line = downloads.first_line(error)
    raise OSError(f'--input={item}: {line}') from error


def _check_hub(name: str) -> None:
  """Raises if a hub dataset cannot be read or its name is malformed."""
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
  """Opens a TFDS dataset with random access to its rows."""
  import tensorflow_datasets as tfds

  dataset, _, split = name.partition(':')
  if os.path.isdir(dataset):
    builder = tfds.builder_from_directory(dataset)
    return builder.as_data_source(split=split or 'train')
  return tfds.data_source(dataset, split=split or 'train')

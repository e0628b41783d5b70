"""Reads untrusted JSON and tables: returns a value or raises one clear line.

Values are limited in bytes, nesting depth and range of numbers, whatever a file
holds. Anything else raises a ValueError that names the file and the place.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
import contextlib
import gzip
import hashlib
import json
import math
import os
import pathlib
import re
import secrets
from typing import Any, cast
import zlib

import pyarrow as pa
from pyarrow import parquet

# Maximum bytes of a JSON file or line, and of brackets open at once.
_MOST_BYTES = 1 << 28
_DEPTH = 100
# Bytes read at once from the end of a file.
_CHUNK = 1 << 15
# The escape of half of a UTF-16 surrogate pair.
_HALF = re.compile(r'\\u[dD][89a-fA-F]')
# For a long line: bytes of JSON parsed at once, whose values take up to thirty
# times as many; bytes from which a string is kept out of these; and bytes of
# such a string read at once.
MOST_PARSED = 1 << 23
_CUT = 1 << 16
_SLICE = 1 << 22
# A JSON string, or the rest of the text if it is unterminated.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.S)
# Maximum bytes that reading a table may allocate.
_TABLE_BYTES = 7 << 27
# In the Hugging Face hub's cache: SHA-256, or git's SHA-1.
_BLOB = re.compile('[0-9a-f]{64}|[0-9a-f]{40}')

Check = Callable[[Any], bool]


def _number(value: Any) -> bool:
  # True and false are numbers in Python but not in JSON.
  return type(value) in (int, float) and math.isfinite(value)


def _whole(value: Any) -> bool:
  # Integers that a float holds exactly, as most programs read them.
  return type(value) is int and abs(value) < 1 << 53


def _text(value: Any) -> bool:
  return isinstance(value, str)


def _list_of(*checks: Check) -> Check:
  return lambda held: (
    isinstance(held, list) and any(all(map(check, held)) for check in checks)
  )


def _plain(value: Any) -> bool:
  return value is None or isinstance(value, (str, bool)) or _number(value)


# Kinds of values, by names that appear in errors.
KINDS: dict[str, Check] = {
  'text': _text,
  'truth value': lambda v: isinstance(v, bool),
  'number': _number,
  'number, finite or not': lambda v: type(v) in (int, float),
  'number of at least 0': lambda v: _number(v) and v >= 0,
  'number above 0': lambda v: _number(v) and v > 0,
  'whole number': _whole,
  'count': lambda v: _whole(v) and v >= 0,
  'count above 0': lambda v: _whole(v) and v > 0,
  'object': lambda v: isinstance(v, dict),
  'object of objects': lambda v: (
    isinstance(v, dict) and all(isinstance(h, dict) for h in v.values())
  ),
  'object of numbers': lambda v: (
    isinstance(v, dict) and all(map(_number, v.values()))
  ),
  'list of objects': _list_of(lambda v: isinstance(v, dict)),
  'list of texts': _list_of(_text),
  'list of numbers': _list_of(_number),
  'list of numbers or texts': _list_of(_number, _text),
  'text, number or list of them': lambda v: (
    _plain(v) or _list_of(_number, _text)(v)
  ),
}


def parse(text: str | bytes) -> Any:
  """Returns the value of a JSON text, whose whole numbers beyond 64 bits are
  floats.

  Raises:
    ValueError: it is not JSON, or is nested too deeply.
  """
  try:
    if isinstance(text, bytes):
      text = text.decode('utf-8-sig')
    value = _DECODER.decode(text)
  except RecursionError:
    raise ValueError(f'is nested more than {_DEPTH} deep') from None
  # More brackets than that are rare, and may stand side by side.
  if text.count('[') + text.count('{') > _DEPTH:
    _check_depth(value)
  return value


def parse_long(
  text: bytes | bytearray, begin: int, end: int
) -> tuple[Any, dict[str, tuple[int, int]]]:
  """Returns the value of a long line of JSON, and where its long strings are.

  The value holds names in place of the long strings. The names have no UTF-8,
  so nothing takes them for text; `unescaped` returns the strings themselves.

  Args:
    text: holds the line.
    begin: where the line begins.
    end: where it ends.

  Raises:
    ValueError: the line is not JSON, is nested too deeply, or has more than
      MOST_PARSED bytes besides its long strings.
  """
  mark, at = secrets.token_hex(16), begin
  rest = bytearray()
  cut: dict[str, tuple[int, int]] = {}
  for found in _STRING.finditer(text, begin, end):
    start, stop = found.span()
    if len(rest) + start - at > MOST_PARSED:
      break
    if stop - start > _CUT and text[stop - 1] == ord('"'):
      name = f'{mark}{len(cut)}'
      rest += text[at:start] + rf'"\ud800{name}"'.encode()
      cut[f'\ud800{name}'] = start + 1, stop - 1
      at = stop
  if len(rest) + end - at > MOST_PARSED:
    raise ValueError(f'more than {MOST_PARSED} bytes besides long strings')
  rest += text[at:end]
  return parse(bytes(rest)), cut


def unescaped(text: bytes | bytearray, begin: int, end: int) -> bytearray:
  """Returns the UTF-8 of the inside of a JSON string, read in slices.

  Raises:
    ValueError: it is not JSON or not Unicode, or cannot be cut into slices.
  """
  found = bytearray()
  while begin < end:
    last = min(begin + _SLICE, end)
    if last < end:
      # No escape spans a space or a line break.
      blank = text.rfind(b' ', begin, last) + 1
      last = max(blank, text.rfind(b'\\n', begin, last) + 2)
      if last <= begin + 1:
        raise ValueError(f'no place to cut it within {_SLICE} bytes')
    found += parse(b'"' + text[begin:last] + b'"').encode()
    begin = last
  return found


def allocated() -> int:
  """Returns this process's bytes of data; 0 except on Linux."""
  status = pathlib.Path('/proc/self/status')
  if not status.exists():
    return 0
  return int(status.read_text('utf-8').split('VmData:')[1].split()[0]) << 10


@contextlib.contextmanager
def memory_limit(before: int) -> Iterator[None]:
  """Limits the memory that reading a table may add to `before`.

  A small file may decompress to gigabytes. Only Linux limits allocated data.

  Raises:
    MemoryError: the limit is exceeded.
  """
  if not before:
    yield
    return
  import resource

  soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
  most = before + _TABLE_BYTES
  if soft != resource.RLIM_INFINITY:
    most = min(most, soft)
  # Arrow's own allocator reserves gigabytes, which would count.
  pool = pa.default_memory_pool()
  pa.set_memory_pool(pa.system_memory_pool())
  resource.setrlimit(resource.RLIMIT_DATA, (most, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
    pa.set_memory_pool(pool)


def value(text: str | bytes, where: str, hint: str = '') -> Any:
  """Returns the value of a JSON text whose strings are valid Unicode.

  Args:
    text: the JSON.
    where: it is from; errors begin with this.
    hint: what to do; errors end with this.

  Raises:
    ValueError: it is not valid.
  """
  try:
    found = parse(text)
    escaped = text.decode() if isinstance(text, bytes) else text
    if _HALF.search(escaped):
      json.dumps(found, ensure_ascii=False).encode()
  except UnicodeEncodeError:
    raise _bad(where, 'holds half of a surrogate pair', hint) from None
  except ValueError as error:
    raise _bad(where, f'not valid JSON ({error})', hint) from error
  return found


def json_object(path: os.PathLike[str], hint: str = '') -> dict[str, Any]:
  """Returns the object that a file of JSON holds.

  Args:
    path: of the file, local or in a bucket.
    hint: what to do if it is damaged.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is too long, holds something else, or is not what was
      fetched.
  """
  check_blob(path)
  with cast(pathlib.Path, path).open('rb') as file:
    text = file.read(_MOST_BYTES + 1)
  if len(text) > _MOST_BYTES:
    raise _bad(str(path), f'longer than {_MOST_BYTES:,} bytes', hint)
  found = value(text, str(path), hint)
  if not isinstance(found, dict):
    raise _bad(str(path), 'holds no JSON object', hint)
  return found


def json_lines(
  path: pathlib.Path, hint: str = '', growing: bool = False
) -> Iterator[dict[str, Any]]:
  """Yields the objects of a file of JSON lines, gzipped or not.

  Args:
    path: of the file.
    hint: what to do if it is damaged.
    growing: whether the file is being written; an incomplete last line is then
      left out.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: a line is too long or not an object; names it.
  """
  opened = cast(Any, gzip.open if path.suffix == '.gz' else open)
  try:
    with opened(path, 'rb') as file:
      # Not splitlines(): strings may hold U+2028 and the like.
      lines = iter(lambda: file.readline(_MOST_BYTES + 1), b'')
      yield from objects(lines, str(path), 1, hint, growing)
  except (EOFError, zlib.error, gzip.BadGzipFile) as error:
    raise _bad(str(path), f'is damaged or cut short: {error}') from error


def line_blocks(
  path: pathlib.Path, size: int, most: int = _MOST_BYTES
) -> Iterator[tuple[int, bytes]]:
  """Yields whole lines of a file together, and the number of the first.

  Args:
    path: of the file.
    size: bytes after which a block ends, with the current line.
    most: maximum bytes of a line.

  Raises:
    ValueError: a line is longer.
  """
  with path.open('rb') as file:
    number = 1
    while content := file.read(size):
      if not content.endswith(b'\n'):
        content += (rest := file.readline(most))
        if len(rest) == most:
          at = number + content.count(b'\n')
          raise _bad(f'{path}, line {at}', f'longer than {most:,} bytes')
      yield number, content
      number += content.count(b'\n')


def lines_backwards(path: pathlib.Path) -> Iterator[tuple[int, bytes]]:
  """Yields each line of a file and where it begins, last line first.

  Raises:
    ValueError: a line is too long.
  """
  with path.open('rb') as file:
    begin = file.seek(0, os.SEEK_END)
    rest = b''
    while begin:
      # Larger reads for a long line, which would be copied over and over.
      size = min(begin, max(_CHUNK, len(rest)))
      begin = file.seek(begin - size)
      *whole, last = (file.read(size) + rest).split(b'\n')
      first, *others = [line + b'\n' for line in whole] + [last] * bool(last)
      at = begin + len(first) + sum(map(len, others))
      for line in reversed(others):
        at -= len(line)
        yield at, line
      rest = first
      if len(rest) > _MOST_BYTES:
        raise _bad(str(path), f'a line is longer than {_MOST_BYTES:,} bytes')
    if rest:
      yield 0, rest


def objects_backwards(
  path: pathlib.Path, hint: str = ''
) -> Iterator[tuple[int, dict[str, Any]]]:
  """Yields where each complete line of a file ends, and its object, from the
  last on.

  Raises:
    ValueError: a line is too long or no object; names it.
  """
  for begin, line in lines_backwards(path):
    # A writer that was killed, or is still writing, leaves a partial last line.
    if line.endswith(b'\n'):
      where = f'{path}, from byte {begin} on'
      for found in objects([line], where, hint=hint):
        yield begin + len(line), found


def objects(
  lines: Iterable[bytes],
  where: str,
  first: int = 1,
  hint: str = '',
  growing: bool = False,
) -> Iterator[dict[str, Any]]:
  """Yields the objects of lines; skips blank lines.

  Args:
    lines: with their line ends.
    where: the file that they are from.
    first: number of the first line.
    hint: as for `json_lines`, and so is `growing`.

  Raises:
    ValueError: a line is too long or no object; names it.
  """
  for number, line in enumerate(lines, first):
    if not line.strip():
      continue
    at = f'{where}, line {number}'
    if len(line) > _MOST_BYTES:
      raise _bad(at, f'longer than {_MOST_BYTES:,} bytes', hint)
    try:
      found = value(line, at, hint)
    except ValueError:
      if growing and not line.endswith(b'\n'):
        return
      raise
    if not isinstance(found, dict):
      raise _bad(at, 'not a JSON object', hint)
    yield found


def table(path: os.PathLike[str], columns: list[str] | None = None) -> pa.Table:
  """Returns a parquet file.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is damaged.
  """
  try:
    with memory_limit(allocated()):
      return parquet.read_table(path, columns=columns, use_threads=False)
  except (pa.ArrowException, MemoryError, UnicodeError) as error:
    line = str(error).splitlines()[0]
    raise _bad(str(path), f'is no parquet file: {line}') from error


def require(
  held: Mapping[str, Any],
  kinds: Mapping[str, str],
  where: str,
  hint: str = '',
) -> None:
  """Raises a ValueError that names the first value of a wrong kind.

  Args:
    held: an object.
    kinds: key → a name of KINDS; ' or null' after it also allows null, '?'
      before it allows the key to be missing.
    where: the object is from.
    hint: what to do.
  """
  for key, kind in kinds.items():
    if key not in held:
      if not kind.startswith('?'):
        raise _bad(where, f'lacks {key}', hint)
      continue
    plain = kind.removeprefix('?')
    if held[key] is None and plain.endswith(' or null'):
      continue
    plain = plain.removesuffix(' or null')
    if not KINDS[plain](held[key]):
      raise _bad(where, f'{key} is {shown(held[key])}, no {plain}', hint)


def check_blob(path: os.PathLike[str]) -> None:
  """Checks a file of the Hugging Face hub's cache against its hash.

  There, a file is a link to one named by its hash: the SHA-256 of a large file,
  git's SHA-1 of a small one (huggingface_hub/file_download.py). Other files
  pass.

  Raises:
    FileNotFoundError: the link leads nowhere.
    ValueError: the file is not what was fetched.
  """
  blob = os.path.realpath(path) if os.path.islink(path) else ''
  folder, name = os.path.split(blob)
  if os.path.basename(folder) != 'blobs' or not _BLOB.fullmatch(name):
    return
  header = f'blob {os.path.getsize(blob)}\0'.encode()
  make = hashlib.sha256 if len(name) == 64 else lambda: hashlib.sha1(header)
  with open(blob, 'rb') as file:
    actual = hashlib.file_digest(file, make).hexdigest()
  if actual != name:
    raise ValueError(
      f'{path} has changed since it was fetched: delete {blob} and fetch '
      'it again'
    )


def shown(held: Any) -> str:
  """Returns the beginning of a value in ASCII."""
  return ascii(held)[:80]


def _bad(where: str, what: str, hint: str = '') -> ValueError:
  return ValueError(f'{where}: {what}' + (f'; {hint}' if hint else ''))


def _integer(digits: str) -> int | float:
  if len(digits) < 19:
    return int(digits)
  number = float(digits)
  return int(digits) if abs(number) < 2**63 else number


def _check_depth(value: Any) -> None:
  level, held = 0, [value]
  while held:
    if level > _DEPTH:
      raise ValueError(f'is nested more than {_DEPTH} deep')
    level += 1
    inner: list[Any] = []
    for one in held:
      if isinstance(one, dict):
        inner += one.values()
      elif isinstance(one, list):
        inner += one
    held = [one for one in inner if isinstance(one, (dict, list))]


_DECODER = json.JSONDecoder(parse_int=_integer)

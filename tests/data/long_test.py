"""Documents of any length: cut where no token is, within bounded memory."""

import gzip
import json
import random
import subprocess
import sys

import numpy as np
import pyarrow as pa
from pyarrow import parquet
import pytest

from steepest.data import reading, tokenizers
from steepest.data.preparing import documents, parsing


def _text(characters):
  """Returns words, blanks, breaks and numbers of several scripts."""
  draw = random.Random(0)
  words = ['the', 'learning', "it's", '3.14', 'нещо', '中文', '🦙', 'a\n\n b']
  words += ['x  y', '<|endoftext|>', 'élan', '\tif (a):']
  found = []
  while sum(map(len, found)) < characters:
    found += draw.choices(words, k=1000)
  return ' '.join(found)


@pytest.fixture(scope='module', params=['byte-level', 'llama'])
def tokenizer(request, conformance):
  if request.param == 'llama':
    [model] = conformance.rglob('tokenizer.model')
    return tokenizers.load(f'llama:{model}')
  return tokenizers.train_bpe(iter([_text(20_000)]), 400)


def test_parts_give_the_tokens_of_the_whole(tokenizer, monkeypatch):
  text = _text(20_000)
  (whole,) = tokenizer.encode_documents([text])
  monkeypatch.setattr(tokenizers, '_PART', 1500)
  assert len(list(tokenizer.parts([text]))) > 10
  short = 'a short one'
  before, cut, after = tokenizer.encode_documents([short, text, short])
  np.testing.assert_array_equal(cut, whole)
  np.testing.assert_array_equal(before, after)
  with pytest.raises(ValueError, match='no place to cut'):
    tokenizer.encode_documents(['x' * 5000])


def _read(path, most=1000):
  return list(documents.read(documents.find(str(path)), most))


def _lines(path):
  good = json.dumps({'text': 'good'}).encode()
  path.write_bytes(b'\n'.join([good, b'{"text": "' + b'x' * 5000, good]))


def test_lines_that_are_too_long_are_rejects(tmp_path):
  path = tmp_path / 'a.jsonl'
  _lines(path)
  packed = tmp_path / 'b.jsonl.gz'
  packed.write_bytes(gzip.compress(path.read_bytes()))
  zstd = tmp_path / 'c.jsonl.zst'
  with pa.CompressedOutputStream(str(zstd), 'zstd') as file:
    file.write(path.read_bytes())
  for at in (path, packed, zstd):
    first, reject, last = _read(at)
    assert first.text == last.text == 'good'
    assert (reject.line, reject.reason) == (2, 'longer than 1000 bytes')
  # However the file is divided, each line is told once.
  [one] = documents.find(str(path))
  for size in (7, 100, 3000):
    found = [
      item
      for piece in one.pieces(size)
      for block in documents.blocks(piece, size, 1000)
      for _, item in parsing.parse(block)
    ]
    assert [len(item) for item in found] == [2, 4, 2]


@pytest.fixture
def small(monkeypatch):
  """Makes limits small: a text of some bytes counts as long."""
  monkeypatch.setattr(parsing, '_LONG', 64)
  for name, size in (('MOST_PARSED', 300), ('_CUT', 20), ('_SLICE', 60)):
    monkeypatch.setattr(reading, name, size)


@pytest.mark.parametrize('ascii', [True, False])
def test_a_long_line_is_the_document_that_json_gives(tmp_path, small, ascii):
  path = tmp_path / 'a.jsonl'
  text = _text(3000) + 'a"b \\ \\n /\x01\ud83e\udd99'.encode(
    'utf-16', 'surrogatepass'
  ).decode('utf-16')
  record = {'meta': {'source': 'web'}, 'x "{': 'y' * 99, 'text': text, 'n': [1]}
  path.write_text(json.dumps(record, ensure_ascii=ascii))
  [found] = _read(path, 1 << 20)
  assert isinstance(found.text, bytearray)
  assert (found.text.decode(), found.source) == (text, 'web')
  assert ''.join(parsing.pieces(found.text)) == text
  # `meta` may be JSON in a string.
  named = {'text': text, 'meta': json.dumps({'source': 'b', 'x': 'y ' * 50})}
  path.write_text(json.dumps(named, ensure_ascii=ascii))
  [found] = _read(path, 1 << 20)
  assert (found.text.decode(), found.source) == (text, 'b')


@pytest.mark.parametrize(
  'inside, reason',
  [
    (b'"text": "%s \\q"', 'no JSON'),
    (b'"text": "%s \xff"', 'no JSON'),
    (b'"text": "%s', 'more than 300 bytes'),
    (b'"text": "%s \\', 'more than 300 bytes'),
    (b'"text": "%s \\ud800"', 'no Unicode'),
    (b'"texts": "%s"', 'no `text`'),
    (b'"text": "%s", "meta": {"source": "%s"}', 'no source to be read'),
    (b'"text": "%s", "n": [' + b'1,' * 400 + b'1]', 'more than 300 bytes'),
    (b'"text": "' + b'x' * 400 + b'"', 'no place to cut it within 60 bytes'),
  ],
)
def test_a_long_line_without_a_document_is_a_reject(
  tmp_path, small, inside, reason
):
  path = tmp_path / 'a.jsonl'
  good = b'{"text": "good"}\n'
  words = inside.replace(b'%s', b'some words ' * 40)
  path.write_bytes(good + b'{' + words + b'}\n' + good)
  first, reject, last = _read(path, 1 << 20)
  assert first.text == last.text == 'good'
  assert (reject.line, reject.reason[: len(reason)]) == (2, reason)


def test_long_documents_are_tokenized_from_their_utf8(tokenizer, monkeypatch):
  text = _text(20_000)
  (whole,) = tokenizer.encode_documents([text])
  for name, size in (('_PART', 1500), ('_AROUND', 64)):
    monkeypatch.setattr(tokenizers, name, size)
  monkeypatch.setattr(parsing, '_LONG', 1000)
  parts = tokenizer.encode_parts(parsing.pieces(text.encode()))
  np.testing.assert_array_equal(np.concatenate(list(parts)), whole)


def _table(path, rows, **options):
  parquet.write_table(pa.table({'text': rows}), path, **options)


def test_rows_that_unpack_to_much_are_read_one_by_one_or_named(
  tmp_path, monkeypatch
):
  """20 MB of one text a hundred times is 2 GB, in a file of some kilobytes."""
  monkeypatch.setattr(reading, '_TABLE_BYTES', 1 << 27)
  path = tmp_path / 'a.parquet'
  text = 'it takes some words ' * 1_000_000
  texts = pa.DictionaryArray.from_arrays([0] + [1] * 100, ['first', text])
  large = {'dictionary_pagesize_limit': 1 << 30, 'store_schema': False}
  _table(path, texts, **large)
  assert path.stat().st_size < 1 << 22
  for number, found in enumerate(documents.read(documents.find(str(path)))):
    if number == 2:
      assert bytes(found.text) == text.encode()
      break
  _table(path, ['good', text * 7], row_group_size=1)
  found = documents.read(documents.find(str(path)))
  assert next(found).text == 'good'
  with pytest.raises(ValueError, match=f'{path}, row 2: takes too much memory'):
    next(found)


def test_what_arrow_has_no_python_for_is_a_reject_or_unread(tmp_path):
  """Invalid UTF-8, far dates and times of no zone."""
  texts = pa.array([b'good', b'\xff\xfe', b'fine'], pa.binary())
  texts = pa.StringArray.from_buffers(3, *texts.buffers()[1:])
  far = pa.array([2**50, 0, 1], pa.timestamp('s'))
  zone = pa.array([1, 2, 3], pa.timestamp('ns', 'Nowhere/None'))
  source = pa.array(['web', 'web', 'books'])
  meta = pa.StructArray.from_arrays([far, source], ['when', 'source'])
  table = pa.table({'text': texts, 'meta': meta, 'source': zone})
  path = tmp_path / 'a.parquet'
  parquet.write_table(table, path)
  good, reject, fine = _read(path)
  assert good == ('good', 'web') and fine == ('fine', 'books')
  assert (reject.line, reject.reason) == (2, 'no Unicode')


@pytest.mark.parametrize(
  'record',
  [
    {'meta': '[' * 100_000},
    {'meta': {'source': '\ud800'}},
    {'source': '\udfff'},
  ],
)
def test_a_source_that_cannot_be_read_is_a_reject(tmp_path, record):
  path = tmp_path / 'a.jsonl'
  path.write_text(json.dumps({'text': 'good', **record}))
  [reject] = _read(path, 1 << 20)
  assert reject.reason == 'no source to be read'


_PREPARE = """
import io, itertools, pathlib, sys
from rich import console
from steepest.data import prepare, tokenizers
whole = tokenizers.Tokenizer.encode_parts
if sys.argv[4:]:
  # Tokens go to the disk, so all further parts take the same memory.
  first = lambda *of: itertools.islice(whole(*of), int(sys.argv[4]))
  tokenizers.Tokenizer.encode_parts = first
options = prepare.Options(
  sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3]), validation_fraction=0.0,
  validation_tokens=0, max_rejected=1.0,
)
try:
  prepare.prepare(options, console.Console(file=io.StringIO()))
except ValueError as error:
  print(error)
# Not ru_maxrss, which begins with what the parent has.
print(pathlib.Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])
"""


@pytest.mark.slow
@pytest.mark.parametrize(
  'kind', ['escaped', 'nested', 'rows', 'digits', 'endless']
)
def test_no_document_takes_more_than_a_gigabyte(tmp_path, kind):
  """At the limit: 256 MB in a line, whose characters take four bytes each in
  Python, or that nests much beside its text; in each of eight rows; and with a
  token for each byte. And 6 GB of one line in a small file."""
  tokenizers.train_bpe(iter([_text(20_000)]), 400).save(tmp_path / 'bpe')
  words = 'it takes some words ' * ((1 << 28) // 20 - 4)
  path = tmp_path / 'a.jsonl'
  few = ['20']
  if kind == 'escaped':
    text = words[: len(words) // 21 * 20].replace('words ', 'words\n')
    path.write_text(json.dumps({'text': text + '🦙'}, ensure_ascii=False))
  elif kind == 'nested':
    beside = '[],' * (reading.MOST_PARSED // 3 - 100) + '[]'
    text = words[: -len(beside) - 100]
    path.write_text(f'{{"text": "{text}", "x": [{beside}]}}')
  elif kind == 'rows':
    path = tmp_path / 'a.parquet'
    large = {'dictionary_pagesize_limit': 1 << 30, 'store_schema': False}
    _table(path, pa.DictionaryArray.from_arrays([0] * 8, [words]), **large)
  elif kind == 'digits':
    few, path = [], tmp_path / 'a.txt'
    path.write_text('7 8 9 0 ' * (len(words) // 8))
  else:
    path = tmp_path / 'a.jsonl.zst'
    with pa.CompressedOutputStream(str(path), 'zstd') as file:
      for _ in range(384):
        file.write(b'x' * (1 << 24))
  command = [sys.executable, '-c', _PREPARE, str(path), f'hf:{tmp_path}/bpe']
  done = subprocess.run(
    [*command, str(tmp_path / 'out'), *few],
    capture_output=True,
    text=True,
    check=True,
  )
  assert int(done.stdout.split()[-1]) < 1 << 20, done.stdout
  print(done.stdout)

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

from steepest.data import tokenizers
from steepest.data.preparing import documents


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
  assert len(list(tokenizer.parts(text))) > 10
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
      for _, item in documents.parse(block)
    ]
    assert [len(item) for item in found] == [2, 4, 2]


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
import io, pathlib, sys
from rich import console
from steepest.data import prepare
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
@pytest.mark.parametrize('kind', ['text', 'line', 'wide', 'digits', 'endless'])
def test_no_document_takes_more_than_a_gigabyte(tmp_path, kind):
  """At the limit: 64 MB of text, a line of as much, one with characters that
  take four bytes each, one with a token for each byte; and 6 GB of one line in
  a small file."""
  tokenizers.train_bpe(iter([_text(20_000)]), 400).save(tmp_path / 'bpe')
  words = 'it takes some words ' * ((1 << 26) // 20 - 4)
  path = tmp_path / 'a.jsonl'
  if kind == 'text':
    path = tmp_path / 'a.txt'
    path.write_text(words)
  elif kind == 'endless':
    path = tmp_path / 'a.jsonl.zst'
    with pa.CompressedOutputStream(str(path), 'zstd') as file:
      for _ in range(384):
        file.write(b'x' * (1 << 24))
  else:
    if kind == 'digits':
      words = '7 8 9 0 ' * (len(words) // 8)
    text = words[:-40] + ('🦙' if kind != 'line' else '')
    path.write_text(json.dumps({'text': text}, ensure_ascii=False))
  command = [sys.executable, '-c', _PREPARE, str(path), f'hf:{tmp_path}/bpe']
  done = subprocess.run(
    [*command, str(tmp_path / 'out')],
    capture_output=True,
    text=True,
    check=True,
  )
  assert int(done.stdout.split()[-1]) < 1 << 20, done.stdout

"""Files of every kind, whole and damaged."""

import gzip
import json
import pathlib

import pyarrow as pa
from pyarrow import parquet
import pytest
import zstandard

from steepest.data.preparing import documents, inputs

_RECORDS = [
  {'text': 'one', 'meta': {'redpajama_set_name': 'RedPajamaC4'}},
  {'text': 'two\nlines', 'meta': {'source': 'github'}, 'source': 'other'},
  {'text': 'three', 'source': 'cc'},
  {'text': 'four \u2028 \U0001f999'},
]
_SOURCES = ['RedPajamaC4', 'github', 'cc', 'part']


def _lines():
  return '\n'.join(json.dumps(r) for r in _RECORDS).encode() + b'\n\n'


def _files(folder):
  (folder / 'part.jsonl').write_bytes(_lines())
  (folder / 'part.jsonl.gz').write_bytes(gzip.compress(_lines()))
  (folder / 'part.jsonl.zst').write_bytes(zstandard.compress(_lines()))
  names = ('text', 'meta', 'source')
  table = pa.table({n: [r.get(n) for r in _RECORDS] for n in names})
  parquet.write_table(table, folder / 'part.parquet')
  return ['part.jsonl', 'part.jsonl.gz', 'part.jsonl.zst', 'part.parquet']


def test_all_formats_give_the_same_documents(tmp_path):
  for name in _files(tmp_path):
    read = list(documents.read(tmp_path / name))
    assert [d.text for d in read] == [r['text'] for r in _RECORDS], name
    assert [d.source for d in read] == _SOURCES, name


def test_files_of_several_frames_are_read_to_the_end(tmp_path):
  for name, compress in (
    ('part.jsonl.gz', gzip.compress),
    ('part.jsonl.zst', zstandard.compress),
  ):
    (tmp_path / name).write_bytes(compress(_lines()) + compress(_lines()))
    assert len(list(documents.read(tmp_path / name))) == 8


def test_damaged_files_are_named(tmp_path):
  for name in _files(tmp_path)[1:]:
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=f'{name} is damaged') as error:
      list(documents.read(path))
    assert '\n' not in str(error.value).strip()


def test_any_other_file_is_one_document(tmp_path):
  (tmp_path / 'a.b.py').write_text('x = 1\n')
  (tmp_path / 'c.txt.gz').write_bytes(gzip.compress(b'text\n'))
  (tmp_path / 'd.txt').write_bytes(b'\xff\xfe')
  assert list(documents.read(tmp_path / 'a.b.py')) == [('x = 1\n', 'a.b')]
  assert list(documents.read(tmp_path / 'c.txt.gz')) == [('text\n', 'c')]
  (reject,) = documents.read(tmp_path / 'd.txt')
  assert reject.reason == 'no Unicode'


def test_bad_lines_are_told_and_quoted(tmp_path):
  path = tmp_path / 'part.jsonl'
  lines = [
    b'{"text": "good"}',
    b'{"text": ',
    b'["text"]',
    b'{"txt": "x"}',
    b'{"text": 3}',
    b'{"text": " "}',
    b'{"text": "\\ud800"}',
    b'\xff\xfe\x01',
    b'[' * 10000,
  ]
  path.write_bytes(b'\n'.join(lines))
  good, *bad = documents.read(path)
  assert good == ('good', 'part')
  assert [r.line for r in bad] == list(range(2, 10))
  assert [r.reason for r in bad] == [
    'no JSON',
    'no JSON object',
    'no `text`',
    'no `text`',
    'empty',
    'no Unicode',
    'no JSON',
    'no JSON',
  ]
  assert all(r.quoted.isascii() and len(r.quoted) < 900 for r in bad)


def test_globs_are_sorted_and_must_match(tmp_path):
  for name in ('b.txt', 'a.txt', 'sub/c.txt'):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text('x')
  found = inputs.find(f'{tmp_path}/*.txt,{tmp_path}/**/*.txt')
  assert [pathlib.Path(i.name).name for i in found] == [
    'a.txt',
    'b.txt',
    'c.txt',
  ]
  with pytest.raises(FileNotFoundError, match='nothing'):
    inputs.find(f'{tmp_path}/*.txt,{tmp_path}/nothing*')
  with pytest.raises(FileNotFoundError, match=r'write DIR/\*'):
    inputs.find(str(tmp_path))

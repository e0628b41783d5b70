"""Documents of every kind of file and dataset, whole and damaged."""

import gzip
import json
import pathlib
import subprocess
import sys

import pyarrow as pa
from pyarrow import parquet
import pytest
import zstandard

from steepest.data import prepare
from steepest.data.preparing import documents, parsing

_RECORDS = [
  {'text': 'one', 'meta': {'redpajama_set_name': 'RedPajamaC4'}},
  {'text': 'two\nlines', 'meta': {'source': 'github'}, 'source': 'other'},
  {'text': 'three', 'source': 'cc'},
  {'text': 'four \u2028 \U0001f999'},
]
_SOURCES = ['RedPajamaC4', 'github', 'cc', 'part']


def _lines():
  return '\n'.join(json.dumps(r) for r in _RECORDS).encode() + b'\n\n'


@pytest.fixture
def files(tmp_path) -> list[pathlib.Path]:
  """The same records in every format; two compressed ones in two frames."""
  for name, compress in (
    ('part.jsonl', bytes),
    ('part.jsonl.gz', gzip.compress),
    ('part.jsonl.zst', zstandard.compress),
  ):
    half = len(_lines().split(b'\n', 2)[0]) + 1
    content = compress(_lines()[:half]) + compress(_lines()[half:])
    (tmp_path / name).write_bytes(content)
  names = ('text', 'meta', 'source')
  table = pa.table({n: [r.get(n) for r in _RECORDS] for n in names})
  parquet.write_table(table, tmp_path / 'part.parquet')
  return sorted(tmp_path.iterdir())


def test_all_formats_give_the_same_documents(files):
  assert len(files) == 4
  for path in files:
    read = _read(str(path))
    assert [d.text for d in read] == [r['text'] for r in _RECORDS], path
    assert [d.source for d in read] == _SOURCES, path


def test_damaged_files_are_named(files):
  for path in files[1:]:
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=f'{path.name} is damaged') as error:
      _read(str(path))
    assert '\n' not in str(error.value).strip()


@pytest.mark.parametrize('size', [1, 7, 40, 64, 1000])
def test_pieces_are_the_whole_file_wherever_they_are_cut(tmp_path, size):
  """Each line is in the piece in which it begins."""
  lines = [*(f'{{"text": "{"x" * i}"}}' for i in range(1, 30)), '', '{"bad"']
  for end in ('\n', '\n\n', ''):
    path = tmp_path / 'part.jsonl'
    path.write_text('\n'.join(lines) + end)
    (one,) = documents.find(str(path))
    pieces = list(one.pieces(size))
    assert len(pieces) == -(-path.stat().st_size // size)
    blocks = [b for piece in pieces for b in documents.blocks(piece, size)]
    assert b''.join(b.content for b in blocks) == path.read_bytes()
    found = [item for b in blocks for _, item in parsing.parse(b)]
    assert [d.text for d in found[:-1]] == ['x' * i for i in range(1, 30)]
    # Lines of a piece are counted from its beginning.
    *_, (piece, bad) = [
      (piece, item)
      for piece in pieces
      for block in documents.blocks(piece, size)
      for _, item in parsing.parse(block)
    ]
    before = documents.lines_before(one.name, piece.begin)
    assert before + bad.line == 31


def test_any_other_file_is_one_document(tmp_path):
  (tmp_path / 'a.b.py').write_text('x = 1\n')
  (tmp_path / 'c.txt.gz').write_bytes(gzip.compress(b'text\n'))
  (tmp_path / 'd.txt').write_bytes(b'\xff\xfe')
  assert _read(str(tmp_path / 'a.b.py')) == [('x = 1\n', 'a.b')]
  assert _read(str(tmp_path / 'c.txt.gz')) == [('text\n', 'c')]
  (reject,) = _read(str(tmp_path / 'd.txt'))
  assert reject.reason == 'no Unicode'


def test_one_text_alone_is_cut_into_documents(tmp_path, console):
  """Or nothing of it could be kept for validation."""
  text = ''.join(f'Line {i}: {i * i} and ünïcödé.\n' for i in range(20_000))
  (tmp_path / 'book.txt').write_text(text)
  (tmp_path / 'book.txt.gz').write_bytes(gzip.compress(text.encode()))
  for name in ('book.txt', 'book.txt.gz'):
    read = _read(str(tmp_path / name))
    assert ''.join(d.text for d in read) == text
    assert len(read) >= 60 and {d.source for d in read} == {'book'}
  made = prepare.prepare(
    prepare.Options(f'{tmp_path}/*.txt', 'bpe-train:300', tmp_path / 'shards'),
    console,
  )
  held = made.validation['book']
  assert made.documents > 60 and not made.notes
  assert 0 < held.tokens <= 0.05 * made.tokens


@pytest.mark.parametrize('field', ['content', 'raw'])
def test_the_text_may_have_another_name(files, field):
  records = [{**r, field: r['text'].upper()} for r in _RECORDS]
  lines, *_, table = files
  lines.write_text('\n'.join(json.dumps(r) for r in records))
  columns = {n: [r.get(n) for r in records] for n in (field, 'meta', 'source')}
  parquet.write_table(pa.table(columns), table)
  for path in (lines, table):
    read = list(documents.read(documents.find(str(path), field)))
    assert [d.text for d in read] == [r['text'].upper() for r in _RECORDS]
    assert [d.source for d in read] == _SOURCES
  with pytest.raises(ValueError, match=f'--text_field=COLUMN of {field}, meta'):
    _read(str(table))


def test_a_table_whose_meta_names_no_source_is_read(tmp_path):
  table = pa.table({'text': ['one', 'two'], 'meta': [{'id': 1}, {'id': 2}]})
  parquet.write_table(table, tmp_path / 'some.parquet')
  read = _read(str(tmp_path / 'some.parquet'))
  assert read == [parsing.Document(t, 'some') for t in ('one', 'two')]


def test_a_sources_path_counts_by_its_first_folder(tmp_path):
  named = {
    'cc/2019-30/en_head_0000.json.gz/line14': 'cc',
    '/arxiv/0704.txt': 'arxiv',
    'https://example.org/x': 'part',
    'c4': 'c4',
  }
  path = tmp_path / 'part.jsonl'
  lines = [json.dumps({'text': 'x', 'source': source}) for source in named]
  path.write_text('\n'.join(lines))
  assert [d.source for d in _read(str(path))] == list(named.values())


def test_bad_lines_are_told_and_quoted(tmp_path):
  lines = {
    b'{"text": ': 'no JSON',
    b'["text"]': 'no JSON object',
    b'{"txt": "x"}': 'no `text`',
    b'{"text": 3}': 'no `text`',
    b'{"text": " "}': 'empty',
    b'{"text": "\\ud800"}': 'no Unicode',
    b'\xff\xfe\x01': 'no JSON',
    b'[' * 10000: 'no JSON',
  }
  path = tmp_path / 'part.jsonl'
  path.write_bytes(b'\n'.join([b'{"text": "good"}', *lines]))
  good, *bad = _read(str(path))
  assert good == ('good', 'part')
  assert [r.line for r in bad] == list(range(2, 10))
  assert [r.reason for r in bad] == list(lines.values())
  assert all(r.quoted.isascii() and len(r.quoted) < 900 for r in bad)


def test_globs_are_sorted_and_must_match(tmp_path):
  for name in ('b.txt', 'a.txt', 'sub/c.txt'):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text('x')
  found = documents.find(f'{tmp_path}/*.txt,{tmp_path}/**/*.txt')
  names = [pathlib.Path(i.name).name for i in found]
  assert names == ['a.txt', 'b.txt', 'c.txt']
  with pytest.raises(FileNotFoundError, match='nothing'):
    documents.find(f'{tmp_path}/*.txt,{tmp_path}/nothing*')
  with pytest.raises(FileNotFoundError, match=r'write DIR/\*'):
    documents.find(str(tmp_path))


def test_redpajama_sample_is_read_whole(conformance):
  """All seven sources, two forms of naming them, a book in one document."""
  sample = f'{conformance}/data/redpajama-sample/*/*.jsonl.gz'
  found = {}
  for one in documents.find(sample):
    found[pathlib.Path(one.name).parent.name] = list(documents.read([one]))
  assert {name: len(read) for name, read in found.items()} == {
    'arxiv': 10,
    'book': 2,
    'c4-rp': 1000,
    'cc': 10,
    'github': 100,
    'stackexchange': 1000,
    'wiki': 10,
  }
  read = [d for part in found.values() for d in part]
  assert all(isinstance(d, parsing.Document) for d in read)
  assert len({d.text for d in read}) == len(read) - 1
  # The book stays UTF-8.
  assert max(len(d.text) for d in read) == 1_395_542
  assert {d.source for d in found['c4-rp']} == {'c4'}
  # Of cc/2019-30/en_head_0000.json.gz/line14, and so on.
  assert {d.source for d in found['cc']} == {'cc'}
  assert {d.source for d in found['wiki']} == {'part-0'}


# ---------------------------------------------------------------- datasets


def _read(spec: str) -> list[parsing.Document | parsing.Reject]:
  return list(documents.read(documents.find(spec)))


def test_hub_rows_are_documents(tmp_path, console, shards_dir):
  """A dataset as it lies on the hub, in two files of a split."""
  pytest.importorskip('datasets')
  rows = [
    {
      'text': f'row {i} of some text ' * 20,
      'meta': {'redpajama_set_name': ('C4', 'Github')[i % 2]},
      'id': i,
    }
    for i in range(1300)
  ]
  mirror = tmp_path / 'mirror'
  (mirror / 'data').mkdir(parents=True)
  for i, part in enumerate((rows[:700], rows[700:])):
    name = f'train-0000{i}-of-00002.parquet'
    parquet.write_table(pa.Table.from_pylist(part), mirror / 'data' / name)
  assert _read(f'hf:{mirror}') == [
    (r['text'], r['meta']['redpajama_set_name']) for r in rows
  ]
  same = tmp_path / 'same.jsonl'
  same.write_text(''.join(json.dumps(r) + '\n' for r in rows))
  hub, lines = (
    prepare.prepare(
      prepare.Options(spec, f'hf:{shards_dir}', tmp_path / name), console
    )
    for name, spec in (('hub', f'hf:{mirror}'), ('lines', str(same)))
  )
  assert hub.shards == lines.shards
  assert hub.inputs == [{'name': f'hf:{mirror}', 'bytes': 0}]
  with pytest.raises(OSError, match='--input=hf:.*test') as error:
    _read(f'hf:{mirror}::test')
  assert '\n' not in str(error.value)


def test_samples_by_name_are_what_lies_on_the_hub(tmp_path, monkeypatch):
  """As directories of the names and layouts that they have there."""
  pytest.importorskip('datasets')
  monkeypatch.chdir(tmp_path)
  slim = [
    {'text': f'row {i}', 'meta': {'redpajama_set_name': f'RedPajama{i % 2}'}}
    for i in range(9)
  ]
  web = [{'text': f'page {i}', 'id': f'{i}', 'score': 3.5} for i in range(9)]
  # The name of a configuration and where its files are, as on its card.
  card = (
    '---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n'
    '    path: data/*/*\n- config_name: sample-10BT\n  data_files:\n'
    '  - split: train\n    path: sample/10BT/*\n---\n'
  )
  for directory, name, rows in (
    ('DKYoon/SlimPajama-6B/data', 'train-00000-of-00001', slim),
    ('DKYoon/SlimPajama-6B/data', 'test-00000-of-00001', slim[:1]),
    ('HuggingFaceFW/fineweb-edu/sample/10BT', '000_00000', web),
    ('HuggingFaceFW/fineweb-edu/data/CC-MAIN-2013-20', '000_00000', web[:1]),
  ):
    path = tmp_path / directory / f'{name}.parquet'
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(rows), path)
  (tmp_path / 'HuggingFaceFW/fineweb-edu/README.md').write_text(card)
  assert _read('slimpajama-6b') == [
    (r['text'], r['meta']['redpajama_set_name']) for r in slim
  ]
  assert _read('fineweb-edu') == [(r['text'], 'fineweb-edu') for r in web]
  with pytest.raises(FileNotFoundError, match='did you mean slimpajama-6b'):
    _read('slimpajama6b')


_TFDS = """
import sys
import tensorflow_datasets as tfds

class Pages(tfds.core.GeneratorBasedBuilder):
  VERSION = tfds.core.Version('1.0.0')

  def _info(self):
    features = {'text': tfds.features.Text(), 'source': tfds.features.Text()}
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(features),
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager):
    return {'train': self._generate_examples()}

  def _generate_examples(self):
    for i in range(600):
      yield i, {'text': f'page {i} ' * 30, 'source': f's{i % 2}'}

builder = Pages(data_dir=sys.argv[1], file_format='array_record')
builder.download_and_prepare()
print(builder.data_dir)
assert 'tensorflow' not in sys.modules
"""


def test_tfds_examples_are_documents(tmp_path):
  done = subprocess.run(
    [sys.executable, '-c', _TFDS, str(tmp_path)],
    capture_output=True,
    text=True,
    timeout=600,
  )
  assert done.returncode == 0, done.stderr
  directory = done.stdout.split()[-1]
  expected = [(f'page {i} ' * 30, f's{i % 2}') for i in range(600)]
  assert _read(f'tfds:{directory}') == expected
  assert len(_read(f'tfds:{directory}:train[:590]')) == 590
  with pytest.raises(OSError, match='--input=tfds:') as error:
    _read(f'tfds:{directory}:nothing')
  assert '\n' not in str(error.value)


def test_a_damaged_text_of_a_dataset_is_a_reject():
  row = {'text': b'\xff\xfe', 'source': 'x'}
  block = parsing.Block('hf:x', 'x', 5, [row, {'source': 'x'}])
  first, second = (item for _, item in parsing.parse(block))
  assert (first.line, first.reason) == (5, 'no Unicode')
  assert (second.line, second.reason) == (6, 'no `text`')

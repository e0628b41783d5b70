"""Benchmarks as the publishers lay them out, mirrored in a directory."""

import json
import pathlib
import sys
import types

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from steepest.data import benchmarks, hub
from steepest.eval import tasks


def _row(name: str, i: int) -> dict:
  """Returns a row with the publisher's columns."""
  if name.startswith('arc'):
    # A few of ARC's questions are labelled 1 to 4.
    labels = list('1234') if i % 7 == 0 else list('ABCD')
    return {
      'id': f'Q{i}',
      'question': f'Which of {i}?',
      'choices': {'text': [f'{c}{i}' for c in 'wxyz'], 'label': labels},
      'answerKey': labels[i % 4],
    }
  if name == 'hellaswag':
    return {
      'ind': i,
      'activity_label': 'Baking',
      'ctx_a': 'A man bakes.',
      'ctx_b': 'he',
      'ctx': 'A man bakes. he',
      'endings': [f'{c} {i}' for c in 'wxyz'],
      'source_id': f'wikihow~{i}',
      'split': 'val',
      'split_type': 'indomain',
      'label': str(i % 4),
    }
  return {
    'question': f'How many are {i}?',
    'subject': 'anatomy',
    'choices': [f'{c}{i}' for c in 'wxyz'],
    'answer': i % 4,
  }


@pytest.fixture(scope='module')
def mirror(tmp_path_factory) -> pathlib.Path:
  """All datasets with as many rows as the publishers' have."""
  root = tmp_path_factory.mktemp('mirror')
  for name, (dataset, file) in benchmarks.HUB.items():
    path = root / dataset / file
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [_row(name, i) for i in range(benchmarks.ROWS[name])]
    pq.write_table(pa.Table.from_pylist(rows), path)
  return root


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
  monkeypatch.setenv('STEEPEST_CACHE', str(tmp_path / 'cache'))


def _read(path: pathlib.Path) -> list[dict]:
  with path.open(encoding='utf-8') as file:
    return [json.loads(line) for line in file]


def test_rows_are_the_publishers(mirror):
  directory = benchmarks.locate(f'hub:{mirror}')
  for name, count in benchmarks.ROWS.items():
    rows = _read(directory / f'{name}.jsonl')
    assert rows == [_row(name, i) for i in range(count)]
  before = {p: p.stat().st_mtime_ns for p in directory.iterdir()}
  assert benchmarks.locate(f'hub:{mirror}') == directory
  assert before == {p: p.stat().st_mtime_ns for p in directory.iterdir()}


def test_tasks_read_them(mirror):
  directory = benchmarks.locate(f'hub:{mirror}')
  docs = _read(directory / 'arc_easy.jsonl')[:8]
  questions = [tasks.TASKS['arc_easy'].example(doc) for doc in docs]
  assert [q.gold for q in questions] == [i % 4 for i in range(8)]


def test_a_directory_is_taken_as_it_is(tmp_path):
  assert benchmarks.locate(str(tmp_path)) == tmp_path


def test_another_number_of_rows_is_refused(mirror, tmp_path):
  copy = tmp_path / 'copy'
  for dataset, file in benchmarks.HUB.values():
    (copy / dataset / file).parent.mkdir(parents=True, exist_ok=True)
    (copy / dataset / file).symlink_to(mirror / dataset / file)
  dataset, file = benchmarks.HUB['mmlu_dev']
  path = copy / dataset / file
  path.unlink()
  pq.write_table(pa.Table.from_pylist([_row('mmlu_dev', 0)]), path)
  with pytest.raises(ValueError, match='cais/mmlu gave 1 rows of mmlu_dev'):
    benchmarks.locate(f'hub:{copy}')
  # Nothing half-done is left to be taken for whole.
  assert not list((tmp_path / 'cache').glob('**/*.jsonl'))
  path.write_text('no parquet')
  with pytest.raises(ValueError, match='is no parquet file'):
    benchmarks.locate(f'hub:{copy}')
  path.unlink()
  with pytest.raises(FileNotFoundError, match='has no file all/dev-'):
    benchmarks.locate(f'hub:{copy}')
  with pytest.raises(FileNotFoundError, match='there is no such directory'):
    benchmarks.locate(f'hub:{tmp_path / "gone"}')
  (tmp_path / 'empty').mkdir()
  with pytest.raises(FileNotFoundError, match='there is no .*ai2_arc'):
    benchmarks.locate(f'hub:{tmp_path / "empty"}')


def test_downloads_ask_for_the_right_files(mirror, tmp_path, monkeypatch):
  asked = []

  def download(dataset, name, *, repo_type, cache_dir):
    asked.append((dataset, name))
    assert repo_type == 'dataset'
    assert cache_dir == tmp_path / 'cache' / 'hub'
    return str(mirror / dataset / name)

  fake = types.SimpleNamespace(hf_hub_download=download)
  monkeypatch.setitem(sys.modules, 'huggingface_hub', fake)
  directory = benchmarks.locate('hub')
  assert asked == list(benchmarks.HUB.values())
  assert benchmarks.locate('hub') == directory
  assert len(asked) == len(benchmarks.HUB)


def test_a_failed_download_is_one_line(tmp_path, monkeypatch):
  def download(*args, **kwargs):
    raise RuntimeError('no route\nto the host')

  fake = types.SimpleNamespace(hf_hub_download=download)
  monkeypatch.setitem(sys.modules, 'huggingface_hub', fake)
  with pytest.raises(OSError, match='could not get .* of .*: no route$'):
    hub.fetch('allenai/ai2_arc', 'a.parquet', tmp_path)
  monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
  with pytest.raises(OSError, match='needs the package huggingface_hub'):
    hub.fetch('allenai/ai2_arc', 'a.parquet', tmp_path)

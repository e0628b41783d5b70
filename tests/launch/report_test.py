"""The command as a user runs it."""

import importlib.util
import json
import pathlib
import shutil

import pytest


@pytest.fixture(scope='module')
def reported(fork_commands, tmp_path_factory):
  """What the command said of a study, of parts of it, and of two models.

  In this order, and the directory with those that it wrote.
  """
  path = pathlib.Path(__file__).parent.parent / 'report' / 'study_runs.py'
  spec = importlib.util.spec_from_file_location('study_runs', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  root = tmp_path_factory.mktemp('reports')
  module.write_study(root / 'study', models=('gpt2',))
  finals = [root / f'study/finals/gpt2-{o}' for o in ('adamw', 'lion')]
  for run in (root / 'a', root / 'b'):
    shutil.copytree(finals[run.name == 'b'] / 'seed=0', run)
    path = run / 'eval' / 'results.json'
    results = json.loads(path.read_text('utf-8'))
    results['info'] |= {'model': 'ckpt:x', 'shots': {}, 'truncated': 0}
    results['info'] |= {'tokenizer': {'sha256': 'a'}, 'max_length': 64}
    # A group's answers are those to its tasks, which this run has not.
    del results['metrics']['mmlu']
    path.write_text(json.dumps(results), 'utf-8')
    (path.parent / 'requests.jsonl').write_text('', 'utf-8')
  commands = [
    [f'--runs={root}/study', f'--out={root}/whole'],
    [f'--runs={finals[0]},{finals[1]}', f'--out={root}/parts', '--claims'],
    [f'--compare={root}/a,{root}/b', f'--out={root}/models'],
  ]
  results = fork_commands([('report', words) for words in commands])
  for result in results:
    assert result.code == 0, result.err
  return *(result.out for result in results), root


def test_writes_the_page_and_names_it_last(reported):
  said, *_, root = reported
  lines = said.splitlines()
  assert lines[-1] == f'report: {root}/whole/report.html'
  assert 'GPT-2 Sophia' in said
  assert max(map(len, lines[:-1])) <= 120
  names = {p.name for p in (root / 'whole').iterdir()}
  assert names == {
    'report.html',
    'report.json',
    'report.md',
    'tables',
    'verdicts.csv',
  }
  page = (root / 'whole' / 'report.html').read_text()
  assert 'python -m launch.report --runs=' in page


def test_several_directories(reported):
  _, said, _, root = reported
  page = (root / 'parts' / 'claims.md').read_text('utf-8')
  assert '| LLaMA does best with Lion. | **not tested** |' in page
  assert 'GPT-2 AdamW' in said and 'GPT-2 Lion' in said
  assert 'Sophia' not in said


def test_two_models_on_the_same_questions(reported):
  *_, said, root = reported
  page = root / 'models' / 'compare.html'
  assert said.splitlines()[-1] == f'report: {page}'
  assert 'ARC-Easy acc' in said and page.exists()

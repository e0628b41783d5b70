"""The command as a user runs it."""

import importlib.util
import json
import pathlib

import pytest


@pytest.fixture(scope='module')
def study(tmp_path_factory):
  path = pathlib.Path(__file__).parent.parent / 'report' / 'study_runs.py'
  spec = importlib.util.spec_from_file_location('study_runs', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  root = tmp_path_factory.mktemp('study')
  module.write_study(root, models=('gpt2',))
  return root


def test_writes_the_page_and_names_it_last(run_command, study, tmp_path):
  out = tmp_path / 'out'
  done = run_command('report', f'--runs={study}', f'--out={out}')
  assert done.returncode == 0, done.stderr
  lines = done.stdout.splitlines()
  assert lines[-1] == f'report: {out / "report.html"}'
  assert 'GPT-2 Sophia' in done.stdout
  assert max(map(len, lines[:-1])) <= 120
  names = {p.name for p in out.iterdir()}
  assert names == {
    'report.html',
    'report.json',
    'report.md',
    'tables',
    'verdicts.csv',
  }
  page = (out / 'report.html').read_text()
  assert 'python -m launch.report --runs=' in page


def test_several_directories(run_command, study, tmp_path):
  finals = study / 'finals'
  runs = f'--runs={finals / "gpt2-adamw"},{finals / "gpt2-lion"}'
  done = run_command('report', runs, f'--out={tmp_path}', '--claims')
  assert done.returncode == 0, done.stderr
  page = (tmp_path / 'claims.md').read_text('utf-8')
  assert '| LLaMA does best with Lion. | **not tested** |' in page
  assert 'GPT-2 AdamW' in done.stdout and 'GPT-2 Lion' in done.stdout
  assert 'Sophia' not in done.stdout


def test_two_models_on_the_same_questions(run_command, study, tmp_path):
  finals = [study / f'finals/gpt2-{o}/seed=0' for o in ('adamw', 'lion')]
  for run in finals:
    path = run / 'eval' / 'results.json'
    results = json.loads(path.read_text('utf-8'))
    results['info'] |= {'model': 'ckpt:x', 'shots': {}, 'truncated': 0}
    results['info'] |= {'tokenizer': {'sha256': 'a'}, 'max_length': 64}
    # A group's answers are those to its tasks, which this run has not.
    del results['metrics']['mmlu']
    path.write_text(json.dumps(results), 'utf-8')
    (path.parent / 'requests.jsonl').write_text('', 'utf-8')
  compare = f'--compare={finals[0]},{finals[1]}'
  done = run_command('report', compare, f'--out={tmp_path / "out"}')
  assert done.returncode == 0, done.stderr
  page = tmp_path / 'out' / 'compare.html'
  assert done.stdout.splitlines()[-1] == f'report: {page}'
  assert 'ARC-Easy acc' in done.stdout and page.exists()

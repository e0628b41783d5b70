"""`python -m launch.evaluate` as a user meets it."""

import json
import pathlib

import pytest


@pytest.fixture(scope='module')
def model(write_model, tmp_path_factory) -> pathlib.Path:
  """A GPT-2 that takes 128 tokens."""
  directory = tmp_path_factory.mktemp('model')
  text = 'red green blue cats dogs birds sing run sleep under over near'
  return write_model(directory, 'gpt2', text, 300, context=128)


def _read(path: pathlib.Path) -> list[dict]:
  return [json.loads(line) for line in path.read_text('utf-8').splitlines()]


def test_scores_and_scores_again(
  run_command, model, scored_documents, tmp_path
):
  out = tmp_path / 'new' / 'out'
  data = f'--data={scored_documents}'
  args = (f'--model=hf:{model}', data, f'--out={out}')
  done = run_command('evaluate', *args, '--tasks=arc_easy,mmlu', '--limit=10')
  assert done.returncode == 0, done.stderr
  results = json.loads((out / 'results.json').read_text())
  info, metrics = results['info'], results['metrics']
  assert metrics['arc_easy']['n'] == metrics['mmlu']['n'] == 10
  # 10 over three subjects, in turn.
  assert [metrics[f'mmlu_{s}']['n'] for s in ('anatomy', 'virology')] == [4, 3]
  assert 'in turn' in info['limit_rule']
  assert info['chance']['arc_easy'] == info['chance']['mmlu'] == 0.25
  assert len(info['data']['mmlu.jsonl']['sha256']) == 64
  assert info['data']['mmlu.jsonl']['origin'] == 'given'
  rows = _read(out / 'requests.jsonl')
  assert len(rows) == 80
  assert all(row['loglikelihood'] < 0 for row in rows)
  assert len(_read(out / 'predictions.jsonl')) == 30
  table = [line for line in done.stdout.splitlines() if '±' in line]
  assert any('arc_easy' in line and 'acc_norm' in line for line in table)
  assert not any('anatomy' in line for line in table)

  pairs = tmp_path / 'pairs.jsonl'
  pairs.write_text(''.join(json.dumps(row) + '\n' for row in rows[:9]))
  done = run_command('evaluate', *args, f'--requests={pairs}')
  assert done.returncode == 0, done.stderr
  again = _read(out / 'requests.jsonl')
  assert len(again) == 9
  for row, before in zip(again, rows):
    score = before['loglikelihood']
    assert row['loglikelihood'] == pytest.approx(score, abs=1e-4)
    assert row['context_ids'] == before['context_ids']
  assert json.loads((out / 'results.json').read_text())['metrics'] == {}
  assert sorted(p.name for p in out.iterdir()) == [
    'predictions.jsonl',
    'requests.jsonl',
    'results.json',
  ]

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
  fork_commands, model, scored_documents, tmp_path
):
  out = tmp_path / 'new' / 'out'
  args = [f'--model=hf:{model}', f'--data={scored_documents}']
  words = [*args, f'--out={out}', '--tasks=arc_easy,mmlu', '--limit=10']
  (done,) = fork_commands([('evaluate', words)])
  assert done.code == 0, done.err
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
  table = [line for line in done.out.splitlines() if '±' in line]
  assert any('arc_easy' in line and 'acc_norm' in line for line in table)
  assert not any('anatomy' in line for line in table)

  pairs = tmp_path / 'pairs.jsonl'
  pairs.write_text(''.join(json.dumps(row) + '\n' for row in rows[:9]))
  args.append(f'--requests={pairs}')
  refused, done = fork_commands(
    [('evaluate', [*args, f'--out={o}']) for o in (out, tmp_path / 'again')]
  )
  assert refused.code == 1
  assert f'{out} holds another evaluation (its tasks' in refused.err
  assert _read(out / 'requests.jsonl') == rows
  assert done.code == 0, done.err
  out = tmp_path / 'again'
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


def test_a_run_prints_its_scores(fork_commands, scored_documents, tmp_path):
  """And a finished one, given other tasks, says what it does with them."""
  text = tmp_path / 'text.txt'
  text.write_text(
    ''.join(f'red {i} green {i % 7} birds sing\n' for i in range(4000))
  )
  prepare = [f'--input={text}', '--tokenizer=bpe-train:300']
  train = [
    '--config=experiments/tiny.py:gpt2,adamw',
    f'--config.data.source=shards:{tmp_path}/shards',
    f'--config.eval_tasks_data={scored_documents}',
    '--config.model.context=128',
    '--config.model.num_layers=1',
    '--config.steps=2',
    f'--workdir={tmp_path}/run',
  ]
  _, first, again, other = fork_commands(
    [
      ('prepare', [*prepare, f'--out={tmp_path}/shards']),
      ('train', [*train, '--config.eval_tasks=arc_easy']),
      ('train', [*train, '--config.eval_tasks=arc_easy']),
      ('train', [*train, '--config.eval_tasks=arc_easy,mmlu_virology']),
    ]
  )
  assert first.code == other.code == 0, first.err + other.err
  for done in (first, again, other):
    assert any('arc_easy' in x and '±' in x for x in done.out.splitlines())
  assert 'note' not in first.err + again.err
  assert 'no scores of mmlu_virology: it saved no checkpoint' in other.err

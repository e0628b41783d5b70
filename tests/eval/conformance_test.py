"""Scores against recorded lm-evaluation-harness results.

The kit holds documents, three small models and what the harness gave for them.
"""

from collections.abc import Iterator
import dataclasses
import hashlib
import json
import pathlib
import subprocess
import sys
import tarfile

import pytest

from steepest.data import reading, tokenizers
from steepest.eval import (
  evaluation,
  metrics,
  questions as questions_lib,
  requests,
  tasks,
)
from steepest.eval.likelihoods import Score

_MODELS = ('gpt2_tiny', 'llama_tiny', 'llama_stories260k')
_ALL = 'arc_*,hellaswag*,piqa,winogrande,boolq,openbookqa*,sciq,lambada_openai'
# Kit tasks of our examples on documents of the kit's own.
_OWN = {
  'synth_mc_extra': ('synth_mc', 'arc_easy_extra'),
  'hellaswag_wikihow_extra': ('hellaswag_wikihow', 'hellaswag_extra'),
}


# SHA-256 of what lm-evaluation-harness 0.4.13 itself made of the first 12
# documents with 3 shots from the others: JSON of its (context, continuation)s.
_SHOTS = {
  'arc_easy': '850ade3aeb560a83',
  'hellaswag': '6c884bc1ae31a3d0',
  'piqa': 'fd5f5799830a3f45',
  'winogrande': '61857fac0ae08193',
  'boolq': '0381673b7a18aca9',
  'openbookqa': 'f15cbf454fa2a347',
  'sciq': 'df7e7b14ce0b5fdb',
  'lambada_openai': '6a4ea1feb0a903dc',
}


@pytest.fixture(scope='session')
def kit(conformance, tmp_path_factory) -> pathlib.Path:
  archive = conformance / 'evalkit.tar.xz'
  if not archive.exists():
    pytest.skip(f'{archive} does not exist')
  directory = tmp_path_factory.mktemp('kit')
  with tarfile.open(archive) as tar:
    tar.extractall(directory, filter='data')
  [script] = directory.rglob('compare.py')
  return script.parent


def _expected(kit: pathlib.Path, model: str) -> Iterator[dict]:
  path = kit / 'expected' / f'{model}.jsonl'
  return reading.json_lines(path)


def _expected_metrics(kit: pathlib.Path, model: str) -> dict:
  path = kit / 'expected' / f'{model}.metrics.json'
  return json.loads(path.read_text('utf-8'))['metrics']


def _selection() -> tasks.Selection:
  """Returns every task, those of the kit among them."""
  selection = tasks.select('*')
  own = tuple(
    dataclasses.replace(tasks.TASKS[like], name=name, file=file, family=name)
    for name, (file, like) in _OWN.items()
  )
  return tasks.Selection((*selection.tasks, *own), selection.groups)


@pytest.mark.parametrize('model', _MODELS)
def test_strings_and_ids(kit, model):
  tokenizer = tokenizers.load(f'hf:{kit / "models" / model}')
  suite = evaluation.prepare(tokenizer, _selection(), kit / 'docs')
  found = {(r.task, r.doc_id, r.choice): r for r in suite.requests}
  compared = 0
  for line in _expected(kit, model):
    for i, choice in enumerate(line['choices']):
      context = line['contexts'][choice['context']]
      context_ids = line['contexts_ids'][choice['context']]
      if 'context_ids' in choice:
        context_ids = choice['context_ids']
      if line['task'] == 'edge':
        pair = (context, choice['continuation'])
        [ids] = requests.tokenize(tokenizer, [pair])
      else:
        request = found[line['task'], line['doc_id'], i]
        pair = (request.context, request.continuation)
        ids = (request.context_ids, request.continuation_ids)
      assert pair == (context, choice['continuation'])
      assert ids == (tuple(context_ids), tuple(choice['continuation_ids']))
      compared += 1
  assert compared > 3000


@pytest.mark.parametrize('name', _SHOTS)
def test_shots(kit, tmp_path, name):
  docs = list(reading.json_lines(kit / 'docs' / f'{name}.jsonl'))
  files = {name: docs[:12], f'{name}_train': docs[12:]}
  for stem, part in files.items():
    lines = [json.dumps(doc) + '\n' for doc in part]
    (tmp_path / f'{stem}.jsonl').write_text(''.join(lines))
  selected = tasks.select(name, shots=3).tasks
  questions = questions_lib.read_questions(selected, tmp_path)
  pairs = [pair for question in questions for pair in question.pairs()]
  digest = hashlib.sha256(json.dumps(pairs).encode()).hexdigest()
  assert digest.startswith(_SHOTS[name])


@pytest.mark.parametrize('model', _MODELS)
def test_metrics_of_recorded_scores(kit, model):
  questions = {
    (q.task.name, q.doc_id): q
    for q in questions_lib.read_questions(_selection().tasks, kit / 'docs')
  }
  answered: dict[str, tuple[list, list]] = {}
  for line in _expected(kit, model):
    key = (line['task'], line['doc_id'])
    if key not in questions:
      assert line['task'] == 'edge'
      continue
    scores = [
      Score(c['loglikelihood'], c['is_greedy']) for c in line['choices']
    ]
    members, answers = answered.setdefault(line['task'], ([], []))
    members.append(questions[key])
    answers.append(scores)
  mine = {
    name: metrics.summarize(*pair, bootstraps=1000)
    for name, pair in answered.items()
  }
  for group, names in tasks.GROUPS.items():
    if set(names) <= set(mine):
      mine[group] = metrics.pool([mine[name] for name in names])
  expected = _expected_metrics(kit, model)
  assert mine.keys() == expected.keys()
  for name, values in expected.items():
    assert mine[name] == pytest.approx(values, rel=1e-9), name


def _run(run_command, kit, model, out, *args: str) -> None:
  done = run_command(
    'evaluate',
    f'--model=hf:{kit / "models" / model}',
    f'--data={kit / "docs"}',
    f'--out={out}',
    *args,
    XLA_FLAGS='',
  )
  assert done.returncode == 0, done.stderr


def _compare(kit, model, out, checked: str) -> None:
  results = json.loads((out / 'results.json').read_text('utf-8'))
  (out / 'metrics.json').write_text(json.dumps(results['metrics']))
  expected = kit / 'expected'
  done = subprocess.run(
    [
      sys.executable,
      str(kit / 'compare.py'),
      str(out / 'requests.jsonl'),
      f'--expected={expected / model}.jsonl',
      f'--metrics={out / "metrics.json"}',
      f'--ref-metrics={expected / model}.metrics.json',
      f'--preds={out / "predictions.jsonl"}',
      f'--tasks={checked}',
    ],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  assert 'metrics: 0 compared' not in done.stdout
  assert 'preds: 0 compared' not in done.stdout


@pytest.mark.parametrize(
  'model, names',
  [
    ('gpt2_tiny', 'arc_easy,arc_challenge,hellaswag'),
    ('llama_tiny', 'arc_easy,arc_challenge,hellaswag'),
    ('llama_stories260k', 'arc_easy,mmlu'),
    *(
      pytest.param(model, names, marks=pytest.mark.slow)
      for model in _MODELS
      for names in (_ALL, 'mmlu*')
    ),
  ],
)
def test_scores(run_command, kit, tmp_path, model, names):
  # The random models' metrics are of the first 30 documents, MMLU's apart.
  few = model != 'llama_stories260k' and 'mmlu' not in names
  args = (f'--tasks={names}', f'--limit={30 if few else 0}')
  _run(run_command, kit, model, tmp_path, *args)
  selection = tasks.select(names)
  scored = {task.name for task in selection.tasks} | set(selection.groups)
  checked = scored & _expected_metrics(kit, model).keys()
  assert len(checked) >= len(names.split(','))
  _compare(kit, model, tmp_path, ','.join(sorted(checked)))


@pytest.mark.slow
@pytest.mark.parametrize('model', _MODELS)
def test_given_pairs(run_command, kit, tmp_path, model):
  checked = ('edge', *_OWN)
  given = tmp_path / 'pairs.jsonl'
  with given.open('w', encoding='utf-8') as file:
    for line in _expected(kit, model):
      if line['task'] not in checked:
        continue
      for i, choice in enumerate(line['choices']):
        pair = {
          'task': line['task'],
          'doc_id': line['doc_id'],
          'choice': i,
          'context': line['contexts'][choice['context']],
          'continuation': choice['continuation'],
        }
        file.write(json.dumps(pair) + '\n')
    # Each alone, the harness gives −0.48 to the first; next to the second,
    # whose input ends with the same tokens, −32.5.
    pairs = [
      ('Once upon a time there was a little', ' girl'),
      ('Once upon a time there was', ' a little girl'),
    ]
    for doc_id, pair in enumerate(pairs):
      fields = ('task', 'doc_id', 'choice', 'context', 'continuation')
      row = dict(zip(fields, ('bug', doc_id, 0, *pair)))
      file.write(json.dumps(row) + '\n')
  out = tmp_path / 'out'
  _run(run_command, kit, model, out, f'--requests={given}')
  if model == 'llama_stories260k':
    rows = reading.json_lines(out / 'requests.jsonl')
    [first, _] = [row for row in rows if row['task'] == 'bug']
    assert first['loglikelihood'] == pytest.approx(-0.48, abs=0.01)
  done = subprocess.run(
    [
      sys.executable,
      str(kit / 'compare.py'),
      str(out / 'requests.jsonl'),
      f'--expected={kit / "expected" / model}.jsonl',
      f'--tasks={",".join(checked)}',
    ],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stdout + done.stderr

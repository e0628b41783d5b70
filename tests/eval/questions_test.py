"""Documents to questions: limits, few-shot examples, broken files."""

import gzip
import json
import pathlib

import pytest

from steepest.eval import questions as questions_lib, tasks


def _write(path: pathlib.Path, docs: list[dict]) -> None:
  opened = gzip.open if path.suffix == '.gz' else open
  with opened(path, 'wt', encoding='utf-8') as file:
    file.writelines(json.dumps(doc) + '\n' for doc in docs)


def _mmlu(subject: str, number: int) -> dict:
  return {
    'question': f'{subject} {number}',
    'subject': subject,
    'choices': list('wxyz'),
    'answer': number % 4,
  }


def _sizes(questions) -> dict[str, int]:
  names = [question.task.name for question in questions]
  return {name: names.count(name) for name in names}


def test_limit_takes_subjects_in_turn(tmp_path):
  sizes = {'anatomy': 1, 'astronomy': 9, 'virology': 9}
  docs = [_mmlu(s, i) for s, n in sizes.items() for i in range(n)]
  _write(tmp_path / 'mmlu.jsonl', docs)
  selected = tasks.select('mmlu').tasks
  read = lambda limit: questions_lib.read_questions(selected, tmp_path, limit)
  assert _sizes(read(0)) == {f'mmlu_{s}': n for s, n in sizes.items()}
  assert _sizes(read(6)) == {
    'mmlu_anatomy': 1,
    'mmlu_astronomy': 3,
    'mmlu_virology': 2,
  }
  assert [q.doc_id for q in read(6)] == [0, 0, 1, 2, 0, 1]
  assert len(read(100)) == 19


def test_limit_takes_the_first_documents(tmp_path):
  docs = [{'text': f'a b{i}'} for i in range(5)]
  _write(tmp_path / 'lambada_openai.jsonl.gz', docs)
  selected = tasks.select('lambada_openai').tasks
  questions = questions_lib.read_questions(selected, tmp_path, 2)
  assert [q.example.continuations for q in questions] == [(' b0',), (' b1',)]


def test_single_tasks_have_limits_of_their_own(tmp_path):
  docs = [{'text': f'a b{i}'} for i in range(5)]
  _write(tmp_path / 'lambada_openai.jsonl', docs)
  _write(tmp_path / 'mmlu.jsonl', [_mmlu('anatomy', i) for i in range(9)])
  selection = tasks.select('lambada_openai,mmlu:4')
  questions = questions_lib.read_questions(
    selection.tasks, tmp_path, 2, selection.limits
  )
  assert _sizes(questions) == {'lambada_openai': 2, 'mmlu_anatomy': 4}
  with pytest.raises(ValueError, match='at least 1'):
    tasks.select('mmlu:0')


def test_a_question_is_no_example_of_itself(tmp_path):
  docs = [
    {'goal': f'g{i}', 'sol1': 'x', 'sol2': 'y', 'label': 0} for i in range(5)
  ]
  for stem in ('piqa', 'piqa_train'):
    _write(tmp_path / f'{stem}.jsonl', docs)
  questions = questions_lib.read_questions(
    tasks.select('piqa', 4).tasks, tmp_path
  )
  for i, question in enumerate(questions):
    context = question.example.contexts[0]
    assert context.count('Answer: x\n\n') == 4
    assert context.count(f'g{i}\n') == 1
  with pytest.raises(ValueError, match='piqa_train.jsonl has 5 .* 5 shots'):
    questions_lib.read_questions(tasks.select('piqa', 5).tasks, tmp_path)


def test_shots_come_after_the_description(tmp_path):
  _write(tmp_path / 'mmlu.jsonl', [_mmlu('anatomy', 0)])
  _write(tmp_path / 'mmlu_dev.jsonl', [_mmlu('anatomy', i) for i in range(5)])
  selected = tasks.select('mmlu_anatomy_5shot').tasks
  [question] = questions_lib.read_questions(selected, tmp_path)
  context = question.example.contexts[0]
  assert context.startswith(
    'The following are multiple choice questions (with answers) about '
    'anatomy.\n\nanatomy 0\nA. w\nB. x\nC. y\nD. z\nAnswer: A\n\nanatomy 1\n'
  )
  assert context.endswith(
    'Answer: A\n\nanatomy 0\nA. w\nB. x\nC. y\nD. z\nAnswer:'
  )
  assert context.count('Answer:') == 6


def test_broken_files_are_named(tmp_path):
  selected = tasks.select('lambada_openai').tasks
  read = lambda: questions_lib.read_questions(selected, tmp_path)
  with pytest.raises(FileNotFoundError, match='no lambada_openai.jsonl'):
    read()
  path = tmp_path / 'lambada_openai.jsonl'
  path.write_text('{"text": "a b"}\n\n{"text": ')
  with pytest.raises(ValueError, match='lambada_openai.jsonl, line 3'):
    read()
  path.write_text('{"txt": "a b"}\n')
  with pytest.raises(ValueError, match="document 0 of lambada.*'text'"):
    read()

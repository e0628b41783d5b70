"""Strings to ids, limits, truncation."""

import copy
import gzip
import json
import pathlib

from hypothesis import given
from hypothesis import strategies as st
import pytest

from steepest.data import tokenizers
from steepest.eval import requests
from steepest.eval import tasks

_TEXTS = [
  'The capital of France is Paris. The capital of Italy is Rome.',
  'Hello world, unbelievable worlds; once upon a time there was a girl.',
] * 20


@pytest.fixture(scope='module')
def tokenizer() -> tokenizers.Tokenizer:
  return tokenizers.train_bpe(iter(_TEXTS), 300)


def _pair(tokenizer, context, continuation):
  [(context_ids, continuation_ids)] = requests.tokenize(
    tokenizer, [(context, continuation)]
  )
  return context_ids, continuation_ids


@pytest.mark.parametrize('blank', ['', ' ', '  ', '\n', '\n\n\t', '\u00a0'])
def test_whitespace_moves_to_the_continuation(tokenizer, blank):
  moved = _pair(tokenizer, f'The capital{blank}', 'Paris')
  assert moved == _pair(tokenizer, 'The capital', f'{blank}Paris')
  assert moved[0] == tuple(tokenizer.encode('The capital'))


def test_a_token_across_the_border_is_cut_by_position(tokenizer):
  context, continuation = 'The cap', 'ital of'
  whole = tokenizer.encode(context + continuation)
  alone = tokenizer.encode(context)
  assert whole[: len(alone)] != alone
  ids = _pair(tokenizer, context, continuation)
  assert ids == (tuple(alone), tuple(whole[len(alone) :]))


def test_empty_context_is_a_prefix_token(tokenizer):
  expected = ((tokenizer.eos_id,), tuple(tokenizer.encode(' Paris')))
  without_bos = copy.copy(tokenizer)
  without_bos.bos_id = without_bos.bos_token = None
  assert _pair(without_bos, '', ' Paris') == expected
  without_bos.eos_id = without_bos.eos_token = None
  with pytest.raises(ValueError, match='neither'):
    _pair(without_bos, '', ' Paris')


def test_prefix_in_the_continuation_is_not_doubled(tokenizer):
  ids = _pair(tokenizer, '', '<|endoftext|> Paris')
  assert ids == _pair(tokenizer, '', ' Paris')


def test_empty_sides_are_errors(tokenizer):
  with pytest.raises(ValueError, match='context has no tokens'):
    _pair(tokenizer, ' \n', 'Paris')
  with pytest.raises(ValueError, match='continuation has no tokens'):
    _pair(tokenizer, 'Paris', '')
  with pytest.raises(ValueError, match='continuation has no tokens'):
    _pair(tokenizer, '', '<|endoftext|>')


_ids = st.lists(st.integers(0, 99), min_size=1, max_size=30).map(tuple)


@given(_ids, _ids, st.integers(1, 40))
def test_truncation_keeps_the_last_tokens(context, continuation, max_length):
  request = requests.Request('t', 0, 0, '', '', context, continuation)
  if len(continuation) > max_length:
    with pytest.raises(ValueError, match='longer context'):
      requests.truncate(request, max_length)
    return
  inputs, targets = requests.truncate(request, max_length)
  whole = context + continuation
  assert targets == continuation
  assert len(inputs) == min(max_length, len(whole) - 1)
  # Input i predicts token i + 1, so the two together end the whole.
  assert (*inputs, whole[-1]) == whole[-(len(inputs) + 1) :]


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
  read = lambda limit: requests.read_questions(selected, tmp_path, limit)
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
  questions = requests.read_questions(selected, tmp_path, 2)
  assert [q.example.continuations for q in questions] == [(' b0',), (' b1',)]


def test_single_tasks_have_limits_of_their_own(tmp_path):
  docs = [{'text': f'a b{i}'} for i in range(5)]
  _write(tmp_path / 'lambada_openai.jsonl', docs)
  _write(tmp_path / 'mmlu.jsonl', [_mmlu('anatomy', i) for i in range(9)])
  selection = tasks.select('lambada_openai,mmlu:4')
  questions = requests.read_questions(
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
  questions = requests.read_questions(tasks.select('piqa', 4).tasks, tmp_path)
  for i, question in enumerate(questions):
    context = question.example.contexts[0]
    assert context.count('Answer: x\n\n') == 4
    assert context.count(f'g{i}\n') == 1
  with pytest.raises(ValueError, match='piqa_train.jsonl has 5 .* 5 shots'):
    requests.read_questions(tasks.select('piqa', 5).tasks, tmp_path)


def test_shots_come_after_the_description(tmp_path):
  _write(tmp_path / 'mmlu.jsonl', [_mmlu('anatomy', 0)])
  _write(tmp_path / 'mmlu_dev.jsonl', [_mmlu('anatomy', i) for i in range(5)])
  selected = tasks.select('mmlu_anatomy_5shot').tasks
  [question] = requests.read_questions(selected, tmp_path)
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
  read = lambda: requests.read_questions(selected, tmp_path)
  with pytest.raises(FileNotFoundError, match='no lambada_openai.jsonl'):
    read()
  path = tmp_path / 'lambada_openai.jsonl'
  path.write_text('{"text": "a b"}\n\n{"text": ')
  with pytest.raises(ValueError, match='lambada_openai.jsonl, line 3'):
    read()
  path.write_text('{"txt": "a b"}\n')
  with pytest.raises(ValueError, match="document 0 of lambada.*'text'"):
    read()


def test_given_pairs_need_their_fields(tmp_path, tokenizer):
  path = tmp_path / 'pairs.jsonl'
  pair = {'task': 'x', 'doc_id': 7, 'choice': 1, 'context': 'The '}
  _write(path, [{**pair, 'continuation': 'capital'}])
  [request] = requests.read_requests(path, tokenizer)
  assert (request.doc_id, request.context) == (7, 'The ')
  assert request.continuation_ids == tuple(tokenizer.encode(' capital'))
  _write(path, [pair])
  with pytest.raises(ValueError, match="request 1: no field 'continuation'"):
    requests.read_requests(path, tokenizer)

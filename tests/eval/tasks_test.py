"""Prompts, and what --tasks selects."""

import json
import pathlib
import textwrap

import pytest

from steepest.eval import questions, tasks


def _example(name: str, doc: dict) -> tasks.Example:
  return tasks.TASKS[name].example(doc)


def test_mmlu_has_the_published_subjects():
  counts = {part: len(s) for part, s in tasks.MMLU_SUBJECTS.items()}
  assert counts == {
    'stem': 19,
    'other': 13,
    'social_sciences': 12,
    'humanities': 13,
  }
  assert len(set(sum(tasks.MMLU_SUBJECTS.values(), ()))) == 57


@pytest.mark.parametrize(
  'patterns, count, groups',
  [
    ('arc_easy', 1, 0),
    ('hellaswag,arc_easy', 2, 0),
    ('arc_?????????', 1, 0),
    ('mmlu', 57, 5),
    ('mmlu_stem', 19, 1),
    ('mmlu_anatomy', 1, 0),
    ('mmlu_continuation', 57, 5),
    ('mmlu*', 171, 15),
    ('mmlu,mmlu_anatomy,mmlu', 57, 5),
  ],
)
def test_select(patterns, count, groups):
  selection = tasks.select(patterns)
  assert (len(selection.tasks), len(selection.groups)) == (count, groups)


def test_mmlu_selects_its_groups():
  assert list(tasks.select('mmlu').groups) == [
    'mmlu',
    'mmlu_stem',
    'mmlu_other',
    'mmlu_social_sciences',
    'mmlu_humanities',
  ]


@pytest.mark.parametrize(
  'word, near',
  [
    ('arc_eazy', 'arc_easy'),
    ('mmul', 'mmlu'),
    ('hellaswagg', 'hellaswag'),
    ('mmlu_anatomi', 'mmlu_anatomy'),
  ],
)
def test_select_names_the_nearest(word, near):
  with pytest.raises(ValueError, match=f"'{word}'.*'{near}'"):
    tasks.select(f'arc_easy,{word}')


def test_select_needs_a_task():
  with pytest.raises(ValueError, match='no task'):
    tasks.select(' , ')


@pytest.mark.parametrize('labels', ['A', 'ABCDE', '1234'])
def test_arc_finds_the_answer_by_label(labels):
  doc = {
    'question': 'Why?',
    'choices': {'text': [f'c{x}' for x in labels], 'label': list(labels)},
    'answerKey': labels[-1],
  }
  example = _example('arc_easy', doc)
  assert example.contexts == ('Question: Why?\nAnswer:',) * len(labels)
  assert example.continuations == tuple(f' c{x}' for x in labels)
  assert example.gold == len(labels) - 1


def test_hellaswag_cleans_in_the_harness_order():
  doc = {
    'activity_label': 'Home',
    'ctx_a': '[header] How to [title] Sit  down',
    'ctx_b': 'then SHE',
    'endings': [
      '[substeps] Foo [title] bar. ',
      'a   b    c',
      'keeps ] and [',
      '[x]',
    ],
    'label': '2',
  }
  example = _example('hellaswag', doc)
  # "[header]" leaves a blank, which pairs up with the one before it.
  assert example.contexts[0] == 'Home: How to. Sit down Then she'
  # Stripping comes first, so a removed bracket leaves its blank.
  assert example.choices == (' Foo. bar.', 'a  b  c', 'keeps ] and [', '')
  assert example.continuations[0] == '  Foo. bar.'
  assert example.gold == 2


def test_hellaswag_query_without_second_part_ends_without_a_blank():
  doc = {
    'activity_label': 'Home',
    'ctx_a': 'Sit.',
    'ctx_b': '',
    'endings': ['x'],
    'label': 0,
  }
  assert _example('hellaswag', doc).contexts == ('Home: Sit.',)


def test_mmlu_prompt():
  doc = {
    'question': ' 1 + 1? \n',
    'choices': ['0', '1', ' 2', '3'],
    'answer': 2,
    'subject': 'abstract_algebra',
  }
  task = tasks.TASKS['mmlu_abstract_algebra']
  assert task.description == (
    'The following are multiple choice questions (with answers) about '
    'abstract algebra.\n\n'
  )
  example = task.example(doc)
  assert example.contexts[0] == '1 + 1?\nA. 0\nB. 1\nC.  2\nD. 3\nAnswer:'
  assert example.continuations == (' A', ' B', ' C', ' D')
  example = _example('mmlu_abstract_algebra_continuation', doc)
  assert example.contexts[0] == 'Question: 1 + 1?\nAnswer:'
  assert example.continuations[2] == '  2'


def test_winogrande_scores_the_same_text_after_either_name():
  doc = {
    'sentence': 'Ann met Bo, so _ waved. ',
    'option1': 'Ann',
    'option2': 'Bo',
    'answer': '2',
  }
  example = _example('winogrande', doc)
  assert example.contexts == ('Ann met Bo, so Ann', 'Ann met Bo, so Bo')
  assert example.continuations == (' waved.', ' waved.')
  assert example.gold == 1


def test_lambada_splits_off_the_last_word():
  example = _example('lambada_openai', {'text': 'a b\nc d'})
  assert (example.contexts, example.continuations) == (('a b\nc',), (' d',))
  assert example.gold is None


def test_sciq_without_support_starts_with_a_newline():
  fields = ('distractor1', 'distractor2', 'distractor3', 'correct_answer')
  doc = {'support': ' ', 'question': 'Q', **{f: f for f in fields}}
  example = _example('sciq', doc)
  assert example.contexts[0] == '\nQuestion: Q\nAnswer:'
  assert example.choices == fields
  assert example.gold == 3


def test_boolq_and_openbookqa_prompts():
  doc = {'passage': 'P.', 'question': 'is it', 'label': 1}
  example = _example('boolq', doc)
  assert example.contexts[0] == 'P.\nQuestion: is it?\nAnswer:'
  assert (example.choices, example.gold) == (('no', 'yes'), 1)
  choices = {'text': ['a', 'b'], 'label': ['A', 'B']}
  doc = {'question_stem': 'Stem', 'choices': choices, 'answerKey': ' B'}
  example = _example('openbookqa', doc)
  assert (example.contexts[0], example.gold) == ('Stem', 1)


def test_an_answer_outside_the_choices_is_refused():
  with pytest.raises(ValueError, match='answer 2 of 2'):
    _example('piqa', {'goal': 'g', 'sol1': 'a', 'sol2': 'b', 'label': 2})


def _example_file(tmp_path) -> pathlib.Path:
  """The file that eval/tasks.py shows, as its reader would write it."""
  lines = tasks.__doc__.split('say ./trivia.py:')[1].split('and put the')[0]
  path = tmp_path / 'trivia.py'
  path.write_text(textwrap.dedent(lines), 'utf-8')
  return path


def test_a_task_file_outside_is_scored_like_ours(tmp_path):
  path = _example_file(tmp_path)
  docs = [
    {'question': f'{i}?', 'options': ['a', ' b'], 'gold': 1} for i in range(4)
  ]
  lines = [json.dumps(doc) + '\n' for doc in docs]
  (tmp_path / 'trivia.jsonl').write_text(''.join(lines))
  selection = tasks.select(f'arc_easy,{path}:3')
  assert [task.name for task in selection.tasks] == ['arc_easy', 'trivia']
  [question, *rest] = questions.read_questions(
    selection.tasks[1:], tmp_path, limits=selection.limits
  )
  assert len(rest) == 2
  assert question.pairs() == [('Q: 0?\nA:', ' a'), ('Q: 0?\nA:', '  b')]
  assert question.example.gold == 1


@pytest.mark.parametrize(
  'before, after, said',
  [
    ('TASKS = ', 'TUSKS = ', "has no attribute 'TASKS'"),
    ("'trivia', ", "'arc_easy', ", "the name 'arc_easy' is taken"),
    ("'acc_norm'", "'f1'", "trivia has the metric 'f1', there are acc, "),
    ('import Task, ', 'import Tusk, ', "ImportError: .*'Tusk'"),
    ("(Task('trivia'", "(1, Task('trivia'", 'TASKS has 1, not a Task'),
  ],
)
def test_what_is_wrong_in_a_task_file_is_one_line(
  tmp_path, before, after, said
):
  path = _example_file(tmp_path)
  text = path.read_text('utf-8')
  assert before in text
  path.write_text(text.replace(before, after), 'utf-8')
  with pytest.raises(ValueError, match=said) as error:
    tasks.select(str(path))
  assert '\n' not in str(error.value)


def test_a_task_file_that_is_gone_is_named():
  with pytest.raises(FileNotFoundError, match=r'gone\.py: there is no such'):
    tasks.select('./gone.py')

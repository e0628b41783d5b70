"""Prompts, and what --tasks selects."""

import json
import pathlib
import textwrap

import pytest

from steepest.eval import questions, tasks


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


_CHOICES = {'text': ['a', 'b', 'c'], 'label': ['1', '2', '3']}


@pytest.mark.parametrize(
  'name, doc, contexts, continuations, gold',
  [
    (
      'arc_easy',
      {'question': 'Why?', 'choices': _CHOICES, 'answerKey': '3'},
      'Question: Why?\nAnswer:',
      (' a', ' b', ' c'),
      2,
    ),
    (
      # "[header]" leaves a blank, which pairs up with the one before it.
      # Stripping comes first, so "[substeps]" leaves its blank.
      'hellaswag',
      {
        'activity_label': 'Home',
        'ctx_a': '[header] How to [title] Sit  down',
        'ctx_b': 'then SHE',
        'endings': ['[substeps] Foo [title] bar. ', 'a   b    c', '] [', '[x]'],
        'label': '2',
      },
      'Home: How to. Sit down Then she',
      ('  Foo. bar.', ' a  b  c', ' ] [', ' '),
      2,
    ),
    (
      'mmlu_abstract_algebra',
      {'question': ' 1 + 1? \n', 'choices': ['0', '1', ' 2', '3'], 'answer': 2},
      '1 + 1?\nA. 0\nB. 1\nC.  2\nD. 3\nAnswer:',
      (' A', ' B', ' C', ' D'),
      2,
    ),
    (
      # The same text is scored after either name.
      'winogrande',
      {
        'sentence': 'Ann met Bo, so _ waved. ',
        'option1': 'Ann',
        'option2': 'Bo',
        'answer': '2',
      },
      ('Ann met Bo, so Ann', 'Ann met Bo, so Bo'),
      (' waved.', ' waved.'),
      1,
    ),
    ('lambada_openai', {'text': 'a b\nc d'}, 'a b\nc', (' d',), None),
  ],
)
def test_prompts(name, doc, contexts, continuations, gold):
  example = tasks.TASKS[name].example(doc)
  if isinstance(contexts, str):
    contexts = (contexts,) * len(continuations)
  assert example.contexts == contexts
  assert example.continuations == continuations
  assert example.gold == gold


def test_an_answer_outside_the_choices_is_refused():
  doc = {'goal': 'g', 'sol1': 'a', 'sol2': 'b', 'label': 2}
  with pytest.raises(ValueError, match='answer 2 of 2'):
    tasks.TASKS['piqa'].example(doc)


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
    ('TASKS = ', 'TUSKS = ', 'the file does not define TASKS'),
    ("'trivia', ", "'arc_easy', ", "the name 'arc_easy' is taken"),
    ("'acc_norm'", "'f1'", "trivia has the metric 'f1', there are acc, "),
    ('import Task, ', 'import Tusk, ', "ImportError: .*'Tusk'"),
    (')),)', ')))', 'not a tuple of Tasks'),
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
  with pytest.raises(FileNotFoundError, match=r'gone\.py: no such file'):
    tasks.select('./gone.py')

r"""The benchmarks: for each, which file, which prompt and which metrics.

To add one, write a file anywhere, say ./trivia.py:

    from steepest.eval.tasks import Task, choose

    def example(doc):  # An object of trivia.jsonl.
      return choose(f'Q: {doc["question"]}\nA:', doc['options'], doc['gold'])

    TASKS = (Task('trivia', example, ('acc', 'acc_norm')),)

and put the documents, one JSON object a line, into DIR/trivia.jsonl. Then
`--tasks=arc_easy,./trivia.py --data=DIR` scores it, and `--config.eval_tasks`
takes the same. In this file, a task needs the same function and a line in
`_list_tasks`; data/benchmarks.py says where documents are downloaded from.

Prompts follow lm-evaluation-harness 0.4.13: nothing is stripped or normalised
beyond what the functions below do.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import difflib
import fnmatch
import re
from typing import Any

from steepest.experiments import outside

Document = Mapping[str, Any]

# Ways to rank choices: by their scores, the scores per character or per byte,
# or the scores minus those without the context.
ACCURACIES = ('acc', 'acc_norm', 'acc_bytes', 'acc_mutual_info')

_METRICS = (*ACCURACIES, 'perplexity')
_LETTERS = 'ABCD'
_DELIMITER = ' '


@dataclasses.dataclass(frozen=True)
class Example:
  """One document as strings; entry i of each tuple belongs to choice i.

  Attributes:
    contexts: the text before the scored text, one for each choice.
    continuations: the scored text, delimiter included.
    choices: the choices without the delimiter; scores are divided by their
      lengths.
    gold: index of the right choice; None if there is only one continuation,
      which is right if it is the model's greedy choice.
  """

  contexts: tuple[str, ...]
  continuations: tuple[str, ...]
  choices: tuple[str, ...]
  gold: int | None


@dataclasses.dataclass(frozen=True)
class Task:
  """A benchmark.

  Attributes:
    name: what `--tasks` and results call it.
    example: turns a document into strings.
    metrics: names from ACCURACIES, and `perplexity`.
    file: stem of the documents' file, `<file>.jsonl[.gz]`; '': the name.
    family: tasks of a family (the subjects of MMLU) share a `limit`; '': the
      name.
    subject: only documents with this `subject` count; None: all.
    description: text before everything else.
    split: of the public dataset, 'test' or 'validation', that is scored.
    shots: solved examples before the question.
    shots_file: stem of the examples' file; '': `<name>_train`.
    shots_drawn: each question draws its own at random; False: all use the first
      ones.
  """

  name: str
  example: Callable[[Document], Example]
  metrics: tuple[str, ...]
  file: str = ''
  family: str = ''
  subject: str | None = None
  description: str = ''
  split: str = 'test'
  shots: int = 0
  shots_file: str = ''
  shots_drawn: bool = True

  def __post_init__(self):
    for field, value in (
      ('file', self.name),
      ('family', self.name),
      ('shots_file', f'{self.name}_train'),
    ):
      if not getattr(self, field):
        object.__setattr__(self, field, value)


def choose(context: str, choices: Sequence[str], gold: int) -> Example:
  """Returns a question whose choices all continue one context.

  Raises:
    ValueError: there is no choice number `gold`, counted from 0.
  """
  if not 0 <= gold < len(choices):
    raise ValueError(f'answer {gold} of {len(choices)} choices')
  return Example(
    contexts=(context,) * len(choices),
    continuations=tuple(_DELIMITER + choice for choice in choices),
    choices=tuple(choices),
    gold=gold,
  )


def _arc(doc: Document) -> Example:
  choices = doc['choices']
  gold = choices['label'].index(doc['answerKey'])
  return choose(f'Question: {doc["question"]}\nAnswer:', choices['text'], gold)


def _hellaswag(doc: Document) -> Example:
  query = f'{doc["activity_label"]}: {doc["ctx_a"]} {doc["ctx_b"].capitalize()}'
  endings = [_clean_wikihow(ending) for ending in doc['endings']]
  return choose(_clean_wikihow(query), endings, int(doc['label']))


def _clean_wikihow(text: str) -> str:
  # An ending's leading "[substeps] " leaves a space, which is scored: stripping
  # again would change half of the documents.
  text = text.strip().replace(' [title]', '. ')
  return re.sub(r'\[.*?\]', '', text).replace('  ', ' ')


def _mmlu(doc: Document) -> Example:
  question = doc['question'].strip()
  options = zip(_LETTERS, doc['choices'], strict=True)
  lines = [question, *(f'{letter}. {text}' for letter, text in options)]
  context = '\n'.join([*lines, 'Answer:'])
  return choose(context, list(_LETTERS), int(doc['answer']))


def _mmlu_continuation(doc: Document) -> Example:
  context = f'Question: {doc["question"].strip()}\nAnswer:'
  return choose(context, doc['choices'], int(doc['answer']))


def _piqa(doc: Document) -> Example:
  context = f'Question: {doc["goal"]}\nAnswer:'
  return choose(context, [doc['sol1'], doc['sol2']], int(doc['label']))


def _winogrande(doc: Document) -> Example:
  sentence = doc['sentence']
  blank = sentence.index('_')
  options = (doc['option1'], doc['option2'])
  # The same text is scored after either name, so nothing is normalised.
  suffix = sentence[blank + 1 :].strip()
  gold = int(doc['answer']) - 1
  example = choose('', [suffix, suffix], gold)
  contexts = tuple(sentence[:blank] + option for option in options)
  return dataclasses.replace(example, contexts=contexts)


def _boolq(doc: Document) -> Example:
  context = f'{doc["passage"]}\nQuestion: {doc["question"]}?\nAnswer:'
  return choose(context, ['no', 'yes'], int(doc['label']))


def _openbookqa(doc: Document) -> Example:
  choices = doc['choices']
  gold = choices['label'].index(doc['answerKey'].lstrip())
  return choose(doc['question_stem'], choices['text'], gold)


def _sciq(doc: Document) -> Example:
  support = doc['support'].lstrip()
  context = f'{support}\nQuestion: {doc["question"]}\nAnswer:'
  fields = ('distractor1', 'distractor2', 'distractor3', 'correct_answer')
  return choose(context, [doc[field] for field in fields], 3)


def _lambada(doc: Document) -> Example:
  context, _, word = doc['text'].rpartition(' ')
  target = f' {word}'
  return Example((context,), (target,), (target,), gold=None)


_STEM = """abstract_algebra anatomy astronomy college_biology college_chemistry
college_computer_science college_mathematics college_physics computer_security
conceptual_physics electrical_engineering elementary_mathematics
high_school_biology high_school_chemistry high_school_computer_science
high_school_mathematics high_school_physics high_school_statistics
machine_learning"""
_OTHER = """business_ethics clinical_knowledge college_medicine global_facts
human_aging management marketing medical_genetics miscellaneous nutrition
professional_accounting professional_medicine virology"""
_SOCIAL_SCIENCES = """econometrics high_school_geography
high_school_government_and_politics high_school_macroeconomics
high_school_microeconomics high_school_psychology human_sexuality
professional_psychology public_relations security_studies sociology
us_foreign_policy"""
_HUMANITIES = """formal_logic high_school_european_history
high_school_us_history high_school_world_history international_law
jurisprudence logical_fallacies moral_disputes moral_scenarios philosophy
prehistory professional_law world_religions"""
MMLU_SUBJECTS = {
  'stem': tuple(_STEM.split()),
  'other': tuple(_OTHER.split()),
  'social_sciences': tuple(_SOCIAL_SCIENCES.split()),
  'humanities': tuple(_HUMANITIES.split()),
}


def _mmlu_family(
  suffix: str,
  example: Callable[[Document], Example],
  metrics: tuple[str, ...],
  opening: str,
  shots: int = 0,
) -> list[Task]:
  """Returns one task per subject, in alphabetical order."""
  return [
    Task(
      name=f'mmlu_{subject}{suffix}',
      file='mmlu',
      example=example,
      metrics=metrics,
      family=f'mmlu{suffix}',
      subject=subject,
      description=f'{opening} about {subject.replace("_", " ")}.\n\n',
      shots=shots,
      shots_file='mmlu_dev',
      shots_drawn=False,
    )
    for subject in sorted(sum(MMLU_SUBJECTS.values(), ()))
  ]


def _list_tasks() -> dict[str, Task]:
  norm = ('acc', 'acc_norm')
  tasks = [
    Task('arc_easy', _arc, norm),
    Task('arc_challenge', _arc, norm),
    Task('hellaswag', _hellaswag, norm, split='validation'),
    Task('piqa', _piqa, norm, split='validation'),
    Task('winogrande', _winogrande, ('acc',), split='validation'),
    Task('boolq', _boolq, ('acc',), split='validation'),
    Task('openbookqa', _openbookqa, norm),
    Task('sciq', _sciq, norm),
    # This form has no other split: shots come from the scored one.
    Task(
      'lambada_openai',
      _lambada,
      ('perplexity', 'acc'),
      shots_file='lambada_openai',
    ),
  ]
  letters = 'The following are multiple choice questions (with answers)'
  tasks += _mmlu_family('', _mmlu, ('acc',), letters)
  tasks += _mmlu_family('_5shot', _mmlu, ('acc',), letters, shots=5)
  tasks += _mmlu_family(
    '_continuation',
    _mmlu_continuation,
    norm,
    'The following are questions (with answers)',
  )
  # The same requests, with every normalisation.
  tasks += [
    dataclasses.replace(
      task,
      name=f'{task.name}_extra',
      family=f'{task.name}_extra',
      metrics=ACCURACIES,
    )
    for task in tasks
    if task.subject is None and task.metrics == norm
  ]
  return {task.name: task for task in tasks}


def _list_groups() -> dict[str, tuple[str, ...]]:
  groups = {}
  for suffix in ('', '_continuation', '_5shot'):
    parts = {
      part: tuple(f'mmlu_{subject}{suffix}' for subject in subjects)
      for part, subjects in MMLU_SUBJECTS.items()
    }
    groups[f'mmlu{suffix}'] = sum(parts.values(), ())
    for part, names in parts.items():
      # The harness's own names, so that results can be compared directly.
      inner = f'::{part.replace("_", " ")}' if suffix else f'_{part}'
      groups[f'mmlu{suffix}{inner}'] = names
  return groups


TASKS: dict[str, Task] = _list_tasks()
# Group -> its tasks. Groups report `acc`, weighted by the tasks' sizes.
GROUPS: dict[str, tuple[str, ...]] = _list_groups()


def find(path: str) -> tuple[Task, ...]:
  """Returns the `TASKS` of a task file.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it cannot be imported, has no tasks, or has one with a name
      already taken.
  """
  tasks = outside.load('task file ', path, ('TASKS',)).TASKS
  if not isinstance(tasks, tuple):
    raise ValueError(
      f'task file {path}: TASKS is {tasks!r}, not a tuple of Tasks'
    )
  for task in tasks:
    if not isinstance(task, Task):
      raise ValueError(f'task file {path}: TASKS has {task!r}, not a Task')
    if task.name in TASKS or task.name in GROUPS:
      raise ValueError(f'task file {path}: the name {task.name!r} is taken')
    for metric in task.metrics:
      if metric not in _METRICS:
        raise ValueError(
          f'task file {path}: {task.name} has the metric {metric!r}, there are '
          f'{", ".join(_METRICS)}'
        )
  return tasks


@dataclasses.dataclass(frozen=True)
class Selection:
  """What `--tasks` names.

  Attributes:
    tasks: to run.
    groups: to report, and their tasks.
    limits: questions per family, where `--tasks` sets a limit.
  """

  tasks: tuple[Task, ...]
  groups: dict[str, tuple[str, ...]]
  limits: dict[str, int] = dataclasses.field(default_factory=dict)


def select(patterns: str, shots: int | None = None) -> Selection:
  """Finds the tasks and groups that comma-separated words mean.

  A group stands for its tasks and for the groups inside it.

  Args:
    patterns: names, globs and paths of task files, each optionally with a
      limit: 'arc_*,mmlu:500,./mine.py'.
    shots: solved examples before every question; None: the tasks' own.

  Returns:
    Tasks in the order of TASKS, then those of files, each once.

  Raises:
    FileNotFoundError: a task file does not exist.
    ValueError: a pattern matches nothing (names the nearest task or group), or
      a task file has no tasks.
  """
  words = [word.strip() for word in patterns.split(',') if word.strip()]
  if not words:
    raise ValueError(f'no task given: known are {", ".join(_shown())}')
  named: set[str] = set()
  of_files: dict[str, Task] = {}
  limits: dict[str, int] = {}
  for word in words:
    name, limit = _split_limit(word)
    if outside.is_path(name):
      found = find(name)
      of_files |= {task.name: task for task in found}
    else:
      matches = _match(name)
      named.update(matches)
      found = tuple(TASKS[m if m in TASKS else GROUPS[m][0]] for m in matches)
    if limit is not None:
      limits |= {task.family: limit for task in found}
  groups = {
    group: names
    for group, names in GROUPS.items()
    if any(set(names) <= set(GROUPS[g]) for g in named & set(GROUPS))
  }
  named.update(*groups.values())
  tasks = [task for name, task in TASKS.items() if name in named]
  tasks += of_files.values()
  if shots is not None:
    tasks = [dataclasses.replace(task, shots=shots) for task in tasks]
  return Selection(tuple(tasks), groups, limits)


def _match(pattern: str) -> list[str]:
  """Returns the tasks and groups that a name or glob matches."""
  known = (*TASKS, *GROUPS)
  matches = fnmatch.filter(known, pattern)
  if not matches:
    near = difflib.get_close_matches(pattern, known, 1, cutoff=0.0)[0]
    raise ValueError(
      f'unknown task {pattern!r}: did you mean {near!r}? '
      f'known are {", ".join(_shown())}, globs of them, and ./FILE.py'
    )
  return matches


def _split_limit(word: str) -> tuple[str, int | None]:
  """Returns the name and the limit of 'name:limit' or 'name'."""
  # Group names have colons too.
  name, colon, number = word.rpartition(':')
  if not colon or not number.isdigit():
    return word, None
  if not int(number):
    raise ValueError(f'{word}: a limit is at least 1; omit it to score all')
  return name, int(number)


def _shown() -> list[str]:
  single = [name for name, task in TASKS.items() if task.subject is None]
  return [*single, *(g for g in GROUPS if '::' not in g), 'mmlu_<subject>']

"""The benchmarks: for each, which file, which prompt and which metrics.

A task is data plus one function from a document, in the public dataset's own
schema, to an `Example`: the strings that are scored. Prompts follow
lm-evaluation-harness 0.4.13; nothing is stripped or normalised beyond what the
functions below do.
"""

from collections.abc import Callable, Mapping
import dataclasses
import difflib
import fnmatch
import re
from typing import Any

Document = Mapping[str, Any]

# Which index the highest score has to be at, after normalising by nothing,
# characters or bytes, or after subtracting the score without context.
ACCURACIES = ('acc', 'acc_norm', 'acc_bytes', 'acc_mutual_info')

_LETTERS = 'ABCD'
_DELIMITER = ' '


@dataclasses.dataclass(frozen=True)
class Example:
  """One document as strings; entry i of each tuple belongs to choice i.

  Attributes:
    contexts: what stands before the scored text, one for each choice.
    continuations: the scored text, delimiter included.
    choices: the choices without the delimiter, whose lengths normalise scores.
    gold: index of the right choice; None where there is one continuation only
      and being right means being the model's greedy choice.
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
    file: stem of the documents' file, `<file>.jsonl[.gz]`.
    example: turns a document into strings.
    metrics: names out of ACCURACIES and `perplexity`.
    family: tasks of one family share a `limit`; the task's own name unless it
      is a subject of MMLU.
    subject: only documents with this `subject` count; None: all.
    description: stands in front of everything.
    split: of the public dataset, 'test' or 'validation', that is scored.
    shots: solved examples in front of the question.
    shots_file: stem of the file that they are from.
    shots_drawn: each question draws its own at random; False: all have the
      first ones.
  """

  name: str
  file: str
  example: Callable[[Document], Example]
  metrics: tuple[str, ...]
  family: str
  subject: str | None = None
  description: str = ''
  split: str = 'test'
  shots: int = 0
  shots_file: str = ''
  shots_drawn: bool = True


def _choose(context: str, choices: list[str], gold: int) -> Example:
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
  return _choose(f'Question: {doc["question"]}\nAnswer:', choices['text'], gold)


def _hellaswag(doc: Document) -> Example:
  query = f'{doc["activity_label"]}: {doc["ctx_a"]} {doc["ctx_b"].capitalize()}'
  endings = [_clean_wikihow(ending) for ending in doc['endings']]
  return _choose(_clean_wikihow(query), endings, int(doc['label']))


def _clean_wikihow(text: str) -> str:
  # An ending's leading "[substeps] " leaves a blank behind, which is scored:
  # stripping again would change half of the documents.
  text = text.strip().replace(' [title]', '. ')
  return re.sub(r'\[.*?\]', '', text).replace('  ', ' ')


def _mmlu(doc: Document) -> Example:
  question = doc['question'].strip()
  options = zip(_LETTERS, doc['choices'], strict=True)
  lines = [question, *(f'{letter}. {text}' for letter, text in options)]
  context = '\n'.join([*lines, 'Answer:'])
  return _choose(context, list(_LETTERS), int(doc['answer']))


def _mmlu_continuation(doc: Document) -> Example:
  context = f'Question: {doc["question"].strip()}\nAnswer:'
  return _choose(context, doc['choices'], int(doc['answer']))


def _piqa(doc: Document) -> Example:
  context = f'Question: {doc["goal"]}\nAnswer:'
  return _choose(context, [doc['sol1'], doc['sol2']], int(doc['label']))


def _winogrande(doc: Document) -> Example:
  sentence = doc['sentence']
  blank = sentence.index('_')
  options = (doc['option1'], doc['option2'])
  # The same text is scored after either name, so nothing is normalised.
  suffix = sentence[blank + 1 :].strip()
  gold = int(doc['answer']) - 1
  example = _choose('', [suffix, suffix], gold)
  contexts = tuple(sentence[:blank] + option for option in options)
  return dataclasses.replace(example, contexts=contexts)


def _boolq(doc: Document) -> Example:
  context = f'{doc["passage"]}\nQuestion: {doc["question"]}?\nAnswer:'
  return _choose(context, ['no', 'yes'], int(doc['label']))


def _openbookqa(doc: Document) -> Example:
  choices = doc['choices']
  gold = choices['label'].index(doc['answerKey'].lstrip())
  return _choose(doc['question_stem'], choices['text'], gold)


def _sciq(doc: Document) -> Example:
  support = doc['support'].lstrip()
  context = f'{support}\nQuestion: {doc["question"]}\nAnswer:'
  fields = ('distractor1', 'distractor2', 'distractor3', 'correct_answer')
  return _choose(context, [doc[field] for field in fields], 3)


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
  """Returns a task for each subject, in alphabetical order."""
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
  functions = {
    'arc_easy': (_arc, norm, 'test'),
    'arc_challenge': (_arc, norm, 'test'),
    'hellaswag': (_hellaswag, norm, 'validation'),
    'piqa': (_piqa, norm, 'validation'),
    'winogrande': (_winogrande, ('acc',), 'validation'),
    'boolq': (_boolq, ('acc',), 'validation'),
    'openbookqa': (_openbookqa, norm, 'test'),
    'sciq': (_sciq, norm, 'test'),
    'lambada_openai': (_lambada, ('perplexity', 'acc'), 'test'),
  }
  tasks = [
    Task(
      name,
      name,
      example,
      metrics,
      family=name,
      split=split,
      # LAMBADA has no other split in this form: it draws from what is scored.
      shots_file=name if name == 'lambada_openai' else f'{name}_train',
    )
    for name, (example, metrics, split) in functions.items()
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
  # The same requests under every normalisation.
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
      # The harness's own names, so that results can be laid side by side.
      inner = f'::{part.replace("_", " ")}' if suffix else f'_{part}'
      groups[f'mmlu{suffix}{inner}'] = names
  return groups


TASKS: dict[str, Task] = _list_tasks()
# Group -> its tasks. Groups report `acc`, weighted by the tasks' sizes.
GROUPS: dict[str, tuple[str, ...]] = _list_groups()


@dataclasses.dataclass(frozen=True)
class Selection:
  """What `--tasks` names.

  Attributes:
    tasks: to run.
    groups: to report, and their tasks.
    limits: questions of a family, where `--tasks` says so.
  """

  tasks: tuple[Task, ...]
  groups: dict[str, tuple[str, ...]]
  limits: dict[str, int] = dataclasses.field(default_factory=dict)


def select(patterns: str, shots: int | None = None) -> Selection:
  """Finds the tasks and groups that comma-separated names or globs mean.

  A group stands for its tasks and for the groups inside it.

  Args:
    patterns: such as 'arc_*,mmlu' or, with limits, 'arc_easy:100,mmlu:500'.
    split: of the public dataset, 'test' or 'validation', that is scored.
    shots: solved examples in front of every question; None: the tasks' own.

  Returns:
    Tasks in the order of TASKS, each once.

  Raises:
    ValueError: a pattern matches nothing; names the nearest task or group.
  """
  known = (*TASKS, *GROUPS)
  words = [word.strip() for word in patterns.split(',') if word.strip()]
  if not words:
    raise ValueError(f'no task given: known are {", ".join(_shown())}')
  named: set[str] = set()
  limits: dict[str, int] = {}
  for word in words:
    name, limit = _split_limit(word)
    matches = fnmatch.filter(known, name)
    if not matches:
      near = difflib.get_close_matches(name, known, 1, cutoff=0.0)[0]
      raise ValueError(
        f'unknown task {name!r}: did you mean {near!r}? '
        f'known are {", ".join(_shown())}, and globs of them'
      )
    named.update(matches)
    if limit is not None:
      for match in matches:
        first = match if match in TASKS else GROUPS[match][0]
        limits[TASKS[first].family] = limit
  groups = {
    group: names
    for group, names in GROUPS.items()
    if any(set(names) <= set(GROUPS[g]) for g in named & set(GROUPS))
  }
  named.update(*groups.values())
  tasks = [task for name, task in TASKS.items() if name in named]
  if shots is not None:
    tasks = [dataclasses.replace(task, shots=shots) for task in tasks]
  return Selection(tuple(tasks), groups, limits)


def _split_limit(word: str) -> tuple[str, int | None]:
  """Returns the name and the limit of 'name:limit' or 'name'."""
  # Names of groups have colons too.
  name, colon, number = word.rpartition(':')
  if not colon or not number.isdigit():
    return word, None
  if not int(number):
    raise ValueError(f'{word}: a limit is at least 1; leave it out for all')
  return name, int(number)


def _shown() -> list[str]:
  single = [name for name, task in TASKS.items() if task.subject is None]
  return [*single, *(g for g in GROUPS if '::' not in g), 'mmlu_<subject>']

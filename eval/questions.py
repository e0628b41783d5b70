"""Turns benchmark documents into questions, from files to strings.

The rules are those of lm-evaluation-harness 0.4.13.
"""

import collections
from collections.abc import Mapping, Sequence
import dataclasses
import pathlib
import random

from steepest.data import reading
from steepest.eval.tasks import Document, Example, Task

# The harness's seed for drawing the examples of questions.
_SHOTS_SEED = 1234


@dataclasses.dataclass(frozen=True)
class Question:
  """A document with its place in the file and its strings."""

  task: Task
  doc_id: int
  example: Example

  def pairs(self) -> list[tuple[str, str]]:
    """Returns (context, continuation) of every request, in order."""
    pairs = list(zip(self.example.contexts, self.example.continuations))
    if 'acc_mutual_info' in self.task.metrics:
      pairs += [('', text) for text in self.example.continuations]
    return pairs


def find_file(directory: pathlib.Path, stem: str) -> pathlib.Path:
  """Returns the path of `<stem>.jsonl` or `<stem>.jsonl.gz`.

  Raises:
    FileNotFoundError: neither exists.
  """
  for name in (f'{stem}.jsonl', f'{stem}.jsonl.gz'):
    if (directory / name).is_file():
      return directory / name
  raise FileNotFoundError(
    f'no {stem}.jsonl or {stem}.jsonl.gz in {directory}: give --data the '
    'directory that holds the benchmark documents'
  )


def read_questions(
  tasks: Sequence[Task],
  directory: pathlib.Path,
  limit: int = 0,
  limits: Mapping[str, int] | None = None,
) -> list[Question]:
  """Reads the documents of `tasks` and builds their strings.

  Args:
    tasks: what to read, in the order of the result.
    directory: holds `<file>.jsonl[.gz]` of every task.
    limit: most questions per family, 0 for all: a task's first ones; with
      several subjects (MMLU), each in turn gives its next question, in the
      order of `tasks`, until there are `limit`.
    limits: by family, for those with a limit of their own.

  Raises:
    FileNotFoundError: a file is missing.
    ValueError: a document violates its task's schema; names it.
  """
  files = {
    stem: _by_subject(find_file(directory, stem)) for stem in stems(tasks)
  }
  documents = {task: files[task.file][task.subject] for task in tasks}
  counts = _share(
    {task: len(docs) for task, docs in documents.items()}, limit, limits or {}
  )
  questions = []
  for task, docs in documents.items():
    pool = files[task.shots_file][task.subject] if task.shots else []
    if counts[task] and task.shots + _spare(task) > len(pool):
      raise ValueError(
        f'{task.shots_file}.jsonl has {len(pool)} examples for {task.name}, '
        f'too few for {task.shots} shots'
      )
    rng = random.Random(_SHOTS_SEED)
    for doc_id, doc in enumerate(docs[: counts[task]]):
      opening = task.description + ''.join(
        _solved(_example(task, task.shots_file, i, pool[i]))
        for i in _draw(task, pool, doc, rng)
      )
      example = _example(task, task.file, doc_id, doc)
      contexts = tuple(opening + context for context in example.contexts)
      example = dataclasses.replace(example, contexts=contexts)
      questions.append(Question(task, doc_id, example))
  return questions


def _spare(task: Task) -> int:
  """Returns how many examples are drawn beyond those needed.

  If it does not score a test split, the harness draws one more, so that it can
  drop the question itself.
  """
  return int(task.shots > 0 and task.split == 'validation')


def _draw(
  task: Task, pool: Sequence[Document], doc: Document, rng: random.Random
) -> list[int]:
  """Returns the indices of the pool's examples that precede a question."""
  if not task.shots_drawn or not task.shots:
    return list(range(task.shots))
  drawn = rng.sample(range(len(pool)), task.shots + _spare(task))
  if _spare(task):
    drawn = [i for i in drawn if pool[i] != doc]
    if len(drawn) < task.shots:
      others = [i for i in range(len(pool)) if pool[i] != doc]
      drawn = rng.sample(others, task.shots)
  return drawn[: task.shots]


def stems(tasks: Sequence[Task]) -> list[str]:
  """Returns the files that tasks read, without `.jsonl`."""
  files = [task.file for task in tasks]
  files += [task.shots_file for task in tasks if task.shots]
  return list(dict.fromkeys(files))


def _by_subject(path: pathlib.Path) -> dict[str | None, list[Document]]:
  """Returns the documents of each subject; under None, all of them."""
  groups: dict[str | None, list[Document]] = collections.defaultdict(list)
  for doc in reading.json_lines(path):
    groups[None].append(doc)
    if 'subject' in doc:
      groups[doc['subject']].append(doc)
  return groups


def _example(task: Task, stem: str, doc_id: int, doc: Document) -> Example:
  try:
    return task.example(doc)
  except KeyError as error:
    problem = f'no field {error}'
  except (AttributeError, TypeError, ValueError, IndexError) as error:
    problem = str(error)
  raise ValueError(
    f'document {doc_id} of {task.name} ({stem}.jsonl) does not have '
    f"the public dataset's schema: {problem}"
  )


def _solved(example: Example) -> str:
  if example.gold is None:
    # The harness puts its delimiter before the word's own space.
    return f'{example.contexts[0]} {example.continuations[0]}\n\n'
  gold = example.gold
  return f'{example.contexts[gold]}{example.continuations[gold]}\n\n'


def _share(
  sizes: dict[Task, int], limit: int, limits: Mapping[str, int]
) -> dict[Task, int]:
  """Returns how many documents each task contributes."""
  families = collections.defaultdict(list)
  for task in sizes:
    families[task.family].append(task)
  counts = dict.fromkeys(sizes, 0)
  for family, members in families.items():
    left = limits[family] if family in limits else limit
    if not left:
      counts.update({task: sizes[task] for task in members})
    while left and any(counts[task] < sizes[task] for task in members):
      for task in members:
        if left and counts[task] < sizes[task]:
          counts[task] += 1
          left -= 1
  return counts

"""From documents to token ids: what is scored, given what.

The rules are lm-evaluation-harness 0.4.13's, for models without an encoder.
"""

import collections
from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import gzip
import json
import pathlib
import random

from steepest.data.tokenizers import Tokenizer
from steepest.eval.tasks import Document
from steepest.eval.tasks import Example
from steepest.eval.tasks import Task

# lm-evaluation-harness's seed of the examples that questions draw.
_SHOTS_SEED = 1234


@dataclasses.dataclass(frozen=True)
class Request:
  """A continuation whose probability after a context is asked for.

  Attributes:
    task: name of the task, with `doc_id` and `choice` the request's identity.
    doc_id: index of the document in its file (MMLU: within the subject).
    choice: index of the choice; n + i is choice i without a context, for
      `acc_mutual_info` of n choices.
    context: text before any whitespace moves into the continuation.
    continuation: scored text, delimiter included.
    context_ids: token ids of the context, after whitespace has moved.
    continuation_ids: token ids that are scored.
  """

  task: str
  doc_id: int
  choice: int
  context: str
  continuation: str
  context_ids: tuple[int, ...]
  continuation_ids: tuple[int, ...]


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


def read_jsonl(path: pathlib.Path) -> Iterator[Document]:
  """Yields the objects of a JSON-lines file, gzipped or not.

  Raises:
    ValueError: a line is no JSON object; names it.
  """
  opened = gzip.open if path.suffix == '.gz' else open
  with opened(path, 'rb') as lines:
    # Not splitlines(): U+2028 and its like may stand inside strings.
    for number, line in enumerate(lines, start=1):
      if not line.strip():
        continue
      try:
        doc = json.loads(line)
      except (ValueError, RecursionError) as error:
        raise ValueError(f'{path}, line {number}: {error}') from error
      if not isinstance(doc, dict):
        raise ValueError(f'{path}, line {number}: not a JSON object')
      yield doc


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
    limit: largest number of questions per family, 0 for all: a task's first
      ones; of several subjects (MMLU) one after the other takes its next
      question, in the order of `tasks`, until `limit` are taken.
    limits: of families for which `limit` does not hold.

  Raises:
    FileNotFoundError: a file is missing.
    ValueError: a document does not fit its task's schema; names it.
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
  """Returns how many examples are drawn in excess.

  Where no test split is scored the harness leaves room for striking out the
  question itself.
  """
  return int(task.shots > 0 and task.split == 'validation')


def _draw(
  task: Task, pool: Sequence[Document], doc: Document, rng: random.Random
) -> list[int]:
  """Returns which of the pool stand in front of a question."""
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
  for doc in read_jsonl(path):
    groups[None].append(doc)
    if 'subject' in doc:
      groups[doc['subject']].append(doc)
  return groups


def _example(task: Task, stem: str, doc_id: int, doc: Document) -> Example:
  try:
    return task.example(doc)
  except KeyError as error:
    problem = f'no field {error}'
  except (AttributeError, TypeError, ValueError) as error:
    problem = str(error)
  raise ValueError(
    f'document {doc_id} of {task.name} ({stem}.jsonl) does not have '
    f"the public dataset's schema: {problem}"
  )


def _solved(example: Example) -> str:
  if example.gold is None:
    # The harness puts its delimiter before the blank that the word has.
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


def tokenize(
  tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]]
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
  """Turns (context, continuation) strings into ids to condition on and score.

  Whitespace at the end of a context moves to the continuation, which is then
  tokenised together with it; an empty context becomes the prefix token
  (beginning of sequence, else end of sequence).

  Raises:
    ValueError: nothing is left to condition on or to score.
  """
  prefix_id, prefix = prefix_token(tokenizer)
  moved = []
  for context, continuation in pairs:
    stripped = context.rstrip()
    moved.append((stripped, context[len(stripped) :] + continuation))
  # Text that already starts with the prefix token gets no second one.
  texts = {c for (c, _), (full, _) in zip(moved, pairs) if full}
  texts |= {c + t for (c, t), (full, _) in zip(moved, pairs) if full}
  plain = {text for text in texts if text.startswith(prefix)}
  bare = {t for (_, t), (full, _) in zip(moved, pairs) if not full}
  with_special = _encode(tokenizer, texts - plain, special_tokens=True)
  without = _encode(tokenizer, plain | bare, special_tokens=False)
  encoded = {text: without[text] for text in plain} | with_special
  result = []
  for (context, continuation), (full, _) in zip(moved, pairs):
    if full:
      context_ids = encoded[context]
      continuation_ids = encoded[context + continuation][len(context_ids) :]
    else:
      continuation_ids = without[continuation]
      context_ids = (prefix_id,)
      if continuation_ids[:1] == context_ids:
        continuation_ids = continuation_ids[1:]
    if not context_ids or not continuation_ids:
      empty = 'continuation' if context_ids else 'context'
      raise ValueError(
        f'the {empty} has no tokens: context {full[-40:]!r}, '
        f'continuation {continuation[:40]!r}'
      )
    result.append((context_ids, continuation_ids))
  return result


def prefix_token(tokenizer: Tokenizer) -> tuple[int, str]:
  """Returns id and text of what stands for an empty context.

  Raises:
    ValueError: the tokenizer has no such token.
  """
  for index, text in (
    (tokenizer.bos_id, tokenizer.bos_token),
    (tokenizer.eos_id, tokenizer.eos_token),
  ):
    if index is not None and text is not None:
      return index, text
  raise ValueError(
    f'tokenizer {tokenizer.name} has neither a beginning-of-sequence nor '
    'an end-of-sequence token: one must stand for an empty context'
  )


def _encode(
  tokenizer: Tokenizer, texts: set[str], special_tokens: bool
) -> dict[str, tuple[int, ...]]:
  ordered = sorted(texts)
  encoded = tokenizer.encode_batch(ordered, special_tokens=special_tokens)
  return {text: tuple(ids) for text, ids in zip(ordered, encoded)}


def build(tokenizer: Tokenizer, questions: Sequence[Question]) -> list[Request]:
  """Tokenises the requests of `questions`, in order."""
  keys = []
  pairs = []
  for question in questions:
    for choice, pair in enumerate(question.pairs()):
      keys.append((question.task.name, question.doc_id, choice))
      pairs.append(pair)
  return _join(tokenizer, keys, pairs)


def _join(
  tokenizer: Tokenizer,
  keys: Sequence[tuple[str, int, int]],
  pairs: Sequence[tuple[str, str]],
) -> list[Request]:
  return [
    Request(*key, *pair, *ids)
    for key, pair, ids in zip(keys, pairs, tokenize(tokenizer, pairs))
  ]


def read_requests(path: pathlib.Path, tokenizer: Tokenizer) -> list[Request]:
  """Reads given pairs: task, doc_id, choice, context and continuation.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: a field is missing; names the line.
  """
  keys = []
  pairs = []
  for number, row in enumerate(read_jsonl(path), start=1):
    for field in ('task', 'doc_id', 'choice', 'context', 'continuation'):
      if field not in row:
        raise ValueError(
          f'{path}, request {number}: no field {field!r}; each line has task, '
          'doc_id, choice, context and continuation'
        )
    if not (
      isinstance(row['context'], str)
      and isinstance(row['continuation'], str)
      and isinstance(row['task'], str)
    ):
      raise ValueError(
        f'{path}, request {number}: task, context and continuation must be '
        'text'
      )
    keys.append((row['task'], row['doc_id'], row['choice']))
    pairs.append((row['context'], row['continuation']))
  return _join(tokenizer, keys, pairs)


def truncate(
  request: Request, max_length: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
  """Returns the model's input and the targets at its last positions.

  The last `max_length + 1` ids are kept; the very last is only predicted.

  Raises:
    ValueError: the continuation alone is longer than `max_length`.
  """
  targets = request.continuation_ids
  if len(targets) > max_length:
    raise ValueError(
      f'{request.task}, document {request.doc_id}, choice {request.choice}: '
      f'the continuation has {len(targets)} tokens, the model takes '
      f'{max_length}: leave this task out or train with a longer context'
    )
  ids = (request.context_ids + targets)[-(max_length + 1) :]
  return ids[:-1], targets

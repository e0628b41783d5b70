"""From strings to token ids: what is scored after what.

The rules are those of lm-evaluation-harness 0.4.13 for decoder-only models.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import pathlib
import threading
from typing import overload

from steepest.data.tokenizers import Tokenizer
from steepest.eval.questions import Question, read_jsonl

# Requests tokenised at a time.
_CHUNK = 4096


@dataclasses.dataclass(frozen=True)
class Request:
  """A continuation to be scored after a context.

  Attributes:
    task: name; with `doc_id` and `choice` it identifies the request.
    doc_id: index of the document in its file (MMLU: within the subject).
    choice: index of the choice; n + i is choice i without a context, for
      `acc_mutual_info` of n choices.
    context: text, before whitespace at its end moves into the continuation.
    continuation: text to score, delimiter included.
    context_ids: tokens of the context, after whitespace has moved.
    continuation_ids: tokens to score.
  """

  task: str
  doc_id: int
  choice: int
  context: str
  continuation: str
  context_ids: tuple[int, ...]
  continuation_ids: tuple[int, ...]


def tokenize(
  tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]]
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
  """Returns the ids of contexts and of continuations.

  Whitespace at the end of a context moves to the continuation; the two are
  tokenised together. An empty context becomes the prefix token (beginning of
  sequence, else end of sequence).

  Raises:
    ValueError: no tokens are left to condition on, or none to score.
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
  """Returns the id and text of the token that replaces an empty context.

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


class Requests(Sequence[Request]):
  """Requests that are tokenised when they are first read.

  The first ones can be scored while the others are still text.
  """

  def __init__(
    self,
    tokenizer: Tokenizer,
    keys: Sequence[tuple[str, int, int]],
    pairs: Sequence[tuple[str, str]],
  ):
    """Makes requests of (context, continuation)s.

    Args:
      tokenizer: the model's.
      keys: task, doc_id and choice of each.
      pairs: their strings.
    """
    self._tokenizer = tokenizer
    self._keys = keys
    self._pairs = pairs
    self._done: list[Request] = []
    self._lock = threading.Lock()

  def __len__(self) -> int:
    return len(self._keys)

  @overload
  def __getitem__(self, index: int) -> Request: ...

  @overload
  def __getitem__(self, index: slice) -> Sequence[Request]: ...

  def __getitem__(self, index: int | slice) -> Request | Sequence[Request]:
    self._tokenize(len(self))
    return self._done[index]

  def __iter__(self) -> Iterator[Request]:
    for i in range(len(self)):
      if i >= len(self._done):
        self._tokenize(i + 1)
      yield self._done[i]

  def _tokenize(self, count: int) -> None:
    """Tokenises at least the first `count`."""
    with self._lock:
      while len(self._done) < count:
        part = slice(len(self._done), len(self._done) + _CHUNK)
        pairs = self._pairs[part]
        ids = tokenize(self._tokenizer, pairs)
        self._done += [
          Request(*key, *pair, *of_pair)
          for key, pair, of_pair in zip(self._keys[part], pairs, ids)
        ]


def build(tokenizer: Tokenizer, questions: Sequence[Question]) -> Requests:
  """Returns the requests of `questions`, in order."""
  keys = []
  pairs = []
  for question in questions:
    for choice, pair in enumerate(question.pairs()):
      keys.append((question.task.name, question.doc_id, choice))
      pairs.append(pair)
  return Requests(tokenizer, keys, pairs)


def read_requests(path: pathlib.Path, tokenizer: Tokenizer) -> Requests:
  """Reads pairs from JSON lines with the first five fields of a Request.

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
        f'{path}, request {number}: task, context and continuation must be text'
      )
    keys.append((row['task'], row['doc_id'], row['choice']))
    pairs.append((row['context'], row['continuation']))
  return Requests(tokenizer, keys, pairs)


def truncate(
  request: Request, max_length: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
  """Returns the model's input and the targets at its last positions.

  The last `max_length + 1` ids are kept; the last of them is only predicted.

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

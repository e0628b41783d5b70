"""Turns strings into token ids: continuations to score after contexts.

The rules are those of lm-evaluation-harness 0.4.13 for decoder-only models.
"""

from collections.abc import Sequence
import dataclasses
import pathlib

from steepest.data import reading
from steepest.data.tokenizers import Tokenizer
from steepest.eval.questions import Question

# Fields of a line of the user's pairs, as kinds of reading.KINDS.
_FIELDS = {
  'task': 'text',
  'doc_id': 'text, number or list of them',
  'choice': 'text, number or list of them',
  'context': 'text',
  'continuation': 'text',
}
# Requests to tokenise at a time.
_CHUNK = 4096


@dataclasses.dataclass(frozen=True)
class Request:
  """A continuation to be scored after a context.

  Attributes:
    task: name; with `doc_id` and `choice` it identifies the request.
    doc_id: index of the document in its file (MMLU: within the subject).
    choice: index of the choice; n + i is choice i without a context, for
      `acc_mutual_info` of n choices.
    context: text, before trailing whitespace moves into the continuation.
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

  A context's trailing whitespace moves to the continuation; the two are
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


def build(tokenizer: Tokenizer, questions: Sequence[Question]) -> list[Request]:
  """Returns the requests of `questions`, in order."""
  keys = []
  pairs = []
  for question in questions:
    for choice, pair in enumerate(question.pairs()):
      keys.append((question.task.name, question.doc_id, choice))
      pairs.append(pair)
  return _requests(tokenizer, keys, pairs)


def read_requests(path: pathlib.Path, tokenizer: Tokenizer) -> list[Request]:
  """Reads pairs from JSON lines with the first five fields of a Request.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: a field is missing; names the line.
  """
  keys = []
  pairs = []
  for number, row in enumerate(reading.json_lines(path), start=1):
    reading.require(row, _FIELDS, f'{path}, request {number}')
    keys.append((row['task'], row['doc_id'], row['choice']))
    pairs.append((row['context'], row['continuation']))
  try:
    return _requests(tokenizer, keys, pairs)
  except ValueError as error:
    raise ValueError(f'{path}: {error}') from error


def _requests(
  tokenizer: Tokenizer,
  keys: Sequence[tuple[str, int, int]],
  pairs: Sequence[tuple[str, str]],
) -> list[Request]:
  """Returns the requests of (task, doc_id, choice)s and their strings."""
  found: list[Request] = []
  # In portions: the tokenizer's results take far more memory than the ids.
  for start in range(0, len(pairs), _CHUNK):
    part = slice(start, start + _CHUNK)
    found += [
      Request(*key, *pair, *ids)
      for key, pair, ids in zip(
        keys[part], pairs[part], tokenize(tokenizer, pairs[part])
      )
    ]
  return found


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

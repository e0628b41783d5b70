"""Sorted documents to shards.

R is manifest.RECORD_TOKENS, N the tokens of a shard, K the documents that
overlap it.
"""

import collections
from collections.abc import Sequence
import dataclasses
import itertools
import json
import pathlib
from typing import Any, NamedTuple

from etils import epath
import numpy as np

from steepest.data import files, manifest as manifests, shards
from steepest.data.preparing import sorting, tokenize

_R = manifests.RECORD_TOKENS


class Plan(NamedTuple):
  """The records of a sorted source, from `first` on, that go to one file.

  Attributes:
    shard: its entry in the manifest, but for size and hashes.
    sorted: file of the documents, sorting.SORTED[D].
    tokens: of the sorted source.
    first: first record.
    part: directory of the preparation. The file goes to `out` in it, a marker
      that it is complete to `done`.
    vocab_size: number of possible token ids.
  """

  shard: dict[str, Any]
  sorted: str
  tokens: int
  first: int
  part: pathlib.Path
  vocab_size: int


def plan(
  found: Sequence[sorting.SortedDocuments],
  shard_tokens: int,
  part: pathlib.Path,
  vocab_size: int,
) -> list[Plan]:
  """Cuts every sorted source into files; drops what fills no record.

  Raises:
    ValueError: all text together fills no record.
  """
  per_shard = shard_tokens // _R
  cuts = []
  for documents in found:
    records = max(documents.counts.tokens - 1, 0) // _R
    cuts += [
      (documents, first, min(first + per_shard, records))
      for first in range(0, records, per_shard)
    ]
  if not cuts:
    raise ValueError(
      f'the input holds less than a record of {_R + 1} tokens: give more text'
    )
  counts = collections.Counter(documents.split for documents, _, _ in cuts)
  numbers: collections.Counter[str] = collections.Counter()
  plans = []
  for documents, first, last in cuts:
    split = documents.split
    number = f'{numbers[split]:05d}-of-{counts[split]:05d}'
    numbers[split] += 1
    shard = {
      'name': f'{split}-{number}.array_record',
      'split': split,
      'source': documents.source,
      'records': last - first,
      'tokens': (last - first) * _R,
    }
    tokens = documents.counts.tokens
    plans.append(Plan(shard, documents.file, tokens, first, part, vocab_size))
  return plans


def written(plan: Plan) -> manifests.Shard | None:
  """Returns the shard of a plan if it is complete, else None."""
  path = plan.part / 'done' / f'{plan.shard["name"]}.json'
  if not path.exists():
    return None
  return manifests.Shard(**json.loads(path.read_text('utf-8')))


def write(plan: Plan) -> manifests.Shard:
  """Writes the shard of a plan."""
  begin = plan.first * _R
  end = begin + plan.shard['tokens']
  documents_D = np.memmap(
    plan.part / 'sorted' / plan.sorted, sorting.SORTED, 'r'
  )
  tokens_N, documents = _read(plan, documents_D, begin, end + 1)
  if tokens_N.max() >= plan.vocab_size:
    raise ValueError(
      f'{plan.part} is damaged, it holds token id {tokens_N.max()}: delete it '
      'and run the same command again'
    )
  path = plan.part / 'out' / plan.shard['name']
  with files.room_for(plan.part):
    shards.write(path, tokens_N, _R)
    shard = manifests.Shard(
      **plan.shard,
      documents=documents,
      bytes=path.stat().st_size,
      sha256=files.sha256(epath.Path(path)),
      sampled_sha256=files.sampled_sha256(epath.Path(path)),
    )
    text = json.dumps(dataclasses.asdict(shard))
    files.write(plan.part / 'done' / f'{path.name}.json', [text.encode()])
  return shard


def _read(
  plan: Plan, documents_D: np.ndarray, begin: int, end: int
) -> tuple[np.ndarray, int]:
  """Returns tokens [begin, end) of a source and the documents begun there.

  A document counts for the shard in which it begins; a source's last shard also
  counts those that fill no record.
  """
  starts_D = documents_D['start']
  first = int(np.searchsorted(starts_D, begin, 'right')) - 1
  last = int(np.searchsorted(starts_D, end, 'left'))
  own_K = np.array(documents_D[first:last])
  begins_K = own_K['start'].astype(np.int64)
  ends_K = np.append(
    begins_K[1:], starts_D[last] if last < len(starts_D) else plan.tokens
  )
  low_K = np.maximum(begins_K, begin)
  sizes_K = (np.minimum(ends_K, end) - low_K).astype(np.int64)
  offsets_K = own_K['offset'].astype(np.int64) + low_K - begins_K
  tokens_N = np.empty(end - begin, manifests.token_dtype(plan.vocab_size))
  # Read each chunk in one sweep, from beginning to end.
  order_K = np.lexsort((offsets_K, own_K['chunk']))
  for chunk, group in itertools.groupby(
    order_K.tolist(), lambda k: own_K['chunk'][k]
  ):
    path = tokenize.tokens_path(plan.part / 'chunks', int(chunk))
    with path.open('rb', buffering=0) as file:
      for k in group:
        at = int(low_K[k]) - begin
        piece = tokens_N[at : at + int(sizes_K[k])]
        file.seek(int(offsets_K[k]) * tokens_N.itemsize)
        if file.readinto(piece.data) != piece.nbytes:
          raise ValueError(
            f'{path} is cut short: delete {plan.part} and run the same command '
            'again'
          )
  begun = (begins_K >= begin) & (begins_K < end - 1)
  count = int(begun.sum())
  is_last = end - 1 + _R >= plan.tokens
  if is_last:
    count = len(starts_D) - int(np.searchsorted(starts_D, begin, 'left'))
  return tokens_N, count

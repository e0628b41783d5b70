"""Streams of documents to shards.

R is manifest.RECORD_TOKENS, N the tokens of a shard, K the documents that
reach into it.
"""

import collections
from collections.abc import Sequence
import itertools
import json
import pathlib
from typing import Any, NamedTuple

from etils import epath
import numpy as np

from steepest.data import files, manifest as manifests, shards
from steepest.data.preparing import runs, tables

_R = manifests.RECORD_TOKENS


class Plan(NamedTuple):
  """Records [first, last) of a stream, for one file.

  Attributes:
    shard: what the manifest will say; size and hashes are not yet known.
    stream: file of its documents, tables.STREAM[D].
    tokens: of the stream.
    first: first record.
    part: directory of the preparation, with its runs and tables; the file
      goes to `out` in it, a sign that it is complete to `done`.
    vocab_size: ids that a token may take.
  """

  shard: dict[str, Any]
  stream: str
  tokens: int
  first: int
  part: pathlib.Path
  vocab_size: int


def plan(
  streams: Sequence[tables.Stream],
  shard_tokens: int,
  part: pathlib.Path,
  vocab_size: int,
) -> list[Plan]:
  """Cuts every stream into files; what fills no record is left over.

  Raises:
    ValueError: all text together fills no record.
  """
  per_shard = shard_tokens // _R
  cuts = []
  for stream in streams:
    records = max(stream.tokens - 1, 0) // _R
    cuts += [
      (stream, first, min(first + per_shard, records))
      for first in range(0, records, per_shard)
    ]
  if not cuts:
    raise ValueError(
      f'the input holds less than a record of {_R + 1} tokens: give more text'
    )
  counts = collections.Counter(stream.split for stream, _, _ in cuts)
  numbers: collections.Counter[str] = collections.Counter()
  plans = []
  for stream, first, last in cuts:
    split = stream.split
    number = f'{numbers[split]:05d}-of-{counts[split]:05d}'
    numbers[split] += 1
    shard = {
      'name': f'{split}-{number}.array_record',
      'split': split,
      'source': stream.source,
      'records': last - first,
      'tokens': (last - first) * _R,
    }
    plans.append(
      Plan(shard, stream.file, stream.tokens, first, part, vocab_size)
    )
  return plans


def written(plan: Plan) -> manifests.Shard | None:
  """Returns the shard of a plan that was carried out, None otherwise."""
  path = plan.part / 'done' / f'{plan.shard["name"]}.json'
  if not path.exists():
    return None
  return manifests.Shard(**json.loads(path.read_text('utf-8')))


def write(plan: Plan) -> manifests.Shard:
  """Writes the shard of a plan."""
  begin = plan.first * _R
  end = begin + plan.shard['tokens']
  table_D = np.memmap(plan.part / 'tables' / plan.stream, tables.STREAM, 'r')
  tokens_N, documents = _read(plan, table_D, begin, end + 1)
  if tokens_N.max() >= plan.vocab_size:
    raise ValueError(
      f'{plan.part} is damaged, it holds token id {tokens_N.max()}: delete it '
      'and run the same command again'
    )
  path = plan.part / 'out' / plan.shard['name']
  shards.write(path, tokens_N, _R)
  held = epath.Path(path)
  shard = manifests.Shard(
    **plan.shard,
    documents=documents,
    bytes=path.stat().st_size,
    sha256=files.sha256(held),
    sampled_sha256=files.sampled_sha256(held),
  )
  text = json.dumps(manifests.as_json(shard))
  files.write(plan.part / 'done' / f'{path.name}.json', [text.encode()])
  return shard


def _read(
  plan: Plan, table_D: np.ndarray, begin: int, end: int
) -> tuple[np.ndarray, int]:
  """Returns tokens [begin, end) of a stream and the documents begun there.

  A document is counted for the shard in which it begins; the last shard of a
  stream counts those that fill no record, too.
  """
  starts_D = table_D['start']
  first = int(np.searchsorted(starts_D, begin, 'right')) - 1
  last = int(np.searchsorted(starts_D, end, 'left'))
  held_K = np.array(table_D[first:last])
  begins_K = held_K['start'].astype(np.int64)
  ends_K = np.append(
    begins_K[1:], starts_D[last] if last < len(starts_D) else plan.tokens
  )
  low_K = np.maximum(begins_K, begin)
  sizes_K = (np.minimum(ends_K, end) - low_K).astype(np.int64)
  offsets_K = held_K['offset'].astype(np.int64) + low_K - begins_K
  tokens_N = np.empty(end - begin, manifests.token_dtype(plan.vocab_size))
  # Each run in one sweep, from its beginning to its end.
  order_K = np.lexsort((offsets_K, held_K['run']))
  for run, group in itertools.groupby(
    order_K.tolist(), lambda k: held_K['run'][k]
  ):
    path = runs.tokens_path(plan.part / 'runs', int(run))
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
  final = end - 1 + _R >= plan.tokens
  begun = (begins_K >= begin) & (begins_K < end - 1)
  count = int(begun.sum())
  if final:
    count = len(starts_D) - int(np.searchsorted(starts_D, begin, 'left'))
  return tokens_N, count

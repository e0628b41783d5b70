"""Tokens of a source, in a spool file, to the shards of its two splits.

R is manifest.RECORD_TOKENS.
"""

import array
import collections
import dataclasses
import pathlib
from typing import NamedTuple

import numpy as np
from rich import progress as rich_progress

from steepest.data import arrange
from steepest.data import manifest as manifests
from steepest.data import shards

_R = manifests.RECORD_TOKENS
# The source of the documents whose own source fills no record.
POOLED = 'small sources'


class Rules(NamedTuple):
  """How much is kept for validation, size of a file, order of documents."""

  validation_tokens: int
  validation_fraction: float
  shard_tokens: int
  seed: int


@dataclasses.dataclass
class Spool:
  """Tokens of one source, in a file, and its documents, in memory."""

  path: pathlib.Path
  # Compact, as there may be hundreds of millions of documents.
  hashes: array.array = dataclasses.field(
    default_factory=lambda: array.array('Q')
  )
  lengths: array.array = dataclasses.field(
    default_factory=lambda: array.array('Q')
  )
  bytes: int = 0


class _Plan(NamedTuple):
  """Records [first, last) of a stream, for one file."""

  split: str
  source: str
  stream: arrange.Stream
  first: int
  last: int


def write_shards(
  spools: dict[str, Spool],
  part: pathlib.Path,
  dtype: np.dtype,
  rules: Rules,
  progress: rich_progress.Progress,
) -> tuple[list[manifests.Shard], list[str]]:
  """Cuts every source into the records of its two splits.

  Args:
    spools: tokens and documents by source.
    part: directory for the files.
    dtype: type of a token, in the spools and in the shards.
    rules: what decides the cuts.
    progress: shows how far it is.

  Returns:
    The shards, and notes for the reader.

  Raises:
    ValueError: all text together fills no record.
  """
  notes: list[str] = []
  plans: list[_Plan] = []
  for name, spool in sorted(_pool(spools, part, notes).items()):
    for split, stream in _split(rules, spool, dtype).items():
      records = max(len(stream) - 1, 0) // _R
      per_shard = rules.shard_tokens // _R
      plans += [
        _Plan(split, name, stream, first, min(first + per_shard, records))
        for first in range(0, records, per_shard)
      ]
      if split == 'validation' and rules.validation_tokens and not records:
        notes.append(
          f'source {name!r} gives no validation: no documents of {_R + 1} '
          f'tokens are within {rules.validation_fraction:.2g} of it '
          '(--validation_fraction)'
        )
  if not plans:
    raise ValueError(
      f'the input holds less than a record of {_R + 1} tokens: give more text'
    )
  return _write_plans(plans, part, progress), notes


def _pool(
  spools: dict[str, Spool], part: pathlib.Path, notes: list[str]
) -> dict[str, Spool]:
  """Puts the sources that fill no record together as one."""
  small = {
    n: s for n, s in spools.items() if sum(s.lengths) <= _R or n == POOLED
  }
  if not small:
    return spools
  pooled = Spool(part / 'spool' / 'pooled')
  with pooled.path.open('wb') as file:
    for spool in small.values():
      file.write(spool.path.read_bytes())
      pooled.hashes.extend(spool.hashes)
      pooled.lengths.extend(spool.lengths)
  notes.append(
    f'{len(small)} sources of less than {_R + 1} tokens, as {min(small)!r}, '
    f'are together the source {POOLED!r} in the shards'
  )
  large = {n: s for n, s in spools.items() if n not in small}
  return {**large, POOLED: pooled}


def _split(
  rules: Rules, spool: Spool, dtype: np.dtype
) -> dict[str, arrange.Stream]:
  """Returns the streams of training and, if a record fits, validation."""
  hashes = np.frombuffer(spool.hashes, np.uint64)
  lengths = np.frombuffer(spool.lengths, np.uint64).astype(np.int64)
  starts = np.cumsum(lengths) - lengths
  most = int(rules.validation_fraction * int(lengths.sum()))
  mask = arrange.validation_mask(hashes, lengths, rules.validation_tokens, most)
  if lengths[mask].sum() <= _R:
    mask[:] = False
  tokens = np.memmap(spool.path, dtype, 'r')
  shuffled = arrange.order(hashes, rules.seed)
  return {
    split: arrange.Stream(
      tokens, starts, lengths, shuffled[mask[shuffled] == kept]
    )
    for split, kept in (('train', False), ('validation', True))
  }


def _write_plans(
  plans: list[_Plan], part: pathlib.Path, progress: rich_progress.Progress
) -> list[manifests.Shard]:
  counts = collections.Counter(p.split for p in plans)
  numbers: collections.Counter[str] = collections.Counter()
  written = []
  for plan in progress.track(plans, description='writing shards'):
    split, stream = plan.split, plan.stream
    name = f'{split}-{numbers[split]:05d}-of-{counts[split]:05d}.array_record'
    numbers[split] += 1
    begin, end = plan.first * _R, plan.last * _R
    size, sha256 = shards.write(part / name, stream.read(begin, end + 1), _R)
    # The last file counts the documents that fill no record, too.
    final = plan.last * _R + _R >= len(stream)
    written.append(
      manifests.Shard(
        name=name,
        split=split,
        source=plan.source,
        records=plan.last - plan.first,
        tokens=end - begin,
        documents=stream.begun(begin, None if final else end),
        bytes=size,
        sha256=sha256,
      )
    )
  return written

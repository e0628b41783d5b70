"""Deduplicates, sorts and splits all documents of all chunks.

D is the documents of a part, the only ones in memory at a time. Parts are
ranges of the sort keys, so duplicates fall into the same part, and parts in
sequence give the order of a source.
"""

import collections
from collections.abc import Callable, Iterator, Sequence
import dataclasses
import json
import pathlib
from typing import NamedTuple

import numpy as np

from steepest.data import files, manifest as manifests
from steepest.data.preparing import tokenize

# Hash in two halves, place in the input (the chunk in the upper 32 bits), first
# token in the chunk's file, tokens, UTF-8 bytes, index of the source.
_DOCUMENT = np.dtype(
  [
    ('high', '<u8'),
    ('low', '<u8'),
    ('place', '<u8'),
    ('offset', '<u8'),
    ('length', '<u4'),
    ('bytes', '<u4'),
    ('source', '<u4'),
  ]
)
# First token of a document in the sorted source, its chunk and its place there.
SORTED = np.dtype([('start', '<u8'), ('chunk', '<u4'), ('offset', '<u8')])
_CHUNK_BITS = np.uint64(32)
# Documents per part, approximately.
_PART = 1 << 21
# The first candidates for validation have this many times the tokens wanted.
_CANDIDATES = 16


class Validation(NamedTuple):
  """Tokens to keep for validation, at most a fraction of each source."""

  tokens: int
  fraction: float


@dataclasses.dataclass(frozen=True)
class SortedDocuments:
  """The documents of a source and split, in order; SORTED[D] in a file."""

  source: str
  split: str
  file: str
  counts: manifests.Source


@dataclasses.dataclass
class Distinct:
  """Counts of the documents without duplicates.

  Attributes:
    sources: counts by source.
    duplicates: number of documents dropped.
    pooled: names of the sources that make up manifests.POOLED.
  """

  sources: dict[str, manifests.Source]
  duplicates: int
  pooled: list[str]


class Sorting:
  """Sorts documents in its own directory."""

  def __init__(
    self,
    directory: pathlib.Path,
    chunk_directory: pathlib.Path,
    chunks: Sequence[tokenize.Chunk],
    seed: int,
  ):
    self._directory = directory
    self._chunk_directory = chunk_directory
    self._chunks = chunks
    self._seed = seed
    self._names = sorted({name for chunk in chunks for name in chunk.sources})
    total = sum(chunk.documents for chunk in chunks)
    self._bits = max(-(-total // _PART) - 1, 0).bit_length()
    directory.mkdir(parents=True)

  def sort(self, advance: Callable[[], None]) -> Distinct:
    """Drops duplicates and sorts; calls `advance` now and then.

    Among equal documents, keeps the first in the input.
    """
    self._partition(advance)
    counts: dict[str, np.ndarray] = {}
    duplicates = 0
    for path in self._parts():
      advance()
      part_D = np.fromfile(path, _DOCUMENT)
      keys_D = tokenize.order_keys(part_D['high'], self._seed)
      part_D = part_D[np.lexsort((part_D['place'], part_D['low'], keys_D))]
      first_D = np.ones(len(part_D), bool)
      first_D[1:] = (part_D['high'][1:] != part_D['high'][:-1]) | (
        part_D['low'][1:] != part_D['low'][:-1]
      )
      duplicates += int((~first_D).sum())
      part_D = part_D[first_D]
      path.write_bytes(part_D.data)
      for number in np.unique(part_D['source']):
        name = self._names[number]
        own_D = part_D[part_D['source'] == number]
        counts[name] = _counts(own_D) + counts.setdefault(
          name, np.zeros(3, int)
        )
    sources = {
      name: manifests.Source(*counts[name].tolist()) for name in sorted(counts)
    }
    return Distinct(
      sources,
      duplicates,
      [
        name
        for name, source in sources.items()
        if source.tokens <= manifests.RECORD_TOKENS or name == manifests.POOLED
      ],
    )

  def _partition(self, advance: Callable[[], None]) -> None:
    """Appends every document to its part."""
    numbers = {name: i for i, name in enumerate(self._names)}
    for chunk in self._chunks:
      advance()
      index_D = tokenize.load_index(self._chunk_directory, chunk.number)
      all_D = np.zeros(len(index_D), _DOCUMENT)
      for field in ('high', 'low', 'offset', 'length', 'bytes'):
        all_D[field] = index_D[field]
      all_D['place'] = (np.uint64(chunk.number) << _CHUNK_BITS) + np.arange(
        len(index_D), dtype=np.uint64
      )
      own = np.array([numbers[name] for name in chunk.sources], np.uint32)
      all_D['source'] = own[index_D['source']]
      keys_D = tokenize.order_keys(all_D['high'], self._seed)
      # Shifted in two steps: a shift by all 64 bits is undefined.
      parts_D = keys_D >> np.uint64(1) >> np.uint64(63 - self._bits)
      for i in np.unique(parts_D):
        with self._part(int(i)).open('ab') as file:
          file.write(all_D[parts_D == i].data)

  def _part(self, i: int) -> pathlib.Path:
    return self._directory / f'part-{i:05d}'

  def _parts(self) -> Iterator[pathlib.Path]:
    for i in range(1 << self._bits):
      if self._part(i).exists():
        yield self._part(i)

  def split(
    self, distinct: Distinct, validation: Validation
  ) -> list[SortedDocuments]:
    """Writes the sorted documents of both splits of every source."""
    pooled = {n: n for n in distinct.sources} | dict.fromkeys(
      distinct.pooled, manifests.POOLED
    )
    tokens: collections.Counter[str] = collections.Counter()
    for name, source in distinct.sources.items():
      tokens[pooled[name]] += source.tokens
    names = sorted(tokens)
    numbers = {name: i for i, name in enumerate(names)}
    # Index of a source → index of the source that it is sorted into.
    into = np.array(
      [numbers[pooled[n]] if n in pooled else 0 for n in self._names], np.int64
    )
    chosen = self._choose(validation, into, [tokens[n] for n in names])
    counts = {
      (i, s): np.zeros(3, int) for i in range(len(names)) for s in (0, 1)
    }
    for path in self._parts():
      part_D = np.fromfile(path, _DOCUMENT)
      validation_D = np.isin(part_D['place'], chosen)
      into_D = into[part_D['source']]
      for i in np.unique(into_D).tolist():
        for split in (0, 1):
          own_D = part_D[(into_D == i) & (validation_D == split)]
          self._append(i, split, own_D, int(counts[i, split][1]))
          counts[i, split] += _counts(own_D)
      path.unlink()
    return [
      SortedDocuments(
        names[i],
        manifests.SPLITS[split],
        self._sorted(i, split).name,
        manifests.Source(*count.tolist()),
      )
      for (i, split), count in counts.items()
      if count[0]
    ]

  def _sorted(self, i: int, split: int) -> pathlib.Path:
    return self._directory / f'sorted-{i:05d}-{manifests.SPLITS[split]}'

  def _append(self, i: int, split: int, own_D: np.ndarray, start: int) -> None:
    if not len(own_D):
      return
    lengths_D = own_D['length'].astype(np.uint64)
    sorted_D = np.zeros(len(own_D), SORTED)
    sorted_D['start'] = start + np.cumsum(lengths_D) - lengths_D
    sorted_D['chunk'] = own_D['place'] >> _CHUNK_BITS
    sorted_D['offset'] = own_D['offset']
    with self._sorted(i, split).open('ab') as file:
      file.write(sorted_D.data)

  def _choose(
    self, validation: Validation, into: np.ndarray, tokens: list[int]
  ) -> np.ndarray:
    """Returns the places of all validation documents.

    Applies `validation_mask` to each sorted source, looking only at the
    documents with the smallest hashes: enough to decide.
    """
    chosen: list[np.ndarray] = []
    pending = list(range(len(tokens)))
    times = _CANDIDATES
    while pending:
      shares = [
        min(times * validation.tokens / tokens[i], 1.0) for i in pending
      ]
      candidates = self._candidates(into, dict(zip(pending, shares)))
      undecided = []
      for i, share in zip(pending, shares):
        own_D = candidates[i]
        most = int(validation.fraction * tokens[i])
        mask_D = validation_mask(
          own_D['high'], own_D['length'], validation.tokens, most
        )
        taken = int(own_D['length'][mask_D].sum(dtype=np.int64))
        if taken < min(validation.tokens, most) and share < 1.0:
          undecided.append(i)
        elif taken > manifests.RECORD_TOKENS:
          chosen.append(own_D['place'][mask_D])
      pending, times = undecided, 4 * times
    return np.concatenate(chosen) if chosen else np.zeros(0, np.uint64)

  def _candidates(
    self, into: np.ndarray, shares: dict[int, float]
  ) -> dict[int, np.ndarray]:
    """Returns, by source, the documents in its lowest share of hashes."""
    bounds = np.zeros(into.max(initial=0) + 1)
    for i, share in shares.items():
      bounds[i] = share
    pieces: dict[int, list[np.ndarray]] = {i: [] for i in shares}
    for path in self._parts():
      part_D = np.fromfile(path, _DOCUMENT)
      into_D = into[part_D['source']]
      low_D = part_D['high'] / 2.0**64 <= bounds[into_D]
      for i in np.unique(into_D[low_D]).tolist():
        if i in shares:
          pieces[i].append(part_D[low_D & (into_D == i)])
    empty = np.zeros(0, _DOCUMENT)
    return {i: np.concatenate([empty, *p]) for i, p in pieces.items()}


def validation_mask(
  hashes_D: np.ndarray, lengths_D: np.ndarray, wanted: int, most: int
) -> np.ndarray:
  """Chooses validation documents by their hashes, whatever their order.

  Takes documents in the order of their hashes until `wanted` tokens are
  reached; skips any that would bring the sum above `most`.

  Args:
    hashes_D: uint64.
    lengths_D: tokens of each document.
    wanted: tokens to keep from training.
    most: tokens that may be kept.

  Returns:
    bool[D], True for validation.
  """
  mask_D = np.zeros(len(hashes_D), bool)
  total = 0
  for i in np.argsort(hashes_D, kind='stable'):
    if total >= min(wanted, most):
      break
    if total + lengths_D[i] <= most:
      mask_D[i] = True
      total += int(lengths_D[i])
  return mask_D


def save(
  path: pathlib.Path, distinct: Distinct, found: Sequence[SortedDocuments]
) -> None:
  """Writes the results, which marks the sorting as complete."""
  values = [dataclasses.asdict(distinct), *map(dataclasses.asdict, found)]
  files.write(path, [json.dumps(values).encode()])


def load(path: pathlib.Path) -> tuple[Distinct, list[SortedDocuments]]:
  """Reads what `save` wrote."""
  distinct, *found = json.loads(path.read_text('utf-8'))
  distinct['sources'] = {
    n: manifests.Source(**s) for n, s in distinct['sources'].items()
  }
  return Distinct(**distinct), [
    SortedDocuments(**{**s, 'counts': manifests.Source(**s['counts'])})
    for s in found
  ]


def _counts(own_D: np.ndarray) -> np.ndarray:
  """Returns documents, tokens and bytes."""
  return np.array(
    [
      len(own_D),
      own_D['length'].sum(dtype=np.int64),
      own_D['bytes'].sum(dtype=np.int64),
    ]
  )

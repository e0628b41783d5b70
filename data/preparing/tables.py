"""All documents of all runs: told apart, put in order, split.

D is the documents of a part. Nothing here holds more than a part in memory:
parts are ranges of the keys that order the documents, so duplicates fall into
the same part, and the parts one after the other are the order of a source.
"""

import collections
from collections.abc import Callable, Iterator, Sequence
import dataclasses
import json
import pathlib
from typing import NamedTuple

import numpy as np

from steepest.data import files, manifest as manifests
from steepest.data.preparing import arrange, runs

# Hash in two halves, place in the input (the run in the upper 32 bits), first
# token in the run's file, tokens, UTF-8 bytes, number of the source.
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
# A document of a stream: its first token there, its run and place in it.
STREAM = np.dtype([('start', '<u8'), ('run', '<u4'), ('offset', '<u8')])
_RUN_BITS = np.uint64(32)
# Documents of a part, about.
_PART = 1 << 21
# The first candidates for validation have so many times the tokens wanted.
_CANDIDATES = 16


class Split(NamedTuple):
  """How much is kept for validation."""

  tokens: int
  fraction: float


@dataclasses.dataclass(frozen=True)
class Stream:
  """The documents of a source and split, in order; STREAM[D] in a file."""

  source: str
  split: str
  file: str
  tokens: int
  held: manifests.Source


@dataclasses.dataclass
class Documents:
  """The distinct documents.

  Attributes:
    sources: what was kept, by source.
    duplicates: documents that were dropped.
    lengths: documents by source, those of 2^i tokens or more but fewer than
      2^(i + 1) at i.
    pooled: names of the sources that are together as manifests.POOLED.
  """

  sources: dict[str, manifests.Source]
  duplicates: int
  lengths: dict[str, list[int]]
  pooled: list[str]


class Tables:
  """Sorts documents in a directory of its own."""

  def __init__(
    self,
    directory: pathlib.Path,
    run_directory: pathlib.Path,
    held: Sequence[runs.Run],
    seed: int,
  ):
    self._directory = directory
    self._run_directory = run_directory
    self._seed = seed
    self._names = sorted({name for run in held for name in run.sources})
    total = sum(run.documents for run in held)
    self._bits = max(-(-total // _PART) - 1, 0).bit_length()
    self._held = held
    directory.mkdir(parents=True)

  def sort(self, advance: Callable[[], None]) -> Documents:
    """Drops duplicates and sorts; calls `advance` now and then.

    Of equal documents the first of the input stays.
    """
    self._partition(advance)
    totals: collections.Counter[tuple[str, str]] = collections.Counter()
    lengths: dict[str, np.ndarray] = {}
    duplicates = 0
    for path in self._parts():
      advance()
      part_D = np.fromfile(path, _DOCUMENT)
      keys_D = arrange.keys(part_D['high'], self._seed)
      order_D = np.lexsort((part_D['place'], part_D['low'], keys_D))
      part_D = part_D[order_D]
      first_D = np.ones(len(part_D), bool)
      first_D[1:] = (part_D['high'][1:] != part_D['high'][:-1]) | (
        part_D['low'][1:] != part_D['low'][:-1]
      )
      duplicates += int((~first_D).sum())
      part_D = part_D[first_D]
      _write(path, part_D)
      for number in np.unique(part_D['source']):
        name = self._names[number]
        held_D = part_D[part_D['source'] == number]
        totals[name, 'documents'] += len(held_D)
        for field in ('tokens', 'bytes'):
          column = 'length' if field == 'tokens' else 'bytes'
          totals[name, field] += int(held_D[column].sum(dtype=np.int64))
        bins = np.bincount(np.frexp(held_D['length'])[1] - 1, minlength=33)
        lengths[name] = bins + lengths.setdefault(name, np.zeros(33, np.int64))
    return self._summary(totals, lengths, duplicates)

  def _partition(self, advance: Callable[[], None]) -> None:
    """Appends every document to its part."""
    numbers = {name: i for i, name in enumerate(self._names)}
    for number, run in enumerate(self._held):
      advance()
      table_D = runs.load_table(self._run_directory, number)
      all_D = np.zeros(len(table_D), _DOCUMENT)
      for field in ('high', 'low', 'offset', 'length', 'bytes'):
        all_D[field] = table_D[field]
      all_D['place'] = (np.uint64(number) << _RUN_BITS) + np.arange(
        len(table_D), dtype=np.uint64
      )
      own = np.array([numbers[name] for name in run.sources], np.uint32)
      all_D['source'] = own[table_D['source']]
      keys_D = arrange.keys(all_D['high'], self._seed)
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

  def _summary(
    self,
    totals: collections.Counter[tuple[str, str]],
    lengths: dict[str, np.ndarray],
    duplicates: int,
  ) -> Documents:
    fields = [f.name for f in dataclasses.fields(manifests.Source)]
    sources = {
      name: manifests.Source(**{f: totals[name, f] for f in fields})
      for name in sorted(lengths)
    }
    small = [
      name
      for name, held in sources.items()
      if held.tokens <= manifests.RECORD_TOKENS or name == manifests.POOLED
    ]
    return Documents(
      sources,
      duplicates,
      {n: np.trim_zeros(b, 'b').tolist() for n, b in sorted(lengths.items())},
      small,
    )

  def split(self, found: Documents, rules: Split) -> list[Stream]:
    """Writes the streams of the two splits of every source."""
    streams = {n: n for n in found.sources} | dict.fromkeys(
      found.pooled, manifests.POOLED
    )
    tokens: collections.Counter[str] = collections.Counter()
    for name, held in found.sources.items():
      tokens[streams[name]] += held.tokens
    names = sorted(tokens)
    numbers = {name: i for i, name in enumerate(names)}
    # From the number of a source to that of its stream.
    stream_of = np.array(
      [numbers[streams[n]] if n in streams else 0 for n in self._names],
      np.int64,
    )
    chosen = self._choose(rules, stream_of, [tokens[n] for n in names])
    sums = {
      (i, s): np.zeros(3, np.int64) for i in range(len(names)) for s in (0, 1)
    }
    for path in self._parts():
      part_D = np.fromfile(path, _DOCUMENT)
      validation_D = np.isin(part_D['place'], chosen)
      part_streams_D = stream_of[part_D['source']]
      for i in np.unique(part_streams_D).tolist():
        for split in (0, 1):
          held_D = part_D[(part_streams_D == i) & (validation_D == split)]
          self._append(i, split, held_D, int(sums[i, split][1]))
          sums[i, split] += (
            len(held_D),
            held_D['length'].sum(dtype=np.int64),
            held_D['bytes'].sum(dtype=np.int64),
          )
      path.unlink()
    return [
      Stream(
        names[i],
        manifests.SPLITS[split],
        self._stream(i, split).name,
        int(held[1]),
        manifests.Source(*held.tolist()),
      )
      for (i, split), held in sums.items()
      if held[0]
    ]

  def _stream(self, i: int, split: int) -> pathlib.Path:
    return self._directory / f'stream-{i:05d}-{manifests.SPLITS[split]}'

  def _append(self, i: int, split: int, held_D: np.ndarray, start: int) -> None:
    if not len(held_D):
      return
    lengths_D = held_D['length'].astype(np.uint64)
    stream_D = np.zeros(len(held_D), STREAM)
    stream_D['start'] = start + np.cumsum(lengths_D) - lengths_D
    stream_D['run'] = held_D['place'] >> _RUN_BITS
    stream_D['offset'] = held_D['offset']
    with self._stream(i, split).open('ab') as file:
      file.write(stream_D.data)

  def _choose(
    self, rules: Split, stream_of: np.ndarray, tokens: list[int]
  ) -> np.ndarray:
    """Returns the places of all validation documents.

    As of arrange.validation_mask over each stream, whose documents with the
    smallest hashes are candidates: enough of them to decide.
    """
    chosen: list[np.ndarray] = []
    pending = list(range(len(tokens)))
    times = _CANDIDATES
    while pending:
      shares = [min(times * rules.tokens / tokens[i], 1.0) for i in pending]
      candidates = self._candidates(stream_of, dict(zip(pending, shares)))
      undecided = []
      for i, share in zip(pending, shares):
        held_D = candidates[i]
        most = int(rules.fraction * tokens[i])
        mask_D = arrange.validation_mask(
          held_D['high'], held_D['length'], rules.tokens, most
        )
        taken = int(held_D['length'][mask_D].sum(dtype=np.int64))
        if taken < min(rules.tokens, most) and share < 1.0:
          undecided.append(i)
        elif taken > manifests.RECORD_TOKENS:
          chosen.append(held_D['place'][mask_D])
      pending, times = undecided, 4 * times
    return np.concatenate(chosen) if chosen else np.zeros(0, np.uint64)

  def _candidates(
    self, stream_of: np.ndarray, shares: dict[int, float]
  ) -> dict[int, np.ndarray]:
    """Returns by stream the documents whose hash is in its lowest share."""
    bounds = np.zeros(stream_of.max(initial=0) + 1)
    for i, share in shares.items():
      bounds[i] = share
    pieces: dict[int, list[np.ndarray]] = {i: [] for i in shares}
    for path in self._parts():
      part_D = np.fromfile(path, _DOCUMENT)
      streams_D = stream_of[part_D['source']]
      low_D = part_D['high'] / 2.0**64 <= bounds[streams_D]
      for i in np.unique(streams_D[low_D]).tolist():
        if i in shares:
          pieces[i].append(part_D[low_D & (streams_D == i)])
    empty = np.zeros(0, _DOCUMENT)
    return {i: np.concatenate([empty, *p]) for i, p in pieces.items()}


def save(
  path: pathlib.Path, found: Documents, streams: Sequence[Stream]
) -> None:
  """Writes what was found, as a sign that the sorting is complete."""
  held = [dataclasses.asdict(found), *map(dataclasses.asdict, streams)]
  files.write(path, [json.dumps(held).encode()])


def load(path: pathlib.Path) -> tuple[Documents, list[Stream]]:
  """Reads what `save` wrote."""
  found, *streams = json.loads(path.read_text('utf-8'))
  found['sources'] = {
    n: manifests.Source(**s) for n, s in found['sources'].items()
  }
  return Documents(**found), [
    Stream(**{**s, 'held': manifests.Source(**s['held'])}) for s in streams
  ]


def _write(path: pathlib.Path, part_D: np.ndarray) -> None:
  with path.open('wb') as file:
    file.write(part_D.data)

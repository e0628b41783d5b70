"""Packs requests into rows of a few lengths; shared prefixes are computed once.

B rows of a batch, L tokens of a row, S shards of the rows, P points of a shard.

A request is scored at the last positions of its input. Models are causal, so a
request whose input is a prefix of another's is scored along with that one: the
letters of a multiple-choice question, and single-token choices in general, cost
one pass.
Inputs with a common prefix become a tree: the shared trunk, then a branch for
each, which sees the trunk and itself. A row holds several trees, which do not
see one another, so there is hardly any padding. The model has to score points:
(position, token) pairs.
"""

import bisect
from collections.abc import Iterable, Iterator, Sequence
import dataclasses
import math
from typing import NamedTuple

import numpy as np

# Shortest row, even for shorter requests: several fill one row.
_SHORTEST = 256
# Most row lengths: a program is compiled for each.
_LENGTHS = 8
# Most sequences in a tree: bounds the search for the best trees.
_BRANCHES = 32
# Requests packed together, so that memory does not grow with the suite.
_CHUNK = 8192

# The model's input ids, and the ids scored at its last positions.
Target = tuple[tuple[int, ...], tuple[int, ...]]


@dataclasses.dataclass
class _Sequence:
  """Tokens, and the numbers of the targets scored on them."""

  tokens: tuple[int, ...]
  targets: list[int]
  points: int


class _Tree(NamedTuple):
  """Sequences that share their first `trunk` tokens.

  `size` is the space that it needs in a row, in tokens or points.
  """

  trunk: int
  sequences: Sequence[_Sequence]
  size: int


class Batch(NamedTuple):
  """Arrays of a batch, and which target owns which points.

  Attributes:
    arrays: tokens, positions, trees and branches, B×L; then positions in the
      shard and the tokens scored there, S×P. Tree 0 is padding; branch 0 is
      the trunk.
    points: largest number of points in a shard.
    owners: (shard, first point, points, target) of each target.
  """

  arrays: list[np.ndarray]
  points: int
  owners: list[tuple[int, int, int, int]]


@dataclasses.dataclass(frozen=True)
class Packer:
  """Turns targets into batches.

  Attributes:
    lengths: row lengths, shortest first.
    tokens: approximate number of tokens per shard of a batch.
    shards: number of shards that rows are split into.
    multiple: a shard's points are padded to a multiple of this.
  """

  lengths: Sequence[int]
  tokens: int
  shards: int
  multiple: int

  def batches(self, chunks: Iterable[dict[int, Target]]) -> Iterator[Batch]:
    """Yields batches that contain every target of every chunk once."""
    waiting: dict[int, list[list[_Tree]]] = {n: [] for n in self.lengths}
    targets: dict[int, Target] = {}
    for chunk in chunks:
      targets.update(chunk)
      trees = _trees(_sequences(chunk), self.lengths)
      for length, rows in _rows(trees, self.lengths):
        waiting[length] += rows
        count = self._rows(length)
        while len(waiting[length]) >= count:
          yield self._batch(waiting[length][:count], length, targets)
          del waiting[length][:count]
    for length, rows in waiting.items():
      if rows:
        yield self._batch(rows, length, targets)

  def _rows(self, length: int) -> int:
    return max(1, self.tokens // length) * self.shards

  def _batch(
    self, rows: list[list[_Tree]], length: int, targets: dict[int, Target]
  ) -> Batch:
    """Lays rows out, and drops their targets from `targets`."""
    count = self._rows(length)
    by_shard = count // self.shards
    capacity = -(-by_shard * length // self.multiple) * self.multiple
    grid = np.zeros((4, count, length), np.int32)
    spots = np.zeros((2, self.shards, capacity), np.int32)
    filled = [0] * self.shards
    owners = []
    # Dealt in order of their points, so that shards get about as many each.
    rows = sorted(rows, key=lambda row: sum(_points(t) for t in row))
    for i, row in enumerate(rows):
      shard, within = i % self.shards, i // self.shards
      start = 0
      for number, tree in enumerate(row, start=1):
        place = within * length + start
        _write(grid[:, shard * by_shard + within], start, number, tree)
        for index, at, ids in _spots(tree, targets):
          first = filled[shard]
          filled[shard] += len(ids)
          spots[0, shard, first : filled[shard]] = np.add(at, place)
          spots[1, shard, first : filled[shard]] = ids
          owners.append((shard, first, len(ids), index))
        start += tree.size
    return Batch([*grid, *spots], max(filled), owners)


def chunks(
  targets: Iterable[tuple[int, Target]],
) -> Iterator[dict[int, Target]]:
  """Yields numbered targets in portions that are packed separately."""
  chunk: dict[int, Target] = {}
  for index, target in targets:
    chunk[index] = target
    if len(chunk) == _CHUNK:
      yield chunk
      chunk = {}
  if chunk:
    yield chunk


def row_lengths(max_length: int, multiple: int) -> list[int]:
  """Returns the lengths of rows, shortest first.

  They are few, because each costs a compilation, and depend only on
  `max_length`, so that all tasks share them.

  Args:
    max_length: the model's, and the longest row; each length is half of the
      next, or a smaller part if halving would not reach the shortest.
    multiple: lengths are multiples of this.
  """
  part = max(2, math.ceil((max_length / _SHORTEST) ** (1 / (_LENGTHS - 1))))
  lengths = [max_length]
  while len(lengths) < _LENGTHS and lengths[-1] >= 2 * _SHORTEST:
    lengths.append(-(-lengths[-1] // (part * multiple)) * multiple)
  return lengths[::-1]


def _sequences(targets: dict[int, Target]) -> list[_Sequence]:
  """Puts each target on a sequence that starts with its input."""
  # In descending order, an input directly follows those that start with it.
  order = sorted(targets, key=targets.__getitem__, reverse=True)
  sequences: list[_Sequence] = []
  for index in order:
    inputs, ids = targets[index]
    last = sequences[-1] if sequences else None
    if (
      last is None
      or last.tokens[: len(inputs)] != inputs
      or last.points + len(ids) > len(last.tokens)
    ):
      last = _Sequence(inputs, [], 0)
      sequences.append(last)
    last.targets.append(index)
    last.points += len(ids)
  return sequences


def _trees(
  sequences: Sequence[_Sequence], lengths: Sequence[int]
) -> list[_Tree]:
  """Cuts sorted sequences into the trees that need the least space.

  A tree is no longer than the row that its longest sequence needs.
  """
  alike = [0]
  for left, right in zip(sequences, sequences[1:]):
    alike.append(_common(left.tokens, right.tokens))
  # The least space that the first n sequences need, and their last tree.
  best = [0]
  last = [_Tree(0, (), 0)]
  for end in range(1, len(sequences) + 1):
    room, tree = math.inf, last[0]
    tokens = points = longest = 0
    trunk = len(sequences[end - 1].tokens)
    for start in range(end - 1, max(end - 1 - _BRANCHES, -1), -1):
      if start < end - 1:
        trunk = min(trunk, alike[start + 1])
      member = sequences[start]
      tokens += len(member.tokens)
      points += member.points
      longest = max(longest, len(member.tokens))
      size = max(tokens - (end - start - 1) * trunk, points)
      row = lengths[bisect.bisect_left(lengths, longest)]
      if not trunk or size > row:
        break
      if best[start] + size < room:
        room = best[start] + size
        shared = trunk if start < end - 1 else 0
        tree = _Tree(shared, sequences[start:end], size)
    best.append(int(room))
    last.append(tree)
  trees = []
  end = len(sequences)
  while end:
    trees.append(last[end])
    end -= len(last[end].sequences)
  return trees


def _common(left: tuple[int, ...], right: tuple[int, ...]) -> int:
  """Returns the length of the shared prefix, at least one short of either."""
  limit = min(len(left), len(right)) - 1
  low, high = 0, limit
  # Comparing slices is faster than comparing token by token.
  while low < high:
    middle = (low + high + 1) // 2
    if left[low:middle] == right[low:middle]:
      low = middle
    else:
      high = middle - 1
  return low


def _rows(
  trees: list[_Tree], lengths: Sequence[int]
) -> Iterator[tuple[int, list[list[_Tree]]]]:
  """Yields the rows of each length, longest first.

  The longest trees go first, each on the row where it leaves the least room;
  trees that need shorter rows fill the room left on longer ones.
  """
  left = sorted(trees, key=lambda tree: tree.size, reverse=True)
  for shorter, length in reversed(list(zip([0, *lengths], lengths))):
    rows: list[list[_Tree]] = []
    # (room left, row), ascending.
    room: list[tuple[int, int]] = []
    later = []
    for tree in left:
      found = bisect.bisect_left(room, (tree.size, -1))
      if found < len(room):
        free, number = room.pop(found)
      elif tree.size > shorter:
        free, number = length, len(rows)
        rows.append([])
      else:
        later.append(tree)
        continue
      rows[number].append(tree)
      bisect.insort(room, (free - tree.size, number))
    left = later
    yield length, rows


def _points(tree: _Tree) -> int:
  return sum(sequence.points for sequence in tree.sequences)


def _write(grid_4xL: np.ndarray, start: int, number: int, tree: _Tree) -> None:
  """Writes a tree's tokens into a row from `start`."""
  trunk = tree.trunk
  tokens = list(tree.sequences[0].tokens[:trunk])
  positions = list(range(trunk))
  branches = [0] * trunk
  for branch, sequence in enumerate(tree.sequences, start=1):
    tokens += sequence.tokens[trunk:]
    positions += range(trunk, len(sequence.tokens))
    branches += [branch] * (len(sequence.tokens) - trunk)
  part = slice(start, start + len(tokens))
  grid_4xL[0, part] = tokens
  grid_4xL[1, part] = positions
  grid_4xL[2, part] = number
  grid_4xL[3, part] = branches


def _spots(
  tree: _Tree, targets: dict[int, Target]
) -> Iterator[tuple[int, list[int], tuple[int, ...]]]:
  """Yields each target, its positions in the tree and the tokens there."""
  trunk = tree.trunk
  moved = 0
  for sequence in tree.sequences:
    for index in sequence.targets:
      inputs, ids = targets.pop(index)
      first = len(inputs) - len(ids)
      at = list(range(first, min(trunk, len(inputs))))
      at += range(max(first, trunk) + moved, len(inputs) + moved)
      yield index, at, ids
    moved += len(sequence.tokens) - trunk

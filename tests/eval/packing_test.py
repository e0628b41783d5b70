"""What goes on which row, and that nothing is lost."""

from hypothesis import given, settings, strategies as st
import numpy as np
import pytest

from steepest.eval import packing

_LENGTHS = (8, 16)


def _lay_out(targets, tokens=32, shards=1, chunk=100, lengths=_LENGTHS):
  numbered = list(enumerate(targets))
  chunks = [
    dict(numbered[i : i + chunk]) for i in range(0, len(numbered), chunk)
  ]
  packer = packing.Packer(lengths, tokens, shards, 4)
  return list(packer.batches(chunks))


def _seen(arrays, row: int, column: int) -> list[tuple[int, int]]:
  """Returns (position, token) of all that a place sees, in order."""
  tokens, positions, trees, branches = (array[row] for array in arrays[:4])
  return [
    (int(positions[i]), int(tokens[i]))
    for i in range(column + 1)
    if trees[i] == trees[column] and branches[i] in (0, branches[column])
  ]


_ids = st.lists(st.integers(0, 2), min_size=1, max_size=9).map(tuple)


@settings(max_examples=200)
@given(
  st.sets(st.tuples(_ids, _ids), max_size=30),
  st.integers(1, 3),
  st.integers(1, 12),
)
def test_every_point_sees_its_input_and_nothing_else(pairs, shards, chunk):
  targets = list(dict.fromkeys((c, t[: len(c)]) for c, t in pairs))
  found = []
  for batch in _lay_out(targets, 32, shards, chunk):
    rows, length = batch.arrays[0].shape
    assert rows % shards == 0 and length in _LENGTHS
    assert batch.arrays[4].shape[0] == shards
    for shard, first, count, index in batch.owners:
      inputs, ids = targets[index]
      assert count == len(ids) and first + count <= batch.points
      found.append(index)
      for i in range(count):
        place = batch.arrays[4][shard, first + i]
        row, column = divmod(int(place), length)
        row += shard * (rows // shards)
        stop = len(inputs) - len(ids) + i + 1
        seen = _seen(batch.arrays, row, column)
        assert seen == list(enumerate(inputs[:stop]))
        assert batch.arrays[5][shard, first + i] == ids[i]
  assert sorted(found) == list(range(len(targets)))


def test_letters_share_one_pass():
  question = tuple(range(9))
  targets = [(question, (letter,)) for letter in range(4)]
  # What a longer choice reads first is the question too.
  targets.append(((*question, 9), (5, 6)))
  [batch] = _lay_out(targets)
  assert (batch.arrays[2] > 0).sum() == len(question) + 1
  assert batch.points == 6


def test_endings_share_their_context():
  context = tuple(range(10))
  endings = [(n, 20 + n, 30 + n) for n in range(4)]
  targets = [((*context, *e), (*e[1:], 7)) for e in endings]
  [batch] = _lay_out(targets, lengths=(32,))
  assert (batch.arrays[2] > 0).sum() == len(context) + 4 * 3
  assert list(batch.arrays[3][0, :13]) == [0] * 10 + [1] * 3


def test_rows_are_filled():
  rng = np.random.default_rng(0)
  targets = []
  for i in range(400):
    inputs = (1000 + i, *rng.integers(9, size=rng.integers(9, 120)).tolist())
    targets.append((inputs, (0,)))
  batches = _lay_out(targets, 1024, lengths=(256, 512))
  filled = sum(int((batch.arrays[2] > 0).sum()) for batch in batches)
  assert filled == sum(len(inputs) for inputs, _ in targets)
  assert filled > 0.9 * sum(batch.arrays[2].size for batch in batches)


def test_many_choices_of_a_short_context_fit():
  targets = [((1, 2), (token,)) for token in range(500)]
  batches = _lay_out(targets, 64, lengths=(64,))
  assert sum(len(batch.owners) for batch in batches) == 500


@pytest.mark.parametrize('max_length', [8, 31, 64, 100, 1024, 4096, 2**20])
@pytest.mark.parametrize('multiple', [1, 2, 4])
def test_row_lengths(max_length, multiple):
  max_length = -(-max_length // multiple) * multiple
  lengths = packing.row_lengths(max_length, multiple)
  assert lengths[-1] == max_length
  assert lengths == sorted(set(lengths))
  assert len(lengths) <= 8
  assert all(length % multiple == 0 for length in lengths)
  # However long the model's context, a short pair is not padded to thousands.
  assert lengths[0] <= 512

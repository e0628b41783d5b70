"""Segments of packed windows against a walk over the tokens."""

from hypothesis import given, strategies as st
from hypothesis.extra import numpy as st_numpy
import numpy as np

from steepest.data import segments


@given(
  st_numpy.arrays(
    np.int32,
    st.tuples(st.integers(1, 4), st.integers(1, 20)),
    elements=st.integers(0, 3),
  ),
  st.integers(0, 3),
)
def test_equal_a_walk_over_the_tokens(tokens_BxT, eos_id):
  segment_ids_BxT, positions_BxT = segments.segments(tokens_BxT, eos_id)
  assert segment_ids_BxT.dtype == positions_BxT.dtype == np.int32
  for tokens, ids, positions in zip(
    tokens_BxT.tolist(), segment_ids_BxT.tolist(), positions_BxT.tolist()
  ):
    segment, position = 1, 0
    for token, found_id, found_position in zip(tokens, ids, positions):
      assert (found_id, found_position) == (segment, position)
      position += 1
      if token == eos_id:
        segment, position = segment + 1, 0

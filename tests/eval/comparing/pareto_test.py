"""The set that nothing beats, against sweeps and definitions of others."""

from hypothesis import given, strategies as st
import pytest

from steepest.eval.comparing import comparison, pareto

_SMALL = st.integers(0, 6)


@given(st.lists(st.tuples(_SMALL, _SMALL), min_size=1, max_size=15))
def test_in_two_dimensions_a_sweep_finds_the_same(points):
  found = [not above for above in pareto.dominators(points)]
  # From the left, a point stays if it is lower than all before it.
  front, lowest = set(), None
  for x, y in sorted(set(points)):
    if lowest is None or y < lowest:
      front.add((x, y))
      lowest = y
  assert found == [point in front for point in points]


@given(st.lists(st.tuples(_SMALL, _SMALL, _SMALL), min_size=1, max_size=12))
def test_in_three_dimensions(points):
  dominators = pareto.dominators(points)
  front = [p for p, above in zip(points, dominators) if not above]
  assert front
  # Some positive weights prefer each point of the convex front; here the
  # definition: of any point some front point is nowhere worse.
  for point in points:
    assert any(all(a <= b for a, b in zip(f, point)) for f in front)
  # Nothing of the front can be left out.
  for i, one in enumerate(front):
    rest = [f for j, f in enumerate(front) if j != i and f != one]
    assert not any(all(a <= b for a, b in zip(f, one)) for f in rest)


def test_cells_of_a_study(study_dir):
  result = comparison.compare(comparison.load_runs([study_dir]))
  found = {(c.architecture, c.optimizer): c for c in result.pareto}
  assert len(found) == 6 and not result.pareto_warning
  # Lion is the fastest, Sophia on LLaMA has the lowest loss.
  assert found['gpt2', 'lion'].efficient and found['llama', 'lion'].efficient
  assert found['llama', 'sophia'].efficient
  for one in found.values():
    for name in one.dominated_by:
      other = found[name[:2]]
      assert other.seconds <= one.seconds and other.loss <= one.loss
      assert other.accuracy >= one.accuracy
    cell = next(
      c
      for c in result.cells
      if (c.architecture, c.optimizer) == (one.architecture, one.optimizer)
    )
    assert one.seconds == pytest.approx(cell.spreads['seconds'].mean)
    assert one.seconds_with_tuning > one.seconds

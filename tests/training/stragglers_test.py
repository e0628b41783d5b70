"""What each of several processes needs by itself, from what all can measure."""

from hypothesis import given, settings, strategies as st
import numpy as np
import pytest

from steepest.training import stragglers

_PROCESS = st.tuples(*[st.floats(0.01, 9.0)] * 3)


@settings(deadline=None)
@given(st.lists(_PROCESS, min_size=2, max_size=9), st.floats(0.001, 1.0))
def test_own_times_are_those_of_a_simulated_step(processes, share):
  """All are done when the last is: of the others' steps, waiting is a part."""
  host_P, begins_P, own_P = np.array(processes).T
  end = (begins_P + own_P).max()
  found_P = stragglers.alone(host_P, end - begins_P, share * own_P)
  assert found_P == pytest.approx(host_P + own_P)


def test_a_slow_process_is_not_told_of_over_and_over(make_trainer, configure):
  setup = make_trainer(configure('gpt2', 'lion')).setup
  watch = stragglers.Stragglers(setup)
  row = {'process/slowest_seconds': 3.0, 'process/median_seconds': 2.0}
  told = [watch.news(r) for r in (row, row | {'process/slow': 0}) * 2]
  assert [bool(text) for text in told] == [False, True, False, False]
  assert 'takes 3 s a step by itself, 1.5 times the median' in told[1]

"""Tasks on several processes: bounded, unordered, one line when one dies."""

import math
import os

import pytest

from steepest.data.preparing import workers


@pytest.mark.parametrize('count', [1, 2])
def test_all_results_come_and_tasks_are_drawn_when_needed(count):
  drawn = []

  def tasks():
    for i in range(20):
      drawn.append(i)
      yield i

  results = []
  for result in workers.run(math.isqrt, tasks(), count):
    results.append(result)
    # The one that is yielded, and those that are under way.
    assert len(drawn) <= len(results) + 2 * count + 1
  assert sorted(results) == sorted(math.isqrt(i) for i in range(20))


def test_errors_of_a_task_are_its_own():
  with pytest.raises(ValueError, match='nonnegative'):
    list(workers.run(math.isqrt, [-1], 2))


def test_a_worker_that_dies_is_one_line():
  with pytest.raises(OSError, match='fewer --workers') as error:
    list(workers.run(os._exit, [3], 2))
  assert '\n' not in str(error.value)

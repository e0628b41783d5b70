"""Median stopping against cases worked out by hand."""

import pytest

from steepest.experiments import base
from steepest.tuning import pruning


def _rows(losses, every=1):
  return [
    {'step': step, 'train/loss': loss}
    for step, loss in enumerate(losses)
    if step % every == 0
  ]


def test_losses_are_averaged_over_whole_windows():
  rows = _rows([5, 3, 4, 2, 3, 1, 9])
  assert pruning.smoothed(rows, 2) == {2: 4, 4: 3, 6: 2}
  # Every second row is kept: one a window.
  assert pruning.smoothed(_rows([5, 3, 4, 2, 3, 1], 2), 2) == {2: 5, 4: 4}
  assert pruning.smoothed([], 2) == {}


def test_limits_are_medians_of_enough_trials_after_the_first_steps():
  finished = [{2: 4, 4: 3, 6: 2}, {2: 5, 4: 1, 6: 1}, {2: 6, 4: 2, 6: 9}]
  rule = pruning.Rule(window=2, first=3, least=3)
  assert pruning.limits(finished, rule) == {4: 2, 6: 2}
  assert pruning.limits(finished[:2], rule) == {}
  rule = pruning.Rule(window=2, first=3, least=2)
  assert pruning.limits(finished[:2], rule) == {4: 2, 6: 1.5}
  assert pruning.limits([], rule) == {}


@pytest.mark.parametrize(
  'losses, ends',
  [
    ([99, 99, 3, 2, 2, 1], None),  # Before step 4 nothing is compared.
    ([1, 1, 3, 3, 2, 2], None),  # At the median is not above it.
    ([9, 9, 3, 3.1, 1, 1], 4),
    ([1, 1, 1, 1, 2, 2.1], 6),
  ],
)
def test_a_trial_ends_where_it_is_above_the_median(losses, ends):
  watch = pruning.Watch({4: 3.0, 6: 2.0}, window=2, log_every=1)
  done = 0
  try:
    for row in _rows(losses):
      watch(row)
      done += 1
  except pruning.Pruned as error:
    assert error.steps == done + 1 == ends
    assert 'above the median' in str(error)
  else:
    assert ends is None


def test_a_trial_is_compared_by_the_rows_that_are_kept():
  watch = pruning.Watch({4: 3.0}, window=4, log_every=2)
  # The mean of steps 0 and 2 is 3, that of all is above.
  for row in _rows([2, 9, 4, 9]):
    watch(row)


def test_the_rule_is_in_steps_of_the_trial():
  config = base.get_study_config()
  assert pruning.rule(config) is None
  config.study.update(pruning='median', pruning_trials=3, pruning_fraction=0.25)
  config.steps = 500
  assert pruning.rule(config) == pruning.Rule(window=25, first=125, least=3)

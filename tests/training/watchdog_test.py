"""What is a spike, what is left out, and that checkpoints carry it on."""

import json

from hypothesis import given, strategies as st
from ml_collections import ConfigDict
import numpy as np
import pytest

from steepest.training.watchdog import Policy, Spike, Watchdog, parse

_INF = float('inf')


def _row(loss, norm=1.0, skipped=None):
  row = {'train/loss': loss, 'grad_norm': norm}
  return row if skipped is None else {**row, 'skipped': skipped}


def _slice(**keys):
  given = {'policy': 'stop', 'z_score': 0.0, 'window': 4, 'most': 2}
  return ConfigDict({**given, **keys})


def test_policies_are_read():
  assert parse(_slice()) == Policy('stop', 0, 0.0, 4, 2)
  assert parse(_slice(policy='skip_update')).guards
  assert parse(_slice(policy='rollback:3')).back == 3


@pytest.mark.parametrize(
  'keys, said',
  [
    ({'policy': 'rollback'}, "policy='rollback': give stop, skip_update or"),
    ({'policy': 'rollback:0'}, 'K at least 1'),
    ({'policy': 'stop:1'}, "policy='stop:1'"),
    ({'policy': 'ignore'}, "policy='ignore'"),
    ({'z_score': -1.0}, 'z_score=-1.0: must not be negative'),
    ({'window': 0}, 'window=0: must be at least 1'),
    ({'most': 0}, 'most=0: must be at least 1'),
  ],
)
def test_other_policies_are_refused(keys, said):
  with pytest.raises(ValueError, match=said):
    parse(_slice(**keys))


def test_limits_by_hand():
  """Mean and deviation of the window that ends two steps before."""
  dog = Watchdog(Policy('stop', 0, 3.0, 4, 2))
  losses = [4.0, 6.0, 3.0, 5.0, 4.5, 4.6]
  for step, loss in enumerate(losses):
    dog.see(step, _row(loss, 10 * loss))
  wanted = np.mean(losses[1:5]) + 3 * np.std(losses[1:5])
  np.testing.assert_allclose(dog.limits(6), [wanted, 10 * wanted], rtol=1e-6)
  # Where fewer are known, all that is finite passes.
  fresh = Watchdog(dog.policy)
  for step in range(4):
    assert (fresh.limits(step) == np.finfo(np.float32).max).all()
    fresh.see(step, _row(4.0))
  with pytest.raises(Spike, match='step 7: train/loss is 9, above .* 3 dev'):
    dog.see(6, _row(4.4, 44.0))
    dog.see(7, _row(9.0))


@pytest.mark.parametrize('bad', [float('nan'), _INF])
@pytest.mark.parametrize('policy', ['stop', 'rollback:2'])
def test_what_is_not_finite_is_a_spike(policy, bad):
  dog = Watchdog(parse(_slice(policy=policy)))
  with pytest.raises(Spike, match='step 0: grad_norm is (nan|inf)'):
    dog.see(0, _row(1.0, bad, 1.0 if dog.policy.guards else None))


def test_skipped_updates_in_a_row_end_the_run():
  dog = Watchdog(parse(_slice(policy='skip_update')))
  assert dog.see(0, _row(_INF, 1.0, 1.0))
  assert not dog.see(1, _row(1.0, 1.0, 0.0))
  assert dog.see(2, _row(_INF, 1.0, 1.0))
  with pytest.raises(Spike, match='2 updates in a row left out .train/loss is'):
    dog.see(3, _row(_INF, 1.0, 1.0))
  assert dog.skipped == 3


def test_a_rollback_leaves_the_steps_before_the_spike_out():
  dog = Watchdog(parse(_slice(policy='rollback:3')))
  assert dog.leave_out(Spike(7, 'a')) == 5
  out = [(dog.limits(step) == -_INF).all() for step in range(10)]
  assert [step for step, left in enumerate(out) if left] == [5, 6, 7]
  assert dog.see(5, _row(_INF, 1.0, 1.0))
  assert dog.leave_out(Spike(1, 'b')) == 0
  with pytest.raises(Spike, match='step 9: c, after 2 rollbacks'):
    dog.leave_out(Spike(9, 'c'))


_LOSSES = st.lists(
  st.floats(0.125, 20, width=32) | st.just(_INF), min_size=1, max_size=60
)


def _drive(dog, losses, first):
  """Feeds a run without memory of its own; returns what was skipped."""
  skipped = []
  for step in range(first, len(losses)):
    limit = dog.limits(step)[0]
    skip = not losses[step] <= limit
    if dog.see(step, _row(losses[step], 1.0, float(skip))):
      skipped.append(step)
  return skipped


@given(_LOSSES, st.integers(0, 60), st.sampled_from([0.5, 1.0, 3.0]))
def test_going_on_from_a_checkpoint_is_no_interruption(losses, cut, z_score):
  policy = Policy('skip_update', 0, z_score, 5, 100)
  whole = Watchdog(policy)
  wanted = _drive(whole, losses, 0)
  cut = min(cut, len(losses))
  first = Watchdog(policy)
  got = _drive(first, losses[:cut], 0)
  second = Watchdog(policy)
  second.resume(json.loads(json.dumps(first.books())))
  got += _drive(second, losses, cut)
  assert got == wanted
  assert second.books() == whole.books()

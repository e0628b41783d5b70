"""Runs that skip updates, roll back or are stopped end where they should.

A low z-score makes spikes of ordinary noise.
"""

import json

import jax
import numpy as np
import pytest

from steepest.training import metrics
from steepest.training.loop import Callbacks
from steepest.training.signals import Stopped
from steepest.training.watchdog import Diverged, Policy

_TIMED = {'seconds', 'tokens_per_second', 'data/wait_seconds', 'mfu'}
_SKIP = Policy('skip_update', 0, 1.0, 4, 10)
_BACK = Policy('rollback', 2, 1.2, 4, 10)
_OFF = Policy('stop', 0, 0.0, 4, 10)


def _rows(directory):
  rows = metrics.read_rows(directory)
  return [{k: v for k, v in r.items() if k not in _TIMED} for r in rows]


def _events(directory, kind):
  path = directory / 'events.jsonl'
  lines = path.read_text().splitlines() if path.exists() else []
  events = map(json.loads, lines)
  return [event['step'] for event in events if event['kind'] == kind]


def _train(make_loop, directory, policy, stops=(), **keys):
  """Trains 20 steps, stopped and started again after each of `stops`."""
  for stop in (*stops, None):
    loop = make_loop(
      'adamw',
      Callbacks(stop=lambda steps, at=stop: steps == at),
      policy=policy,
      directory=directory,
      steps=20,
      checkpoint_every=5,
      **keys,
    )
    init = lambda loop=loop: loop.program.init(0)
    if stop is None:
      return loop.run(init)
    with pytest.raises(Stopped, match=f'stopped after {stop} of 20 steps'):
      loop.run(init)


def _saved(directory):
  import orbax.checkpoint as ocp

  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
    return reader.restore(directory / 'checkpoints' / '20' / 'state')


@pytest.mark.parametrize('policy', [_OFF, _SKIP, _BACK])
def test_stopping_and_going_on_is_no_interruption(make_loop, tmp_path, policy):
  whole, parts = tmp_path / 'whole', tmp_path / 'parts'
  wanted = _train(make_loop, whole, policy)
  got = _train(make_loop, parts, policy, stops=(3, 7, 12))
  assert _rows(parts) == _rows(whole)
  assert [row['step'] for row in _rows(whole)] == list(range(20))
  jax.tree.map(np.testing.assert_array_equal, _saved(parts), _saved(whole))
  assert got['skipped_updates'] == wanted['skipped_updates']
  assert got['rollbacks'] == wanted['rollbacks']
  # The test is of what it says it is of.
  assert bool(wanted['skipped_updates']) == (policy is not _OFF)
  assert bool(wanted['rollbacks']) == (policy is _BACK)
  kind = 'rollback' if policy is _BACK else 'skipped_update'
  if policy is not _OFF:
    assert _events(whole, kind)


def test_a_skipped_update_changes_nothing_but_the_step(make_loop, make_batch):
  program = make_loop('sophia', policy=_SKIP).program
  args = make_loop('sophia', policy=_SKIP)._args
  seed = program.put(np.uint32(0))
  state = program.init(0)
  before = jax.device_get(state)
  batch = program.put_batch(make_batch(0))
  never = program.put(np.full(2, -np.inf, np.float32))
  state, stats = program.step(state, batch, args, seed, limits=never)
  assert float(stats['skipped']) == 1
  after = jax.device_get(state)
  jax.tree.map(np.testing.assert_array_equal, after[1:], before[1:])
  assert after.step == before.step + 1
  always = program.put(np.full(2, np.inf, np.float32))
  state, stats = program.step(state, batch, args, seed, limits=always)
  assert float(stats['skipped']) == 0


def test_a_guard_that_never_acts_changes_no_number(make_loop, tmp_path):
  plain = _train(make_loop, tmp_path / 'a', _OFF)
  idle = _train(make_loop, tmp_path / 'b', Policy('skip_update', 0, 0.0, 4, 10))
  assert idle['train_loss'] == plain['train_loss']
  assert idle['skipped_updates'] == 0


def test_too_many_rollbacks_are_a_divergence(make_loop, tmp_path):
  policy = Policy('rollback', 2, 0.1, 2, 2)
  with pytest.raises(Diverged, match='after 2 rollbacks; lower optimizer.lr'):
    _train(make_loop, tmp_path, policy)
  assert len(_events(tmp_path, 'rollback')) == 2


def test_stopping_without_checkpoints_says_so(make_loop):
  loop = make_loop(callbacks=Callbacks(stop=lambda steps: steps == 3))
  with pytest.raises(Stopped, match='nothing was kept: set checkpoint_every'):
    loop.run(lambda: loop.program.init(0))

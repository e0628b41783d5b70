"""Clocks that jump, slow disks and full queues change no result."""

import contextlib
import itertools
import os
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from steepest.data import flat, pipeline
from steepest.experiments import base
from steepest.training import checkpoint, metrics
from steepest.training.checkpoint import Checkpointer
from steepest.training.interrupts import Stopped
from steepest.training.loop import Callbacks

_STEPS, _STOPS = 20, (3, 12)


def _train(train, directory, stops=(), writer=None, before=lambda: None):
  """Trains, stopped and started again after each of `stops`."""
  for stop in (*stops, None):
    before()
    callbacks = Callbacks(
      stop=lambda steps, at=stop: steps == at,
      writers=lambda warn: [writer] if writer else [],
    )
    end = contextlib.nullcontext()
    if stop is not None:
      end = pytest.raises(Stopped)
    with end:
      summary = train(
        'adamw',
        callbacks,
        directory=directory,
        steps=_STEPS,
        checkpoint_every=5,
      )
  return summary


@pytest.fixture
def whole(train, tmp_path):
  """The run that nothing disturbs."""
  _train(train, tmp_path / 'whole')
  return tmp_path / 'whole'


@pytest.fixture
def check(whole, check_same):
  """Compares a run with the whole one; its clock only goes on."""

  def fn(directory):
    check_same(directory, whole, _STEPS)
    seconds = [row['seconds'] for row in metrics.read_rows(directory)]
    assert 0 < seconds[0] and seconds == sorted(seconds)

  return fn


def test_clock_jumps(train, tmp_path, check, monkeypatch):
  """By minutes at each look at the clock, by days from start to start."""
  real, jumps = time.time, itertools.cycle([100.0, -100.0, 0.0, 50.0])
  days = iter([3, -5, 0])

  def start_over():
    offset = next(days) * 86400
    monkeypatch.setattr(time, 'time', lambda: real() + offset + next(jumps))

  start = time.perf_counter()
  summary = _train(train, tmp_path / 'parts', _STOPS, before=start_over)
  assert summary['seconds'] < time.perf_counter() - start
  monkeypatch.undo()
  check(tmp_path / 'parts')


def test_a_day_passes_inside_a_save(train, tmp_path, check, monkeypatch):
  """Orbax gives that checkpoint up; the next one is written as ever."""
  real, save = time.time, Checkpointer.save
  days, leaping = itertools.count(), []

  def late(self, state, steps, metadata):
    self.wait()
    leaping[:] = [steps] if steps == 10 else []
    save(self, state, steps, metadata)

  leap = lambda: real() + (next(days) * 86400 if leaping else 0)
  monkeypatch.setattr(Checkpointer, 'save', late)
  monkeypatch.setattr(time, 'time', leap)
  _train(train, tmp_path / 'parts')
  monkeypatch.undo()
  check(tmp_path / 'parts')
  said = (tmp_path / 'parts' / 'events.jsonl').read_text('utf-8')
  assert 'parts/checkpoints/10: ' in said and said.count('\n') == 1
  assert 'the one of step 5 stays, training continues' in said


def test_a_slow_disk(train, tmp_path, check, monkeypatch):
  """Each commit of a file takes longer than a step."""

  def slow(module, name):
    fast = getattr(module, name)

    def fn(*args, **kwargs):
      time.sleep(0.05)
      return fast(*args, **kwargs)

    monkeypatch.setattr(module, name, fn)

  slow(os, 'fsync')
  slow(os, 'replace')
  slow(checkpoint, 'write_checksums')
  slow(ocp.CheckpointManager, 'wait_until_finished')
  summary = _train(train, tmp_path / 'parts', _STOPS)
  check(tmp_path / 'parts')
  # It is no training time.
  assert summary['checkpoint_seconds'] > 0.3
  assert summary['seconds'] < summary['checkpoint_seconds']


class _Queue:
  """A writer whose queue is full: each row waits for room."""

  def __init__(self):
    self.steps = []

  def write_scalars(self, step, scalars):
    time.sleep(0.02)
    self.steps.append(step)

  def write_texts(self, step, texts):
    pass

  def write_hparams(self, hparams):
    pass

  def flush(self):
    time.sleep(0.02)

  def close(self):
    pass


def test_full_queues_of_writers(train, tmp_path, check):
  writer = _Queue()
  start = time.perf_counter()
  summary = _train(train, tmp_path / 'parts', writer=writer)
  spent = time.perf_counter() - start
  assert writer.steps == list(range(_STEPS))
  check(tmp_path / 'parts')
  # Waiting for room is no training time.
  assert summary['seconds'] < spent - 0.02 * _STEPS


@pytest.mark.parametrize('slow', ['reader', 'training'])
def test_queues_of_batches(golden, monkeypatch, slow):
  """Empty or full, whichever thread is first: the same batches in order."""
  read, rng = flat.FlatWindows.read, np.random.default_rng(0)
  naps = iter(rng.uniform(0, 0.01, 10_000).tolist())

  def hesitant(self, numbers):
    if slow == 'reader':
      time.sleep(next(naps))
    return read(self, numbers)

  config = base.get_config().data
  with config.unlocked():
    config.source = f'flat:{golden}/tokens.npy'
  data = pipeline.open_data(
    config, context=16, batch_size=4, steps=40, seed=0, eval_sequences=0
  )
  wanted = [data.batch(step) for step in range(40)]
  monkeypatch.setattr(flat.FlatWindows, 'read', hesitant)
  for first in (0, 13):
    got = []
    for batch in data.train(first):
      if slow == 'training':
        time.sleep(next(naps))
      got.append(batch)
    jax.tree.map(np.testing.assert_array_equal, got, wanted[first:])

"""Runs of two processes, one of which is stopped, asked to stop, or killed."""

import json
import signal
import time

import pytest

from steepest.training import metrics

_STEPS = 2000
_LATE = """
import os, time
from steepest.data import pipeline
from steepest.launch import train as command
from steepest.training import stragglers
stragglers._EVERY = 0.0, 5
real = pipeline.Data.train
def late(self, first):
  for step, batch in enumerate(real(self, first)):
    if os.environ['STEEPEST_PROCESS'] == '1':
      time.sleep(1000 if step == 42 else 0.3 * (step >= 10))
    yield batch
pipeline.Data.train = late
command.main()
"""


@pytest.fixture
def two(start_processes, tmp_path):
  """Starts two processes of a run and waits for its first checkpoint."""
  words = [
    *('-m', 'launch.train'),
    '--config=experiments/tiny.py:gpt2,lion',
    '--config.data.source=flat:tests/golden/tokens.npy',
    '--config.data.epochs=50',
    '--config.model.width=32',
    '--config.model.context=16',
    '--config.batch_size=2',
    f'--config.steps={_STEPS}',
    # Rare, so that what hangs does so in a step: in the midst of a checkpoint
    # the other waits for JAX's heartbeat.
    '--config.checkpoint_every=100',
    '--config.stall_seconds=15',
    f'--workdir={tmp_path / "run"}',
  ]
  processes = start_processes(2, words)
  end = time.monotonic() + 300
  while not _kept(tmp_path / 'run'):
    assert all(p.poll() is None for p in processes), processes[0].stderr.read()
    assert time.monotonic() < end
    time.sleep(0.05)
  return tmp_path / 'run', processes


def _kept(workdir):
  """Returns the steps of the verified checkpoints, in order."""
  seals = workdir.glob('checkpoints/*/checksums.json')
  return sorted(int(seal.parent.name) for seal in seals)


@pytest.mark.slow
def test_a_signal_to_one_stops_both_at_the_same_step(two):
  workdir, (first, second) = two
  second.send_signal(signal.SIGTERM)
  said = [p.communicate(timeout=120)[1] for p in (first, second)]
  assert [first.returncode, second.returncode] == [75, 75], said
  kept = _kept(workdir)[-1]
  rows = (workdir / 'metrics.jsonl').read_text().splitlines()
  assert [json.loads(row)['step'] for row in rows] == list(range(kept))
  for text in said:
    assert f'stopped after {kept} of {_STEPS} steps' in text


@pytest.mark.slow
def test_a_process_that_hangs_is_noticed_by_the_other(two):
  workdir, (first, second) = two
  second.send_signal(signal.SIGSTOP)
  started = time.monotonic()
  said = first.communicate(timeout=120)[1]
  assert first.returncode not in (0, 75)
  assert 'process 0 of 2: a step has not ended in 15 s' in said
  assert '; process 1 does not answer (stacks of all: ' in said
  assert time.monotonic() - started < 60
  assert _kept(workdir)


def test_slow_and_hanging_processes_are_named(start_processes, tmp_path):
  """The second one is late with its data from some step on, then hangs."""
  first, second = start_processes(
    2,
    [
      *('-c', _LATE, '--config=experiments/tiny.py:gpt2,lion'),
      '--config.data.source=flat:tests/golden/tokens.npy',
      *('--config.model.width=32', '--config.model.context=16'),
      *('--config.batch_size=2', '--config.log_every=5'),
      *('--config.checkpoint_every=0', '--config.stall_seconds=10'),
      f'--workdir={tmp_path}',
    ],
  )
  said = [p.communicate(timeout=300)[1] for p in (first, second)]
  assert [first.returncode, second.returncode] == [1, 1], said
  row = metrics.read_rows(tmp_path)[-1]
  assert row['process/slow'] == 1
  # Less would be what the other one takes.
  assert row['process/slowest_seconds'] > 0.2
  assert row['process/slowest_seconds'] == row['process/seconds/1']
  assert row['process/median_seconds'] == row['process/seconds/0']
  assert 'process 1 on ' in said[0] and 'who wait for it' in said[0]
  events = (tmp_path / 'events.jsonl').read_text('utf-8').splitlines()
  *slow, stall = map(json.loads, events)
  assert {event['kind'] for event in slow} == {'process'}
  assert stall['kind'] == 'stall' and stall['text'] in said[0]
  assert 'hangs (waiting_for_data for ' in stall['text']
  assert 'a step has not ended in 10 s; process 1 on ' in said[1]
  stacks = sorted(tmp_path.glob('logs/stall-*/process-?.txt'))
  assert [path.name[8] for path in stacks] == ['0', '1']
  texts = [path.read_text('utf-8') for path in stacks]
  assert ['late' in text for text in texts] == [False, True]


@pytest.mark.slow
def test_a_process_that_dies_is_noticed_by_the_other(two):
  workdir, (first, second) = two
  second.kill()
  first.communicate(timeout=120)
  assert first.returncode not in (0, 75)
  assert _kept(workdir)

"""A step that does not end ends its process; nothing else does."""

import subprocess
import sys
import time

_PROGRAM = """
import sys, time
from steepest.training.interrupts import StallTimer
limit, inside, outside = map(float, sys.argv[1:])
with StallTimer(limit, 'process 1 of 2') as stall:
  for _ in range(3):
    with stall.step():
      time.sleep(inside)
    time.sleep(outside)
print('done')
"""


def _run(*seconds):
  started = time.monotonic()
  done = subprocess.run(
    [sys.executable, '-c', _PROGRAM, *map(str, seconds)],
    capture_output=True,
    text=True,
    timeout=120,
  )
  return done, time.monotonic() - started


def test_a_step_that_hangs_ends_the_process():
  done, seconds = _run(0.5, 100, 0)
  assert done.returncode == 1 and not done.stdout
  assert len(done.stderr.splitlines()) == 1
  assert 'process 1 of 2: a step has not ended in 0.5 s' in done.stderr
  assert seconds < 60


def test_time_between_steps_does_not_count():
  done, _ = _run(2, 0, 1.5)
  assert done.returncode == 0 and done.stdout == 'done\n' and not done.stderr


def test_without_a_limit_nothing_ends():
  done, _ = _run(0, 0.5, 0)
  assert done.stdout == 'done\n'


def test_a_watched_run_is_as_any_other(train, tmp_path):
  losses = []
  for seconds in (0.0, 300.0):
    directory = tmp_path / str(seconds)
    directory.mkdir()
    summary = train(stall_seconds=seconds, directory=directory)
    losses.append(summary['train_loss'])
  assert losses[0] == losses[1]

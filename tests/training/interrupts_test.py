"""A step that does not end ends its process; nothing else does."""

import subprocess
import sys

_PROGRAM = """
import pathlib, sys, time
from steepest.training.interrupts import StallTimer
limit, inside, outside = map(float, sys.argv[2:])
where = lambda: {'doing': 'steps', 'waits': True, 'seconds': 9.0, 'step': 7}
tell = lambda text, speaks: print(text, file=sys.stderr, flush=True)
with StallTimer(limit, pathlib.Path(sys.argv[1]), where, tell) as stall:
  for _ in range(3):
    with stall.step():
      time.sleep(inside)
    time.sleep(outside)
print('done')
"""


def _run(directory, *seconds):
  return subprocess.run(
    [sys.executable, '-c', _PROGRAM, directory, *map(str, seconds)],
    capture_output=True,
    text=True,
    timeout=300,
  )


def test_a_step_that_hangs_ends_the_process(tmp_path):
  done = _run(tmp_path / 'report', 0.5, 1000, 0)
  assert done.returncode == 1 and not done.stdout
  assert len(done.stderr.splitlines()) == 1
  assert 'process 0 of 1: a step has not ended in 0.5 s' in done.stderr
  assert 'hangs (steps for 9 s, step 7, <string>:10)' in done.stderr
  said = (tmp_path / 'report' / 'process-0.txt').read_text()
  assert 'File "<string>", line 10' in said and '_watch' in said


def test_time_between_steps_does_not_count(tmp_path):
  done = _run(tmp_path, 2, 0, 1.5)
  assert done.returncode == 0 and done.stdout == 'done\n' and not done.stderr


def test_without_a_limit_nothing_ends(tmp_path):
  done = _run(tmp_path, 0, 0.5, 0)
  assert done.stdout == 'done\n'


def test_a_watched_run_is_as_any_other(train, tmp_path):
  losses = []
  for seconds in (0.0, 300.0):
    directory = tmp_path / str(seconds)
    directory.mkdir()
    summary = train(stall_seconds=seconds, directory=directory)
    losses.append(summary['train_loss'])
  assert losses[0] == losses[1]

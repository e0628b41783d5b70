"""A lock admits one process at a time, and a dead one's is free."""

import os
import subprocess
import sys

import pytest

from steepest.data import locks

_HOLD = """
import pathlib, sys
from steepest.data import locks
with locks.hold(pathlib.Path(sys.argv[1]), 'at work'):
  print('held', flush=True)
  sys.stdin.read()
"""


def _hold(directory):
  process = subprocess.Popen(
    [sys.executable, '-c', _HOLD, str(directory)],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
  )
  assert process.stdout.readline() == b'held\n'
  return process


def test_a_second_process_is_told_who_has_it(tmp_path):
  directory = tmp_path / 'a' / 'b'
  other = _hold(directory)
  said = f'b: another process is at work .process {other.pid}, host .*, since '
  with pytest.raises(OSError, match=said):
    with locks.hold(directory, 'at work'):
      pass
  # Whatever its clock says.
  os.utime(directory / locks.NAME, (2**33, 2**33))
  other.kill()
  other.wait()
  with locks.hold(directory, 'at work'):
    pass


def test_what_was_made_for_nothing_goes(tmp_path):
  for fill, left in ((False, []), (True, ['b', 'file'])):
    with locks.hold(tmp_path / 'a' / 'b', 'at work'):
      assert (tmp_path / 'a' / 'b' / locks.NAME).exists()
      if fill:
        (tmp_path / 'a' / 'b' / 'file').touch()
    assert [path.name for path in (tmp_path).glob('a/**/*')] == left

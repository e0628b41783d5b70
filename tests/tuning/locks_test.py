"""Locks: one holder at a time, whatever the processes do and when."""

import os
import pathlib
import subprocess
import sys

from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
import pytest

from steepest.tuning import locks

_SECONDS = 10.0


class _Clock:
  """A clock that the test sets."""

  def __init__(self):
    self.time = 1e9

  def now(self) -> float:
    return self.time

  def touch(self, path: pathlib.Path) -> None:
    os.utime(path, (self.time, self.time))


def _owner(machine: str) -> dict[str, object]:
  return {**locks.describe_owner(), 'machine': machine}


def _make(tmp_path, clock, machine='here'):
  return locks.Locks(tmp_path, _SECONDS, clock, _owner(machine))


def test_the_second_waits_for_the_first(tmp_path):
  clock = _Clock()
  a, b = _make(tmp_path, clock, 'a'), _make(tmp_path, clock, 'b')
  run = tmp_path / 'run'
  assert a.take(run)
  assert not a.take(run)
  assert not b.take(run)
  a.release(run)
  assert b.take(run)
  b.release(run)
  assert not list(run.iterdir())


def test_a_lock_expires_only_when_it_is_not_touched(tmp_path):
  clock = _Clock()
  a, b = _make(tmp_path, clock, 'a'), _make(tmp_path, clock, 'b')
  run = tmp_path / 'run'
  a.take(run)
  for _ in range(5):
    clock.time += 0.9 * _SECONDS
    a.beat()
    assert not b.take(run)
  clock.time += 1.1 * _SECONDS
  assert b.take(run)
  # The first one learns of it, and does not take the lock with it.
  a.beat()
  with pytest.raises(ValueError, match='taken over by another process'):
    a.check()
  b.check()
  a.release(run)
  assert not _make(tmp_path, clock, 'c').take(run)


def test_a_suspended_holder_goes_on_if_nobody_came(tmp_path):
  clock = _Clock()
  a = _make(tmp_path, clock)
  a.take(tmp_path)
  clock.time += 5 * _SECONDS
  a.beat()
  a.check()
  assert not _make(tmp_path, clock, 'b').take(tmp_path)


def test_the_lock_of_a_killed_process_is_free_at_once(tmp_path):
  code = (
    'import os, pathlib, sys\n'
    'from steepest.tuning import locks\n'
    'assert locks.Locks(pathlib.Path(sys.argv[1]), 1e6).take('
    'pathlib.Path(sys.argv[1]))\n'
    'print("held", flush=True)\n'
    'sys.stdin.read()\n'
  )
  process = subprocess.Popen(
    [sys.executable, '-c', code, str(tmp_path)],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
  )
  assert process.stdout.readline()
  mine = locks.Locks(tmp_path, 1e6)
  assert not mine.take(tmp_path)
  process.kill()
  process.wait()
  assert mine.take(tmp_path)


def test_locks_say_nothing_of_the_machine(tmp_path):
  mine = locks.Locks(tmp_path, 60)
  mine.take(tmp_path / 'run')
  (path,) = (tmp_path / 'run').iterdir()
  assert os.uname().nodename not in path.read_text()


def test_leaving_gives_everything_back(tmp_path):
  with locks.Locks(tmp_path, 0.5) as mine:
    assert mine.take(tmp_path / 'a') and mine.take(tmp_path / 'b')
    with mine.hold(tmp_path / 'a') as held:
      assert not held
    with mine.hold(tmp_path / 'c') as held:
      assert held
  assert [p.name for p in sorted(tmp_path.rglob('*'))] == ['a', 'b', 'c']


def test_file_systems_without_links_will_do(tmp_path, monkeypatch):
  def link(source, target):
    raise PermissionError('no links here')

  monkeypatch.setattr(os, 'link', link)
  clock = _Clock()
  a, b = _make(tmp_path, clock, 'a'), _make(tmp_path, clock, 'b')
  assert a.take(tmp_path / 'run')
  assert not b.take(tmp_path / 'run')
  (lock,) = (tmp_path / 'run').iterdir()
  # Seen before its text was written.
  lock.write_text('')
  clock.touch(lock)
  assert not b.take(tmp_path / 'run')
  a.release(tmp_path / 'run')
  assert b.take(tmp_path / 'run')


def test_waiting_ends_when_the_lock_is_given_back(tmp_path):
  clock = _Clock()
  a, b = _make(tmp_path, clock, 'a'), _make(tmp_path, clock, 'b')
  a.take(tmp_path)
  slept = []

  def sleep(seconds):
    slept.append(seconds)
    if len(slept) == 3:
      a.release(tmp_path)

  with b.wait(tmp_path, sleep):
    assert not a.take(tmp_path)
  assert len(slept) == 3


class _Processes(RuleBasedStateMachine):
  """Processes that take, touch, give back, stall and die at any time."""

  def __init__(self):
    super().__init__()
    import tempfile

    self.root = tempfile.TemporaryDirectory()
    self.directory = pathlib.Path(self.root.name)
    self.clock = _Clock()
    self.holders = {}
    self.touched = {}
    for name in 'abc':
      self._start(name)

  def _start(self, name):
    self.holders[name] = _make(self.directory, self.clock, name)
    self.touched.pop(name, None)

  def teardown(self):
    self.root.cleanup()

  @rule(name=st.sampled_from('abc'))
  def take(self, name):
    alive = [
      n for n, t in self.touched.items() if self.clock.time - t <= _SECONDS
    ]
    got = self.holders[name].take(self.directory)
    assert got == (name not in self.touched and not alive)
    if got:
      self.touched[name] = self.clock.time

  @rule(name=st.sampled_from('abc'))
  def beat(self, name):
    if name not in self.touched:
      return
    holder = self.holders[name]
    holder.beat()
    try:
      holder.check()
      self.touched[name] = self.clock.time
    except ValueError:
      # It ends, as launch.study does.
      self.touched.pop(name)
      holder.release(self.directory)
      self._start(name)

  @rule(name=st.sampled_from('abc'))
  def release(self, name):
    if name in self.touched:
      expired = self.clock.time - self.touched[name] > _SECONDS
      if not expired:
        self.touched.pop(name)
        self.holders[name].release(self.directory)

  @rule(name=st.sampled_from('abc'))
  def die(self, name):
    """On another machine, where nobody sees it."""
    if name in self.touched:
      self.holders[name] = _make(self.directory, self.clock, name)
      # Its lock stays until it expires.
      self.touched[f'{name}{len(self.touched)}'] = self.touched.pop(name)

  @rule(seconds=st.floats(0.1, 2.5 * _SECONDS))
  def pass_time(self, seconds):
    self.clock.time += seconds

  @invariant()
  def one_holder(self):
    alive = [
      n for n, t in self.touched.items() if self.clock.time - t <= _SECONDS
    ]
    assert len(alive) <= 1


_Processes.TestCase.settings = settings(
  max_examples=40, stateful_step_count=30, deadline=None
)
test_processes = _Processes.TestCase

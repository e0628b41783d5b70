"""Slots of the engine: in this process, and as processes that die."""

import itertools
import os
import subprocess
import sys
import threading

import pytest

from steepest.tuning import engine

# What a worker can import wherever it starts: a job is an expression.
_DO = eval


def test_one_slot_is_this_process():
  with engine.local([engine.Place()]) as slots:
    assert slots.submit(0, _DO, '__import__("os").getpid()').result() == (
      os.getpid()
    )
    failed = slots.submit(0, _DO, '{}["nothing"]')
    with pytest.raises(engine.JobFailedError, match="KeyError: 'nothing'"):
      failed.result()
    # Whatever ends the process ends the driver.
    with pytest.raises(KeyboardInterrupt):
      slots.submit(0, exec, 'raise KeyboardInterrupt')


@pytest.mark.skipif(
  not hasattr(os, 'sched_setaffinity'), reason='cores cannot be chosen here'
)
def test_slots_are_processes_on_cores_of_their_own(tmp_path):
  cores = sorted(os.sched_getaffinity(0))[:2]
  job = (
    '(__import__("os").getpid(), list(__import__("os").sched_getaffinity(0)))'
  )
  places = [engine.Place((core,)) for core in (cores[0], cores[-1])]
  with engine.local(places, tmp_path) as slots:
    found = [slots.submit(slot, _DO, job) for slot in (0, 1, 0)]
    (a, on_a), (b, on_b), (c, _) = (future.result() for future in found)
    # A worker stays, with what it has compiled.
    assert a == c != b and os.getpid() not in (a, b)
    assert [on_a, on_b] == [[cores[0]], [cores[-1]]]
    slots.submit(1, exec, 'print("said by 1", flush=True)').result()
    failed = slots.submit(1, _DO, '1 / 0')
    with pytest.raises(engine.JobFailedError, match='ZeroDivisionError'):
      failed.result()
  log = (tmp_path / 'worker-1.log').read_text()
  assert 'said by 1' in log and 'Traceback' in log
  for pid in (a, b):
    with pytest.raises(ProcessLookupError):
      os.kill(pid, 0)


_ALLOCATES = """
import ctypes, threading
from steepest.training import processes
processes.keep_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
def again(libc, size):
  import ctypes, resource
  for _ in range(9):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = ctypes.c_void_p(libc.malloc(ctypes.c_size_t(size)))
    ctypes.memset(block, 1, size)
    libc.free(block)
  faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
  print('faults', faults, flush=True)
# glibc assigns arenas to threads in turn.
for _ in range(4):
  thread = threading.Thread(target=again, args=(libc, 2**27))
  thread.start()
  thread.join()
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='glibc is asked')
def test_threads_of_a_worker_get_the_memory_that_they_freed(tmp_path):
  """As a step's buffers, though the worker has a thread from its beginning."""
  script = f"""
import pathlib
from steepest.training import processes
processes.keep_memory()
from steepest.tuning import engine
with engine.local([engine.Place()] * 2, pathlib.Path({str(tmp_path)!r})) as s:
  s.submit(0, exec, {_ALLOCATES!r}).result()
"""
  environment = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith('MALLOC_')
  }
  subprocess.run([sys.executable, '-c', script], check=True, env=environment)
  said = (tmp_path / 'worker-0.log').read_text()
  faults = [int(number) for number in said.replace('faults', '').split()]
  assert len(faults) == 4
  # Else every page anew.
  assert max(faults) < 2**27 / os.sysconf('SC_PAGESIZE') / 100


def _dies(path, times):
  """Returns a job that kills its worker so often, then leaves its number."""
  return (
    'import os, signal\n'
    f'with open({str(path)!r}, "a") as f: f.write("x")\n'
    f'if os.path.getsize({str(path)!r}) <= {times}:\n'
    '  os.kill(os.getpid(), signal.SIGKILL)'
  )


def test_a_worker_that_dies_is_replaced_twice(tmp_path):
  with engine.local([engine.Place()] * 2) as slots:
    other = slots.submit(1, _DO, '__import__("time").sleep(1) or "other"')
    slots.submit(0, exec, _dies(tmp_path / 'twice', 2)).result()
    thrice = slots.submit(0, exec, _dies(tmp_path / 'thrice', 3))
    with pytest.raises(engine.JobFailedError, match='worker died 3 times'):
      thrice.result()
    # The other slot and the slot itself go on.
    assert other.result() == 'other'
    assert slots.submit(0, _DO, '6 * 7').result() == 42
  assert (tmp_path / 'thrice').read_text() == 'xxx'


@pytest.mark.parametrize('count', [1, 2])
def test_tasks_are_drawn_as_they_are_needed(count):
  drawn = []
  tasks = (drawn.append(i) or f'{i} ** 2' for i in itertools.count())
  with engine.local([engine.Place()] * count) as slots:
    results = slots.run(_DO, tasks)
    found = [next(results) for _ in range(20)]
    assert len(drawn) <= 20 + 2 * count
    assert set(found) <= {i**2 for i in drawn}
    results.close()
    assert sorted(slots.run(_DO, ['1', '2', '3'])) == [1, 2, 3]


def _devices(monkeypatch, platform, count):
  found = platform, [str(i) for i in range(count)]
  monkeypatch.setattr(engine.processes, 'local_devices', lambda: found)


def test_slots_are_parts_of_a_machine(monkeypatch):
  monkeypatch.delenv('XLA_FLAGS', raising=False)
  _devices(monkeypatch, 'gpu', 8)
  sees = lambda *at: [
    place.variables['CUDA_VISIBLE_DEVICES'] for place in engine.places(*at)
  ]
  assert sees(1) == list('01234567')
  assert sees(2) == ['0,1', '2,3', '4,5', '6,7']
  assert sees(3, 5) == ['0,1,2', '3,4,5']
  assert sees(8) == ['0,1,2,3,4,5,6,7']
  with pytest.raises(
    ValueError, match='a run of 9 devices: this machine has 8'
  ):
    engine.places(9)
  # As Ray arranges the chips of a part of a TPU machine.
  _devices(monkeypatch, 'tpu', 4)
  assert [dict(place.variables) for place in engine.places(2)] == [
    {
      'TPU_VISIBLE_CHIPS': chips,
      'TPU_CHIPS_PER_PROCESS_BOUNDS': '1,2,1',
      'TPU_PROCESS_BOUNDS': '1,1,1',
    }
    for chips in ('0,1', '2,3')
  ]
  assert engine.places(4) == [engine.Place()]
  _devices(monkeypatch, 'cpu', 5)
  two = {'XLA_FLAGS': '--xla_force_host_platform_device_count=2'}
  assert engine.places(2) == [
    engine.Place((0, 1), two),
    engine.Place((2, 3), two),
  ]
  assert engine.places(1, 3) == [engine.Place()] * 3


def test_workers_end_with_a_driver_that_is_killed(tmp_path):
  script = (
    'from steepest.tuning import engine\n'
    'slots = engine.local([engine.Place()] * 2)\n'
    'job = "__import__(\'os\').getpid()"\n'
    'print(slots.submit(0, eval, job).result(), flush=True)\n'
    'slots.submit(1, eval, "__import__(\'time\').sleep(600)").result()\n'
  )
  driver = subprocess.Popen(
    [sys.executable, '-c', script], stdout=subprocess.PIPE, text=True
  )
  worker = int(driver.stdout.readline())
  driver.kill()
  driver.communicate()
  gone = threading.Event()
  for _ in range(200):
    try:
      os.kill(worker, 0)
    except ProcessLookupError:
      return
    gone.wait(0.05)
  raise AssertionError('the worker goes on')

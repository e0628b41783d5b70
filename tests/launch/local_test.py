"""Processes of this machine that are watched and started again.

The command is a small program that saves checkpoints and ends as it is told;
slow tests train.
"""

import dataclasses
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from steepest.launch.submitters import job as jobs, local

_ROOT = pathlib.Path(__file__).parent.parent.parent

# Its first argument is a list of what to do at each start:
# [steps to reach, status or signal to end with, or 'wait'].
_PROGRAM = """
import json, os, pathlib, signal, sys, time
plan = json.loads(sys.argv[1])
workdir = sys.argv[2].removeprefix('--workdir=')
if workdir.startswith('s3://'):
  workdir = os.environ['STEEPEST_CACHE'] + '/buckets/write/s3/' + workdir[5:]
workdir = pathlib.Path(workdir)
index = os.environ.get('STEEPEST_PROCESS', '0')
workdir.mkdir(parents=True, exist_ok=True)
starts = workdir / f'starts-{index}'
start = len(starts.read_text().split()) if starts.exists() else 0
with starts.open('a') as f:
  f.write(os.environ.get('STEEPEST_COORDINATOR', 'alone') + '\\n')
steps, end = plan[min(start, len(plan) - 1)].get(index, [0, 'wait'])
if steps:
  (workdir / 'checkpoints' / str(steps)).mkdir(parents=True, exist_ok=True)
if end == 'diverged':
  (workdir / 'summary.json').write_text('{"status": "diverged"}')
  sys.exit(1)
if end == 'wait':
  def stop(*_):
    (workdir / f'told-{index}').touch()
    sys.exit(75)
  signal.signal(signal.SIGTERM, stop)
  (workdir / f'waiting-{index}').touch()
  time.sleep(60)
others = {i for i, (_, e) in plan[0].items() if e == 'wait'} - {index}
while end < 0 and not all((workdir / f'waiting-{i}').exists() for i in others):
  time.sleep(0.02)
if end < 0:
  os.kill(os.getpid(), -end)
sys.exit(end)
"""


def _job(tmp_path, plan, processes=1, units=1, place=None):
  (tmp_path / 'program.py').write_text(_PROGRAM, 'utf-8')
  names = [f'{place or tmp_path}/run{i}' for i in range(units)]
  arguments = (json.dumps([{str(k): v for k, v in p.items()} for p in plan]),)
  return jobs.Job(
    name='test',
    module='program',
    units=tuple(
      jobs.Unit(name, arguments, f'seed={i}') for i, name in enumerate(names)
    ),
    root=tmp_path,
    folder=tmp_path / 'all',
    chip='',
    devices=1,
    nodes=1,
    processes=processes,
    restarts=1,
    hours=None,
    environment={},
    options=jobs.options([], local.OPTIONS, 'there'),
  )


def _starts(tmp_path, unit=0, process=0):
  path = tmp_path / f'run{unit}' / f'starts-{process}'
  return path.read_text('utf-8').split()


def test_what_ends_badly_goes_on_while_it_gets_further(tmp_path, capfd):
  """Three failures, but never two without progress."""
  plan = [{0: [5, 1]}, {0: [5, 1]}, {0: [10, -9]}, {0: [15, 0]}]
  local.run(_job(tmp_path, plan))
  assert len(_starts(tmp_path)) == 4
  told = capfd.readouterr().err
  assert 'process 0 of 1 ended with status 1: all restart' in told
  assert 'signal SIGKILL: all restart from step 10' in told


def test_progress_in_a_bucket_is_that_of_its_copy(tmp_path, monkeypatch):
  """Logs are elsewhere: a run removes what its bucket does not have."""
  monkeypatch.setenv('STEEPEST_CACHE', str(tmp_path / 'cache'))
  plan = [{0: start, 1: [0, 0]} for start in ([5, 1], [10, 1], [15, 0])]
  job = _job(tmp_path, plan, processes=2, place='s3://lab')
  local.run(dataclasses.replace(job, restarts=0))
  copy = tmp_path / 'cache' / 'buckets' / 'write' / 's3' / 'lab' / 'run0'
  assert len((copy / 'starts-0').read_text().split()) == 3
  logs = tmp_path / 'all' / 'logs' / 'seed=0'
  assert {p.name for p in logs.iterdir()} == {
    f'process-{i}.log' for i in (0, 1)
  }


def test_what_gets_no_further_ends(tmp_path):
  plan = [{0: [5, 3]}]
  with pytest.raises(ChildProcessError, match='no progress in 2 tries'):
    local.run(_job(tmp_path, plan))
  # The first got from nothing to step 5.
  assert len(_starts(tmp_path)) == 3


def test_a_diverged_run_is_not_tried_again(tmp_path):
  with pytest.raises(ChildProcessError, match='diverged'):
    local.run(_job(tmp_path, [{0: [5, 'diverged']}]))
  assert len(_starts(tmp_path)) == 1


def test_one_dies_and_all_start_again(tmp_path, capfd):
  wait = [0, 'wait']
  plan = [{0: wait, 1: [0, -9], 2: wait}, {i: [1, 0] for i in range(3)}]
  local.run(_job(tmp_path, plan, processes=3))
  told = capfd.readouterr().err
  assert 'process 1 of 3 ended with signal SIGKILL' in told
  starts = [_starts(tmp_path, process=i) for i in range(3)]
  # All are told the same address, and a new one at the second start.
  assert starts[0] == starts[1] == starts[2]
  assert len(set(starts[0])) == 2
  assert all(re.fullmatch(r'127\.0\.0\.1:\d+', s) for s in starts[0])


def test_the_killed_one_is_named_not_the_one_it_took_with_it():
  ends = ('exit 1', 'kill -9 $$', 'exit 0')
  processes = [subprocess.Popen(['sh', '-c', end]) for end in ends]
  for process in processes:
    process.wait()
  said = local._failed(processes)
  assert said == 'process 1 of 3 ended with signal SIGKILL'


def test_units_run_one_after_the_other(tmp_path):
  local.run(_job(tmp_path, [{0: [1, 0]}], units=2))
  assert len(_starts(tmp_path, unit=0)) == len(_starts(tmp_path, unit=1)) == 1


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_launcher_stops_all(tmp_path, number):
  job = _job(tmp_path, [{}], processes=2)
  code = textwrap.dedent(f"""
    import pathlib
    from steepest.launch.submitters import job
    from steepest.launch.submitters import local
    PosixPath = pathlib.PosixPath
    Unit = job.Unit
    local.run(job.Job(**{vars(job)!r}))
  """)
  launcher = subprocess.Popen([sys.executable, '-c', code], cwd=_ROOT)
  waiting = [tmp_path / 'run0' / f'waiting-{i}' for i in range(2)]
  end = time.monotonic() + 60
  while not all(p.exists() for p in waiting) and time.monotonic() < end:
    time.sleep(0.05)
  launcher.send_signal(number)
  assert launcher.wait(timeout=30) == 75
  assert all((tmp_path / 'run0' / f'told-{i}').exists() for i in range(2))


def _children(pid: int) -> list[int]:
  text = pathlib.Path(f'/proc/{pid}/task/{pid}/children').read_text('utf-8')
  return [int(word) for word in text.split()]


_TRAIN = (
  '--config=experiments/tiny.py:gpt2,adamw',
  f'--config.data.source=flat:{_ROOT}/tests/golden/tokens.npy',
  '--config.model.num_layers=1',
  '--config.model.width=32',
  '--config.model.context=16',
  '--config.steps=40',
  '--config.checkpoint_every=10',
)


def _losses(workdir):
  text = (workdir / 'metrics.jsonl').read_text('utf-8')
  return [json.loads(line)['train/loss'] for line in text.splitlines()]


@pytest.mark.slow
def test_a_killed_process_costs_no_step(tmp_path, run_command):
  submit = lambda name: [
    *('--to=local', '--processes=2', f'--workdir={tmp_path / name}', *_TRAIN)
  ]
  whole = run_command('submit', *submit('whole'), XLA_FLAGS='')
  assert whole.returncode == 0, whole.stderr
  env = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
  launcher = subprocess.Popen(
    [sys.executable, '-m', 'launch.submit', *submit('killed')],
    cwd=_ROOT,
    env={**env, 'JAX_PLATFORMS': 'cpu'},
    stderr=subprocess.PIPE,
    text=True,
  )
  end = time.monotonic() + 120
  while not (tmp_path / 'killed' / 'checkpoints' / '10').exists():
    assert time.monotonic() < end
    time.sleep(0.02)
  os.kill(_children(launcher.pid)[1], signal.SIGKILL)
  _, err = launcher.communicate(timeout=300)
  assert launcher.returncode == 0, err
  assert 'process 1 of 2 ended with signal SIGKILL' in err
  assert _losses(tmp_path / 'killed') == _losses(tmp_path / 'whole')

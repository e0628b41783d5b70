"""Runs that are killed or asked to stop, at any moment, lose nothing."""

import json
import os
import pathlib
import random
import re
import resource
import signal
import subprocess
import sys
import time

import pytest

_ROOT = pathlib.Path(__file__).parent.parent.parent
_STEPS = 24

# Imports once, then forks for each run; no device is touched before.
_FORKER = """
import json, os, signal, sys
from steepest.launch import train
from steepest.training import run
from steepest.tuning import status
signal.signal(signal.SIGTERM, signal.SIG_DFL)
for line in sys.stdin:
  pid = os.fork()
  if not pid:
    sys.argv = json.loads(line)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    code = 0
    try:
      train.main()
    except SystemExit as error:
      code = error.code or 0
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
  print(pid, flush=True)
  print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class _Run:
  """One run of launch.train, started as often as it takes."""

  def __init__(self, workdir, variant, steps, env):
    self.workdir, self.log = workdir, workdir.with_suffix('.log')
    self._argv = [
      'launch/train.py',
      f'--config=experiments/tiny.py:{variant}',
      '--config.data.source=flat:tests/golden/tokens.npy',
      '--config.data.epochs=40',
      '--config.model.width=32',
      '--config.model.context=32',
      '--config.microbatches=2',
      f'--config.steps={steps}',
      '--config.checkpoint_every=2',
      f'--workdir={workdir}',
    ]
    self._forker = subprocess.Popen(
      [sys.executable, '-c', _FORKER],
      cwd=_ROOT,
      env=env,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=self.log.open('a'),
      text=True,
    )

  def start(self):
    self._forker.stdin.write(json.dumps(self._argv) + '\n')
    self._forker.stdin.flush()
    return int(self._forker.stdout.readline().split()[0])

  def wait(self):
    """Returns the exit status of what was started last."""
    for line in self._forker.stdout:
      if line.strip().lstrip('-').isdigit():
        return int(line)
    raise AssertionError('the forking process ended')

  def close(self):
    self._forker.stdin.close()
    self._forker.wait(60)

  def steps(self):
    """Returns the steps of each verified checkpoint, then of each begun."""
    sealed, begun = [], []
    for path in sorted((self.workdir / 'checkpoints').glob('*')):
      name = path.name.partition('.')[0]
      if name.isdigit():
        whole = path.name.isdigit() and (path / 'checksums.json').exists()
        (sealed if whole else begun).append(int(name))
    return sealed, begun

  def unverified(self):
    """Whether there is a checkpoint that is complete but not verified."""
    return any(
      path.name.isdigit() and not (path / 'checksums.json').exists()
      for path in (self.workdir / 'checkpoints').glob('*')
    )

  def until_new(self, pid, before):
    """Waits for a verified checkpoint that was not there before."""
    return self.until(pid, lambda: set(self.steps()[0]) - before)

  def until(self, pid, done):
    """Waits for `done()`; False if the run ends before that."""
    end = time.monotonic() + 300
    while not done():
      if not os.path.exists(f'/proc/{pid}') or _is_zombie(pid):
        return False
      assert time.monotonic() < end
      time.sleep(0.002)
    return True


def _is_zombie(pid):
  try:
    stat = pathlib.Path(f'/proc/{pid}/stat').read_text()
  except OSError:
    return True
  return stat.rpartition(')')[2].split()[0] == 'Z'


@pytest.fixture(scope='module')
def whole(command_env, tmp_path_factory):
  """The directory of a run that nothing disturbs."""
  workdir = tmp_path_factory.mktemp('whole') / 'run'
  _finish(_Run(workdir, 'llama,sophia', _STEPS, command_env))
  return workdir


@pytest.fixture
def make_run(command_env, compiled_once, tmp_path):
  """Makes runs that compile once; `whole` and the slow ones do at each start.

  (name, steps, variant, environment) → a run.
  """
  kept, runs = {**command_env, **compiled_once}, []

  def fn(name, steps=_STEPS, variant='llama,sophia', env=kept):
    runs.append(_Run(tmp_path / name, variant, steps, env))
    return runs[-1]

  yield fn
  for run in runs:
    run.close()


def _finish(run):
  run.start()
  assert run.wait() == 0, run.log.read_text()
  run.close()


def _kill_somewhere(run, pid, rng):
  """Kills a run at a moment of a kind drawn by chance; False if it ended."""
  sealed, begun = run.steps()
  before = {*sealed, *begun}
  end = time.monotonic() + rng.uniform(0, 4)
  moments = {
    'starting': lambda: time.monotonic() > end,
    'writing': lambda: set(run.steps()[1]) - before,
    'unverified': run.unverified,
    'later': lambda: set(run.steps()[0]) - before,
  }
  kind = rng.choice(list(moments))
  alive = run.until(pid, moments[kind])
  if kind == 'later':
    time.sleep(rng.uniform(0, 0.3))
  if alive and not _is_zombie(pid):
    os.kill(pid, signal.SIGKILL)
  return run.wait() == -signal.SIGKILL


def _kill_and_finish(run, kills):
  rng = random.Random(kills)
  survived = 0
  while survived < kills and _kill_somewhere(run, run.start(), rng):
    survived += 1
  assert survived == kills
  _finish(run)


def test_killed_anywhere_is_bit_for_bit_uninterrupted(
  make_run, whole, check_same
):
  """At start-up, while a checkpoint is written or verified, and between."""
  parts = make_run('parts')
  _kill_and_finish(parts, 3)
  check_same(parts.workdir, whole, _STEPS)


@pytest.mark.slow
@pytest.mark.parametrize(
  'variant, kills, steps',
  [
    ('llama,sophia', 50, 400),
    *((v, 3, 120) for v in ('gpt2,adamw', 'gpt2,lion', 'gpt2,sophia')),
    ('llama,adamw', 3, 120),
  ],
)
def test_each_start_compiles_as_users_do(
  make_run, command_env, check_same, variant, kills, steps
):
  env = {**command_env, 'XLA_FLAGS': ''}
  whole, parts = (
    make_run(name, steps, variant, env) for name in ('whole', 'parts')
  )
  _kill_and_finish(parts, kills)
  _finish(whole)
  check_same(parts.workdir, whole.workdir, steps)


def test_sigterm_saves_and_going_on_is_no_interruption(
  make_run, whole, computed, check_same
):
  parts = make_run('parts')
  for number in (signal.SIGTERM, signal.SIGINT):
    pid = parts.start()
    assert parts.until_new(pid, set(parts.steps()[0]))
    os.kill(pid, number)
    assert parts.wait() == 75
    kept = max(parts.steps()[0])
    assert [row['step'] for row in computed(parts.workdir)] == list(range(kept))
    said = parts.log.read_text()
    assert f'stopped after {kept} of {_STEPS} steps' in said
    assert number.name in said
  _finish(parts)
  check_same(parts.workdir, whole, _STEPS)


def test_a_second_signal_leaves_at_once(make_run):
  run = make_run('run', 2000)
  pid = run.start()
  assert run.until(pid, lambda: run.steps()[0])
  os.kill(pid, signal.SIGSTOP)
  os.kill(pid, signal.SIGTERM)
  os.kill(pid, signal.SIGINT)
  os.kill(pid, signal.SIGCONT)
  assert run.wait() == 75
  # What was there before stays whole.
  assert run.steps()[0]


def test_no_room_for_checkpoints_is_told_in_lines(tmp_path):
  """A limit on the size of files in the disk's place."""
  limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2**14, 2**14))
  arguments = [
    '--config=experiments/tiny.py:gpt2,lion',
    '--config.data.source=flat:tests/golden/tokens.npy',
    '--config.model.num_layers=1',
    '--config.model.width=32',
    '--config.model.context=16',
    '--config.steps=4',
    '--config.checkpoint_every=2',
    f'--workdir={tmp_path / "run"}',
  ]
  ended = subprocess.run(
    [sys.executable, '-m', 'launch.train', *arguments],
    cwd=_ROOT,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
    preexec_fn=limit,
    capture_output=True,
    text=True,
  )
  assert ended.returncode == 1
  *warnings, error = ended.stderr.splitlines()
  path = tmp_path / 'run' / 'checkpoints' / '4'
  assert error.startswith(f'error: checkpoint {path}: ')
  # Told when the next step ends that asks.
  said = r'checkpoint at step \d: warning: checkpoint .*: '
  assert len(warnings) == 2
  assert all(re.match(said, line) for line in warnings)

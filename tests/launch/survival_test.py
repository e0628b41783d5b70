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

import numpy as np
import pytest

_ROOT = pathlib.Path(__file__).parent.parent.parent
_TIMED = ('seconds', 'data/wait_seconds', 'tokens_per_second', 'mfu')
_EVERY = 2

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

  def __init__(self, workdir, steps, log, env):
    self.workdir = workdir
    self._argv = [
      'launch/train.py',
      '--config=experiments/tiny.py:llama,sophia',
      '--config.data.source=flat:tests/golden/tokens.npy',
      '--config.data.epochs=40',
      '--config.model.width=32',
      '--config.model.context=32',
      f'--config.steps={steps}',
      f'--config.checkpoint_every={_EVERY}',
      f'--workdir={workdir}',
    ]
    self._forker = subprocess.Popen(
      [sys.executable, '-c', _FORKER],
      cwd=_ROOT,
      env=env,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=log.open('a'),
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


@pytest.fixture
def make_run(command_env, tmp_path):
  runs = []

  def fn(name, steps, **env):
    log = tmp_path / f'{name}.log'
    runs.append(_Run(tmp_path / name, steps, log, {**command_env, **env}))
    return runs[-1]

  yield fn
  for run in runs:
    run.close()


def _computed(workdir):
  lines = (workdir / 'metrics.jsonl').read_text('utf-8').splitlines()
  rows = [json.loads(line) for line in lines]
  return [{k: v for k, v in r.items() if k not in _TIMED} for r in rows]


def _arrays(workdir, steps):
  """All arrays of a checkpoint, read by Orbax without our code."""
  import jax
  import orbax.checkpoint as ocp

  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
    tree = reader.restore(workdir / 'checkpoints' / str(steps) / 'state')
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(p): np.asarray(leaf) for p, leaf in leaves}


def _check_same(parts, whole, steps):
  assert _computed(parts) == _computed(whole)
  assert [row['step'] for row in _computed(parts)] == list(range(steps))
  ours, theirs = _arrays(parts, steps), _arrays(whole, steps)
  assert ours.keys() == theirs.keys()
  for path, value in ours.items():
    np.testing.assert_array_equal(value, theirs[path], err_msg=path)


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


@pytest.mark.parametrize(
  'kills, steps', [(3, 24), pytest.param(50, 400, marks=pytest.mark.slow)]
)
def test_killed_anywhere_is_bit_for_bit_uninterrupted(
  make_run, tmp_path, kills, steps
):
  """At start-up, while a checkpoint is written or verified, and between."""
  # The slow test compiles as users do.
  env = {'XLA_FLAGS': ''} if kills > 3 else {}
  whole, parts = (make_run(name, steps, **env) for name in ('whole', 'parts'))
  rng = random.Random(kills)
  survived = 0
  while survived < kills and _kill_somewhere(parts, parts.start(), rng):
    survived += 1
  assert survived == kills
  parts.start()
  assert parts.wait() == 0
  whole.start()
  assert whole.wait() == 0
  _check_same(parts.workdir, whole.workdir, steps)


def test_sigterm_saves_and_going_on_is_no_interruption(make_run, tmp_path):
  steps = 40
  whole, parts = make_run('whole', steps), make_run('parts', steps)
  for number in (signal.SIGTERM, signal.SIGINT):
    pid = parts.start()
    assert parts.until_new(pid, set(parts.steps()[0]))
    os.kill(pid, number)
    assert parts.wait() == 75
    kept = max(parts.steps()[0])
    assert [row['step'] for row in _computed(parts.workdir)] == list(
      range(kept)
    )
    said = (tmp_path / 'parts.log').read_text()
    assert f'stopped after {kept} of {steps} steps' in said
    assert number.name in said
  for run in (parts, whole):
    run.start()
    assert run.wait() == 0
  _check_same(parts.workdir, whole.workdir, steps)


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

"""Whole studies on the command line, killed and resumed."""

from collections.abc import Mapping
import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from steepest.data import locks, prepare
from steepest.tuning import engine

ROOT = pathlib.Path(__file__).parent.parent.parent
_ONE = '--xla_force_host_platform_device_count=1'


@pytest.fixture(scope='session')
def shards(tmp_path_factory) -> pathlib.Path:
  """Shards of some modules of the standard library."""
  out = tmp_path_factory.mktemp('study') / 'shards'
  import argparse
  import dataclasses

  from rich.console import Console

  files = ','.join(m.__file__ for m in (argparse, dataclasses))
  options = prepare.Options(
    inputs=files,
    tokenizer='bpe-train:300',
    out=out,
    validation_fraction=0.5,
    source='code',
  )
  prepare.prepare(options, Console(stderr=True))
  return out


@pytest.fixture(scope='module', autouse=True)
def _compiled_once(compiled_once):
  """For all studies, which are of one shape, and for Ray's workers."""
  with pytest.MonkeyPatch.context() as patch:
    for name, value in compiled_once.items():
      patch.setenv(name, value)
    yield


def _command(
  shards: pathlib.Path, workdir: pathlib.Path, workers: int, **study: object
) -> list[str]:
  values = {
    'data.source': f'shards:{shards}',
    'eval_tasks': '',
    'model.width': 16,
    'model.num_layers': 1,
    'model.context': 16,
    'batch_size': 4,
    'steps': 12,
    'schedule.warmup_steps': 2,
    'eval_sequences': 8,
    'checkpoint_every': 10,
    'study.models': 'gpt2',
    'study.optimizers': 'adamw,sophia',
    'study.target_steps': 40,
    'study.max_extensions': 12,
    **{f'study.{key}': value for key, value in study.items()},
  }
  return [
    sys.executable,
    '-m',
    'launch.study',
    '--config=experiments/quickstart.py',
    f'--workdir={workdir}',
    f'--workers={workers}',
    *(f'--config.{k}={v}' for k, v in values.items()),
  ]


def _start(
  command: list[str], env: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
  # On one core for all workers, as on two their sums would round otherwise.
  core = min(os.sched_getaffinity(0))
  return subprocess.Popen(
    command,
    cwd=ROOT,
    env={**os.environ, **_flags(), **(env or {})},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    preexec_fn=lambda: os.sched_setaffinity(0, {core}),
  )


def _flags() -> dict[str, str]:
  return {'XLA_FLAGS': f'{os.environ["XLA_FLAGS"]} {_ONE}'}


def _run(
  command: list[str], env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
  process = _start(command, env)
  out, err = process.communicate(timeout=900)
  return subprocess.CompletedProcess(command, process.returncode, out, err)


def _left(workdir: pathlib.Path) -> dict[str, tuple[object, ...]]:
  """Returns what each run of a study came to."""
  found = {}
  for path in workdir.glob('*/*/*/summary.json'):
    summary = json.loads(path.read_text())
    config = json.loads(path.with_name('config.json').read_text())
    rows = path.with_name('metrics.jsonl').read_text().count('\n')
    assert rows == summary['steps']
    of = config['optimizer']
    values = of['lr'], of['rho'] if 'rho' in of else None
    name = str(path.parent.relative_to(workdir))
    found[name] = *values, summary['status'], summary['eval_loss']
  return found


def _wait_for(process: subprocess.Popen[str], root: pathlib.Path, glob: str):
  while not list(root.glob(glob)):
    assert process.poll() is None, process.communicate()
    time.sleep(0.02)


def _workers(pid: int) -> list[int]:
  """Returns the process ids of a study's workers."""
  found = []
  for children in pathlib.Path(f'/proc/{pid}/task').glob('*/children'):
    with contextlib.suppress(OSError):  # A process that has ended.
      for child in children.read_text().split():
        if 'spawn_main' in pathlib.Path(f'/proc/{child}/cmdline').read_text():
          found.append(int(child))
  return found


_STUDY = {'search': 'sobol', 'trials': 4, 'optimizers': 'sophia'}


@pytest.fixture(scope='module')
def whole(shards, tmp_path_factory) -> pathlib.Path:
  """A study that nobody killed, in one process, which has no use for Ray."""
  home = tmp_path_factory.mktemp('whole')
  (home / 'ray.py').write_text('raise AssertionError("one slot needs no Ray")')
  workdir = home / 'study'
  env = {'PYTHONPATH': str(home)}
  done = _run(_command(shards, workdir, 1, **_STUDY), env)
  assert done.returncode == 0, done.stderr
  report = workdir / 'report' / 'report.html'
  assert done.stdout.splitlines()[-1] == f'report: {report}'
  assert report.exists()
  return workdir


def test_a_study_survives_kills_and_signals(shards, whole, tmp_path):
  """Killed workers are replaced, and so is the driver, by the same command."""
  study, killed = _STUDY, tmp_path / 'killed'
  process = _start(_command(shards, killed, 2, **study))
  while len(workers := _workers(process.pid)) < 2:
    assert process.poll() is None, process.communicate()
    time.sleep(0.02)
  _wait_for(process, killed, 'trials/*/*/metrics.jsonl')
  os.kill(workers[0], signal.SIGKILL)
  # Killed while a target trains: its search is done, its steps are not.
  _wait_for(process, killed, 'finals/*/*/metrics.jsonl')
  process.kill()
  process.communicate()
  ended = {p: p.stat().st_mtime_ns for p in killed.glob('trials/*/*/s*.json')}
  again = _run(_command(shards, killed, 2, **study))
  assert again.returncode == 0, again.stderr
  assert _left(killed) == _left(whole)
  assert len([name for name in _left(whole) if 'finals' in name]) == 2
  for path, modified in ended.items():
    assert path.stat().st_mtime_ns == modified, f'{path} was done again'

  changed = _run(_command(shards, whole, 1, **{**study, 'trials': 8}))
  assert changed.returncode == 1
  last = changed.stderr.strip().splitlines()[-1]
  assert 'was started with study.trials=4, asked for 8' in last
  config = json.loads((whole / 'config.json').read_text())
  assert config['study']['trials'] == 4


def test_runs_of_a_study_that_is_asked_to_stop_save(shards, tmp_path):
  """Though the signal reaches all of its processes, as SLURM sends it."""
  study = {**_STUDY, 'target_steps': 100_000}
  command = _command(shards, tmp_path, 2, **study)
  own = ('--config.data.epochs=200', '--config.checkpoint_every=100_000')
  process = _start([*command, *own])
  _wait_for(process, tmp_path, 'finals/*/*/metrics.jsonl')
  for pid in (*_workers(process.pid), process.pid):
    os.kill(pid, signal.SIGTERM)
  _, err = process.communicate(timeout=300)
  assert process.returncode == 75, err
  assert err.splitlines()[-1] == 'stopped: the same command resumes'
  saved = {
    path.parent.parent: int(path.name)
    for path in tmp_path.glob('finals/*/*/checkpoints/[0-9]*')
  }
  for run, steps in saved.items():
    assert (run / 'metrics.jsonl').read_text().count('\n') == steps
  assert len(saved) == 2


def test_a_study_stops_when_its_time_is_up_and_goes_on(shards, whole, tmp_path):
  command = _command(shards, tmp_path, 1, **_STUDY)
  none = _run([*command, '--minutes=0'])
  assert none.returncode == 0, none.stderr
  assert '0 minutes on 1 worker are enough for 0 of 6 runs, by' in none.stdout
  said = 'time is up with 6 runs left: the same command resumes'
  assert none.stdout.splitlines()[-1] == said
  assert not _left(tmp_path)
  rest = _run([*command, '--minutes=600'])
  assert rest.returncode == 0, rest.stderr
  assert rest.stdout.splitlines()[-1].startswith('report: ')
  assert _left(tmp_path) == _left(whole)


def test_errors_take_one_line(shards, tmp_path):
  """A cell that fails is named, and so is its reason."""
  study = {'optimizers': 'sophia', 'search': 'grid'}
  command = _command(shards, tmp_path / 'study', 1, **study)
  failed = _run([*command, '--config.study.max_extensions=0'])
  assert failed.returncode != 0
  last = failed.stderr.strip().splitlines()[-1]
  assert last.startswith('error: gpt2-sophia: the best learning rate')
  with locks.hold(tmp_path / 'study', 'at this study'):
    second = _run(command)
  assert second.returncode == 1
  assert f'(process {os.getpid()}, host ' in second.stderr.splitlines()[-1]


_RAY = {'RAY_AUTH_MODE': 'token', 'RAY_AUTH_TOKEN': 64 * 'a'}


class _Ray:
  """A Ray of one node, and others that come and go, of one core each."""

  def __init__(self):
    with self._started_on(min):
      # Reads the variables.
      cluster_utils = pytest.importorskip('ray.cluster_utils')
      head = {'include_dashboard': False}
      self._cluster = cluster_utils.Cluster(True, head_node_args=head)
    self.address = self._cluster.address
    self.close = self._cluster.shutdown

  def add(self):
    with self._started_on(max):
      return self._cluster.add_node()

  def lose(self, node):
    self._cluster.remove_node(node, allow_graceful=False)

  @contextlib.contextmanager
  def _started_on(self, choose):
    cores = os.sched_getaffinity(0)
    with pytest.MonkeyPatch.context() as patch:
      for name, value in {**_RAY, **_flags()}.items():
        patch.setenv(name, value)
      os.sched_setaffinity(0, {choose(cores)})
      try:
        yield
      finally:
        os.sched_setaffinity(0, cores)


@pytest.fixture(scope='module')
def nodes():
  ray = _Ray()
  yield ray
  ray.close()


def _attempts(workdir: pathlib.Path) -> list[dict[str, object]]:
  return [
    json.loads(path.read_text())['attempt']
    for path in workdir.glob('*/*/*/env.json')
  ]


def test_a_study_on_two_nodes_survives_its_driver_and_a_node(
  shards, whole, nodes, tmp_path
):
  """Its results are those of one process, bit for bit."""
  second = nodes.add()
  command = [
    *_command(shards, tmp_path, 0, **_STUDY),
    f'--engine={nodes.address}',
  ]
  process = _start(command, _RAY)
  _wait_for(process, tmp_path, 'trials/*/*/metrics.jsonl')
  process.kill()
  process.communicate()
  process = _start(command, _RAY)
  while len({attempt['node'] for attempt in _attempts(tmp_path)}) < 2:
    assert process.poll() is None, process.communicate()
    time.sleep(0.05)
  nodes.lose(second)
  out, err = process.communicate(timeout=600)
  assert process.returncode == 0, (out, err)
  assert _left(tmp_path) == _left(whole)


def test_shards_of_two_nodes_are_those_of_one_process(nodes, tmp_path):
  """Also where one of the nodes is lost in the middle."""
  for i in range(40):
    lines = (
      f'{{"text": "document {i} {j} {"word " * j}"}}' for j in range(300)
    )
    (tmp_path / f'{i}.jsonl').write_text('\n'.join([*lines, '{"bad"', '']))
  command = [
    sys.executable,
    '-m',
    'launch.prepare',
    '--tokenizer=bpe-train:300',
  ]
  command += [f'--input={tmp_path}/*.jsonl', '--shard_tokens=100000']
  one, two = tmp_path / 'one', tmp_path / 'two'
  alone = _run([*command, f'--out={one}', '--workers=1'])
  assert alone.returncode == 0, alone.stderr
  second = nodes.add()
  process = _start(
    [*command, f'--out={two}', f'--engine={nodes.address}'], _RAY
  )
  _wait_for(process, tmp_path, '.two.part/chunks/*/*.json')
  nodes.lose(second)
  out, err = process.communicate(timeout=600)
  assert process.returncode == 0, (out, err)
  names = sorted(path.name for path in one.iterdir())
  assert len(names) > 20 and names == sorted(p.name for p in two.iterdir())
  for name in names:
    assert (one / name).read_bytes() == (two / name).read_bytes(), name
  rejected = (one / 'rejects.jsonl').read_text().splitlines()
  assert [json.loads(line)['line'] for line in rejected] == [301] * 40


def test_a_wrong_token_is_refused(shards, nodes, tmp_path):
  wrong = {
    **_RAY,
    'RAY_AUTH_TOKEN': 64 * 'b',
    # Seconds that Ray tries it for.
    'RAY_NUM_REDIS_GET_RETRIES': '1',
  }
  command = [*_command(shards, tmp_path, 0), f'--engine={nodes.address}']
  refused = _run(command, wrong)
  assert refused.returncode == 1
  last = refused.stderr.splitlines()[-1]
  assert last.startswith(
    f'error: --engine={nodes.address}: no Ray there accepts'
  )
  open_ = _run(command, {**_RAY, 'RAY_AUTH_MODE': 'disabled'})
  assert open_.returncode == 1
  assert 'set RAY_AUTH_MODE=token' in open_.stderr.splitlines()[-1]
  assert not list(tmp_path.glob('trials'))


def test_slots_follow_the_nodes(monkeypatch, tmp_path):
  """Without Ray: nodes are what it would say of them."""
  ray_engine = pytest.importorskip('steepest.tuning.ray_engine')
  nodes = [
    {'NodeID': name, 'Alive': True, 'Resources': {'GPU': 8.0, 'CPU': 64.0}}
    for name in 'ab'
  ]
  monkeypatch.setattr(ray_engine.ray, 'nodes', lambda: nodes)
  slots = ray_engine.RayEngine('GPU', 3, 9, tmp_path)
  assert list(slots.slots) == [0, 1, 2, 3]
  nodes[0]['Alive'] = False
  assert list(slots.slots) == [2, 3]
  nodes.append({**nodes[1], 'NodeID': 'c'})
  assert list(slots.slots) == [2, 3, 4, 5]
  assert len(ray_engine.RayEngine('CPU', 1, 9, tmp_path).slots) == 9
  with pytest.raises(ValueError, match='a run of 16 GPUs: no machine'):
    ray_engine.RayEngine('GPU', 16, 9, tmp_path)
  nodes.clear()
  with pytest.raises(engine.JobFailedError, match='no machine is left'):
    _ = slots.slots

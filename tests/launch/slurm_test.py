"""Runs under a SLURM of three nodes that these tests start on this machine."""

from collections.abc import Callable, Iterator
import importlib.util
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import time
from typing import Any

import pytest

from steepest.launch.submitters import job as jobs, slurm

_ROOT = pathlib.Path(__file__).parent.parent.parent
_NASTY = 'a b\'c"d$(touch e)`touch f`;g&h|i>j #k\\l{m}%n: *&!'

# Nodes one and two run jobs; three runs those that urgent ones push aside.
_CONF = """
ClusterName=test
MinJobAge=3600
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={dir}/munge
StateSaveLocation={dir}/state
SlurmdSpoolDir={dir}/spool-%n
SlurmctldPidFile={dir}/ctld.pid
SlurmdPidFile={dir}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,bf_interval=2
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=one NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=16
NodeName=two NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=16
NodeName=three NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[3]} CPUs=1
PartitionName=all Nodes=one,two Default=YES
PartitionName=low Nodes=three PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=three PriorityTier=2
"""
# What the nodes are called; only the daemons and their jobs see it.
_NAMED = 'mount --bind "$0" /etc/hosts && exec "$@"'

# Its first argument says what to do at each start: steps of a checkpoint to
# leave, 0 for none, and how to end: a status, a signal (negative) or 'wait'
# for SIGTERM, by task.
_PROGRAM = """
import json, os, pathlib, signal, sys, time
plan = json.loads(sys.argv[1])
workdir = pathlib.Path(sys.argv[-1].removeprefix('--workdir='))
workdir.mkdir(parents=True, exist_ok=True)
task = int(os.environ['SLURM_PROCID'])
starts = workdir / f'starts-{task}'
start = len(starts.read_text().splitlines()) if starts.exists() else 0
with starts.open('a') as f:
  f.write(os.environ['SLURMD_NODENAME'] + '\\n')
(workdir / 'words').write_text(json.dumps(sys.argv[1:]))
steps, *ends = plan[min(start, len(plan) - 1)]
end = ends[min(task, len(ends) - 1)]
if steps:
  (workdir / 'checkpoints' / str(steps)).mkdir(parents=True, exist_ok=True)
  (workdir / 'metrics.jsonl').write_text(f'{start} {steps}')
if end == 'diverged':
  (workdir / 'summary.json').write_text('{"status": "diverged"}')
  sys.exit(1)
if end == 'wait':
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
  (workdir / 'waits').touch()
  time.sleep(300)
if end < 0:
  os.kill(os.getpid(), -end)
sys.exit(end)
"""
_STUDY = (
  '--config=experiments/quickstart.py',
  f'--config.data.source=flat:{_ROOT}/tests/golden/tokens.npy',
  '--config.eval_tasks=',
  '--config.eval_sequences=0',
  '--config.model.num_layers=1',
  '--config.model.width=16',
  '--config.model.context=16',
  '--config.batch_size=4',
  '--config.steps=12',
  '--config.study.models=gpt2',
  '--config.study.optimizers=adamw,lion',
  '--config.study.search=sobol',
  '--config.study.trials=2',
  '--config.study.seeds=1',
  '--config.study.target_steps=20',
  '--config.study.max_extensions=9',
)
_TRAIN = (
  '--config=experiments/tiny.py:gpt2,adamw',
  f'--config.data.source=flat:{_ROOT}/tests/golden/tokens.npy',
  '--config.model.num_layers=1',
  '--config.model.width=32',
  '--config.model.context=16',
  '--config.steps=80',
  '--config.checkpoint_every=20',
)


class Cluster:
  """SLURM's daemons, and the jobs that they are given."""

  def __init__(self, directory: pathlib.Path, variables: dict[str, str]):
    self.directory, self._variables = directory, variables
    self._daemons: list[subprocess.Popen[bytes]] = []
    self._ids: dict[str, str] = {}

  def start(self) -> None:
    here = self.directory
    host = socket.gethostname().partition('.')[0]
    sockets = [socket.socket() for _ in range(4)]
    for s in sockets:
      s.bind(('127.0.0.1', 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
      s.close()
    conf = _CONF.format(dir=here, host=host, ports=ports)
    (here / 'slurm.conf').write_text(conf, 'utf-8')
    names = f'127.0.0.1 localhost {host} one two three\n'
    (here / 'hosts').write_text(names, 'utf-8')
    (here / 'state').mkdir()
    (here / 'key').write_bytes(os.urandom(128))
    (here / 'key').chmod(0o600)
    files = ('key-file=key', 'socket=munge', 'pid-file=munge.pid')
    files += ('log-file=munge.log', 'seed-file=seed')
    options = [f'--{o.replace("=", f"={here}/")}' for o in files]
    self._daemon('munged', '--foreground', '--force', *options)
    _until(lambda: (here / 'munge').exists(), 'munged')
    named = ('unshare', '--mount', 'sh', '-c', _NAMED, str(here / 'hosts'))
    self._daemon(*named, 'slurmctld', '-D')
    for node in ('one', 'two', 'three'):
      (here / f'spool-{node}').mkdir()
      self._daemon(*named, 'slurmd', '-D', '-N', node)
    _until(lambda: self.run('sinfo', '-hNt', 'idle').count('\n') >= 4, 'nodes')

  def stop(self) -> None:
    for name in self._ids:
      self.run('scancel', self._ids[name])
    time.sleep(0.5)
    for daemon in reversed(self._daemons):
      daemon.terminate()
      daemon.wait()

  def _daemon(self, *argv: str) -> None:
    with (self.directory / 'daemons.log').open('ab') as log:
      self._daemons.append(
        subprocess.Popen(argv, stdout=log, stderr=log, env=self._env())
      )

  def _env(self) -> dict[str, str]:
    return {**self._variables, 'SLURM_CONF': f'{self.directory}/slurm.conf'}

  def run(self, *argv: str) -> str:
    done = subprocess.run(
      argv, env=self._env(), capture_output=True, text=True, check=False
    )
    return done.stdout

  def submit(self, name: str, *plan: list[object], **changed) -> None:
    """Hands a job over as launch.submit does."""
    folder = self.directory / name
    folder.mkdir()
    (folder / 'program.py').write_text(_PROGRAM, 'utf-8')
    given = changed.pop('options', ())
    points = changed.pop('points', ('run',))
    words = lambda point: (json.dumps(plan), point)
    words = changed.pop('words', words)
    units = tuple(
      jobs.Unit(str(folder / point), words(point), point) for point in points
    )
    values = {
      **{'name': name, 'module': 'program', 'units': units, 'root': folder},
      **{'folder': folder, 'chip': '', 'devices': 1, 'nodes': 1},
      **{'processes': 1, 'restarts': 1, 'hours': None, 'environment': {}},
      **changed,
    }
    options = (f'python={sys.executable}', *given)
    job = jobs.Job(
      **values, options=jobs.options(list(options), slurm.OPTIONS, 'slurm')
    )
    submission = slurm.submission(job)
    [(path, text)] = submission.files.items()
    path.write_text(text, 'utf-8')
    [command] = submission.commands
    self._ids[name] = self.run(*command).split()[-1]

  def wait(self, name: str, *states: str) -> dict[str, str]:
    """Returns what SLURM says of a job once its state is one of these."""

    def reached() -> dict[str, str]:
      said = self.run('scontrol', 'show', 'job', self._ids[name])
      # An array's tasks one after the other.
      tasks = [t for t in said.split('\n\n') if 'JobState=' in t]
      of = [dict(w.split('=', 1) for w in t.split() if '=' in w) for t in tasks]
      return of[0] if all(t['JobState'] in states for t in of) else {}

    return _until(reached, f'{name}: {states}', lambda: self.log(name))

  def end(self, name: str) -> dict[str, str]:
    return self.wait(name, 'COMPLETED', 'FAILED', 'CANCELLED', 'TIMEOUT')

  def go_on(self, name: str) -> None:
    """Starts a job that went back to the queue, where it waits 2 minutes."""
    states = ('PENDING', 'RUNNING', 'COMPLETED')
    back = lambda: self.wait(name, *states)['Restarts'] == '1'
    _until(back, f'{name}: requeued', lambda: self.log(name))
    job = f'jobid={self._ids[name]}'
    self.run('scontrol', 'update', job, 'starttime=now+3')

  def signal(self, name: str, *words: str) -> None:
    self.run('scancel', *words, self._ids[name])

  def log(self, name: str) -> str:
    logs = sorted((self.directory / name).glob('*.log'))
    return ''.join(log.read_text('utf-8') for log in logs)

  def starts(self, name: str, task: int = 0, point: str = 'run') -> list[str]:
    path = self.directory / name / point / f'starts-{task}'
    return path.read_text('utf-8').split()


def _until(
  reached: Callable[[], Any], what: str, more: Callable[[], str] = str
) -> Any:
  end = time.monotonic() + 300
  while not (found := reached()):
    assert time.monotonic() < end, f'{what} {more()}'
    time.sleep(0.1)
  return found


@pytest.fixture(scope='module')
def cluster(tmp_path_factory, command_env, compiled_once) -> Iterator[Cluster]:
  """A cluster with all jobs of these tests, which run side by side."""
  if os.geteuid():
    pytest.skip('only root starts a SLURM')
  for program in ('slurmctld', 'slurmd', 'sbatch', 'munged'):
    if shutil.which(program) is None:
      pytest.skip(f'no {program} here: apt-get install slurm-wlm munge')
  if subprocess.run(['unshare', '--mount', 'true'], check=False).returncode:
    pytest.skip('no mounts of its own here')
  cluster = Cluster(tmp_path_factory.mktemp('slurm'), command_env)
  try:
    cluster.start()
    two = {'nodes': 2, 'processes': 2}
    train = {'words': lambda _: _TRAIN, 'root': _ROOT, **two}
    cluster.submit('killed', [5, 'wait', -9], [10, 0], **two)
    for name in ('whole', 'stopped'):
      cluster.submit(name, module='steepest.launch.train', **train)
    if importlib.util.find_spec('ray'):
      study = {'module': 'steepest.launch.study', 'root': _ROOT, 'nodes': 2}
      study['environment'] = compiled_once
      one = ('cpus-per-task=1',)
      cluster.submit('study', words=lambda _: _STUDY, options=one, **study)
    cluster.submit('array', [5, 0], points=('run', _NASTY), **two)
    cluster.submit('futile', [5, -9])
    cluster.submit('mistaken', [0, 1])
    cluster.submit('diverged', [5, 'diverged'])
    limit = ('time=1', 'signal=TERM@40')
    cluster.submit('limit', [5, 'wait'], [10, 0], options=limit)
    cluster.submit('cancelled', [5, 'wait'])
    low = ('partition=low',)
    cluster.submit('low', [5, 'wait'], [10, 0], options=low)
    yield cluster
  finally:
    cluster.stop()


def test_an_array_runs_every_task_of_every_point_word_for_word(cluster):
  assert cluster.end('array')['JobState'] == 'COMPLETED'
  for point in ('run', _NASTY):
    for task, node in enumerate(('one', 'two')):
      assert cluster.starts('array', task, point) == [node]
    folder = cluster.directory / 'array' / point
    words = json.loads((folder / 'words').read_text('utf-8'))
    assert words[1:] == [point, f'--workdir={folder}']


def test_scancel_ends_a_run_which_saves(cluster):
  waits = cluster.directory / 'cancelled' / 'run' / 'waits'
  _until(waits.exists, 'cancelled')
  cluster.signal('cancelled')
  ended = cluster.end('cancelled')
  assert (ended['JobState'], ended['Restarts']) == ('CANCELLED', '0')
  assert len(cluster.starts('cancelled')) == 1


def test_a_preempted_run_saves_and_goes_on(cluster):
  waits = cluster.directory / 'low' / 'run' / 'waits'
  _until(waits.exists, 'low')
  cluster.submit('urgent', [5, 0], options=('partition=urgent',))
  assert cluster.end('urgent')['JobState'] == 'COMPLETED'
  cluster.go_on('low')
  assert cluster.end('low')['JobState'] == 'COMPLETED'
  assert len(cluster.starts('low')) == 2


def test_a_run_that_is_stopped_equals_one_that_is_not(cluster):
  """Two processes on two nodes, told to stop after the first checkpoint."""
  folder = cluster.directory
  first = folder / 'stopped' / 'run' / 'checkpoints' / '20'
  _until(first.exists, 'stopped', lambda: cluster.log('stopped'))
  cluster.signal('stopped', '--signal=TERM')
  cluster.go_on('stopped')
  for name in ('whole', 'stopped'):
    assert cluster.end(name)['JobState'] == 'COMPLETED', cluster.log(name)
  losses = []
  for name in ('whole', 'stopped'):
    run = folder / name / 'run'
    env = json.loads((run / 'env.json').read_text('utf-8'))
    assert env['process_count'] == 2
    rows = (run / 'metrics.jsonl').read_text('utf-8').splitlines()
    losses.append([json.loads(row)['train/loss'] for row in rows])
  assert len(losses[0]) == 80 and losses[0] == losses[1]
  assert 'finishing the step and saving' in cluster.log('stopped')


def test_what_cannot_get_better_is_not_tried_again(cluster):
  for name in ('mistaken', 'diverged'):
    assert cluster.end(name)['ExitCode'] == '1:0'
    assert len(cluster.starts(name)) == 1


def test_what_gets_no_further_ends(cluster):
  assert cluster.end('futile')['JobState'] == 'FAILED'
  # The first left a checkpoint.
  assert len(cluster.starts('futile')) == 3
  assert 'status 137 and no progress in 2 tries' in cluster.log('futile')


def test_a_run_saves_before_its_time_is_over_and_goes_on(cluster):
  cluster.go_on('limit')
  assert cluster.end('limit')['JobState'] == 'COMPLETED'
  assert len(cluster.starts('limit')) == 2


def test_a_killed_task_starts_all_again(cluster):
  assert cluster.end('killed')['JobState'] == 'COMPLETED'
  assert [cluster.starts('killed', task) for task in (0, 1)] == [
    ['one', 'one'],
    ['two', 'two'],
  ]


def test_a_study_runs_on_all_nodes_of_its_allocation(cluster):
  pytest.importorskip('steepest.tuning.ray_engine')
  ended = cluster.end('study')
  assert ended['JobState'] == 'COMPLETED', cluster.log('study')
  run = cluster.directory / 'study' / 'run'
  assert (run / 'report' / 'report.html').exists()
  attempts = [
    json.loads(path.read_text('utf-8'))['attempt']
    for path in run.rglob('env.json')
  ]
  assert len({attempt['node'] for attempt in attempts}) == 2

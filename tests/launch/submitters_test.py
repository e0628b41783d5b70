"""What is submitted, held by golden files, and safe from what names contain."""

import asyncio
import json
import math
import os
import pathlib
import shlex
import socket
import subprocess
import sys
import time
from unittest import mock

import pytest
import yaml

from steepest.data import buckets
from steepest.launch.submitters import (
  files,
  job as jobs,
  local,
  sky,
  slurm,
  xmanager,
)
from steepest.training import chips

_GOLDEN = pathlib.Path(__file__).parent.parent / 'golden' / 'submit'
# Everything that a shell, YAML or Python could take for its own.
_NASTY = 'a b\'c"d$(touch e)`touch f`;g&h|i>j #k\\l{m}%n: *&!'


def _job(place, chip='h100', devices=16, points=('',), **changed) -> jobs.Job:
  given = changed.pop('options', {})
  root = changed.pop('workdir', '/data/runs/gpt2')
  units = tuple(
    jobs.Unit(
      f'{root}/{point}' if point else root,
      (
        '--config=experiments/gpt2_124m.py:lion',
        *(f'--config.{word}' for word in point.split(',') if word),
      ),
      point,
    )
    for point in points
  )
  values = {
    'name': 'gpt2-124m-lion',
    'module': 'steepest.launch.train',
    'units': units,
    'root': pathlib.Path('/src/steepest'),
    'folder': pathlib.Path('runs/gpt2/submit'),
    'chip': chip,
    'devices': devices,
    'nodes': 1,
    'processes': 0,
    'restarts': 3,
    'hours': 12.5,
    'environment': {'XLA_FLAGS': '--a --b'},
    'options': jobs.options(
      [f'{k}={v}' for k, v in given.items()], place.OPTIONS, 'there'
    ),
    **changed,
  }
  return jobs.Job(**values)


_SWEEP = ('optimizer.lr=0.0001', 'optimizer.lr=0.0002')
_FORMS = {
  'slurm': lambda: _job(slurm, options={'partition': 'gpu', 'account': 'lab'}),
  'slurm_sweep': lambda: _job(
    slurm,
    devices=4,
    points=_SWEEP,
    options={'setup': '. .venv/bin/activate', 'constraint': 'a&b'},
  ),
  'xmanager_vertex': lambda: _job(xmanager, points=_SWEEP),
  'xmanager_kubernetes': lambda: _job(
    xmanager, options={'executor': 'kubernetes'}
  ),
  'xmanager_local': lambda: _job(
    xmanager,
    devices=8,
    options={'executor': 'local', 'memory_gib': '512', 'mount': '/data'},
  ),
  'xmanager_tpu': lambda: _job(xmanager, 'v5p', 64),
  'sky_sweep': lambda: _job(
    sky,
    points=_SWEEP,
    workdir='/bucket/gpt2',
    options={'bucket': 'gs://lab', 'infra': 'gcp', 'use_spot': 'true'},
  ),
  'sky_tpu': lambda: _job(sky, 'v5p', 64),
  'sky_study': lambda: _job(sky, module='steepest.launch.study'),
  'files': lambda: _job(files, points=_SWEEP),
}


def _place(name):
  for module in (slurm, xmanager, sky, files):
    if name.startswith(module.__name__.rpartition('.')[2]):
      return module
  raise ValueError(name)


@pytest.mark.parametrize('name', _FORMS)
def test_forms_are_the_golden_ones(name):
  text = _place(name).submission(_FORMS[name]()).describe() + '\n'
  path = _GOLDEN / f'{name}.txt'
  if os.environ.get('STEEPEST_UPDATE_GOLDEN'):
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, 'utf-8')
  assert text == path.read_text('utf-8')


def _only_file(submission):
  [text] = submission.files.values()
  return text


@pytest.mark.parametrize('name', ['slurm', 'slurm_sweep'])
def test_scripts_are_ones_that_bash_can_read(name):
  text = _only_file(_place(name).submission(_FORMS[name]()))
  subprocess.run(['bash', '-n'], input=text, text=True, check=True)


@pytest.mark.parametrize('name', [n for n in _FORMS if 'xmanager' in n])
def test_launch_scripts_are_python(name):
  compile(_only_file(xmanager.submission(_FORMS[name]())), name, 'exec')


def test_a_directive_with_quotes_is_refused():
  job = _job(slurm, options={'comment': 'a"b'})
  with pytest.raises(ValueError, match='no quotes'):
    slurm.submission(job)


def _nasty(place, **changed) -> jobs.Job:
  unit = jobs.Unit(f'/x/{_NASTY}', (f'--config.data.source={_NASTY}',), _NASTY)
  changed = {'environment': {'NASTY': _NASTY}, **changed}
  return _job(place, units=(unit,), **changed)


@pytest.mark.parametrize('variables', [{}, {'STEEPEST_CACHE': '/x y'}])
def test_slurm_looks_at_the_copy_of_a_run_in_a_bucket(variables, monkeypatch):
  monkeypatch.delenv('STEEPEST_CACHE', raising=False)
  address = 's3://lab/runs/a b'
  job = _job(slurm, '', 1, workdir=address, environment=variables)
  [script] = slurm.submission(job).files.values()
  head, _, _ = script.replace('cd -- ', ': ').partition('# Checksum of')
  done = subprocess.run(
    ['bash', '-c', f'{head}\nprintf "%s\\n" "$workdir" "$@"'],
    capture_output=True,
    text=True,
    check=True,
  )
  seen, *words = done.stdout.splitlines()
  monkeypatch.setenv('STEEPEST_CACHE', variables.get('STEEPEST_CACHE', ''))
  assert pathlib.Path(seen).absolute() == buckets.copy_of(address)
  assert words[-1] == f'--workdir={address}'


def test_machines_that_use_buckets_get_what_speaks_to_them():
  for place in (sky, xmanager):
    for changed, wanted in (({'workdir': 'gs://lab/run'}, True), ({}, False)):
      text = place.submission(_job(place, **changed)).describe()
      assert ('[cuda,buckets]' in text) == wanted


def test_tasks_of_sky_hold_exactly_the_words():
  job = _nasty(sky, root=pathlib.Path(f'/{_NASTY}'))
  task = yaml.safe_load(_only_file(sky.submission(job)))
  lines = task['run'].splitlines()
  [unit] = job.units
  assert shlex.split(lines[-1]) == unit.command('python', job.module)
  assert task['envs'] == job.environment
  assert task['workdir'] == f'/{_NASTY}'
  # The machines, as SkyPilot says who they are.
  said = 'set -u\n' + '\n'.join(lines[:-1]) + '\nenv'
  skys = {'NODE_IPS': '10.0.0.1\n10.0.0.2', 'NUM_NODES': '2', 'NODE_RANK': '1'}
  done = subprocess.run(
    ['bash', '-c', said],
    env={f'SKYPILOT_{key}': value for key, value in skys.items()},
    capture_output=True,
    text=True,
    check=True,
  )
  assert {
    'STEEPEST_COORDINATOR=10.0.0.1:8476',
    'STEEPEST_PROCESSES=2',
    'STEEPEST_PROCESS=1',
  } < set(done.stdout.splitlines())


def test_a_study_of_sky_is_told_its_machines():
  job = _nasty(sky, module='steepest.launch.study')
  submission = sky.submission(job)
  start = yaml.safe_load(_only_file(submission))['run']
  start, _, _ = start.partition(jobs.RAY_NODE.strip())
  known = {'SKYPILOT_NODE_IPS': '10.0.0.1\n10.0.0.2', 'SKYPILOT_NODE_RANK': '1'}

  def shell(environment):
    return subprocess.run(
      ['bash', '-c', f'{start}\necho $FIRST $RANK; printf "%s\\n" "$@"'],
      env=known | environment,
      capture_output=True,
      text=True,
    )

  done = shell({'RAY_AUTH_TOKEN': 'secret', 'PATH': os.environ['PATH']})
  [unit] = job.units
  command = unit.command('python', job.module)
  assert done.stdout.splitlines() == ['10.0.0.1:8476 1', *command]
  assert '--secret=RAY_AUTH_TOKEN' in shell({}).stderr
  [argv] = submission.commands
  assert '--secret=RAY_AUTH_TOKEN' in argv


def test_a_machine_of_a_study_joins_a_head_that_is_slow_to_start(tmp_path):
  """Ray's first start fails there; the machine leaves when the head does."""
  ray = tmp_path / 'python'
  ray.write_text(
    f'#!/bin/bash\necho "$@" >> {tmp_path}/starts\n'
    f'(( $(wc -l < {tmp_path}/starts) > 1 )) && exec sleep 60\nexit 1\n'
  )
  ray.chmod(0o755)
  with socket.create_server(('127.0.0.1', 0)) as head:
    first = f'127.0.0.1:{head.getsockname()[1]}'
    joined = subprocess.Popen(
      ['bash', '-c', jobs.RAY_NODE],
      env={'PYTHON': str(ray), 'FIRST': first, 'RANK': '1', 'CPUS': '2'}
      | {'PATH': os.environ['PATH']},
    )
    starts = tmp_path / 'starts'
    deadline = time.monotonic() + 60
    while not starts.exists() or len(starts.read_text().splitlines()) < 2:
      assert joined.poll() is None and time.monotonic() < deadline
      time.sleep(0.1)
  assert joined.wait(60) == 0
  assert starts.read_text().count(f'--address={first}') == 2


_LOAD = """
import json, sys
import sky
for path in sys.argv[1:]:
  task = sky.Task.from_yaml(path)
  [resources] = task.resources
  print(json.dumps({
    'nodes': task.num_nodes,
    'accelerators': resources.accelerators,
    'spot': resources.use_spot,
    'recovery': resources.job_recovery,
    'mounts': {k: v.source for k, v in task.storage_mounts.items()},
  }))
"""


@pytest.mark.slow
def test_sky_loads_the_tasks(tmp_path):
  """By SkyPilot itself, whose pins clash with ours: 460 MB of its own."""
  python = tmp_path / 'venv' / 'bin' / 'python'
  subprocess.run([sys.executable, '-m', 'venv', tmp_path / 'venv'], check=True)
  pip = [python, '-m', 'pip', 'install', '--quiet', 'skypilot==0.14.1']
  subprocess.run(pip, check=True)
  paths = []
  for name in ('sky_sweep', 'sky_tpu', 'sky_study'):
    texts = sky.submission(_FORMS[name]()).files.values()
    for i, text in enumerate(texts):
      # The source has to be there.
      text = text.replace('/src/steepest', str(tmp_path))
      paths.append(tmp_path / f'{name}-{i}.yaml')
      paths[-1].write_text(text, 'utf-8')
  env = {'HOME': str(tmp_path), 'PATH': os.environ['PATH']}
  done = subprocess.run(
    [python, '-c', _LOAD, *paths], env=env, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  # Between what SkyPilot says of its own first use.
  lines = [x for x in done.stdout.splitlines() if x.startswith('{')]
  *sweep, tpu, study = map(json.loads, lines)
  recovery = {'max_restarts_on_errors': 3, 'recover_on_exit_codes': [75]}
  recovery['strategy'] = None
  gpus = {'nodes': 2, 'accelerators': {'H100': 8}, 'spot': True}
  mounts = {'/bucket': 'gs://lab'}
  assert sweep == [{**gpus, 'recovery': recovery, 'mounts': mounts}] * 2
  assert (tpu['nodes'], tpu['accelerators']) == (1, {'tpu-v5p-128': 1})
  assert (study['nodes'], study['accelerators']) == (2, {'H100': 8})


def _globals(job, monkeypatch):
  """Returns what a launch script defines, XManager's own parts apart."""
  package = mock.MagicMock()
  for name in ('', '.cloud', '.contrib'):
    monkeypatch.setitem(sys.modules, f'xmanager{name}', package)
  found = {'__name__': 'script'}
  exec(_only_file(xmanager.submission(job)), found)
  return found


def test_launch_scripts_hold_exactly_the_words(monkeypatch):
  job = _nasty(xmanager, root=pathlib.Path(f'/{_NASTY}'))
  [unit] = job.units
  found = _globals(job, monkeypatch)
  assert found['_UNITS'] == [unit.command('python', job.module)[3:]]
  assert found['_ROOT'] == f'/{_NASTY}'


@pytest.mark.parametrize(
  'name, resource, machines',
  [('vertex', 'H100', 2), ('kubernetes', 'H100', 2), ('tpu', 'TPU_V5P', 1)],
)
def test_launch_scripts_make_jobs_that_xmanager_knows(name, resource, machines):
  """With the package itself: jobs, their resources, who they are."""
  pytest.importorskip('xmanager.xm_local', reason='xmanager is not installed')
  from xmanager import xm

  found = {'__name__': 'script'}
  exec(_only_file(xmanager.submission(_FORMS[f'xmanager_{name}']())), found)
  made = found['_unit'](mock.Mock(spec=xm.Executable), found['_UNITS'][0])
  if name == 'kubernetes':
    unit = mock.Mock(experiment_id=1, work_unit_id=2)
    asyncio.run(made(unit))
    [made] = unit.add.call_args.args
  group = isinstance(made, xm.JobGroup)
  members = list(made.jobs.values()) if group else [made]
  assert all(isinstance(job, xm.Job) for job in members)
  wanted = [job.executor.requirements for job in members]
  kind = xm.ResourceType[resource]
  held = sum(r.task_requirements[kind] * (r.replicas or 1) for r in wanted)
  # Of eight GPUs, or the whole slice.
  assert (held, group) == (8 * machines if group else 64, machines > 1)


def test_launch_scripts_pack_the_commit_and_nothing_else(tmp_path, monkeypatch):
  """No runs, environments or secrets that lie in the directory."""
  root = tmp_path / "a 'b"
  (root / 'launch').mkdir(parents=True)
  (root / 'launch' / 'train.py').write_text('committed', 'utf-8')
  who = ['-c', 'user.name=a', '-c', 'user.email=a@b']
  for words in (['init', '-q'], ['add', '.'], [*who, 'commit', '-qm', 'a']):
    subprocess.run(['git', *words], cwd=root, check=True)
  (root / '.env').write_text('WANDB_API_KEY=hunter2', 'utf-8')
  (root / 'launch' / 'train.py').write_text('changed', 'utf-8')
  found = _globals(_job(xmanager, root=root), monkeypatch)
  with found['_source']() as source:
    held = {p.name: p for p in pathlib.Path(source).rglob('*')}
    assert pathlib.Path(source).name == 'steepest'
    assert held.keys() == {'launch', 'train.py'}
    assert held['train.py'].read_text('utf-8') == 'committed'
  assert not pathlib.Path(source).exists()


@pytest.mark.parametrize(
  'does, status, tries',
  [
    ('exit 1', 1, 4),
    ('[ -e "$0.2" ]', 0, 3),
    # A signal to stop reaches the training, which is not started again.
    (
      'trap "exit 75" TERM; kill -TERM $PPID; while :; do sleep 0.05; done',
      75,
      1,
    ),
  ],
)
def test_xmanagers_machines_start_again(
  tmp_path, monkeypatch, does, status, tries
):
  python = tmp_path / 'python'
  count = 'n=0; while [ -e "$0.$n" ]; do n=$(( n + 1 )); done; : > "$0.$n"'
  python.write_text(
    f'#!/bin/bash\nprintf "%s\\0" "$@"\n{count}\n{does}\n', 'utf-8'
  )
  python.chmod(0o755)
  found = _globals(_job(xmanager), monkeypatch)
  done = subprocess.run(
    ['bash', '-c', '\n'.join(found['_COMMANDS']), 'entrypoint', _NASTY],
    capture_output=True,
    text=True,
    env={'PATH': f'{tmp_path}:/usr/bin:/bin'},
    timeout=30,
  )
  assert (done.returncode, done.stderr) == (status, '')
  words = ['-m', 'steepest.launch.train', _NASTY]
  assert done.stdout.split('\0')[:-1] == words * tries


@pytest.mark.parametrize(
  'place, chip, devices, options, message',
  [
    (xmanager, 'v5e', 12, {}, 'slices of v5e have 4, 8'),
    (xmanager, 'h100', 8, {'executor': 'borg'}, 'give one of local, vertex'),
    (xmanager, 'h100', 16, {'executor': 'local'}, 'only one machine'),
    (xmanager, 'h200', 4, {}, 'Vertex AI machines have 8 × h200'),
  ],
)
def test_what_is_missing_is_named(place, chip, devices, options, message):
  with pytest.raises(ValueError, match=message):
    place.submission(_job(place, chip, devices, options=options))


@pytest.mark.parametrize('chip, sides', [('v5e', 2), ('v5p', 3), ('v6e', 2)])
def test_slices_hold_the_chips_that_they_say(chip, sides):
  for count in (4, 8, 16, 64, 256):
    found = [int(n) for n in chips.topology(chip, count).split('x')]
    assert (math.prod(found), len(found)) == (count, sides)


def test_local_commands_are_what_a_shell_can_repeat():
  job = _job(local, '', 1, processes=2, environment={'N': _NASTY})
  first, second = local.submission(job).commands
  assert shlex.split(shlex.join(first)) == list(first)
  assert f'N={_NASTY}' in first
  job = _job(local, 'h100', 4, processes=2)
  visible = [
    word
    for command in local.submission(job).commands
    for word in command
    if word.startswith('CUDA')
  ]
  assert visible == ['CUDA_VISIBLE_DEVICES=0,1', 'CUDA_VISIBLE_DEVICES=2,3']
  with pytest.raises(ValueError, match='do not divide over --processes=3'):
    local.submission(_job(local, 'h100', 4, processes=3))
  assert 'STEEPEST_PROCESS=1' in second

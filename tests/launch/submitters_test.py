"""What is submitted, held by golden files, and safe from what names contain."""

import asyncio
import math
import os
import pathlib
import shlex
import subprocess
import sys
from unittest import mock

import pytest

from steepest.launch.submitters import job as jobs, local, slurm, xmanager
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
}


def _place(name):
  for module in (slurm, xmanager):
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


def _globals(job, monkeypatch):
  """Returns what a launch script defines, XManager's own parts apart."""
  package = mock.MagicMock()
  for name in ('', '.cloud', '.contrib'):
    monkeypatch.setitem(sys.modules, f'xmanager{name}', package)
  found = {'__name__': 'script'}
  exec(_only_file(xmanager.submission(job)), found)
  return found


def test_launch_scripts_hold_exactly_the_words(monkeypatch):
  unit = jobs.Unit(f'/x/{_NASTY}', (f'--config.data.source={_NASTY}',))
  job = _job(xmanager, units=(unit,), root=pathlib.Path(f'/{_NASTY}'))
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
    (xmanager, 'h100', 8, {'executor': 'borg'}, 'there are local, vertex'),
    (xmanager, 'h100', 16, {'executor': 'local'}, 'one machine only'),
    (xmanager, 'h200', 4, {}, 'machines of Vertex AI have 8 × h200'),
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

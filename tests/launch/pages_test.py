"""Pages of docs/ as their readers run them: from a wheel, elsewhere."""

import json
import os
import pathlib
import re
import shlex
import subprocess

import pytest

_ROOT = pathlib.Path(__file__).parent.parent.parent
_BLOCK = re.compile(r'^```(\w+) ?(\S*)\n(.*?)^```', re.M | re.S)
# Prints the arguments of each command, of `python -c` what it prints.
_ARGUMENTS = r"""
python() {
  [ "$1" = -c ] && { command python "$@"; return; }
  printf '%s\0' "${@:2}" $'\n'
}
"""
# Two machines: network namespaces, with a home and a /tmp/ray each.
_MACHINES = r"""
printf '127.0.0.1 localhost\n10.9.0.1 A\n10.9.0.2 B\n' > hosts
mount --bind hosts /etc/hosts
hostname A
mkdir -p /tmp/ray b/.ray
mount -t tmpfs none /tmp/ray
touch net
unshare --net=net ip link add name vb type veth peer name va netns $$
ip addr add 10.9.0.1/24 dev va
nsenter --net=net ip addr add 10.9.0.2/24 dev vb
ip link set lo up
ip link set va up
nsenter --net=net ip link set lo up
nsenter --net=net ip link set vb up
on_b() {
  HOME=$PWD/b nsenter --net=net unshare --mount --uts \
    bash -ec "hostname B; mount -t tmpfs none /tmp/ray; $1"
}
python() { command python "$@" "${SMALLER[@]}"; }
"""
# What makes it quick: the page's own commands take minutes.
_SMALLER: dict[str, dict[str, object]] = {
  'train': {'config.steps': 5, 'config.checkpoint_every': 5},
  'study': {
    'workers': 1,
    'config.data.source': 'shards:corpus',
    'config.eval_sequences': 0,
    'config.eval_tasks': '',
    'config.model.num_layers': 1,
    'config.model.context': 16,
    'config.batch_size': 4,
    'config.steps': 4,
    'config.study.target_steps': 4,
    'config.study.models': 'gpt2',
    'config.study.trials': 2,
    'config.study.max_extensions': 50,
  },
  'coordcheck': {'widths': '32,128', 'seeds': 1, 'steps': 5},
}


def _commands(text: str, python: pathlib.Path) -> list[tuple[str, list[str]]]:
  """Returns the launch commands in lines of shell and their arguments."""
  done = subprocess.run(
    ['bash', '-e', '-c', _ARGUMENTS + text],
    env={**os.environ, 'PATH': _path(python)},
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  )
  found = []
  for line in done.stdout.split('\n\0')[:-1]:
    module, *arguments = line.rstrip('\0').split('\0')
    found.append((module.removeprefix('steepest.launch.'), arguments))
  return found


def _path(python: pathlib.Path) -> str:
  return f'{python.parent}:{os.environ["PATH"]}'


def _page(name: str, where: pathlib.Path) -> str:
  """Writes the files of a page into `where`, returns its lines of shell."""
  shell = ''
  text = (_ROOT / 'docs' / f'{name}.md').read_text('utf-8')
  for language, file, body in _BLOCK.findall(text):
    if file:
      (where / file).write_text(body, 'utf-8')
    elif language == 'sh':
      shell += body
  return shell


@pytest.fixture
def run_commands(installed, fork_commands, tmp_path):
  """Returns a function that runs lines of shell and returns what ran."""

  def run(shell: str, **more: object) -> list[str]:
    commands = _commands(shell, installed)
    for name, arguments in commands:
      smaller = _SMALLER.get(name, {}) | (more if name == 'study' else {})
      arguments += [f'--{key}={v}' for key, v in smaller.items()]
    results = fork_commands(commands, str(installed), tmp_path)
    for (name, _), result in zip(commands, results, strict=True):
      assert result.code == 0, (name, result.err)
    return [name for name, _ in commands]

  return run


def test_the_page_on_adding(run_commands, tmp_path):
  shell = _page('adding', tmp_path)
  study = {
    'config.study.seeds': 1,
    'config.study.space_softness': (0.05, 0.5),
  }
  assert run_commands(shell, **study) == [
    *('prepare', 'train', 'study', 'coordcheck', 'train', 'evaluate')
  ]
  runs = tmp_path / 'runs'
  config = json.loads((runs / 'momentum' / 'config.json').read_text())
  assert config['optimizer']['name'] == str(tmp_path / 'momentum.py')
  env = json.loads((runs / 'momentum' / 'env.json').read_text())
  assert env['optimizer'] == {
    'name': 'momentum',
    'label': 'Momentum SGD',
    'reference': 'Polyak 1964',
    'has_mup_rule': False,
  }
  # Its own hyperparameter is searched, and the best value carried over.
  tried, final = (
    {
      json.loads(path.read_text())['optimizer']['softness']
      for path in (runs / 'mine' / kind / 'gpt2-soft_sign').rglob('config.json')
    }
    for kind in ('trials', 'finals')
  )
  assert len(tried) >= 2 and final < tried
  assert all(0.05 <= softness <= 0.5 for softness in tried)
  for name in ('report.md', 'report.html'):
    report = (runs / 'mine' / 'report' / name).read_text('utf-8')
    assert 'AdamW' in report and 'Soft sign' in report
    assert re.findall(r'No µP rule is known for ([\w ]+)', report) == [
      'Momentum SGD'
    ]
  check = json.loads((runs / 'coordcheck' / 'coordcheck.json').read_text())
  assert check['passed'] and check['settings']['optimizer'] == './soft_sign.py'
  scores = json.loads((runs / 'trivia' / 'results.json').read_text())
  assert scores['metrics']['trivia']['n'] == 2


@pytest.mark.slow
def test_the_tutorials_for_one_machine(run_commands, installed, tmp_path):
  pages = ('own_text', 'first_study', 'reading_a_report')
  shell = ''.join(_page(f'tutorials/{name}', tmp_path) for name in pages)
  assert run_commands(shell) == [
    *('prepare', 'prepare', 'train', 'generate', 'study'),
    *('study', 'watch', 'study', 'report'),
  ]
  # A study goes on with the seeds that it is given later.
  first = json.loads((tmp_path / 'runs/first/config.json').read_text())
  assert first['study']['seeds'] == 3
  found = [
    pathlib.Path(path).parent.name
    for path in (tmp_path / 'runs/first/finals').rglob('summary.json')
  ]
  assert sorted(set(found)) == ['seed=0', 'seed=1', 'seed=2']
  page = (_ROOT / 'docs' / 'tutorials' / 'reading_a_report.md').read_text()
  (snippet,) = (body for kind, _, body in _BLOCK.findall(page) if kind != 'sh')
  done = subprocess.run(
    [installed, '-c', snippet],
    cwd=tmp_path,
    capture_output=True,
    text=True,
    check=True,
  )
  assert 'train_loss' in done.stdout


@pytest.mark.slow
def test_the_tutorial_for_two_machines(installed, command_env, tmp_path):
  pytest.importorskip('ray')
  alone = ['unshare', '--user', '--map-root-user', '--mount', '--net', '--uts']
  alone += ['--pid', '--fork', '--kill-child', '--mount-proc']
  if subprocess.run([*alone, 'ip', 'link'], check=False).returncode:
    pytest.skip('no namespaces here')
  ray = installed.parent / 'ray'
  ray.write_text(
    f'#!{installed}\nfrom ray.scripts.scripts import main\nmain()\n'
  )
  ray.chmod(0o755)
  page = (_ROOT / 'docs/tutorials/two_machines.md').read_text('utf-8')
  head, join, study, stop = (
    body for kind, _, body in _BLOCK.findall(page) if kind == 'sh'
  )
  tokens = f'flat:{_ROOT}/tests/golden/tokens.npy'
  smaller = _SMALLER['study'] | {
    'workers': 2,
    'config.data.source': tokens,
    'config.study.optimizers': 'adamw,lion',
    'config.study.seeds': 1,
  }
  flags = shlex.join(f'--{key}={value}' for key, value in smaller.items())
  # One core of each machine.
  on_a = head.replace('--head', '--head --num-cpus=1')
  on_b = join.replace('ray start', 'ray start --num-cpus=1')
  script = [
    'set -e',
    f'SMALLER=({flags})',
    _MACHINES,
    on_a,
    'cp ~/.ray/auth_token b/.ray/auth_token',
    f'on_b {shlex.quote(on_b)}',
    study.replace('/shared', 'shared'),
    f'on_b {shlex.quote(stop)}',
    stop,
  ]
  done = subprocess.run(
    [*alone, 'bash', '-c', '\n'.join(script)],
    cwd=tmp_path,
    env={**command_env, 'PATH': _path(installed), 'HOME': str(tmp_path)},
    capture_output=True,
    text=True,
    timeout=900,
  )
  assert done.returncode == 0, (done.stdout, done.stderr)
  runs = tmp_path / 'shared/runs/two'
  assert 'AdamW' in (runs / 'report/report.md').read_text('utf-8')
  nodes = {
    json.loads(path.read_text())['attempt']['node']
    for path in runs.rglob('env.json')
  }
  assert len(nodes) == 2

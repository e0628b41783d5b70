"""Pages of docs/ as their readers run them: from a wheel, elsewhere."""

import json
import os
import pathlib
import re
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
  path = f'{python.parent}:{os.environ["PATH"]}'
  done = subprocess.run(
    ['bash', '-e', '-c', _ARGUMENTS + text],
    env={**os.environ, 'PATH': path},
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  )
  found = []
  for line in done.stdout.split('\n\0')[:-1]:
    module, *arguments = line.rstrip('\0').split('\0')
    found.append((module.removeprefix('steepest.launch.'), arguments))
  return found


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

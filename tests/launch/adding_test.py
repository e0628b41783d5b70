"""docs/adding.md as its reader runs it: from a wheel, in another directory."""

import json
import os
import pathlib
import re
import subprocess

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
    'config.study.seeds': 1,
    'config.study.trials': 2,
    'config.study.max_extensions': 50,
    'config.study.space_softness': (0.05, 0.5),
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


def test_the_page_runs_from_a_wheel(installed, fork_commands, tmp_path):
  text = (_ROOT / 'docs' / 'adding.md').read_text('utf-8')
  shell = ''
  for language, name, body in _BLOCK.findall(text):
    if name:
      (tmp_path / name).write_text(body, 'utf-8')
    elif language == 'sh':
      shell += body
  commands = _commands(shell, installed)
  for name, arguments in commands:
    if name in _SMALLER:
      arguments += [f'--{key}={v}' for key, v in _SMALLER[name].items()]
  assert [name for name, _ in commands] == [
    *('prepare', 'train', 'study', 'coordcheck', 'train', 'evaluate')
  ]
  for (name, _), result in zip(
    commands, fork_commands(commands, str(installed), tmp_path), strict=True
  ):
    assert result.code == 0, (name, result.err)

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

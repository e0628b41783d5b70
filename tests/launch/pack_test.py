"""A study packed here, done where there is no network, and brought back."""

import importlib.metadata
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile

import pytest
from rich.console import Console

from steepest.data import prepare
from steepest.launch.packing import bundle, run as packed, wheels

_ROOT = pathlib.Path(__file__).parent.parent.parent
_TOKENS = _ROOT / 'tests' / 'golden' / 'tokens.npy'
_MINE = """
import dataclasses

from steepest.optimizers import adamw

OPTIMIZER = dataclasses.replace(adamw.OPTIMIZER, name='mine', label='Mine')
"""
_ALONE = ('unshare', '--net')


@pytest.fixture
def alone(command_env):
  """Runs a command where there is no network."""
  done = subprocess.run([*_ALONE, 'true'], capture_output=True)
  if done.returncode:
    pytest.skip('network namespaces are not permitted here')

  def run(*command, **env):
    return subprocess.run(
      [*_ALONE, *map(str, command)],
      env={**command_env, **env},
      capture_output=True,
      text=True,
      timeout=900,
    )

  return run


def _study(folder, **keys):
  """Returns the flags of a small study whose files lie in a folder."""
  (folder / 'mine.py').write_text(_MINE)
  shutil.copy(_TOKENS, folder / 'tokens.npy')
  values = {
    'data.source': f'flat:{folder}/tokens.npy',
    'eval_tasks': '',
    'eval_sequences': 8,
    'model.width': 16,
    'model.num_layers': 1,
    'model.context': 16,
    'model.vocab_size': 1024,
    'batch_size': 4,
    'steps': 6,
    'checkpoint_every': 10,
    'study.models': 'gpt2',
    'study.optimizers': f'{folder}/mine.py',
    'study.target_steps': 20,
    'study.trials': 2,
    'study.max_extensions': 50,
    'study.lrs_mine': (1e-3, 2e-3, 4e-3, 8e-3),
    **keys,
  }
  return [
    '--config=experiments/quickstart.py',
    f'--workdir={folder}/home',
    *(f'--config.{key}={value}' for key, value in values.items()),
  ]


def _times(home):
  return {p: p.stat().st_mtime_ns for p in home.rglob('summary.json')}


def _losses(home):
  return {
    path.parent.relative_to(home).as_posix(): (
      json.loads(path.read_text())['eval_loss']
    )
    for path in home.rglob('summary.json')
  }


def test_a_study_is_packed_done_elsewhere_and_goes_on_here(
  run_command, fork_commands, alone, tmp_path
):
  # All is there already, as in an image: nothing is downloaded.
  have = tmp_path / 'have.txt'
  names = sorted({d.name for d in importlib.metadata.distributions()})
  have.write_text('Package Version\n------- -------\n')
  with have.open('a') as file:
    file.writelines(f'{name} 1.0\n' for name in names)
  site = os.pathsep.join(p for p in sys.path if p.endswith('-packages'))
  there = {'PYTHONPATH': site, 'JAX_PLATFORMS': 'cpu'}
  text = {'inputs': f'{_ROOT}/docs/*.md', 'tokenizer': 'bpe-train:300'}
  text |= {'validation_fraction': 0.2, 'source': 'docs'}
  flags = _study(tmp_path, **{'data.source': f'shards:{tmp_path}/shards'})
  home = tmp_path / 'home'
  pack = [*flags, f'--have={have}', f'--input={text["inputs"]}']
  pack += [f'--{key}={value}' for key, value in text.items() if key != 'inputs']
  done = run_command('pack', *pack, f'--out={tmp_path}/quick.tar')
  assert done.returncode == 0, done.stderr
  with tarfile.open(tmp_path / 'quick.tar') as tar:
    tar.extractall(tmp_path / 'there', filter='data')
  [folder] = (tmp_path / 'there').iterdir()
  assert folder.name == 'quick' and not list((folder / 'wheels').iterdir())
  done = alone(sys.executable, folder / 'run', '--minutes=600', **there)
  assert done.returncode == 0, (done.stdout, done.stderr)
  assert ' are enough for 4 of 4 runs, by some timed steps' in done.stdout
  # The text became the shards that it becomes here.
  options = prepare.Options(**text, out=tmp_path / 'shards')
  prepare.prepare(options, Console(stderr=True))
  [shards] = folder.glob('inputs/*/shards')
  for path in (tmp_path / 'shards').glob('*.array_record'):
    assert (shards / path.name).read_bytes() == path.read_bytes()
  shutil.rmtree(tmp_path / 'shards')
  with tarfile.open(folder / packed.RESULTS) as tar:
    held = {
      member.name: tar.extractfile(member).read() for member in tar if member
    }
  assert not any('/checkpoints/' in name for name in held)
  told = {
    n: x for n, x in held.items() if n.endswith(('/config.json', '/env.json'))
  }
  assert len(told) == 1 + 2 * 4
  for name, text in told.items():
    # Neither machine's directories.
    assert str(tmp_path).encode() not in text, name
  assert not list(home.rglob('summary.json'))

  merge = f'--merge={folder / packed.RESULTS}'
  done = run_command('pack', *flags, merge)
  assert done.returncode == 0, done.stderr
  assert done.stdout.endswith(': 4 runs, 0 were there already, 0 left out\n')
  times = _times(home)
  assert len(times) == 4
  again = [*pack, f'--out={tmp_path}/again']
  done, packed_again = fork_commands(
    [('study', [*flags, '--workers=1']), ('pack', again)]
  )
  assert done.code == 0, done.err
  report = home / 'report' / 'report.md'
  assert 'Mine' in report.read_text() and _times(home) == times
  # What was done goes along.
  assert packed_again.code == 0, packed_again.err
  assert _losses(tmp_path / 'again' / packed.WORKDIR) == _losses(home)


@pytest.mark.slow
def test_a_pack_brings_all_that_another_python_needs(
  run_command, alone, tmp_path
):
  """Needs a package index, and another Python."""
  pythons = [
    (version, path)
    for version in ('3.12', '3.13', '3.14', '3.11')
    if (path := shutil.which(f'python{version}'))
    and subprocess.run([path, '--version'], capture_output=True).returncode == 0
    and not sys.version.startswith(f'{version}.')
  ]
  if not pythons:
    pytest.skip('this machine has one Python alone')
  version, python = pythons[0]
  flags = _study(tmp_path)
  done = run_command(
    'pack', *flags, f'--out={tmp_path}/all', f'--python={version}'
  )
  assert done.returncode == 0, done.stderr
  run = tmp_path / 'all' / 'run'
  wrong = alone(sys.executable, run)
  assert wrong.returncode == 1
  assert f'start it as python{version} run' in wrong.stderr
  done = alone(python, run, '--minutes=600', PYTHONPATH='')
  assert done.returncode == 0, (done.stdout, done.stderr)
  merge = f'--merge={run.with_name(packed.RESULTS)}'
  done = run_command('pack', *flags, merge)
  assert done.stdout.endswith(': 4 runs, 0 were there already, 0 left out\n')
  # Packed again, it goes on where it is: a target is missing.
  home = tmp_path / 'home'
  losses = _losses(home)
  assert len(losses) == 4
  shutil.rmtree(home / 'finals' / 'gpt2-mine' / 'seed=1')
  again = tmp_path / 'again'
  done = run_command('pack', *flags, f'--out={again}', f'--python={version}')
  assert done.returncode == 0, done.stderr
  done = alone(python, again / 'run', PYTHONPATH='')
  assert done.returncode == 0, (done.stdout, done.stderr)
  done = run_command('pack', *flags, f'--merge={again / packed.RESULTS}')
  assert done.stdout.endswith(': 1 run, 3 were there already, 0 left out\n')
  assert _losses(home) == losses


def test_mistakes_are_named_before_anything_is_written(fork_commands, tmp_path):
  flags = _study(tmp_path)
  out = f'--out={tmp_path}/it.tar'
  (tmp_path / 'empty').write_text('WARNING: nothing\n')
  (tmp_path / 'have').write_text(
    '\n'.join(f'{d.name}==1' for d in importlib.metadata.distributions())
  )
  text = [out, '--tokenizer=gpt2', f'--input={tmp_path}/*.txt']
  shards = f'--config.data.source=shards:{tmp_path}/shards'
  mistakes = [
    ([], '--out is missing: give --out=FILE.tar'),
    ([out, '--platform=linux'], '--platform=linux: give manylinux_2_N_x86_64'),
    ([out, '--python=4'], '--python=4: give 3.11 or later'),
    ([out, f'--have={tmp_path}/empty'], 'names no package'),
    (
      [out, '--limit_mb=1', f'--have={tmp_path}/have'],
      'largest files, in MB: ',
    ),
    (['--merge=no.tar.gz'], '--merge=no.tar.gz: no such file'),
    ([f'--out={tmp_path}'], f'--out={tmp_path}: already exists'),
    ([out, shards], f'{tmp_path}/shards: no such file'),
    (text, 'with --input give shards:DIR'),
    ([*text, shards], f"no file matches --input='{tmp_path}/*.txt'"),
    ([out, '--input=hf:x'], '--tokenizer is missing'),
  ]
  done = fork_commands([('pack', [*flags, *words]) for words, _ in mistakes])
  for (words, message), found in zip(mistakes, done, strict=True):
    assert found.code == 1, words
    [line] = [x for x in found.err.splitlines() if x.startswith('error: ')]
    assert message in line
  assert not (tmp_path / 'it.tar').exists()
  assert not list(tmp_path.glob('.pack-*'))


def test_requirements_are_those_of_the_machine_there():
  here = wheels._environment('manylinux_2_28_aarch64', '3.12')
  texts = [
    'a; python_version < "3.12"',
    'b>=2; python_full_version >= "3.12"',
    'c; platform_machine == "aarch64" and sys_platform == "linux"',
    'd; extra == "cuda"',
    'e[x]; extra == "tpu"',
    'f',
  ]
  found = wheels._needs(texts, ['cuda'], here)
  assert [str(r) for r in found] == ['b>=2', 'c', 'd', 'f']


def test_files_of_a_configuration_get_other_names_and_back():
  config = {
    'data': {'source': 'shards:/a/corpus'},
    'model': {'name': '/a/m.py', 'init_from': 'hf:/a/model'},
    'optimizer': {'name': 'adamw'},
    'eval_tasks': 'arc_easy:9, /a/t.py:100',
    'eval_tasks_data': '/a/questions',
    'study': {'models': 'gpt2,/a/m.py', 'optimizers': 'all'},
  }
  names = bundle.named(config)
  assert sorted(names) == [
    *('/a/corpus', '/a/m.py', '/a/model', '/a/questions', '/a/t.py')
  ]
  moved = bundle.relocated(config, names)
  assert '/a/' not in json.dumps(moved) and 'adamw' in json.dumps(moved)
  assert moved['eval_tasks'].endswith(':100')
  back = {name: path for path, name in names.items()}
  assert bundle.relocated(moved, back) == config

"""Commands answer --help, and wrong input ends in one line."""

import os
import pathlib
import subprocess
import sys

import pytest

from steepest.data import locks
from steepest.experiments import base

_ROOT = pathlib.Path(__file__).parent.parent.parent
_COMMANDS = sorted(
  p.stem
  for p in (_ROOT / 'launch').glob('*.py')
  if 'cli.run(' in p.read_text('utf-8') and p.stem != 'cli'
)
_TINY = '--config=experiments/tiny.py:gpt2,adamw'
_DATA = '--config.data.source=flat:tests/golden/tokens.npy'
_HF = '--config.model.init_from=hf:tests/golden'

# Arguments, and what the line must say.
_WRONG = [
  ([], '--config is missing'),
  ([_TINY, _DATA, 'stray'], "'stray'"),
  ([_TINY, _DATA, '--workdir=a\x1b[31m'], 'a control character'),
  ([_TINY, _DATA, '--workdri=x'], 'workdir'),
  (['--config=experiments/tinny.py'], 'did you mean experiments/tiny.py'),
  (['--config=nowhere.py'], 'no recipe nowhere.py'),
  (['--config=experiments/tiny.py:gtp2'], "did you mean 'gpt2'"),
  (['--config=experiments/tiny.py:gpt2,llama'], '2 models, gpt2, llama'),
  (
    ['--config=experiments/tiny.py:gpt2,adamw,lion'],
    '2 optimizers, adamw, lion: give one',
  ),
  ([_TINY, '--config.optimizer.lrr=1'], 'did you mean optimizer.lr?'),
  ([_TINY, '--config.lr=1'], 'did you mean optimizer.lr?'),
  ([_TINY, '--config.modell.width=1'], 'did you mean model.width?'),
  ([_TINY, '--config.steps=many'], "'many'"),
  ([_TINY, '--config.steps=1.5'], "'1.5'"),
  ([_TINY, '--config.optimizer.lr=high'], "'high'"),
  ([_TINY, '--config.data.shuffle=perhaps'], 'perhaps'),
  ([_TINY, _DATA, '--config.optimizer.betas=0.9'], 'give two numbers'),
  ([_TINY, _DATA, '--config.steps=0'], 'steps=0: must be at least 1'),
  ([_TINY, _DATA, '--config.log_every=0'], 'log_every=0'),
  ([_TINY, _DATA, '--config.seed=-1'], 'seed=-1'),
  ([_TINY, _DATA, '--config.stage=last'], 'tune or final'),
  (
    [_TINY, _DATA, '--config.parametrization.base_width=-4'],
    'parametrization.base_width=-4',
  ),
  ([_TINY, '--config.data.source='], 'shards:DIR or flat:FILE'),
  ([_TINY, '--config.data.source=flat:gone.npy'], 'gone.npy'),
  ([_TINY, '--config.data.source=shards:gone'], 'gone'),
  ([_TINY, _DATA, '--config.model.vocab_size=100'], 'token id'),
  ([_TINY, _DATA, '--config.steps=100000'], 'raise data.epochs'),
  ([_TINY, _DATA, '--config.optimizer.name=adamv'], "did you mean 'adamw'"),
  ([_TINY, _DATA, '--config.model.name=gpt3'], "did you mean 'gpt2'"),
  ([_TINY, _DATA, '--config.optimizer.decay_mode=no'], 'times_lr'),
  ([_TINY, _DATA, '--config.schedule.kind=cosin'], 'cosine'),
  ([_TINY, _DATA, '--config.model.num_heads=5'], 'num_heads=5'),
  ([_TINY, _DATA, '--config.microbatches=3'], 'the next one is 9'),
  ([_TINY, _DATA, '--config.mesh.fsdp=3'], 'do not divide'),
  ([_TINY, _DATA, '--config.mesh.data=2'], 'needs 2 devices, there are 1'),
  ([_TINY, _DATA, '--config.dtype.compute=float16'], 'bfloat16'),
  ([_TINY, _DATA, '--config.eval_tasks=arc_easy'], 'needs a tokenizer'),
  ([_TINY, _DATA, '--config.model.init_from=gone'], 'give hf:DIR'),
  ([_TINY, _DATA, '--config.model.init_from=hf:gone'], 'config.json'),
  ([_TINY, _DATA, f'{_HF}/gpt2', '--config.model.width=32'], 'disagrees'),
  ([_TINY, _DATA, f'{_HF}/gpt2', '--config.model.context=99'], 'disagrees'),
  (
    [_TINY, _DATA, f'{_HF}/llama', '--config.model.norm_eps=0.1'],
    'which has 1e-06',
  ),
]


@pytest.fixture(scope='module')
def wrong(fork_commands, tmp_path_factory):
  """What each of the wrong command lines ended with."""
  directory = tmp_path_factory.mktemp('wrong')
  commands = [
    ('train', [*arguments, f'--workdir={directory / str(i)}'])
    for i, (arguments, _) in enumerate(_WRONG)
  ]
  return fork_commands(commands), directory


@pytest.mark.parametrize(
  'i', range(len(_WRONG)), ids=[said for _, said in _WRONG]
)
def test_wrong_input_ends_in_one_line(wrong, i):
  results, _ = wrong
  assert results[i].code == 1
  assert len(results[i].err.splitlines()) == 1, results[i].err
  assert results[i].err.startswith('error: ')
  assert _WRONG[i][1] in results[i].err


def test_wrong_input_starts_no_run(wrong):
  assert not list(wrong[1].iterdir())


@pytest.mark.parametrize('name', _COMMANDS)
def test_help(name):
  done = subprocess.run(
    [sys.executable, '-m', f'launch.{name}', '--help'],
    cwd=_ROOT,
    capture_output=True,
    text=True,
    timeout=60,
  )
  assert done.returncode == 0
  assert done.stderr == ''
  assert f'python -m launch.{name}' in done.stdout
  assert 'Flags:' in done.stdout


def test_an_unknown_key_as_a_user_meets_it(run_command):
  done = run_command('train', _TINY, '--config.optimizer.leraning_rate=1')
  assert done.returncode == 1
  assert len(done.stderr.splitlines()) == 1
  assert 'optimizer.' in done.stderr and 'did you mean' in done.stderr


def test_traceback_on_request(run_command):
  done = run_command('train', '--config=gone.py', STEEPEST_TRACEBACK='1')
  assert done.returncode == 1
  assert 'Traceback' in done.stderr
  assert done.stderr.splitlines()[-1] == 'error: no recipe gone.py'


def test_flatten():
  leaves = base.flatten(base.get_config())
  assert leaves['optimizer.clip_norm'] == 1.0
  assert leaves['seed'] == 0
  assert not any(hasattr(value, 'items') for value in leaves.values())


def test_a_directory_has_one_writer(fork_commands, tmp_path):
  commands = {
    'train': [_TINY, _DATA, f'--workdir={tmp_path}'],
    'report': [f'--runs={tmp_path}', f'--out={tmp_path}'],
    'evaluate': ['--model=hf:gone', '--tasks=mmlu', f'--out={tmp_path}'],
    'coordcheck': ['--model=gpt2', '--optimizer=lion', f'--out={tmp_path}'],
  }
  with locks.hold(tmp_path, 'at work'):
    results = fork_commands(list(commands.items()))
    assert [path.name for path in tmp_path.iterdir()] == [locks.NAME]
  for result in results:
    assert result.code == 1
    (line,) = result.err.splitlines()
    assert f'(process {os.getpid()}, ' in line

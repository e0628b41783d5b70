"""`python -m launch.train` as its users meet it."""

import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from steepest.experiments import tiny
from steepest.training import run

_ROOT = pathlib.Path(__file__).parent.parent.parent
_DATA = '--config.data.source=flat:tests/golden/tokens.npy'
# What a user may have around.
_SECRET = 'hf_0123456789abcdef'
_SECRETS = ('HF_TOKEN', 'WANDB_API_KEY', 'AWS_SECRET_ACCESS_KEY')


def _rows(workdir):
  text = (workdir / 'metrics.jsonl').read_text('utf-8')
  return [json.loads(line) for line in text.splitlines()]


def _summary(workdir):
  return json.loads((workdir / 'summary.json').read_text('utf-8'))


def _hashes(workdir):
  return {
    str(p.relative_to(workdir)): (
      hashlib.sha256(p.read_bytes()).hexdigest(),
      p.stat().st_mtime_ns,
    )
    for p in sorted(workdir.rglob('*'))
    if p.is_file()
  }


def _command(variant, workdir, *more):
  return [
    f'--config=experiments/tiny.py:{variant}',
    _DATA,
    f'--workdir={workdir}',
    *more,
  ]


# Optimized as users' programs are, and compiled quickly.
@pytest.mark.parametrize(
  'flags', [{}, pytest.param({'XLA_FLAGS': ''}, marks=pytest.mark.slow)]
)
def test_training_is_that_of_pytorch(fork_commands, golden, tmp_path, flags):
  """The PyTorch loops of tests/golden/training.json, replayed."""
  reference = json.loads((golden / 'training.json').read_text('utf-8'))
  commands = {}
  for name in reference['losses']:
    model, optimizer = name.split('/')
    hyper = reference['hyperparameters'][optimizer]
    commands[name] = _command(
      f'{model},{optimizer}',
      tmp_path / name,
      f'--config.model.init_from=hf:tests/golden/{model}',
      '--config.data.shuffle=False',
      f'--config.batch_size={reference["batch"]}',
      f'--config.steps={reference["steps"]}',
      f'--config.optimizer.lr={hyper["lr"]}',
      f'--config.optimizer.betas={",".join(map(str, hyper["betas"]))}',
      f'--config.optimizer.weight_decay={hyper["weight_decay"]}',
      '--config.optimizer.decay_mode=times_lr',
      f'--config.optimizer.clip_norm={reference["clip_global_norm"]}',
      f'--config.schedule.kind={reference["schedule"]}',
      '--config.schedule.warmup_steps=0',
    )
  env = {**flags, **dict.fromkeys(_SECRETS, _SECRET)}
  for result in fork_commands([('train', c) for c in commands.values()], **env):
    assert result.code == 0, result.err
  assert len(commands) == 4
  for name, wanted in reference['losses'].items():
    rows = _rows(tmp_path / name)
    assert [row['step'] for row in rows] == list(range(reference['steps']))
    got = [row['train/loss'] for row in rows]
    # A thousandth is required; rounding in another order makes 1e-5.
    np.testing.assert_allclose(got, wanted, atol=1e-4, rtol=0, err_msg=name)
    assert wanted[0] - wanted[-1] > 0.5
  _check_what_is_left(tmp_path / 'gpt2' / 'adamw', reference)


def _check_what_is_left(workdir, reference):
  """Files, what they say of the run, and no secret in any of them."""
  files = [path for path in workdir.rglob('*') if path.is_file()]
  assert {*('config.json', 'env.json', 'metrics.jsonl', 'summary.json')} <= {
    p.name for p in files
  }
  assert list(workdir.glob('events.out.tfevents.*'))
  config = json.loads((workdir / 'config.json').read_text('utf-8'))
  assert config['model']['width'] == 64
  assert config['optimizer']['lr'] == 1e-3
  environment = (workdir / 'env.json').read_text('utf-8')
  assert json.loads(environment)['versions']['jax']
  assert os.uname().nodename not in environment
  assert not [path for path in files if _SECRET.encode() in path.read_bytes()]
  summary, rows = _summary(workdir), _rows(workdir)
  tokens = reference['batch'] * reference['seq']
  for row in rows:
    assert row['tokens'] == (row['step'] + 1) * tokens
  assert summary['status'] == 'finished'
  assert summary['steps'] == reference['steps']
  assert summary['tokens'] == reference['steps'] * tokens
  tail = [row['train/loss'] for row in rows[-3:]]
  assert summary['train_loss'] == pytest.approx(np.mean(tail))
  # 256·64 + 64·64 + 2·(12·64² + 13·64) + 2·64, embeddings outside.
  assert summary['parameters'] == 120_576
  assert summary['parameters_without_embeddings'] == 120_576 - 320 * 64
  seconds = [row['seconds'] for row in rows]
  assert seconds == sorted(seconds)
  assert summary['seconds'] >= seconds[-1] - 1e-9
  assert summary['eval_loss'] is None and summary['mfu'] is None


def test_divergence_keeps_the_last_good_checkpoint(
  fork_commands, saved, tmp_path
):
  workdir = tmp_path / 'run'
  command = _command(
    'gpt2,adamw',
    workdir,
    '--config.steps=40',
    '--config.checkpoint_every=1',
    '--config.optimizer.lr=1e9',
    '--config.optimizer.weight_decay=10',
    '--config.schedule.warmup_steps=0',
    '--config.schedule.kind=constant',
  )
  first, again = fork_commands([('train', command)] * 2)
  assert first.code == 1
  assert len(first.err.splitlines()) == 1
  summary = _summary(workdir)
  at = summary['diverged_at_step']
  assert summary['status'] == 'diverged' and summary['train_loss'] is None
  assert f'diverged at step {at}: ' in first.err
  assert 'checkpoint' in first.err
  assert [row['step'] for row in _rows(workdir)] == list(range(at))
  for row in _rows(workdir):
    assert all(np.isfinite(value) for value in row.values())
  kept = sorted(int(p.name) for p in (workdir / 'checkpoints').iterdir())
  assert at > 0 and kept[-1] == at
  for path, value in saved(workdir, kept[-1]).items():
    assert np.isfinite(value).all(), path
  assert again.code == 1
  assert f'diverged at step {at}' in again.err
  assert len(again.err.splitlines()) == 1


def test_unlike_workdirs_are_refused(fork_commands, tmp_path):
  """Each restart changes one thing, which is named; none changes nothing."""
  workdir, data = tmp_path / 'run', tmp_path / 'tokens.npy'
  tokens = np.load(_ROOT / 'tests' / 'golden' / 'tokens.npy')
  np.save(data, tokens)
  few = ('--config.steps=4', '--config.checkpoint_every=2')
  few += (f'--config.data.source=flat:{data}',)
  start = lambda *more: ('train', _command('gpt2,lion', workdir, *few, *more))
  cases = {
    '--config.model.width=32': 'model.width=64, asked for 32',
    '--config.optimizer.lr=0.5': 'optimizer.lr=',
    '--config.seed=7': 'seed=0, asked for 7',
    '--config.batch_size=4': 'batch_size=8, asked for 4',
    '--config.steps=2': 'steps=4, asked for 2',
  }
  (first,) = fork_commands([start()])
  assert first.code == 0, first.err
  before = _hashes(workdir)
  llama = ('train', _command('llama,lion', workdir, *few))
  again, *others = fork_commands([start(), *map(start, cases), llama])
  assert again.code == 0 and not again.err
  assert _hashes(workdir) == before
  for result, part in zip(others, [*cases.values(), '--workdir'], strict=True):
    assert result.code == 1
    assert len(result.err.splitlines()) == 1
    assert part in result.err
  # The checkpoint itself knows, should what is read before it be replaced.
  (workdir / 'summary.json').unlink()
  np.save(data, np.roll(tokens, 1))
  config = tiny.get_config('gpt2,lion')
  config.steps, config.data.source = 4, f'flat:{data}'
  config.checkpoint_every = 2
  with pytest.raises(ValueError, match='other data'):
    run.train(config, workdir)
  np.save(data, tokens)
  saved = json.loads((workdir / 'config.json').read_text('utf-8'))
  saved['model']['width'] = config.model.width = 32
  (workdir / 'config.json').write_text(json.dumps(saved), 'utf-8')
  with pytest.raises(ValueError, match='is of another model'):
    run.train(config, workdir)


def test_workdir_defaults_to_the_variant(command_env, tmp_path):
  where = shutil.copytree(_ROOT / 'experiments', tmp_path / 'experiments')
  assert where.exists()
  done = subprocess.run(
    [
      sys.executable,
      '-m',
      'steepest.launch.train',
      '--config=experiments/tiny.py:gpt2,lion',
      f'--config.data.source=flat:{_ROOT}/tests/golden/tokens.npy',
      '--config.steps=1',
      '--config.optimizer.lr=1',
    ],
    cwd=tmp_path,
    env=command_env,
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr
  workdir = tmp_path / 'runs' / 'tiny-gpt2-lion'
  assert _summary(workdir)['steps'] == 1
  config = json.loads((workdir / 'config.json').read_text('utf-8'))
  assert config['optimizer']['lr'] == 1.0

"""`python -m launch.train` as its users meet it."""

import hashlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

_ROOT = pathlib.Path(__file__).parent.parent.parent
_DATA = '--config.data.source=flat:tests/golden/tokens.npy'
# Numbers that time, not the computation, decides.
_TIMED = ('seconds', 'data/wait_seconds', 'tokens_per_second', 'mfu')


def _rows(workdir):
  text = (workdir / 'metrics.jsonl').read_text('utf-8')
  return [json.loads(line) for line in text.splitlines()]


def _computed(workdir):
  return [
    {k: v for k, v in row.items() if k not in _TIMED} for row in _rows(workdir)
  ]


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


def _arrays(workdir, steps):
  """All arrays of a checkpoint, read by Orbax without our code."""
  import jax
  import orbax.checkpoint as ocp

  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
    tree = reader.restore(workdir / 'checkpoints' / str(steps) / 'state')
  return {
    jax.tree_util.keystr(path): np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def _command(variant, workdir, *more):
  return [
    f'--config=experiments/tiny.py:{variant}',
    _DATA,
    f'--workdir={workdir}',
    *more,
  ]


# ------------------------------------------------- an outside training run


@pytest.fixture(scope='module')
def replayed(fork_commands, golden, tmp_path_factory):
  """The PyTorch loops of tests/golden/training.json, replayed."""
  where = tmp_path_factory.mktemp('parity')
  reference = json.loads((golden / 'training.json').read_text('utf-8'))
  commands = []
  for run in reference['losses']:
    model, optimizer = run.split('/')
    hyper = reference['hyperparameters'][optimizer]
    commands.append(
      (
        'train',
        _command(
          f'{model},{optimizer}',
          where / run,
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
        ),
      )
    )
  for result in fork_commands(commands, XLA_FLAGS=''):
    assert result.code == 0, result.err
  return where, reference


@pytest.mark.parametrize('optimizer', ['adamw', 'lion'])
@pytest.mark.parametrize('model', ['gpt2', 'llama'])
def test_losses_of_pytorch(replayed, model, optimizer):
  where, reference = replayed
  wanted = reference['losses'][f'{model}/{optimizer}']
  rows = _rows(where / model / optimizer)
  assert [row['step'] for row in rows] == list(range(reference['steps']))
  got = [row['train/loss'] for row in rows]
  # A thousandth is required; rounding in another order makes 1e-5.
  np.testing.assert_allclose(got, wanted, atol=1e-4, rtol=0)
  assert wanted[0] - wanted[-1] > 0.5


def test_what_a_run_leaves(replayed):
  where, reference = replayed
  workdir = where / 'gpt2' / 'adamw'
  assert {
    'config.json',
    'env.json',
    'metrics.jsonl',
    'summary.json',
  } <= {p.name for p in workdir.iterdir()}
  assert list(workdir.glob('events.out.tfevents.*'))
  config = json.loads((workdir / 'config.json').read_text('utf-8'))
  assert config['model']['width'] == 64
  assert config['optimizer']['lr'] == 1e-3
  environment = (workdir / 'env.json').read_text('utf-8')
  assert json.loads(environment)['versions']['jax']
  assert os.uname().nodename not in environment
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


# ------------------------------------------------------------ kill and go on


def _kill_at(workdir, steps, command):
  """Starts a run and kills it once checkpoint `steps` is committed."""
  clean = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
  process = subprocess.Popen(
    [sys.executable, '-m', 'launch.train', *command],
    cwd=_ROOT,
    env=clean,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
  )
  checkpoint = workdir / 'checkpoints' / str(steps)
  end = time.monotonic() + 300
  while not checkpoint.exists():
    assert process.poll() is None, process.stderr.read()
    assert time.monotonic() < end
    time.sleep(0.01)
  process.send_signal(signal.SIGKILL)
  process.wait()
  assert not (workdir / 'summary.json').exists()


@pytest.mark.slow
@pytest.mark.parametrize(
  'variant',
  ['gpt2,adamw', 'gpt2,lion', 'gpt2,sophia', 'llama,adamw', 'llama,sophia'],
)
def test_killed_three_times_is_bit_for_bit_uninterrupted(
  fork_commands, tmp_path, variant
):
  """Past curvature estimates, shuffled over epochs; others: survival_test."""
  more = (
    '--config.checkpoint_every=10',
    '--config.steps=120',
    '--config.microbatches=2',
    '--config.data.epochs=3',
  )
  whole, parts = tmp_path / 'whole', tmp_path / 'parts'
  for steps in (20, 40, 50):
    _kill_at(parts, steps, _command(variant, parts, *more))
  commands = [('train', _command(variant, d, *more)) for d in (whole, parts)]
  for result in fork_commands(commands, XLA_FLAGS=''):
    assert result.code == 0, result.err
  assert _computed(parts) == _computed(whole)
  assert [row['step'] for row in _rows(parts)] == list(range(120))
  seconds = [row['seconds'] for row in _rows(parts)]
  assert seconds == sorted(seconds)
  ours, theirs = _arrays(parts, 120), _arrays(whole, 120)
  assert ours.keys() == theirs.keys()
  for path, value in ours.items():
    np.testing.assert_array_equal(value, theirs[path], err_msg=path)


# ------------------------------------------------------------ what goes wrong


def test_divergence_keeps_the_last_good_checkpoint(fork_commands, tmp_path):
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
  for path, value in _arrays(workdir, kept[-1]).items():
    assert np.isfinite(value).all(), path
  assert again.code == 1
  assert f'diverged at step {at}' in again.err
  assert len(again.err.splitlines()) == 1


def test_unlike_workdirs_are_refused(fork_commands, tmp_path):
  """Each restart changes one thing, which is named; none changes nothing."""
  workdir = tmp_path / 'run'
  few = ('--config.steps=4', '--config.checkpoint_every=2')
  cases = [
    (['--config.model.width=32'], 'model.width=64, asked for 32'),
    (['--config.optimizer.lr=0.5'], 'optimizer.lr='),
    (['--config.seed=7'], 'seed=0, asked for 7'),
    (['--config.batch_size=4'], 'batch_size=8, asked for 4'),
    (['--config.steps=2'], 'steps=4, asked for 2'),
  ]
  same = ('train', _command('gpt2,lion', workdir, *few))
  (first,) = fork_commands([same])
  assert first.code == 0, first.err
  before = _hashes(workdir)
  jobs = [
    ('train', _command('gpt2,lion', workdir, *few, *extra))
    for extra, _ in cases
  ]
  jobs.append(('train', _command('llama,lion', workdir, *few)))
  again, *others, llama = fork_commands([same, *jobs])
  assert again.code == 0 and not again.err
  assert _hashes(workdir) == before
  for result, (_, said) in zip(others, cases):
    assert result.code == 1
    assert len(result.err.splitlines()) == 1
    assert said in result.err
  assert llama.code == 1 and '--workdir' in llama.err
  # The checkpoint itself says so too, should config.json have been replaced.
  config = json.loads((workdir / 'config.json').read_text('utf-8'))
  config['model']['width'] = 32
  (workdir / 'config.json').write_text(json.dumps(config), 'utf-8')
  (workdir / 'summary.json').unlink()
  (unlike,) = fork_commands(
    [
      (
        'train',
        _command('gpt2,lion', workdir, *few, '--config.model.width=32'),
      )
    ],
  )
  assert unlike.code == 1
  assert len(unlike.err.splitlines()) == 1
  assert 'is of another model' in unlike.err


def test_other_data_under_a_checkpoint_are_refused(fork_commands, tmp_path):
  tokens = np.load(_ROOT / 'tests' / 'golden' / 'tokens.npy')
  np.save(tmp_path / 'tokens.npy', tokens)
  command = _command(
    'gpt2,lion',
    tmp_path / 'run',
    '--config.steps=4',
    '--config.checkpoint_every=2',
    f'--config.data.source=flat:{tmp_path / "tokens.npy"}',
  )
  (first,) = fork_commands([('train', command)])
  assert first.code == 0, first.err
  np.save(tmp_path / 'tokens.npy', np.roll(tokens, 1))
  (tmp_path / 'run' / 'summary.json').unlink()
  (second,) = fork_commands([('train', command)])
  assert second.code == 1
  assert len(second.err.splitlines()) == 1
  assert 'other data' in second.err


def test_more_steps_go_on_and_a_smaller_context_imports(
  fork_commands, tmp_path
):
  workdir = tmp_path / 'run'
  command = _command(
    'gpt2,lion',
    workdir,
    '--config.checkpoint_every=3',
    '--config.schedule.kind=constant',
    '--config.model.init_from=hf:tests/golden/gpt2',
    '--config.model.context=32',
    '--config.data.shuffle=False',
  )
  first, second = fork_commands(
    [('train', [*command, f'--config.steps={n}']) for n in (3, 6)],
  )
  assert first.code == 0, first.err
  assert second.code == 0, second.err
  assert [row['step'] for row in _rows(workdir)] == list(range(6))
  assert _summary(workdir)['steps'] == 6
  assert _rows(workdir)[0]['tokens'] == 8 * 32


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

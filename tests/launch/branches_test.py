"""Branches: what goes on from another run's checkpoint is the run itself."""

import json
import shutil

import numpy as np
import pytest

from steepest.experiments import tiny
from steepest.training import branches, integrity, run as assemble
from steepest.tuning import trunks

_TIMED = ('seconds', 'data/wait_seconds', 'tokens_per_second')


@pytest.fixture
def configure(golden):
  """Returns a function that makes a run with wsd of one small layer."""

  def fn(steps, optimizer='adamw', **keys):
    config = tiny.get_config(f'gpt2,{optimizer}')
    config.update_from_flattened_dict(
      {
        'data.source': f'flat:{golden / "tokens.npy"}',
        'mesh.data': 1,
        'model.num_layers': 1,
        'model.width': 32,
        'model.context': 16,
        'model.vocab_size': 128,
        'schedule.kind': 'wsd',
        'schedule.warmup_steps': 2,
        'schedule.decay_fraction': 0.3,
        'optimizer.hessian_every': 2,
        'steps': steps,
        'log_every': 2,
        'checkpoint_every': 6,
        'checkpoints_kept': 1,
        **{key.replace('__', '.'): value for key, value in keys.items()},
      }
    )
    return config

  return fn


def _rows(workdir):
  rows = map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())
  return [{k: v for k, v in row.items() if k not in _TIMED} for row in rows]


def _state(workdir, steps):
  import orbax.checkpoint as ocp

  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
    return reader.restore(workdir / 'checkpoints' / str(steps) / 'state')


def _assert_equal(a, b):
  import jax

  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize('optimizer', ['lion', 'sophia'])
def test_a_branch_is_the_run_alone_bit_for_bit(configure, tmp_path, optimizer):
  alone, trunk, branch = (tmp_path / n for n in ('alone', 'trunk', 'branch'))
  short = configure(10, optimizer)
  start = trunks.decay_start(short)
  assert start == 7
  wanted = assemble.train(short, alone, {})
  assemble.train(configure(16, optimizer, checkpoints_at=(start,)), trunk, {})
  # It outlives the checkpoints that are kept for a restart.
  held = {p.name for p in (trunk / 'checkpoints').iterdir()}
  assert {'7', '16'} <= held and '6' not in held
  branches.start(trunk, start, branch)
  shutil.rmtree(trunk)
  done = []
  got = assemble.train(short, branch, {}, lambda row: done.append(row['step']))
  assert done == [7, 8, 9]
  _assert_equal(_state(branch, 10), _state(alone, 10))
  assert _rows(branch) == _rows(alone)
  spent = got.pop('spent')
  timed = {k for k in got if 'second' in k or k in ('mfu', 'spent')}
  timed.add('peak_memory_bytes')
  assert {k: v for k, v in got.items() if k not in timed} == {
    k: v for k, v in wanted.items() if k not in timed
  }
  # As if alone in the summary; what it took itself beside that.
  assert (spent['shared_steps'], spent['steps']) == (7, 3)
  assert spent['tokens'] == wanted['tokens'] * 3 // 10
  assert spent['flops'] == pytest.approx(wanted['flops'] * 0.3)
  assert 0 < spent['seconds'] < got['seconds']
  assert spent['parent'] == '../trunk'


def test_a_trunk_is_the_run_without_branches(configure, tmp_path):
  plain, trunk = tmp_path / 'plain', tmp_path / 'trunk'
  a = assemble.train(configure(9), plain, {})
  b = assemble.train(configure(9, checkpoints_at=(3, 5)), trunk, {})
  assert _rows(plain) == _rows(trunk)
  assert a['train_loss'] == b['train_loss']
  _assert_equal(_state(plain, 9), _state(trunk, 9))
  # The same run: it may be restarted with other branches.
  assert assemble.finished(configure(9, checkpoints_at=(4,)), trunk) == b


def test_several_epochs_are_another_order(configure, tmp_path):
  """Why they do not share: other windows from the start."""
  run = lambda steps: configure(steps, data__epochs=4)
  for steps in (8, 16):
    assemble.train(run(steps), tmp_path / str(steps), {})
  short, long = (_rows(tmp_path / str(steps)) for steps in (8, 16))
  assert short[1]['train/loss'] != long[1]['train/loss']


def test_a_parent_has_to_be_whole(configure, tmp_path):
  trunk, branch = tmp_path / 'trunk', tmp_path / 'branch'
  with pytest.raises(FileNotFoundError, match='no checkpoint of step 3'):
    branches.start(trunk, 3, branch)
  assemble.train(configure(6, checkpoints_at=(3,)), trunk, {})
  checkpoint = trunk / 'checkpoints' / '3'
  file = max(
    (p for p in checkpoint.rglob('*') if p.is_file()),
    key=lambda p: p.stat().st_size,
  )
  data = bytearray(file.read_bytes())
  data[len(data) // 2] ^= 1
  file.write_bytes(bytes(data))
  with pytest.raises(ValueError, match='was changed'):
    branches.start(trunk, 3, branch)
  assert not branches.has_begun(branch)
  assert not (branch / branches.NAME).exists()
  (checkpoint / integrity.NAME).unlink()
  assert not branches.can_start(trunk, 3)


def test_a_branch_that_has_begun_stays(configure, tmp_path):
  trunk, branch = tmp_path / 'trunk', tmp_path / 'branch'
  assemble.train(configure(8, checkpoints_at=(5,)), trunk, {})
  # Killed between the copy and its name.
  (branch / 'checkpoints' / '.branch').mkdir(parents=True)
  branches.start(trunk, 5, branch)
  before = (branch / branches.NAME).stat().st_mtime_ns
  assemble.train(configure(7), branch, {})
  branches.start(trunk, 5, branch)
  assert (branch / branches.NAME).stat().st_mtime_ns == before

"""Runs of several processes, each a real one, against runs of one."""

import json
import pathlib

import jax
from jax.experimental import multihost_utils
import numpy as np
import pytest

from steepest.experiments import tiny
from steepest.training import metrics, processes as distributed, run as assemble

_ROOT = pathlib.Path(__file__).parent.parent.parent
_COMMON = {
  'data.source': f'flat:{_ROOT}/tests/golden/tokens.npy',
  'model.num_layers': 1,
  'model.width': 32,
  'model.context': 16,
  'steps': 6,
  'optimizer.hessian_every': 2,
  'schedule.kind': 'constant',
}


@pytest.fixture
def train_processes(start_processes, command_env):
  """Trains with `count` processes of `devices` each; returns the rows."""

  def train(workdir, count, recipe, keys, devices=1):
    flag = f'--xla_force_host_platform_device_count={devices}'
    words = ['-m', 'launch.train', f'--config=experiments/tiny.py:{recipe}']
    words += [f'--config.{k}={v}' for k, v in {**_COMMON, **keys}.items()]
    for process in start_processes(
      count,
      [*words, f'--workdir={workdir}'],
      XLA_FLAGS=f'{command_env["XLA_FLAGS"]} {flag}',
    ):
      _, err = process.communicate(timeout=300)
      assert process.returncode == 0, err
    return metrics.read_rows(workdir)

  return train


def _one(workdir, recipe, keys):
  """Trains in this process, on one device."""
  config = tiny.get_config(recipe)
  config.update_from_flattened_dict({**_COMMON, 'mesh.data': 1, **keys})
  assemble.train(config, workdir)
  return metrics.read_rows(workdir)


def _assert_same(rows, other):
  assert [r['step'] for r in rows] == [r['step'] for r in other] != []
  for name in ('train/loss', 'grad_norm', 'param_norm'):
    np.testing.assert_allclose(
      [r[name] for r in rows], [r[name] for r in other], rtol=2e-5, err_msg=name
    )


def test_two_processes_compute_what_one_does_and_one_goes_on(
  train_processes, tmp_path
):
  # Sophia's curvature draws labels, which must not depend on who draws them.
  recipe = 'gpt2,sophia'
  one = _one(tmp_path / 'one', recipe, {})
  keys = {'mesh.fsdp': 2, 'checkpoint_every': 2}
  keys |= {'microbatches': 2, 'steps': 4}
  two = train_processes(tmp_path / 'two', 2, recipe, keys)
  _assert_same(two, one[:4])
  env = json.loads((tmp_path / 'two' / 'env.json').read_text('utf-8'))
  assert env['process_count'] == 2
  summary = json.loads((tmp_path / 'two' / 'summary.json').read_text('utf-8'))
  assert summary['steps'] == 4
  saved = tmp_path / 'two' / 'checkpoints' / '4'
  files = json.loads((saved / 'checksums.json').read_text('utf-8'))['files']
  held = {str(p.relative_to(saved)) for p in saved.rglob('*') if p.is_file()}
  assert held - set(files) == {'checksums.json'}
  assert any('ocdbt.process_1' in name for name in files)
  both = _one(tmp_path / 'two', recipe, {'checkpoint_every': 2})
  _assert_same(both, one)


@pytest.mark.slow
@pytest.mark.parametrize('optimizer', ['adamw', 'lion', 'sophia'])
def test_four_processes_on_every_mesh(train_processes, tmp_path, optimizer):
  recipe, vocabulary = f'llama,{optimizer}', {'model.vocab_size': 128}
  one = _one(tmp_path / 'one', recipe, vocabulary)
  # Axes that lie within a process, between processes, and both.
  for i, mesh in enumerate(
    ({'tensor': 2}, {'fsdp': 2, 'sequence': 2}, {'fsdp': 4, 'tensor': 2})
  ):
    keys = {f'mesh.{axis}': size for axis, size in mesh.items()} | vocabulary
    rows = train_processes(tmp_path / str(i), 4, recipe, keys, devices=2)
    _assert_same(rows, one)


@pytest.mark.slow
def test_a_job_that_lost_processes_goes_on_with_those_left(
  train_processes, tmp_path
):
  recipe, keys = 'gpt2,adamw', {'checkpoint_every': 2, 'mesh.fsdp': 2}
  one = _one(tmp_path / 'one', recipe, {})
  for count, steps in ((4, 2), (2, 4), (4, 6)):
    rows = train_processes(
      tmp_path / 'run', count, recipe, {**keys, 'steps': steps}
    )
  _assert_same(rows, one)


@pytest.mark.parametrize('own', [None, ValueError('mine')])
def test_all_processes_raise_what_one_did(monkeypatch, own):
  """The first that failed is believed, by what all hear of each other."""

  def work():
    if own is not None:
      raise own
    return 'done'

  def gather(text):
    said = json.dumps(['OSError', 'gone' * 2000]).encode()[: text.size]
    other = np.frombuffer(said.ljust(text.size, b'\0'), np.uint8)
    return np.stack([text, other])

  assert own is not None or distributed.together(work) == 'done'
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  monkeypatch.setattr(multihost_utils, 'process_allgather', gather)
  wanted = (OSError, 'gone' * 2000) if own is None else (ValueError, 'mine')
  with pytest.raises(wanted[0], match=f'^{wanted[1]}$'):
    distributed.together(work)


def test_one_process_joins_nobody(monkeypatch):
  assert distributed.join() == 0
  monkeypatch.setenv('SLURM_STEP_NUM_TASKS', '1')
  assert distributed.join() == 0


def test_vertex_says_who_is_who(monkeypatch):
  joined = []
  monkeypatch.setattr(
    jax.distributed,
    'initialize',
    lambda *words, **_: joined.append(words),
  )
  pools = {'workerpool0': ['a:1'], 'workerpool1': ['b:1', 'c:1']}
  for kind, index in (('workerpool0', 0), ('workerpool1', '1')):
    task = {'type': kind, 'index': index}
    spec = json.dumps({'cluster': pools, 'task': task})
    for name in ('COORDINATOR', 'PROCESSES', 'PROCESS'):
      monkeypatch.setenv(f'STEEPEST_{name}', '')
    monkeypatch.setenv('CLUSTER_SPEC', spec)
    distributed.join()
  assert joined == [('a:1', 3, 0), ('a:1', 3, 2)]


@pytest.mark.parametrize(
  'environment, message',
  [
    ({'STEEPEST_PROCESS': '0'}, 'STEEPEST_COORDINATOR is not: set all three'),
    (
      {
        'STEEPEST_COORDINATOR': 'host:1',
        'STEEPEST_PROCESSES': '2',
        'STEEPEST_PROCESS': '2',
      },
      'the first below the second',
    ),
    (
      {
        'STEEPEST_COORDINATOR': 'host',
        'STEEPEST_PROCESSES': '2',
        'STEEPEST_PROCESS': '1',
      },
      'give HOST:PORT',
    ),
    ({'STEEPEST_DISTRIBUTED': 'yes'}, 'must be auto'),
  ],
)
def test_half_a_description_is_refused(monkeypatch, environment, message):
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  with pytest.raises(ValueError, match=message):
    distributed.join()

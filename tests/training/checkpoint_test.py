"""Checkpoints come back bit for bit, on other meshes too."""

import jax
import numpy as np
import pytest

from steepest.training.checkpoint import Checkpointer

_BOOKS = {'seconds': {'train': 1.25}, 'losses': {}, 'data_fingerprint': 'f'}
_SPLIT = {'mesh__data': 2, 'mesh__fsdp': 2, 'mesh__tensor': 2}


def _equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture
def trained(configure, make_program, arguments, make_batch):
  """Returns a program and its state after three steps."""

  def fn(optimizer, **keys):
    config = configure('gpt2', optimizer, **keys)
    program = make_program(config)
    args, seed = program.put(arguments(config)), program.put(np.uint32(0))
    state = program.init(0)
    for step in range(3):
      batch = program.put_batch(make_batch(step))
      state, _ = program.step(state, batch, args, seed)
    return program, state

  return fn


@pytest.mark.parametrize('optimizer', ['adamw', 'sophia'])
def test_round_trip(tmp_path, trained, optimizer):
  program, state = trained(optimizer)
  writer = Checkpointer(tmp_path, 2)
  assert writer.latest() is None
  writer.save(state, 3, _BOOKS)
  wanted = jax.device_get(state)
  writer.close()
  reader = Checkpointer(tmp_path, 2, read_only=True)
  assert reader.latest() == 3
  restored, books = reader.restore(program.state_shapes, 3)
  _equal(jax.device_get(restored), wanted)
  assert int(restored.step) == 3
  assert {k: books[k] for k in _BOOKS} == _BOOKS
  params = reader.restore_params(program.state_shapes.params, 3)
  _equal(jax.device_get(params), wanted.params)
  reader.close()


def test_eight_devices_to_four_to_one(
  tmp_path, trained, configure, make_program
):
  """Values and places: each device holds its own part again."""
  _, state = trained('adamw', **_SPLIT)
  wanted = jax.device_get(state)
  writer = Checkpointer(tmp_path, 1)
  writer.save(state, 3, _BOOKS)
  writer.close()
  for mesh in ({'mesh__fsdp': 4}, {}):
    program = make_program(configure('gpt2', 'adamw', **mesh))
    reader = Checkpointer(tmp_path, 1)
    restored, _ = reader.restore(program.state_shapes, 3)
    reader.close()
    _equal(jax.device_get(restored), wanted)
    places = jax.tree.map(lambda x: x.sharding, restored)
    assert places == jax.tree.map(lambda s: s.sharding, program.state_shapes)


def test_only_the_latest_are_kept(tmp_path, trained):
  _, state = trained('adamw')
  writer = Checkpointer(tmp_path, 2)
  for steps in (1, 2, 3, 4):
    writer.save(state, steps, _BOOKS)
  writer.close()
  assert sorted(int(p.name) for p in tmp_path.iterdir()) == [3, 4]


def test_reading_changes_nothing(tmp_path, trained):
  _, state = trained('adamw')
  writer = Checkpointer(tmp_path, 3)
  for steps in (1, 2, 3):
    writer.save(state, steps, _BOOKS)
  writer.close()
  before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*')}
  reader = Checkpointer(tmp_path, 1, read_only=True)
  assert reader.latest() == 3 and reader.books(3)['seconds']
  reader.close()
  assert before == {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*')}


@pytest.mark.parametrize(
  'keys, said',
  [
    ({'model__vocab_size': 128}, r'embedding has shape \[64, 32\] there, '),
    ({'model__num_layers': 2}, 'block_1/.* has shape None there'),
  ],
)
def test_another_models_checkpoint_is_refused(
  tmp_path, trained, configure, make_program, keys, said
):
  _, state = trained('adamw')
  writer = Checkpointer(tmp_path, 1)
  writer.save(state, 3, _BOOKS)
  program = make_program(configure('gpt2', 'adamw', **keys))
  writer.wait()
  with pytest.raises(ValueError, match=said):
    writer.restore(program.state_shapes, 3)
  with pytest.raises(ValueError, match='is of another model'):
    writer.restore_params(program.state_shapes.params, 3)
  writer.close()

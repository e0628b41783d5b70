"""Checkpoints come back bit for bit, on other meshes too."""

import resource
import shutil
import threading

import jax
import numpy as np
import pytest

from steepest.training import checkpoint
from steepest.training.checkpoint import Checkpointer

_BOOKS = {'seconds': {'train': 1.25}, 'losses': {}, 'data_fingerprint': 'f'}
_SPLIT = {'mesh__data': 2, 'mesh__fsdp': 2, 'mesh__tensor': 2}


def _equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture
def make_state(configure, make_trainer):
  """Returns a setup and a state of it: numbers drawn, where they belong."""

  def fn(optimizer, **keys):
    setup = make_trainer(configure('gpt2', optimizer, **keys)).setup
    rng = np.random.default_rng(0)

    def draw(s):
      drawn = rng.normal(size=s.shape) * 9
      return jax.device_put(drawn.astype(s.dtype), s.sharding)

    return setup, jax.tree.map(draw, setup.shapes)

  return fn


@pytest.fixture
def save(tmp_path):
  """Returns a function that saves a state after each of some steps."""

  def fn(state, *steps, kept=1):
    writer = Checkpointer(tmp_path, kept)
    for done in steps:
      writer.save(state, done, _BOOKS)
    writer.close()

  return fn


def test_round_trip(tmp_path, make_state):
  setup, state = make_state('sophia')
  writer = Checkpointer(tmp_path, 2)
  assert writer.latest() is None
  writer.save(state, 3, _BOOKS)
  wanted = jax.device_get(state)
  writer.close()
  reader = Checkpointer(tmp_path, 2, read_only=True)
  assert reader.latest() == 3
  restored, metadata = reader.restore(setup.shapes, 3)
  _equal(jax.device_get(restored), wanted)
  assert {k: metadata[k] for k in _BOOKS} == _BOOKS
  params = reader.restore_params(setup.shapes.params, 3)
  _equal(jax.device_get(params), wanted.params)
  reader.close()


def test_eight_devices_to_four_to_one(
  tmp_path, make_state, save, configure, make_trainer
):
  """Values and places: each device holds its own part again."""
  _, state = make_state('adamw', **_SPLIT)
  wanted = jax.device_get(state)
  save(state, 3)
  for mesh in ({'mesh__fsdp': 4}, {}):
    setup = make_trainer(configure('gpt2', 'adamw', **mesh)).setup
    reader = Checkpointer(tmp_path, 1)
    restored, _ = reader.restore(setup.shapes, 3)
    reader.close()
    _equal(jax.device_get(restored), wanted)
    places = jax.tree.map(lambda x: x.sharding, restored)
    assert places == setup.shardings


def test_only_the_latest_are_kept(tmp_path, make_state, save):
  save(make_state('adamw')[1], 1, 2, 3, 4, kept=2)
  assert sorted(int(p.name) for p in tmp_path.iterdir()) == [3, 4]


def test_a_save_does_not_wait_until_the_one_before_is_verified(
  tmp_path, make_state, monkeypatch
):
  """Nor is anything deleted meanwhile; both count in the end."""
  state = make_state('adamw')[1]
  checksums, goes_on = checkpoint.checksums, threading.Event()

  def slow(directory, owns):
    assert goes_on.wait(60), 'the second save waited'
    return checksums(directory, owns)

  monkeypatch.setattr(checkpoint, 'checksums', slow)
  writer = Checkpointer(tmp_path, 1)
  for done in (1, 2):
    writer.save(state, done, _BOOKS)
  assert not (tmp_path / '1' / 'checksums.json').exists()
  goes_on.set()
  writer.wait()
  assert [p.name for p in tmp_path.iterdir()] == ['2']
  assert (tmp_path / '2' / 'checksums.json').exists()
  writer.close()


def test_each_of_four_processes_reads_its_part(tmp_path, monkeypatch):
  for i, size in enumerate((5000, 4000, 3000, 2000, 1000, 10, 10)):
    folder = tmp_path / 'state' / f'ocdbt.process_{i}' if i < 4 else tmp_path
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f'{i}').write_bytes(bytes([i]) * size)
  here = [0]
  monkeypatch.setattr(jax, 'process_count', lambda: 4)
  monkeypatch.setattr(jax, 'process_index', lambda: here[0])
  parts = []
  for here[0] in range(4):
    owns = lambda path: checkpoint._writer(path) == here[0]
    parts.append(checkpoint.checksums(tmp_path, owns))
  # What has no writer in its name is the first's.
  assert [len(part) for part in parts] == [4, 1, 1, 1]
  whole = {name: file for part in parts for name, file in part.items()}
  assert whole == checkpoint.checksums(tmp_path)
  checkpoint.write_checksums(tmp_path, whole)
  for name in whole:
    _damage(tmp_path / name, 'flipped')
    found = []
    for here[0] in range(4):
      try:
        checkpoint.verify(tmp_path)
      except ValueError as error:
        found.append(str(error))
    assert len(found) == 1 and f'{name} has changed' in found[0]
    _damage(tmp_path / name, 'flipped')


@pytest.mark.parametrize(
  'keys, said',
  [
    ({'model__vocab_size': 128}, r'embedding has shape \[64, 32\] there, '),
    ({'model__num_layers': 2}, 'block_1/.* has shape None there'),
  ],
)
def test_another_models_checkpoint_is_refused(
  tmp_path, make_state, save, configure, make_trainer, keys, said
):
  save(make_state('adamw')[1], 3)
  setup = make_trainer(configure('gpt2', 'adamw', **keys)).setup
  reader = Checkpointer(tmp_path, 1)
  with pytest.raises(ValueError, match=said):
    reader.restore(setup.shapes, 3)
  with pytest.raises(ValueError, match='is of another model'):
    reader.restore_params(setup.shapes.params, 3)
  reader.close()


def test_numbers_that_are_not_finite_are_caught(tmp_path, make_state):
  """As of an edited checkpoint, whose checksums were written anew."""
  setup, state = make_state('sophia')
  leaves, tree = jax.tree.flatten(state)
  floating = [x for x in leaves if np.issubdtype(x.dtype, np.floating)]
  spoilt = [
    x.at[(0,) * x.ndim].set(np.inf) if x is floating[-1] else x for x in leaves
  ]
  writer = Checkpointer(tmp_path, 1)
  writer.save(jax.tree.unflatten(tree, spoilt), 3, _BOOKS)
  writer.wait()
  with pytest.raises(ValueError, match='checkpoint .*/3: .* non-finite'):
    writer.restore(setup.shapes, 3)
  [books] = (tmp_path / '3' / 'books').glob('metadata')
  text = books.read_text()
  for number in ('9' * 5000, '"x"', '1e999'):
    books.write_text(text.replace('1.25', number))
    with pytest.raises(ValueError, match='checkpoint .*/3: '):
      writer.metadata(3)
  writer.close()


def _damage(path, how):
  data = bytearray(path.read_bytes())
  if how == 'truncated':
    data = data[:-1]
  elif how == 'flipped':
    data[len(data) // 2] ^= 1
  else:
    path.unlink()
    return
  path.write_bytes(data)


@pytest.fixture
def three_checkpoints(tmp_path, make_state, save):
  """Returns a directory with the checkpoints of steps 1 to 3."""
  save(make_state('adamw')[1], 1, 2, 3, kept=3)
  return tmp_path


def test_reading_changes_nothing(three_checkpoints):
  before = {p: p.stat().st_mtime_ns for p in three_checkpoints.rglob('*')}
  reader = Checkpointer(three_checkpoints, 1, read_only=True)
  assert reader.latest() == 3 and reader.metadata(3)['seconds']
  reader.close()
  after = {p: p.stat().st_mtime_ns for p in three_checkpoints.rglob('*')}
  assert before == after


def _files(checkpoint):
  return sorted(p for p in checkpoint.rglob('*') if p.is_file())


@pytest.mark.parametrize('how', ['truncated', 'flipped', 'missing'])
def test_any_damaged_file_leads_back_to_the_one_before(three_checkpoints, how):
  """Whatever file of the newest it is; the damaged one is put aside."""
  whole = three_checkpoints / '3'
  names = [p.relative_to(whole) for p in _files(whole)]
  for name in names:
    copy = three_checkpoints.with_name(f'{how}-{"-".join(name.parts)}')
    shutil.copytree(three_checkpoints, copy)
    _damage(copy / '3' / name, how)
    said = []
    reader = Checkpointer(copy, 3, warn=said.append)
    # Without its checksums a checkpoint was never verified.
    assert reader.latest() == 2, name
    reader.close()
    unsealed = how == 'missing' and name.name == 'checksums.json'
    assert (copy / 'damaged-3').exists() == (not unsealed)
    assert unsealed or str(name) in said[0]


def test_looking_at_a_damaged_one_leaves_it(three_checkpoints, capsys):
  _damage(_files(three_checkpoints / '3')[0], 'flipped')
  before = _files(three_checkpoints)
  reader = Checkpointer(three_checkpoints, 3, read_only=True)
  assert reader.latest() == 2
  assert 'step 3 is not used' in capsys.readouterr().err
  assert _files(three_checkpoints) == before


def test_no_whole_checkpoint_is_no_fresh_start(three_checkpoints):
  for steps in '123':
    _damage(_files(three_checkpoints / steps)[0], 'truncated')
  for _ in range(2):
    reader = Checkpointer(three_checkpoints, 3)
    with pytest.raises(
      ValueError, match='no checkpoint in .* is intact: .*/3/'
    ):
      reader.latest()
    reader.close()


def test_a_checkpoint_without_checksums_is_used_where_there_is_no_other(
  three_checkpoints,
):
  for steps in '123':
    (three_checkpoints / steps / 'checksums.json').unlink()
  reader = Checkpointer(three_checkpoints, 3)
  assert reader.latest() == 3
  reader.close()


def test_a_full_disk_costs_the_new_checkpoint_only(tmp_path, make_state, save):
  """A limit on the size of files stands in for the full disk."""
  setup, state = make_state('adamw')
  wanted = jax.device_get(state)
  said = []
  writer = Checkpointer(tmp_path, 1, warn=said.append)
  writer.save(state, 1, _BOOKS)
  writer.wait()
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
  try:
    for steps in (2, 3):
      writer.save(state, steps, _BOOKS)
      writer.wait()
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
  assert len(said) == 2
  assert all('the one of step 1 stays, training continues' in s for s in said)
  assert sorted(p.name for p in tmp_path.iterdir()) == ['1']
  with pytest.raises(OSError, match='checkpoint .*/3: .*; make sure that'):
    writer.close()
  # There is room again: the next one is written and replaces the first.
  save(state, 4)
  reader = Checkpointer(tmp_path, 1)
  assert reader.latest() == 4
  restored, _ = reader.restore(setup.shapes, 4)
  _equal(jax.device_get(restored), wanted)
  reader.close()
  assert sorted(p.name for p in tmp_path.iterdir()) == ['4']


def test_a_stale_attempt_neither_counts_nor_deletes(tmp_path, make_state):
  """What it wrote last is in nobody's way."""
  setup, state = make_state('adamw')
  first = Checkpointer(tmp_path, 1)
  first.save(state, 1, _BOOKS)
  first.wait()
  stale = []

  def check():
    if stale:
      raise ValueError('another attempt has the run')

  late = Checkpointer(tmp_path, 1, check=check)
  late.save(state, 2, _BOOKS)
  stale.append(True)
  late.wait()
  with pytest.raises(ValueError, match='another attempt'):
    late.save(state, 3, _BOOKS)
  late.close()
  reader = Checkpointer(tmp_path, 1, read_only=True)
  assert reader.latest() == 1
  reader.close()
  first.save(state, 2, _BOOKS)
  first.close()
  assert sorted(p.name for p in tmp_path.iterdir()) == ['2']
  assert (tmp_path / '2' / 'checksums.json').exists()

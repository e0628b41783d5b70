"""Eight simulated devices give what one gives, so do micro-batches."""

import dataclasses
import itertools
import math
import types

import jax
from jax import numpy as jnp
from jax.experimental.compilation_cache import compilation_cache
import numpy as np
import pytest

from steepest.training import mesh as mesh_lib, step as step_lib

_MESHES = {
  'data=8': {'mesh__data': 8},
  'fsdp=8': {'mesh__fsdp': 8},
  'tensor=4': {'mesh__tensor': 4},
  'data=2,fsdp=2,tensor=2': {
    'mesh__data': 2,
    'mesh__fsdp': 2,
    'mesh__tensor': 2,
  },
  'data=2,fsdp=2,sequence=2': {
    'mesh__data': 2,
    'mesh__fsdp': 2,
    'mesh__sequence': 2,
  },
  'microbatches=4': {'microbatches': 4},
  'data=2,fsdp=2,microbatches=4': {
    'mesh__data': 2,
    'mesh__fsdp': 2,
    'microbatches': 4,
  },
}
_FAST = ('data=2,fsdp=2,tensor=2', 'data=2,fsdp=2,microbatches=4')
_NAMES = ('gpt2', 'llama')
_OPTIMIZERS = ('adamw', 'lion', 'sophia')
# launch/topology_test.py trains on several of them.
_EACH = [
  pytest.param(
    name,
    mesh,
    marks=[] if (name, mesh) in zip(_NAMES, _FAST) else pytest.mark.slow,
  )
  for name in _NAMES
  for mesh in _MESHES
]


def _close(tree, wanted, rtol=1e-5):
  """Equal to `rtol` of the largest entry of each tensor."""
  largest = max(np.abs(w).max() for w in jax.tree.leaves(wanted))

  def check(path, a, b):
    # A tensor that is nothing but rounding has no scale of its own: GPT-2's key
    # bias, to which the softmax is blind.
    rounding = np.finfo(np.float32).eps * largest
    if np.abs(b).max() < rounding:
      assert np.abs(a).max() < rounding, jax.tree_util.keystr(path)
      return
    scale = max(np.abs(b).max(), 1e-3 * largest)
    difference = np.abs(np.asarray(a, np.float64) - b).max()
    assert difference <= rtol * scale, (jax.tree_util.keystr(path), difference)

  jax.tree_util.tree_map_with_path(check, tree, wanted)


def _compute(trainer, params, batch):
  """Returns losses, gradient and curvature on the trainer's mesh."""
  setup = trainer.setup

  def fn(params, batch):
    return (
      step_lib.gradient(setup, params, batch),
      step_lib.curvature(setup, params, batch, 7, 3),
    )

  with jax.set_mesh(setup.mesh):
    params = jax.device_put(params, setup.shardings.params)
    return jax.device_get(jax.jit(fn)(params, trainer.put(batch)))


@pytest.fixture(scope='module')
def single(configure, make_trainer, make_batch):
  """What one device makes of a whole batch, by model and estimator."""
  known = {}

  def compute(name, estimator):
    key = name, estimator
    if key not in known:
      trainer = make_trainer(
        configure(name, 'sophia', optimizer__hessian_estimator=estimator)
      )
      assert trainer.setup.mesh.size == 1
      params = jax.device_get(trainer.init().params)
      known[key] = params, _compute(trainer, params, make_batch())
    return known[key]

  return compute


@pytest.mark.parametrize('name, mesh', _EACH)
def test_gradient_and_curvature(
  configure, make_trainer, make_batch, single, name, mesh
):
  params, ((loss, grads), curvature) = single(name, 'gnb')
  config = configure(name, 'sophia', **_MESHES[mesh])
  trainer = make_trainer(config)
  (other, others), curvatures = _compute(trainer, params, make_batch())
  assert loss['train/loss'] == pytest.approx(
    float(other['train/loss']), rel=2e-6
  )
  _close(others, grads)
  # Labels sampled on eight devices are those of one.
  _close(curvatures, curvature)


@pytest.mark.parametrize(
  'name', ['gpt2', pytest.param('llama', marks=pytest.mark.slow)]
)
def test_hutchinson(configure, make_trainer, make_batch, single, name):
  params, (_, curvature) = single(name, 'hutchinson')
  config = configure(
    name,
    'sophia',
    optimizer__hessian_estimator='hutchinson',
    **_MESHES['data=2,fsdp=2,tensor=2'],
  )
  _, curvatures = _compute(make_trainer(config), params, make_batch())
  _close(curvatures, curvature)


def _pack(batch):
  """Adds documents of 5, 4 and 7 tokens, shifted from row to row."""
  first = np.zeros(batch['inputs'].shape, bool)
  for row in range(len(first)):
    first[row, [0, (5 + row) % 16, (9 + row) % 16]] = True
  at = np.arange(first.shape[1])[None]
  starts = np.maximum.accumulate(np.where(first, at, 0), 1)
  ids = np.cumsum(first, 1)
  return {
    **batch,
    'segment_ids': ids.astype(np.int32),
    'positions': (at - starts).astype(np.int32),
  }


@pytest.mark.slow
@pytest.mark.parametrize(
  'mesh',
  [
    {'mesh__fsdp': 2, 'mesh__sequence': 2, 'mesh__tensor': 2},
    {'mesh__data': 2, 'mesh__fsdp': 2, 'microbatches': 2},
  ],
  ids=str,
)
@pytest.mark.parametrize('name', _NAMES)
def test_packed_documents(configure, make_trainer, make_batch, name, mesh):
  """In training and in validation, whose loss is the sum over rows."""
  batch = _pack(make_batch())
  one, many = (
    make_trainer(configure(name, 'sophia', **where)) for where in ({}, mesh)
  )
  params = jax.device_get(one.init().params)
  found = [_compute(trainer, params, batch) for trainer in (one, many)]
  ((losses, grads), curvature), ((_, others), curvatures) = found
  held = {**batch, 'mask': np.ones(16, np.float32)}
  for trainer, ((logged, _), _) in zip((one, many), found):
    placed = jax.device_put(params, trainer.setup.shardings.params)
    total, _ = step_lib.eval_loss(trainer.setup, placed, trainer.put(held))
    for loss in (float(total) / 16, float(logged['train/loss'])):
      assert loss == pytest.approx(float(losses['train/loss']), rel=1e-5)
  _close(others, grads)
  _close(curvatures, curvature)


# 4: slices of the copies, though no loop over micro-batches is left.
@pytest.mark.parametrize(
  'mesh, subset',
  [
    ('data=2,fsdp=2,tensor=2', 2),
    ('data=2,fsdp=2,microbatches=4', 4),
    pytest.param('data=2,fsdp=2,microbatches=4', 2, marks=pytest.mark.slow),
    pytest.param('data=2,fsdp=2,sequence=2', 4, marks=pytest.mark.slow),
    pytest.param('microbatches=4', 8, marks=pytest.mark.slow),
  ],
)
@pytest.mark.parametrize(
  'estimator', ['gnb', pytest.param('hutchinson', marks=pytest.mark.slow)]
)
def test_curvature_of_a_subset(
  configure, make_trainer, make_batch, single, estimator, mesh, subset
):
  keys = {
    'optimizer__hessian_estimator': estimator,
    'optimizer__hessian_subset': subset,
  }
  params, (_, whole) = single('llama', estimator)
  trainer = make_trainer(configure('llama', 'sophia', **keys))
  _, curvature = _compute(trainer, params, make_batch())
  config = configure('llama', 'sophia', **keys, **_MESHES[mesh])
  _, curvatures = _compute(make_trainer(config), params, make_batch())
  _close(curvatures, curvature)
  assert not np.array_equal(whole['embedding'], curvature['embedding'])


@pytest.mark.parametrize(
  'optimizer, keys',
  [
    *((name, {}) for name in _OPTIMIZERS),
    ('adamw', {'mesh__shard_optimizer_over_data': True}),
    ('muon', {}),
    ('muon', {'mesh__shard_optimizer_over_data': True}),
    # Steps as long as Muon's: theirs are 30 times as long, and so is rounding.
    *(
      pytest.param(name, {'optimizer__lr': 6e-4}, marks=pytest.mark.slow)
      for name in ('muonh', 'normuon')
    ),
    # Eigenvectors whose values lie close are not the same after rounding, and
    # where a gradient has nothing, a small eps leaves nothing but rounding.
    (
      'soap',
      {'optimizer__eps': 1e-3, 'mesh__shard_optimizer_over_data': True},
    ),
  ],
)
def test_updates_from_equal_gradients(
  configure, make_trainer, single, optimizer, keys
):
  """Two updates on a split state; sums over devices alone are made anew."""
  params, ((_, grads), curvature) = single('gpt2', 'gnb')
  results = []
  for mesh in ({}, _MESHES['data=2,fsdp=2,tensor=2']):
    given = {**keys, **mesh}
    config = configure('gpt2', optimizer, schedule__warmup_steps=0, **given)
    trainer = make_trainer(config)
    setup, args = trainer.setup, trainer.hypers
    chain, of_state = setup.chain, setup.shardings.opt_state

    def update(params, grads, curvature, chain=chain, args=args, of=of_state):
      state = chain.init(params)
      if chain.wants_curvature:
        state = chain.update_curvature(state, curvature, args, 0)
      for step in range(2):
        state = jax.lax.with_sharding_constraint(state, of)
        params, state, stats = chain.update(grads, state, params, step, args)
      return params, stats

    with jax.set_mesh(setup.mesh):
      trees = (
        jax.device_put(t, setup.shardings.params)
        for t in (params, grads, curvature)
      )
      new, stats = jax.device_get(jax.jit(update)(*trees))
    results.append((new, stats))
  (new, stats), (other, others) = results
  atol = 1e-7 if optimizer == 'soap' else 1e-8
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=atol),
    new,
    other,
  )
  for key, value in stats.items():
    assert others[key] == pytest.approx(value, rel=1e-5), key
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), new, params)
  assert min(jax.tree.leaves(moved)) > 0


# Shorter: the gradient, the update, and launch/topology_test.py.
@pytest.mark.slow
@pytest.mark.parametrize(
  'mesh', [*_FAST, 'data=2,fsdp=2,sequence=2', 'data=8', 'fsdp=8']
)
@pytest.mark.parametrize('optimizer', _OPTIMIZERS)
@pytest.mark.parametrize('name', _NAMES)
def test_losses(configure, make_trainer, make_batch, name, optimizer, mesh):
  """Six steps, past two curvature estimates."""
  curves = []
  for where in ({}, _MESHES[mesh]):
    config = configure(name, optimizer, optimizer__lr=3e-3, **where)
    trainer = make_trainer(config)
    state, losses = trainer.init(), []
    for s in range(6):
      state, row = trainer.step(state, make_batch(s))
      losses.append(float(row['train/loss']))
    curves.append(losses)
  np.testing.assert_allclose(*curves, atol=1e-4, rtol=0)
  assert curves[0][-1] < curves[0][0]


def test_state_is_split_over_the_mesh(configure, make_trainer):
  config = configure('llama', 'adamw', **_MESHES['data=2,fsdp=2,tensor=2'])
  state = make_trainer(config).init(0)
  for tree in (state.params, state.opt_state.m, state.opt_state.v):
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
      parts = leaf.size / leaf.addressable_shards[0].data.size
      # Gains are whole everywhere; embeddings over vocabulary and width.
      assert parts == (1 if leaf.ndim == 1 else 4), path


@pytest.mark.parametrize(
  'optimizer, keys, parts',
  [
    ('soap', {'mesh__fsdp': 4, 'mesh__tensor': 2}, 8),
    ('soap', {'mesh__fsdp': 8}, 8),
    ('adamw', {'mesh__data': 4, 'mesh__fsdp': 2}, 2),
    (
      'adamw',
      {
        'mesh__data': 4,
        'mesh__fsdp': 2,
        'mesh__shard_optimizer_over_data': True,
      },
      8,
    ),
  ],
)
def test_a_device_has_its_part_of_the_optimizers_state(
  configure, make_trainer, optimizer, keys, parts
):
  setup = make_trainer(configure('llama', optimizer, **keys)).setup
  matrices = [
    s for s in jax.tree.leaves(setup.shapes.opt_state) if len(s.shape) > 1
  ]
  held = sum(math.prod(s.sharding.shard_shape(s.shape)) for s in matrices)
  assert held * parts == sum(s.size for s in matrices)


def test_initial_values_do_not_depend_on_the_mesh(configure, make_trainer):
  config = configure('gpt2', 'adamw')
  wanted = jax.device_get(make_trainer(config).init(3).params)
  config = configure('gpt2', 'adamw', **_MESHES['data=2,fsdp=2,tensor=2'])
  got = jax.device_get(make_trainer(config).init(3).params)
  jax.tree.map(np.testing.assert_array_equal, got, wanted)


@pytest.mark.parametrize(
  'sizes, said',
  [
    ({'mesh__data': -1, 'mesh__fsdp': 3}, '8 devices do not divide'),
    ({'mesh__data': 16}, 'needs 16 devices, there are 8'),
    ({'mesh__data': 0}, 'must be positive'),
    ({'mesh__tensor': -1}, 'must be positive'),
  ],
)
def test_impossible_meshes_are_refused(configure, sizes, said):
  with pytest.raises(ValueError, match=said):
    mesh_lib.make_mesh(configure('gpt2', 'adamw', **sizes).mesh)


@pytest.mark.parametrize(
  'keys, said',
  [
    ({'batch_size': 9, 'mesh__data': 2}, 'batch_size=9 .*the next one is 10'),
    ({'microbatches': 3}, 'batch_size=16 .*microbatches = 3'),
    ({'mesh__tensor': 8, 'model__num_heads': 4}, 'num_heads=4'),
    (
      {'mesh__tensor': 4, 'model__num_kv_heads': 2},
      r'model\.num_kv_heads=2 is not a multiple of mesh\.tensor = 4',
    ),
    ({'mesh__sequence': 8, 'model__context': 12}, 'context=12'),
    ({'mesh__fsdp': 8, 'model__width': 36, 'model__head_dim': 8}, 'width=36'),
    ({'mesh__tensor': 4, 'model__vocab_size': 65}, 'vocab_size=65'),
    ({'mesh__tensor': 4, 'model__mlp_dim': 90}, 'mlp_dim=90'),
  ],
)
def test_shapes_that_do_not_divide_are_refused(
  configure, make_trainer, keys, said
):
  with pytest.raises(ValueError, match=said):
    make_trainer(configure('llama', 'adamw', **keys))


@pytest.mark.parametrize(
  'batch_size, subset, said',
  [
    (24, 5, r'\(mesh\.data·mesh\.fsdp\) = 6: the next one is 6'),
    (40, 3, ' = 10: the next one is 5'),
    (40, 20, ' = 10: the largest one is 10'),
    (4, 2, ' = 1: the largest one is 1'),
  ],
)
def test_subsets_that_do_not_divide_are_refused(
  configure, make_trainer, batch_size, subset, said
):
  keys = {
    'batch_size': batch_size,
    'mesh__data': 2,
    'mesh__fsdp': 2,
    'optimizer__hessian_subset': subset,
  }
  wanted = rf'^optimizer\.hessian_subset={subset} does not divide batch_size/.*'
  with pytest.raises(ValueError, match=wanted + said):
    make_trainer(configure('gpt2', 'sophia', **keys))
  make_trainer(configure('gpt2', 'adamw', **keys))


def test_minus_one_takes_the_devices_that_are_left(configure):
  config = configure('gpt2', 'adamw', mesh__data=-1, mesh__tensor=2)
  shape = mesh_lib.make_mesh(config.mesh).shape
  assert shape == {'data': 4, 'fsdp': 1, 'tensor': 2, 'sequence': 1}


@dataclasses.dataclass(frozen=True)
class _Chip:
  """A TPU of a slice, as much of it as JAX asks for where meshes are laid."""

  id: int
  coords: tuple[int, int, int]
  slice_index: int
  device_kind: str
  platform: str = 'tpu'
  core_on_chip: int = 0


def _slices(kind, shape, count):
  places = itertools.product(range(count), *map(range, reversed(shape)))
  return [_Chip(i, (x, y, z), n, kind) for i, (n, z, y, x) in enumerate(places)]


@pytest.mark.parametrize(
  'kind, shape, count, mesh, over',
  [
    # What docs/scaling.md has for v5p: neither is a grid of the chips'.
    ('TPU v5', (4, 4, 4), 1, (2, 32, 1, 1), {}),
    ('TPU v5', (4, 8, 8), 1, (2, 128, 1, 1), {}),
    ('TPU v5', (4, 4, 4), 1, (8, 8, 1, 1), {}),
    ('TPU v5', (2, 2, 2), 1, (1, 4, 2, 1), {}),
    ('TPU v6 lite', (8, 8, 1), 1, (1, 64, 1, 1), {}),
    ('TPU v5 lite', (4, 4, 1), 2, (2, 16, 1, 1), {0: 2}),
    ('TPU v5 lite', (4, 4, 1), 2, (4, 4, 2, 1), {0: 2}),
    # Copies of the model that are larger than a slice.
    ('TPU v5 lite', (2, 2, 1), 4, (2, 8, 1, 1), {0: 2, 1: 2}),
  ],
)
def test_meshes_lie_on_slices(configure, kind, shape, count, mesh, over):
  config = configure('gpt2', 'adamw')
  config.mesh.update(dict(zip(mesh_lib.AXES, mesh)))
  chips = _slices(kind, shape, count)
  found = mesh_lib.make_mesh(config.mesh, chips).devices
  assert found.shape == mesh and sorted(d.id for d in found.flat) == list(
    range(len(chips))
  )
  # Only along the axes of `over` does a slice end.
  slices = np.vectorize(lambda d: d.slice_index)(found)
  for axis in range(4):
    ends = np.count_nonzero(np.diff(slices, axis=axis).any(_but(axis)))
    assert ends == over.get(axis, 1) - 1


def _but(axis):
  return tuple(i for i in range(4) if i != axis)


def test_part_of_a_slice_is_refused(configure):
  config = configure('gpt2', 'adamw', mesh__data=6)
  chips = _slices('TPU v5 lite', (2, 2, 1), 2)
  with pytest.raises(ValueError, match='slices=2: use all devices of each'):
    mesh_lib.make_mesh(config.mesh, chips)


def test_a_batch_is_split_over_data_and_fsdp(
  configure, make_trainer, make_batch
):
  config = configure('gpt2', 'adamw', mesh__data=2, mesh__fsdp=4)
  inputs = make_trainer(config).put(make_batch())['inputs']
  assert inputs.addressable_shards[0].data.shape == (2, 16)
  assert jnp.array_equal(inputs, make_batch()['inputs'])


# Options of XLA: those that this version has, and no others.


class _Mesh:
  """As much of a mesh as is asked for, of devices that are not here."""

  def __init__(self, size, platform):
    device = types.SimpleNamespace(platform=platform)
    self.size, self.devices = size, np.array([device])


@pytest.fixture
def tried(monkeypatch):
  """Sets of options that were tried; one of them XLA does not know."""
  sets = []

  def refusal(options, mesh):
    sets.append(dict(options))
    return 'unknown' * ('xla_tpu_overlap_compute_collective_tc' in sets[-1])

  monkeypatch.setattr(mesh_lib, '_refusal', refusal)
  return sets


@pytest.fixture
def mesh():
  auto = (jax.sharding.AxisType.Auto,)
  return jax.make_mesh((8,), ('data',), axis_types=auto)


def test_options_of_gpus_are_known_to_this_version(mesh):
  """XLA checks their names on whatever it compiles for."""
  options = tuple(mesh_lib._OPTIONS['gpu'].items())
  assert mesh_lib._accepted(options, mesh) == options


def test_an_unknown_option_is_left_out_with_a_word(caplog, mesh):
  # Where programs are compiled, their mesh is set.
  known = tuple(mesh_lib._OPTIONS['gpu'].items())
  with jax.set_mesh(mesh):
    options = (('xla_gpu_no_such', True), *known)
    assert mesh_lib._accepted(options, mesh) == known
  assert "No such compile option: 'xla_gpu_no_such'" in caplog.text


def test_one_device_and_a_cpu_need_none(tried):
  assert mesh_lib.compiler_options(_Mesh(1, 'gpu'), True) == {}
  assert mesh_lib.compiler_options(_Mesh(8, 'cpu'), True) == {}
  assert not tried


def test_what_is_accepted_is_used(tried):
  found = mesh_lib.compiler_options(_Mesh(8, 'tpu'), False)
  # The first try says that something is wrong, the others what.
  assert len(tried) == 1 + len(tried[0])
  assert found.keys() == tried[0].keys() - {
    'xla_tpu_overlap_compute_collective_tc'
  }
  assert 'xla_enable_async_all_gather' in found


def test_the_users_own_choice_stays(tried, monkeypatch):
  name = 'xla_gpu_enable_latency_hiding_scheduler'
  monkeypatch.setenv('XLA_FLAGS', f'--{name}=false')
  assert mesh_lib.compiler_options(_Mesh(8, 'gpu'), True) == {}
  assert tried == [{}]


def test_the_scheduler_is_turned_off_where_asked(tried):
  mesh, options = _Mesh(8, 'gpu'), mesh_lib._OPTIONS['gpu']
  assert mesh_lib.compiler_options(mesh, True) == options
  found = mesh_lib.compiler_options(mesh, False)
  assert found == dict.fromkeys(options, False)


@pytest.mark.parametrize(
  'backend, given, kept',
  [('gpu', False, True), ('gpu', True, False), ('cpu', False, False)],
)
def test_programs_are_kept_where_compiling_takes_long(
  monkeypatch, tmp_path, backend, given, kept
):
  monkeypatch.setattr(jax, 'default_backend', lambda: backend)
  monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR', raising=False)
  if given:
    # JAX reads it by itself when it is imported.
    monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', 'mine')
  number = jnp.float32(1)
  jax.jit(lambda x: x + 2)(number)
  directory = 'jax_compilation_cache_dir'
  least = 'jax_persistent_cache_min_compile_time_secs'
  before = {key: jax.config.values[key] for key in (directory, least)}
  jax.config.update(least, 0.0)
  try:
    mesh_lib.keep_programs(tmp_path)
    # Also in a process that has compiled others.
    jax.jit(lambda x: x * 3 - 2)(number)
    assert any(tmp_path.iterdir()) == kept
  finally:
    for key, value in before.items():
      jax.config.update(key, value)
    compilation_cache.reset_cache()

"""Every optimizer in a training step: interruption, micro-batches, meshes."""

import functools

import jax
from jax import numpy as jnp
import numpy as np
import pytest

from steepest.experiments import base
from steepest.models.parametrization import Factors
from steepest.optimizers import build, optimizer
from steepest.training import state as state_lib, step as step_lib
from steepest.training.checkpoint import Checkpointer
from steepest.training.state import TrainState

_SHAPES = {'embedding': (11, 6), 'hidden': (6, 6), 'gain': (6,)}
# Those whose state is laid out, or whose parameters are moved, in a way of
# their own.
_UNLIKE = (
  *('adafactor', 'adamh', 'dion', 'kron', 'muon', 'muonh', 'normuon'),
  *('prodigy', 'schedule_free', 'soap'),
)


def _apply(params, tokens_BxL):
  """Logits of the next token: one residual layer on an embedding."""
  x_BxLxD = params['embedding'][tokens_BxL]
  x_BxLxD += x_BxLxD @ params['hidden'] * params['gain'][None, None]
  return x_BxLxD @ params['embedding'].T


def _setup(bare_setup, name, microbatches=1):
  config = base.get_config()
  base.set_optimizer(config, name)
  config.optimizer.update(
    hessian_every=2, hessian_bias_correction=True, precondition_every=2
  )
  config.schedule.update(kind='cosine', warmup_steps=1)
  factors = {
    kind: Factors(
      0.5, 0.7, 0.6, 2.0, 0.5, dict.fromkeys(build.DECAY_MODES, 1.0), kind
    )
    for kind in _SHAPES
  }
  chain = build.build(config.optimizer, config.schedule, factors)
  args = build.hyperparameters(config.optimizer, config.schedule, 6)
  setup = bare_setup(_apply, chain=chain, microbatches=microbatches)
  return setup, jax.jit(functools.partial(step_lib.train_step, setup)), args


def _start(setup):
  rng = np.random.default_rng(0)
  params = {
    k: jnp.asarray(rng.normal(size=s) / 2, 'f') for k, s in _SHAPES.items()
  }
  return TrainState(jnp.int32(0), params, setup.chain.init(params))


def _batch(i):
  tokens = np.random.default_rng(i).integers(0, 11, (4, 9)).astype(np.int32)
  return {'inputs': tokens[:, :-1], 'targets': tokens[:, 1:]}


def _train(jitted, state, args, steps):
  for i in steps:
    state, stats = jitted(state, _batch(i), args, np.uint32(0))
  return state, stats


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=[] if name in _UNLIKE else pytest.mark.slow)
    for name in optimizer.names()
  ],
)
def test_an_interruption_changes_nothing(bare_setup, name, tmp_path):
  """Through a checkpoint on disk, bit for bit."""
  setup, jitted, args = _setup(bare_setup, name)
  middle, _ = _train(jitted, _start(setup), args, range(3))
  whole, stats = _train(jitted, middle, args, range(3, 6))
  checkpointer = Checkpointer(tmp_path, 1)
  books = {'seconds': {}, 'losses': {}, 'data_fingerprint': ''}
  checkpointer.save(middle, 3, books)
  checkpointer.wait()
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  target = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), middle
  )
  restored, _ = checkpointer.restore(target, 3)
  checkpointer.close()
  again, other = _train(jitted, restored, args, range(3, 6))
  jax.tree.map(np.testing.assert_array_equal, whole, again)
  assert setup.chain.named(stats) == setup.chain.named(other)
  assert np.isfinite(stats['train/loss'])


# No optimizer sees micro-batches; what it makes of rounding is its own.
@pytest.mark.parametrize('name', ['muon', 'soap'])
def test_micro_batches_are_one_batch(bare_setup, name):
  a, b = (
    _train(step, _start(setup), args, range(4))[0]
    for setup, step, args in (
      _setup(bare_setup, name, microbatches) for microbatches in (1, 2)
    )
  )
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=2e-5),
    a.params,
    b.params,
  )


# Not SOAP: on one device gradients changed by 1e-7 of themselves already move a
# weight by 2e-3, as bases of null spaces are arbitrary; a mesh moves as much.
@pytest.mark.slow
@pytest.mark.parametrize('name', [name for name in _UNLIKE if name != 'soap'])
def test_eight_devices_make_the_update_of_one(configure, make_trainer, name):
  found = []
  for mesh in ({}, {'mesh__data': 2, 'mesh__fsdp': 2, 'mesh__tensor': 2}):
    # Sides of 128 are factored.
    config = configure(
      'llama', name, model__width=128, schedule__warmup_steps=0, **mesh
    )
    trainer = make_trainer(config)
    setup = trainer.setup
    shapes = setup.shapes.params
    rng = np.random.default_rng(0)
    grads = jax.tree.map(
      lambda s, rng=rng: rng.normal(size=s.shape).astype('f') / 100, shapes
    )
    state = trainer.init()
    shardings = setup.shardings.params
    with jax.set_mesh(setup.mesh):
      update = jax.jit(setup.chain.update)
      params, opt_state = state.params, state.opt_state
      for t in range(3):
        params, opt_state, _ = update(
          jax.device_put(grads, shardings), opt_state, params, t, trainer.hypers
        )
    found.append(jax.device_get(params))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), *found
  )


def test_schedule_free_is_validated_with_its_average(
  configure, make_trainer, make_batch
):
  config = configure(
    'gpt2', 'schedule_free', optimizer__lr=0.02, schedule__warmup_steps=0
  )
  trainer = make_trainer(config)
  evaluated = functools.partial(state_lib.evaluation_params, trainer.setup)
  state = trainer.init()
  np.testing.assert_array_equal(
    jax.device_get(evaluated(state))['embedding'],
    jax.device_get(state.params)['embedding'],
  )
  zs = []
  for i in range(3):
    state, _ = trainer.step(state, make_batch(i))
    zs.append(jax.device_get(state.opt_state.path.z)['embedding'])
  average = jax.device_get(evaluated(state))['embedding']
  # Constant rates weigh all z alike.
  np.testing.assert_allclose(average, np.mean(zs, 0), rtol=1e-4, atol=1e-6)
  trained = jax.device_get(state.params)['embedding']
  assert np.abs(trained - average).max() > 1e-4

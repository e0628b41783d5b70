"""What is compiled: µP at its base, one compilation a shape, evaluation."""

import jax
from jax import numpy as jnp
import numpy as np
import pytest

from steepest.models import layers
from steepest.training import state as state_lib, step as step_lib

_OPTIMIZERS = ('adamw', 'lion', 'sophia')


def _train(trainer, make_batch, steps=4):
  state, rows = trainer.init(), []
  for step in range(steps):
    state, row = trainer.step(state, make_batch(step))
    rows.append(row)
  return rows, jax.device_get(state)


@pytest.mark.parametrize('optimizer', _OPTIMIZERS)
def test_a_search_compiles_the_step_once(
  configure, make_trainer, make_batch, optimizer
):
  """Rate, betas, decay, clip, rho, schedule's length: all are arguments."""
  setups, losses, compiled = [], set(), []

  def listen(event, duration, **_):
    if event == '/jax/core/compile/backend_compile_duration':
      compiled.append(event)

  for scale in (1, 2, 3):
    config = configure(
      'llama',
      optimizer,
      optimizer__lr=1e-3 * scale,
      optimizer__betas=(0.8 + scale / 20, 0.9),
      optimizer__weight_decay=1e-4 * scale,
      optimizer__clip_norm=0.5 * scale,
      optimizer__rho=0.01 * scale,
      optimizer__hessian_every=scale,
      schedule__warmup_steps=scale,
      steps=10 * scale,
      seed=scale,
    )
    trainer = make_trainer(config)
    setups.append(trainer.setup)
    rows, _ = _train(trainer, make_batch)
    losses.add(float(rows[-1]['train/loss']))
    if len(setups) == 1:
      jax.monitoring.register_event_duration_secs_listener(listen)
  assert setups[0] is setups[1] is setups[2]
  assert not compiled
  # The listener does hear of compilations.
  jax.jit(lambda x: x * 3 + 1)(np.float32(2))
  assert compiled
  jax.monitoring.unregister_event_duration_listener(listen)
  assert len(losses) == 3


@pytest.mark.parametrize('model', ['gpt2', 'llama'])
def test_shapes_of_one_block_are_those_of_all(configure, make_trainer, model):
  """Roles and axes too, which are part of the tree's structure."""
  setup = make_trainer(configure(model, 'adamw', model__num_layers=12)).setup
  found = state_lib._boxed_shapes(setup.module, setup.model)
  wanted = jax.eval_shape(
    lambda: state_lib.init_params(setup.module, setup.model, 0)
  )
  assert jax.tree.structure(found) == jax.tree.structure(wanted)
  assert jax.tree.leaves(found) == jax.tree.leaves(wanted)


def test_from_params_equals_the_initial_state(configure, make_trainer):
  trainer = make_trainer(configure('llama', 'sophia'))
  wanted = jax.device_get(trainer.init(3))
  got = state_lib.from_params(trainer.setup, wanted.params)
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(got), wanted)


@pytest.mark.parametrize('optimizer', ['adafactor', 'muon', 'soap'])
def test_a_state_is_stacked_and_taken_apart(configure, make_trainer, optimizer):
  """There and back; each array of a layer is its part of the stack's."""
  plain, stacked = (
    make_trainer(
      configure('llama', optimizer, model__num_layers=2, model__scan_layers=on)
    )
    for on in (False, True)
  )
  counts = iter(range(10**6))
  # Numbered, so that none can be taken for another.
  wanted = jax.tree.map(
    lambda s: jnp.full(s.shape, next(counts), s.dtype), plain.setup.shapes
  )
  other = state_lib.restack(stacked.setup, wanted)
  jax.tree.map(
    lambda s, x: np.testing.assert_equal(x.shape, s.shape),
    stacked.setup.shapes,
    other,
  )
  again = state_lib.restack(plain.setup, other)
  jax.tree.map(np.testing.assert_array_equal, again, wanted)
  assert other.params['block_all']['query']['kernel'].shape == (2, 32, 32)
  for i in range(2):
    jax.tree.map(
      lambda x, one, i=i: np.testing.assert_array_equal(x[i], one),
      other.params['block_all'],
      wanted.params[f'block_{i}'],
    )
  jax.tree.map(
    np.testing.assert_array_equal,
    stacked.init(3).params,
    layers.stack(plain.init(3).params),
  )


def test_seeds_differ(configure, make_trainer):
  trainer = make_trainer(configure('llama', 'sophia'))
  a, b = (trainer.init(seed).params['embedding'] for seed in (0, 1))
  assert not np.array_equal(a, b)


def test_a_step_measures_when_asked(configure, make_trainer, make_batch):
  """It trains alike, by one program, and leaves out what it did not measure."""
  trainer = make_trainer(configure('gpt2', 'sophia'))
  ends = []
  for measure in (True, False):
    state, names = trainer.init(), []
    for step in range(3):
      state, row = trainer.step(state, make_batch(step), measure)
      names.append(set(row))
    ends.append((jax.device_get(state), names[-1]))
  (state, names), (other, fewer) = ends
  jax.tree.map(np.testing.assert_array_equal, state, other)
  assert 'update_rms/hidden' in names and 'param_norm' in names
  assert not any('rms' in n or 'param' in n or '/layer/' in n for n in fewer)
  assert {'train/loss', 'grad_norm', 'lr'} <= fewer


@pytest.mark.parametrize('microbatches', [1, 4])
def test_matrices_are_rounded_once_for_the_same_gradient(
  configure, make_trainer, make_batch, microbatches, monkeypatch
):
  """As where each product rounds its own, in half as many bytes."""
  config = configure(
    'llama', 'adamw', dtype__compute='bfloat16', microbatches=microbatches
  )
  trainer = make_trainer(config)
  setup = trainer.setup
  params, batch = trainer.init().params, trainer.put(make_batch())

  def compute():
    fn = lambda p, b: (
      step_lib.gradient(setup, p, b),
      step_lib.curvature(setup, p, b, 0, 1),
    )
    with jax.set_mesh(setup.mesh):
      return jax.jit(fn)(params, batch)

  (losses, grads), h = compute()
  monkeypatch.setattr(step_lib, 'rounded', lambda setup, params: params)
  (others, wanted), of_plain = compute()
  assert losses == others

  def check(g, w, f):
    matrix = f.kind in ('hidden', 'readout')
    single = matrix and microbatches == 1
    assert g.dtype == (jnp.bfloat16 if single else jnp.float32), f.kind
    np.testing.assert_array_equal(g.astype(jnp.float32), w)

  jax.tree.map(check, grads, wanted, setup.chain.factors)
  jax.tree.map(np.testing.assert_array_equal, h, of_plain)

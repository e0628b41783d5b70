"""Programs: µP at its base, one compilation a shape, evaluation."""

import dataclasses

import jax
from jax import numpy as jnp
import numpy as np
import pytest

from steepest.training.loss import cross_entropy

_OPTIMIZERS = ('adamw', 'lion', 'sophia')


def _train(program, args, make_batch, steps=4):
  args, seed = program.put(args), program.put(np.uint32(0))
  state, losses = program.init(0), []
  for step in range(steps):
    batch = program.put_batch(make_batch(step))
    state, stats = program.step(state, batch, args, seed)
    losses.append(program.chain.named(jax.device_get(stats)))
  return losses, jax.device_get(state)


@pytest.mark.parametrize(
  'name, optimizer',
  [
    pytest.param(
      name,
      optimizer,
      marks=[] if (name, optimizer) in _FAST else pytest.mark.slow,
    )
    for _FAST in [[('gpt2', 'sophia'), ('llama', 'adamw')]]
    for name in ('gpt2', 'llama')
    for optimizer in _OPTIMIZERS
  ],
)
@pytest.mark.parametrize(
  'rules',
  [
    {'parametrization__base_width': 32, 'parametrization__base_head_dim': 8},
    pytest.param(
      {
        'parametrization__depth_rule': 'completep',
        'parametrization__base_depth': 1,
      },
      marks=pytest.mark.slow,
    ),
  ],
)
def test_mup_at_its_base_trains_as_sp_bit_for_bit(
  configure, make_program, arguments, make_batch, name, optimizer, rules
):
  """Losses, statistics, parameters and moments, past a curvature pass."""
  results = []
  for kind, more in (('sp', {}), ('mup', rules)):
    config = configure(name, optimizer, parametrization__kind=kind, **more)
    program = make_program(config)
    results.append(_train(program, arguments(config), make_batch))
  (losses, state), (others, other) = results
  assert losses == others
  jax.tree.map(np.testing.assert_array_equal, state, other)


@pytest.mark.slow
def test_mup_away_from_its_base_is_another_model(
  configure, make_program, arguments, make_batch
):
  """Guards the test above."""
  config = configure('gpt2', 'lion', parametrization__base_width=16)
  mup, _ = _train(make_program(config), arguments(config), make_batch)
  config = configure('gpt2', 'lion', parametrization__kind='sp')
  sp, _ = _train(make_program(config), arguments(config), make_batch)
  assert mup[-1]['train/loss'] != sp[-1]['train/loss']


@pytest.mark.parametrize('optimizer', _OPTIMIZERS)
def test_a_search_compiles_the_step_once(
  configure, make_program, arguments, make_batch, optimizer
):
  """Rate, betas, decay, clip, rho, schedule's length: all are arguments."""
  program, seconds, losses = None, None, set()
  compiled = []

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
    again = make_program(config)
    assert program is None or again is program
    program = again
    rows, _ = _train(program, arguments(config), make_batch)
    losses.add(float(rows[-1]['train/loss']))
    if seconds is None:
      seconds = program.compile_seconds
      jax.monitoring.register_event_duration_secs_listener(listen)
  assert program.compile_seconds == seconds > 0
  assert not compiled
  # The listener does hear of compilations.
  jax.jit(lambda x: x * 3 + 1)(np.float32(2))
  assert compiled
  jax.monitoring.unregister_event_duration_listener(listen)
  assert len(losses) == 3


def test_evaluation_loss_passes_over_masked_rows(
  configure, make_program, make_batch
):
  program = make_program(configure('gpt2', 'adamw'))
  params = program.init(0).params
  batch = {**make_batch(), 'mask': np.ones(16, np.float32)}
  batch['mask'][11:] = 0
  total, rows = program.eval_loss(params, program.put_batch(batch))
  logits = jax.jit(program.logits)(params, batch['inputs'])
  loss = cross_entropy(logits, jnp.asarray(batch['targets'])).mean(1)
  assert rows == 11
  np.testing.assert_allclose(total, loss[:11].sum(), rtol=1e-5)


def test_cross_entropy_is_of_float32_and_survives_large_logits():
  logits = jnp.array([[[1000.0, 0.0], [0.0, 1000.0]]], jnp.bfloat16)
  loss = cross_entropy(logits, jnp.array([[0, 0]]))
  assert loss.dtype == jnp.float32
  np.testing.assert_array_equal(loss, [[0, 1000]])


def test_from_params_equals_the_initial_state(configure, make_program):
  program = make_program(configure('llama', 'sophia'))
  wanted = jax.device_get(program.init(3))
  got = jax.device_get(program.from_params(wanted.params))
  jax.tree.map(np.testing.assert_array_equal, got, wanted)


def test_seeds_differ(configure, make_program):
  program = make_program(configure('llama', 'sophia'))
  a, b = (program.init(s).params['embedding'] for s in (0, 1))
  assert not np.array_equal(a, b)


@pytest.mark.parametrize('optimizer', _OPTIMIZERS)
def test_a_step_measures_when_asked(
  configure, make_program, arguments, make_batch, optimizer
):
  """It trains alike, by one program, and leaves out what it did not measure."""
  config = configure('gpt2', optimizer)
  program = make_program(config)
  args, seed = program.put(arguments(config)), program.put(np.uint32(0))
  ends = []
  for measure in (True, False):
    state, names = program.init(0), []
    for step in range(3):
      batch = program.put_batch(make_batch(step))
      state, stats = program.step(state, batch, args, seed, measure)
      names.append(set(program.chain.named(stats)))
    ends.append((jax.device_get(state), names[-1]))
  (state, names), (other, fewer) = ends
  jax.tree.map(np.testing.assert_array_equal, state, other)
  assert 'update_rms/hidden' in names and 'param_norm' in names
  assert not any('rms' in n or 'param' in n or '/layer/' in n for n in fewer)
  assert {'train/loss', 'grad_norm', 'lr'} <= fewer
  assert len([name for name in program._compiled if name[0] == 'step']) == 1


@pytest.mark.parametrize('microbatches', [1, 4])
def test_matrices_are_rounded_once_for_the_same_gradient(
  configure, make_program, make_batch, microbatches
):
  """As where each product rounds its own, in half as many bytes."""
  config = configure(
    'llama', 'adamw', dtype__compute='bfloat16', microbatches=microbatches
  )
  program = make_program(config)
  params, batch = program.init(0).params, program.put_batch(make_batch())
  step = program.step_function
  plain = dataclasses.replace(step, used=lambda params: params)
  with jax.set_mesh(program.mesh):
    loss, grads = jax.jit(step.gradient)(params, batch)
    other, wanted = jax.jit(plain.gradient)(params, batch)
    (h,), (of_h,) = (
      jax.tree.leaves(jax.jit(s.curvature)(params, batch, 0, 1))[:1]
      for s in (step, plain)
    )
  assert loss == other

  def check(g, w, f):
    matrix = f.kind in ('hidden', 'readout')
    single = matrix and microbatches == 1
    assert g.dtype == (jnp.bfloat16 if single else jnp.float32), f.kind
    np.testing.assert_array_equal(g.astype(jnp.float32), w)

  jax.tree.map(check, grads, wanted, program.chain.factors)
  np.testing.assert_array_equal(h, of_h)

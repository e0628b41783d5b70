"""The chain by hand: clip, role factors, decay modes, schedule, statistics."""

import dataclasses
import functools

from hypothesis import given, settings, strategies as st
import jax
from jax import numpy as jnp
import numpy as np
import pytest

from steepest.optimizers import build, optimizer, role_statistics


def _update(setup, factors, params, grads, state=None, name='lion', **keys):
  """Returns parameters, state and named statistics after one update."""
  of = setup(name, factors, **keys)
  state = of.chain.init(params) if state is None else state
  params, state, stats = of.update(grads, state, params)
  return params, state, of.chain.named(stats)


# θ = 2, u = sign(g) = 1, lr = 0.1, wd = 0.5, r = 0.25.
@pytest.mark.parametrize(
  'mode, r, wanted',
  [
    ('independent', 0.25, 2 - (0.1 * 0.25 * 1 + 0.5 * 2)),
    ('times_lr', 0.25, 2 - 0.1 * (0.25 * 1 + 0.5 * 2)),
    ('times_role_lr', 0.25, 2 - 0.1 * 0.25 * (1 + 0.5 * 2)),
    ('over_width', 0.25, 2 - 0.25 * (0.1 * 1 + 0.5 * 2)),
    ('independent', 1.0, 2 - (0.1 + 1)),
    ('times_lr', 1.0, 2 - 0.1 * 2),
    ('times_role_lr', 1.0, 2 - 0.1 * 2),
  ],
)
@pytest.mark.parametrize('scheduled', [False, True])
def test_decay_modes(mode, r, wanted, scheduled, setup, plain):
  schedule = {}
  if scheduled:
    # s_0 = 1/4 scales the whole change, the decay included.
    schedule['warmup_steps'] = 3
    wanted = 2 - (2 - wanted) / 4
  params, grads = {'w': jnp.array([2.0])}, {'w': jnp.array([0.3])}
  fades = dict.fromkeys(('times_role_lr', 'over_width'), r)
  decay = {**dict.fromkeys(build.DECAY_MODES, 1.0), **fades}
  factors = {'w': dataclasses.replace(plain(lr=r), decay=decay)}
  keys = {'lr': 0.1, 'weight_decay': 0.5, 'decay_mode': mode}
  new, _, _ = _update(setup, factors, params, grads, schedule=schedule, **keys)
  np.testing.assert_allclose(new['w'], [wanted], rtol=1e-6)


@pytest.mark.parametrize('mode', build.DECAY_MODES)
def test_gains_and_biases_do_not_decay(mode, setup, plain):
  params, grads = {'b': jnp.array([2.0])}, {'b': jnp.array([0.3])}
  keys = {'lr': 0.1, 'weight_decay': 0.5, 'decay_mode': mode}
  new, _, _ = _update(setup, {'b': plain(decay=0.0)}, params, grads, **keys)
  np.testing.assert_allclose(new['b'], [1.9], rtol=1e-6)


@pytest.mark.parametrize(
  'clip, norm, scale', [(1.0, 5.0, 0.2), (10.0, 5.0, 1.0), (0.0, 5.0, 1.0)]
)
def test_clips_the_global_norm(clip, norm, scale, setup, plain):
  """Gradient (3, 4) over two tensors; momentum shows what got through."""
  params = {'a': jnp.zeros(1), 'b': jnp.zeros(1)}
  grads = {'a': jnp.array([3.0]), 'b': jnp.array([4.0])}
  factors = {'a': plain(), 'b': plain()}
  _, state, stats = _update(setup, factors, params, grads, clip_norm=clip)
  np.testing.assert_allclose(stats['grad_norm'], norm, rtol=1e-6)
  np.testing.assert_allclose(state.m['a'], 0.01 * 3 * scale, rtol=1e-5)
  np.testing.assert_allclose(state.m['b'], 0.01 * 4 * scale, rtol=1e-5)


@settings(deadline=None, max_examples=20)
@given(st.floats(1e-20, 1e8), st.floats(1e-3, 1e3))
def test_clipped_norm_is_never_above_the_limit(setup, plain, size, limit):
  params = {'a': jnp.zeros(2)}
  grads = {'a': jnp.array([size, -size / 2])}
  keys = {'clip_norm': limit, 'betas': (0.0, 0.0)}
  _, state, _ = _update(setup, {'a': plain()}, params, grads, **keys)
  norm = float(jnp.linalg.norm(state.m['a']))
  assert norm <= limit * (1 + 1e-5)
  assert norm == pytest.approx(min(size * 1.25**0.5, limit), rel=1e-4)


_SOPHIA = {'name': 'sophia', 'rho': 0.5, 'clip_norm': 0.0}


def test_role_factors_reach_rho_and_eps(setup, plain):
  """|m|/(rho·f·h + eps·f): with h set by hand each coordinate is known."""
  keys = {**_SOPHIA, 'eps': 0.01, 'lr': 1.0, 'weight_decay': 0.0}
  keys['betas'] = (0.9, 0.99)
  params = {'a': jnp.zeros(1), 'b': jnp.zeros(1)}
  grads = {'a': jnp.ones(1), 'b': jnp.ones(1)}
  factors = {'a': plain(), 'b': plain('readout', rho=2.0, eps=0.5)}
  h = {'a': jnp.array([0.78]), 'b': jnp.array([0.795])}
  state = setup('sophia', factors).chain.init(params)._replace(h=h)
  new, _, stats = _update(setup, factors, params, grads, state, **keys)
  np.testing.assert_allclose(new['a'], [-0.1 / 0.4], rtol=1e-5)
  np.testing.assert_allclose(new['b'], [-0.1 / 0.8], rtol=1e-5)
  assert stats['unclipped_fraction'] == 1


def test_unclipped_fraction_by_role(setup, plain):
  params = {'a': jnp.zeros(3), 'b': jnp.zeros(1)}
  factors = {'a': plain(), 'b': plain('gain', 0.0)}
  h = {'a': jnp.array([9.0, 0.0, 0.0]), 'b': jnp.array([9.0])}
  state = setup('sophia', factors).chain.init(params)._replace(h=h)
  grads = jax.tree.map(jnp.ones_like, params)
  _, _, stats = _update(setup, factors, params, grads, state, **_SOPHIA)
  assert stats['unclipped_fraction'] == 0.5
  np.testing.assert_allclose(stats['unclipped_fraction/hidden'], 1 / 3)
  assert stats['unclipped_fraction/gain'] == 1


def test_statistics_by_hand(setup, plain):
  params = {'w': jnp.array([3.0, 4.0])}
  grads = {'w': jnp.array([0.3, -0.4])}
  keys = {'lr': 0.1, 'weight_decay': 0.0, 'schedule': {'warmup_steps': 1}}
  _, _, stats = _update(setup, {'w': plain()}, params, grads, **keys)
  np.testing.assert_allclose(stats['lr'], 0.05, rtol=1e-6)
  np.testing.assert_allclose(stats['param_norm'], 5.0, rtol=1e-6)
  np.testing.assert_allclose(stats['grad_norm'], 0.5, rtol=1e-6)
  np.testing.assert_allclose(stats['update_rms'], 0.05, rtol=1e-6)


@pytest.mark.parametrize('name', ['adamw', 'lion', 'sophia', 'muon'])
def test_hyperparameters_are_arguments_of_the_compiled_step(name, setup, draw):
  params = draw(0)
  update = jax.jit(setup(name).chain.update)
  state, results = setup(name).chain.init(params), []
  for scale in (1, 2, 4):
    keys = {'lr': 1e-3, 'weight_decay': 1e-4, 'clip_norm': 0.5}
    keys = {key: value * scale for key, value in keys.items()}
    if name == 'sophia':
      keys |= {'rho': 0.01 * scale, 'hessian_every': 2 * scale}
    if name == 'muon':
      keys |= {'auxiliary_lr': 1e-3 / scale}
    hypers = setup(
      name,
      steps=10 * scale,
      schedule={'warmup_steps': scale},
      betas=(0.8 + 0.01 * scale, 0.9),
      **keys,
    ).hypers
    new, _, _ = update(draw(1), state, params, 5, hypers)
    results.append(np.asarray(new['gain']))
  assert update._cache_size() == 1
  assert len({r.tobytes() for r in results}) == 3


@pytest.mark.parametrize(
  'name, key, value, said',
  [
    ('adamv', 'lr', 0.1, "did you mean 'adamw'"),
    ('adamw', 'decay_mode', 'coupled', 'independent, times_lr'),
    ('sophia', 'hessian_estimator', 'fisher', 'gnb, hutchinson'),
    ('adamw', 'schedule', {'kind': 'cosin'}, r'schedule\.kind.*cosine'),
    ('adamw', 'lr', float('nan'), 'must be'),
    ('adamw', 'lr', -1.0, 'must be'),
    ('adamw', 'betas', (1.0, 0.9), 'b1=1.0: must be below 1'),
    ('adamw', 'betas', (0.9, 1.5), 'must be'),
    ('adamw', 'betas', (0.9,), 'give two numbers'),
    ('adamw', 'weight_decay', float('inf'), 'must be'),
    ('sophia', 'hessian_every', 0, 'hessian_every=0: must be at least 1'),
    ('sophia', 'hessian_subset', 0, 'hessian_subset=0: must be at least 1'),
    ('sophia', 'rho', 'big', r"rho='big': give a number"),
    ('soap', 'auxiliary_b1', 1.0, 'auxiliary_b1=1.0: must be below 1'),
  ],
)
def test_what_cannot_be_is_refused(name, key, value, said, setup):
  with pytest.raises(ValueError, match=said):
    setup(name, **{key: value})


_WSD = {'kind': 'wsd', 'warmup_steps': 2, 'decay_fraction': 0.5}


@pytest.fixture(scope='module')
def compiled(setup):
  """(name) → a chain and one program of its update, which measures or not."""

  @functools.cache
  def make(name):
    chain = setup(name, schedule=_WSD).chain
    return chain, jax.jit(chain.update)

  return make


@pytest.mark.parametrize('name', optimizer.names())
def test_measuring_changes_nothing_but_what_is_measured(
  name, compiled, setup, draw
):
  """One program: what is not asked for is zero, and costs no bit."""
  (chain, update), hypers = compiled(name), setup(name).hypers
  params, grads = draw(0), draw(1)
  state = chain.init(params)
  yes = update(grads, state, params, 0, hypers, True)
  no = update(grads, state, params, 0, hypers, False)
  jax.tree.map(np.testing.assert_array_equal, yes[:2], no[:2])
  assert yes[2].keys() == no[2].keys()
  for key, value in yes[2].items():
    # What takes matrix products is measured on the way.
    products = chain.optimizer.flops is not optimizer.no_products
    measured = key not in role_statistics.MEASURED or products
    wanted = value if measured else np.zeros_like(value)
    np.testing.assert_allclose(no[2][key], wanted, rtol=1e-5, err_msg=key)


@pytest.mark.parametrize('name', optimizer.names())
def test_first_steps_depend_on_the_length_only_where_it_is_said(
  name, compiled, setup, draw
):
  """So that runs of unlike lengths could share them."""
  chain, update = compiled(name)
  ends = []
  for steps in (12, 24):
    hypers = setup(name, steps=steps, schedule=_WSD).hypers
    params, state = draw(0), chain.init(draw(0))
    for t in range(5):
      params, state, _ = update(draw(t + 1), state, params, t, hypers, False)
    ends.append(jax.device_get(params))
  equal = all(np.array_equal(ends[0][k], ends[1][k]) for k in params)
  assert equal != optimizer.find(name).depends_on_steps


@pytest.mark.parametrize('name', ['adamw', 'lion', 'sophia'])
def test_rounded_gradients_are_not_rounded_again(name, setup, draw):
  """Neither their norm nor what clipping leaves of them."""
  params = draw(0)
  grads = jax.tree.map(lambda g: g.astype(jnp.bfloat16), draw(1))
  wide = jax.tree.map(lambda g: g.astype(jnp.float32), grads)
  of = setup(name, clip_norm=1.0)
  state = of.chain.init(params)
  results = [of.update(g, state, params) for g in (grads, wide)]
  jax.tree.map(np.testing.assert_array_equal, *results)

"""The chain by hand: clip, role factors, decay modes, schedule, statistics."""

from collections.abc import Mapping
from typing import NamedTuple

from hypothesis import given, settings, strategies as st
import jax
from jax import numpy as jnp
import numpy as np
import pytest

from steepest.experiments import base
from steepest.optimizers import build, parts

_ALWAYS = dict.fromkeys(build.DECAY_MODES, 1.0)
_NEVER = dict.fromkeys(build.DECAY_MODES, 0.0)


class _Factors(NamedTuple):
  lr: float = 1.0
  spectral: float = 1.0
  rho: float = 1.0
  eps: float = 1.0
  decay: Mapping[str, float] = _ALWAYS
  kind: str = 'hidden'


class _Leaf:
  """A leaf that is no pytree, as models/parametrization.py's are."""

  def __init__(self, **kwargs):
    self.__dict__.update(_Factors(**kwargs)._asdict())


def _config(name: str = 'lion', **optimizer):
  config = base.get_config()
  base.set_optimizer(config, name)
  config.optimizer.update(optimizer)
  config.schedule.update({'kind': 'constant', 'warmup_steps': 0})
  return config


def _update(config, factors, params, grads, step=0, state=None):
  chain = build.build(config.optimizer, config.schedule, factors)
  args = build.hyperparameters(config.optimizer, config.schedule, config.steps)
  state = chain.init(params) if state is None else state
  params, state, stats = chain.update(grads, state, params, step, args)
  return params, state, chain.named(stats)


# θ = 2, u = sign(g) = 1, lr = 0.1, wd = 0.5, r = 0.25.
@pytest.mark.parametrize(
  'mode, r, wanted',
  [
    ('independent', 0.25, 2 - (0.1 * 0.25 * 1 + 0.5 * 2)),
    ('times_lr', 0.25, 2 - 0.1 * (0.25 * 1 + 0.5 * 2)),
    ('times_role_lr', 0.25, 2 - 0.1 * 0.25 * (1 + 0.5 * 2)),
    ('independent', 1.0, 2 - (0.1 + 1)),
    ('times_lr', 1.0, 2 - 0.1 * 2),
    ('times_role_lr', 1.0, 2 - 0.1 * 2),
  ],
)
@pytest.mark.parametrize('scheduled', [False, True])
def test_decay_modes(mode, r, wanted, scheduled):
  config = _config(lr=0.1, weight_decay=0.5, decay_mode=mode)
  if scheduled:
    # s_0 = 1/4 scales the whole change, the decay included.
    config.schedule.warmup_steps = 3
    wanted = 2 - (2 - wanted) / 4
  params, grads = {'w': jnp.array([2.0])}, {'w': jnp.array([0.3])}
  decay = {**_ALWAYS, 'times_role_lr': r}
  new, _, _ = _update(config, {'w': _Leaf(lr=r, decay=decay)}, params, grads)
  np.testing.assert_allclose(new['w'], [wanted], rtol=1e-6)


@pytest.mark.parametrize('mode', build.DECAY_MODES)
def test_gains_and_biases_do_not_decay(mode):
  config = _config(lr=0.1, weight_decay=0.5, decay_mode=mode)
  params, grads = {'b': jnp.array([2.0])}, {'b': jnp.array([0.3])}
  new, _, _ = _update(config, {'b': _Leaf(decay=_NEVER)}, params, grads)
  np.testing.assert_allclose(new['b'], [1.9], rtol=1e-6)


@pytest.mark.parametrize(
  'clip, norm, scale', [(1.0, 5.0, 0.2), (10.0, 5.0, 1.0), (0.0, 5.0, 1.0)]
)
def test_clips_the_global_norm(clip, norm, scale):
  """Gradient (3, 4) over two tensors; momentum shows what got through."""
  config = _config(clip_norm=clip)
  params = {'a': jnp.zeros(1), 'b': jnp.zeros(1)}
  grads = {'a': jnp.array([3.0]), 'b': jnp.array([4.0])}
  factors = {'a': _Leaf(), 'b': _Leaf()}
  _, state, stats = _update(config, factors, params, grads)
  np.testing.assert_allclose(stats['grad_norm'], norm, rtol=1e-6)
  np.testing.assert_allclose(state.m['a'], 0.01 * 3 * scale, rtol=1e-5)
  np.testing.assert_allclose(state.m['b'], 0.01 * 4 * scale, rtol=1e-5)


@settings(deadline=None, max_examples=20)
@given(st.floats(1e-20, 1e8), st.floats(1e-3, 1e3))
def test_clipped_norm_is_never_above_the_limit(size, limit):
  config = _config(clip_norm=limit, betas=(0.0, 0.0))
  params = {'a': jnp.zeros(2)}
  grads = {'a': jnp.array([size, -size / 2])}
  _, state, _ = _update(config, {'a': _Leaf()}, params, grads)
  norm = float(jnp.linalg.norm(state.m['a']))
  assert norm <= limit * (1 + 1e-5)
  assert norm == pytest.approx(min(size * 1.25**0.5, limit), rel=1e-4)


def test_role_factors_reach_rho_and_eps():
  """|m|/(rho·f·h + eps·f): with h set by hand each coordinate is known."""
  config = _config('sophia', rho=0.5, eps=0.01, lr=1.0, weight_decay=0.0)
  config.optimizer.betas = (0.9, 0.99)
  config.optimizer.clip_norm = 0.0
  params = {'a': jnp.zeros(1), 'b': jnp.zeros(1)}
  grads = {'a': jnp.ones(1), 'b': jnp.ones(1)}
  factors = {'a': _Leaf(), 'b': _Leaf(rho=2.0, eps=0.5, kind='readout')}
  chain = build.build(config.optimizer, config.schedule, factors)
  h = {'a': jnp.array([0.78]), 'b': jnp.array([0.795])}
  state = chain.init(params)._replace(h=h)
  new, _, stats = _update(config, factors, params, grads, state=state)
  np.testing.assert_allclose(new['a'], [-0.1 / 0.4], rtol=1e-5)
  np.testing.assert_allclose(new['b'], [-0.1 / 0.8], rtol=1e-5)
  assert stats['unclipped_fraction'] == 1


def test_unclipped_fraction_by_role():
  config = _config('sophia', rho=0.5, clip_norm=0.0)
  params = {'a': jnp.zeros(3), 'b': jnp.zeros(1)}
  factors = {'a': _Leaf(), 'b': _Leaf(kind='gain', decay=_NEVER)}
  chain = build.build(config.optimizer, config.schedule, factors)
  h = {'a': jnp.array([9.0, 0.0, 0.0]), 'b': jnp.array([9.0])}
  state = chain.init(params)._replace(h=h)
  grads = jax.tree.map(jnp.ones_like, params)
  _, _, stats = _update(config, factors, params, grads, state=state)
  assert stats['unclipped_fraction'] == 0.5
  np.testing.assert_allclose(stats['unclipped_fraction/hidden'], 1 / 3)
  assert stats['unclipped_fraction/gain'] == 1


def test_statistics_by_hand():
  config = _config(lr=0.1, weight_decay=0.0)
  config.schedule.warmup_steps = 1
  params = {'w': jnp.array([3.0, 4.0])}
  grads = {'w': jnp.array([0.3, -0.4])}
  _, _, stats = _update(config, {'w': _Leaf()}, params, grads)
  np.testing.assert_allclose(stats['lr'], 0.05, rtol=1e-6)
  np.testing.assert_allclose(stats['param_norm'], 5.0, rtol=1e-6)
  np.testing.assert_allclose(stats['grad_norm'], 0.5, rtol=1e-6)
  np.testing.assert_allclose(stats['update_rms'], 0.05, rtol=1e-6)


@pytest.mark.parametrize('name', ['adamw', 'lion', 'sophia'])
def test_hyperparameters_are_arguments_of_the_compiled_step(name):
  config = _config(name)
  params = {'w': jnp.array([2.0, -1.0])}
  chain = build.build(config.optimizer, config.schedule, {'w': _Leaf()})
  update = jax.jit(chain.update)
  state, results = chain.init(params), []
  for scale in (1, 2, 4):
    config.optimizer.lr = 1e-3 * scale
    config.optimizer.weight_decay = 1e-4 * scale
    config.optimizer.betas = (0.8 + 0.01 * scale, 0.9)
    config.optimizer.rho = 0.01 * scale
    config.optimizer.clip_norm = 0.5 * scale
    config.optimizer.hessian_every = 2 * scale
    config.schedule.warmup_steps = scale
    args = build.hyperparameters(config.optimizer, config.schedule, 10 * scale)
    new, _, _ = update({'w': jnp.array([0.1, 0.2])}, state, params, 5, args)
    results.append(np.asarray(new['w']))
  assert update._cache_size() == 1
  assert len({r.tobytes() for r in results}) == 3


@pytest.mark.parametrize(
  'key, value, said',
  [
    ('name', 'adamv', "did you mean 'adamw'"),
    ('decay_mode', 'coupled', 'independent, times_lr'),
    ('hessian_estimator', 'fisher', 'gnb, hutchinson'),
  ],
)
def test_unknown_names_are_named(key, value, said):
  config = _config()
  config.optimizer[key] = value
  with pytest.raises(ValueError, match=said):
    build.build(config.optimizer, config.schedule, {'w': _Leaf()})


def test_unknown_schedule_is_named():
  config = _config()
  config.schedule.kind = 'cosin'
  with pytest.raises(ValueError, match=r'schedule\.kind.*cosine'):
    build.build(config.optimizer, config.schedule, {'w': _Leaf()})


@pytest.mark.parametrize(
  'key, value',
  [
    ('lr', float('nan')),
    ('lr', -1.0),
    ('betas', (1.0, 0.9)),
    ('betas', (0.9, 1.5)),
    ('weight_decay', float('inf')),
    ('hessian_every', 0),
  ],
)
def test_values_out_of_range_are_refused(key, value):
  config = _config()
  config.optimizer[key] = value
  with pytest.raises(ValueError, match='must be'):
    build.hyperparameters(config.optimizer, config.schedule, 10)


def _random(rng, dtype=jnp.float32):
  shapes = {'w': (4, 6), 'b': (6,)}
  return {k: jnp.asarray(rng.normal(size=s), dtype) for k, s in shapes.items()}


@pytest.mark.parametrize('name', build.names())
def test_measuring_changes_nothing_but_what_is_measured(name):
  """One program: what is not asked for is zero, and costs no bit."""
  rng = np.random.default_rng(0)
  factors = {'w': _Leaf(), 'b': _Leaf(kind='bias', decay=_NEVER)}
  config = _config(name)
  chain = build.build(config.optimizer, config.schedule, factors)
  args = build.hyperparameters(config.optimizer, config.schedule, config.steps)
  update = jax.jit(chain.update)
  params, grads = _random(rng), _random(rng)
  state = chain.init(params)
  _, _, always = update(grads, state, params, 0, args)
  yes = update(grads, state, params, 0, args, jnp.bool_(True))
  no = update(grads, state, params, 0, args, jnp.bool_(False))
  jax.tree.map(np.testing.assert_array_equal, yes[:2], no[:2])
  assert yes[2].keys() == no[2].keys() == always.keys()
  for key, value in always.items():
    np.testing.assert_allclose(yes[2][key], value, rtol=1e-5, err_msg=key)
    # What takes matrix products is measured on the way.
    measured = key not in parts.MEASURED or hasattr(
      chain.module, 'update_flops'
    )
    wanted = value if measured else np.zeros_like(value)
    np.testing.assert_allclose(no[2][key], wanted, rtol=1e-5, err_msg=key)


@pytest.mark.parametrize('name', ['adamw', 'lion', 'sophia'])
def test_rounded_gradients_are_not_rounded_again(name):
  """Neither their norm nor what clipping leaves of them."""
  rng = np.random.default_rng(0)
  params, grads = _random(rng), _random(rng, jnp.bfloat16)
  wide = jax.tree.map(lambda g: g.astype(jnp.float32), grads)
  factors = {'w': _Leaf(), 'b': _Leaf(kind='bias', decay=_NEVER)}
  results = [
    _update(_config(name, clip_norm=1.0), factors, params, g)
    for g in (grads, wide)
  ]
  jax.tree.map(np.testing.assert_array_equal, *results)

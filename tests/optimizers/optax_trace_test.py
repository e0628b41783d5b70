"""Directions from Optax, in the chain, follow Optax's own optimizers."""

import jax
from jax import numpy as jnp
import numpy as np
import optax
from optax import contrib
import pytest

_STEPS = 12
_LR, _DECAY = 0.01, 0.1
_SHAPES = {'embedding': (20, 6), 'hidden': (6, 10), 'gain': (6,)}


_CHAIN = {'lr': _LR, 'weight_decay': _DECAY, 'decay_mode': 'times_lr'}


@pytest.fixture
def make(setup, plain):
  """(name, role factors {…}, KEY=…) → Setup without clipping."""

  def build(name, role=None, schedule=None, **keys):
    tree = {kind: plain(kind, **(role or {})) for kind in _SHAPES}
    keys = {**_CHAIN, 'clip_norm': 0.0, **keys}
    return setup(name, tree, steps=_STEPS, schedule=schedule, **keys)

  return build


def _params(shapes=None):
  rng = np.random.default_rng(0)
  shapes = shapes or _SHAPES
  return {k: jnp.asarray(rng.normal(size=s), 'f') for k, s in shapes.items()}


def _grads(params, t):
  rng = np.random.default_rng(t + 1)
  return {
    k: jnp.asarray(rng.normal(size=p.shape) + 0.3, 'f') * 1e-2
    for k, p in params.items()
  }


def _ours(setup, params):
  """Returns the parameters, and those for evaluation, after each step."""
  update = jax.jit(setup.chain.update)
  state, trace = setup.chain.init(params), []
  for t in range(_STEPS):
    grads = _grads(params, t)
    params, state, _ = update(grads, state, params, t, setup.hypers)
    trace.append((params, setup.chain.evaluation_params(state, params)))
  return trace


def _theirs(optimizer, params, evaluate=lambda state, params: params):
  update = jax.jit(optimizer.update)
  state, trace = optimizer.init(params), []
  for t in range(_STEPS):
    updates, state = update(_grads(params, t), state, params)
    params = optax.apply_updates(params, updates)
    trace.append((params, evaluate(state, params)))
  return trace


def _agree(a, b, rtol=2e-5):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-6), a, b
  )


def test_nadamw(make):
  reference = optax.nadamw(_LR, 0.9, 0.95, 1e-8, weight_decay=_DECAY)
  _agree(_ours(make('nadamw'), _params()), _theirs(reference, _params()))


def test_adopt(make):
  reference = contrib.adopt(_LR, 0.9, 0.9999, 1e-6)
  got = _ours(make('adopt', weight_decay=0.0), _params())
  _agree(got, _theirs(reference, _params()))


def test_ademamix_with_its_schedules(make):
  """b3 and alpha by the formulas of the paper, written out in numpy."""

  def decay(count):
    t = np.minimum((count + 1) / _STEPS, 1)
    a, b = np.log(0.9), np.log(0.999)
    return np.exp(a * b / ((1 - t) * b + t * a))

  b3s = jnp.asarray([decay(c) for c in range(_STEPS)], 'f')
  assert b3s[0] < 0.99 and b3s[-1] == pytest.approx(0.999)
  reference = contrib.ademamix(
    _LR,
    0.9,
    0.999,
    lambda count: b3s[count],
    lambda count: 8.0 * (count + 1) / _STEPS,
    1e-8,
    weight_decay=_DECAY,
  )
  ours = make('ademamix', b3=0.999, alpha=8.0)
  _agree(_ours(ours, _params()), _theirs(reference, _params()))


def test_prodigy(make):
  reference = contrib.prodigy(1.0, (0.9, 0.95), eps=1e-8, safeguard_warmup=True)
  ours = make('prodigy', lr=1.0, weight_decay=0.0)
  _agree(_ours(ours, _params()), _theirs(reference, _params()), rtol=1e-4)


def test_prodigys_factor_on_the_rate_is_one_on_the_parameter(make):
  """θ = r·φ: factor r and gradient g of θ move φ as gradient r·g does."""
  r = 0.25
  keys = {'lr': 1.0, 'weight_decay': 0.0, 'eps': 0.0}
  scaled = make('prodigy', {'lr': r}, **keys)
  plain = make('prodigy', **keys)
  theta, phi = _params(), jax.tree.map(lambda p: p / r, _params())
  of_theta, of_phi = scaled.chain.init(theta), plain.chain.init(phi)
  for t in range(_STEPS):
    grads = _grads(theta, t)
    theta, of_theta, stats = scaled.chain.update(
      grads, of_theta, theta, t, scaled.hypers
    )
    grads = jax.tree.map(lambda g: r * g, grads)
    phi, of_phi, wanted = plain.chain.update(
      grads, of_phi, phi, t, plain.hypers
    )
    assert stats['lr_estimate'] == pytest.approx(
      float(wanted['lr_estimate']), rel=1e-4
    )
  assert stats['lr_estimate'] > 1e-6
  _agree(theta, jax.tree.map(lambda p: p * r, phi))


def test_schedule_free(make):
  """Both what is trained and what is evaluated; the averages differ."""
  reference = contrib.schedule_free_adamw(
    _LR, b1=0.9, b2=0.95, eps=1e-8, weight_decay=_DECAY
  )
  got = _ours(make('schedule_free'), _params())
  evaluate = contrib.schedule_free_eval_params
  _agree(got, _theirs(reference, _params(), evaluate), rtol=1e-4)
  trained, evaluated = got[-1]
  assert np.abs(trained['hidden'] - evaluated['hidden']).max() > 1e-3


def test_schedule_free_takes_the_warmup_alone(setup, draw):
  of = setup(
    'schedule_free', steps=8, schedule={'kind': 'cosine', 'warmup_steps': 3}
  )
  params = draw(0)
  state, rates = of.chain.init(params), []
  for t in range(8):
    params, state, stats = of.update(draw(t + 1), state, params, t)
    rates.append(stats['lr'] / of.hypers['lr'])
  np.testing.assert_allclose(rates, [0.25, 0.5, 0.75, *[1] * 5], rtol=1e-6)


def test_muon(make):
  """Matrices in blocks; the rest is AdamW's."""
  axes = contrib.MuonDimensionNumbers()
  reference = contrib.muon(
    _LR,
    beta=0.95,
    weight_decay=_DECAY,
    consistent_rms=0.2,
    muon_weight_dimension_numbers={
      'embedding': None,
      'hidden': axes,
      'gain': None,
    },
  )
  plain = optax.adamw(_LR, 0.9, 0.95, 1e-8, weight_decay=_DECAY)
  wanted = [
    {**rest, 'hidden': muon['hidden']}
    for (rest, _), (muon, _) in zip(
      _theirs(plain, _params()), _theirs(reference, _params())
    )
  ]
  _agree([got for got, _ in _ours(make('muon'), _params())], wanted)


def test_muons_singular_values_are_near_those_of_the_scaling(make):
  """0.2·√max(6, 10) times about 1, as five iterations leave them."""
  setup = make('muon', weight_decay=0.0, lr=1.0)
  params = _params()
  new, _, _ = setup.chain.update(
    _grads(params, 0), setup.chain.init(params), params, 0, setup.hypers
  )
  step = np.asarray(params['hidden'] - new['hidden'])
  values = np.linalg.svd(step, compute_uv=False) / (0.2 * 10**0.5)
  assert 0.6 < values.min() < values.max() < 1.3


@pytest.mark.parametrize('shape', [(6, 10), (130, 140)])
def test_adafactor(shape, make):
  """Factored where both sides have 128 entries."""
  params = _params({**_SHAPES, 'hidden': shape})
  reference = optax.adafactor(
    _LR,
    multiply_by_parameter_scale=False,
    clipping_threshold=1.0,
    momentum=0.9,
    weight_decay_rate=None,
  )
  setup = make('adafactor', weight_decay=0.0)
  _agree(_ours(setup, params), _theirs(reference, params))
  state = jax.eval_shape(setup.chain.init, params)
  size = sum(x.size for x in jax.tree.leaves(state))
  whole = sum(p.size for p in params.values())
  assert (size - whole < whole / 2) == (shape[0] == 130)


@pytest.mark.parametrize('name', ['nadamw', 'ademamix', 'schedule_free'])
def test_factors_reach_eps(name, make):
  """ε·f, seen where ε is as large as the gradients."""
  got = _ours(make(name, {'eps': 0.25}, eps=4e-3), _params())
  wanted = _ours(make(name, eps=1e-3), _params())
  other = _ours(make(name, eps=4e-3), _params())
  _agree(got, wanted, rtol=1e-4)
  with pytest.raises(AssertionError):
    _agree(got, other, rtol=1e-4)

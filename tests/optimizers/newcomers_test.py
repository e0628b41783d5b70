"""The field of 2026 against numbers of its authors' code, in float64.

tests/golden/newcomers.npz has gradients, Kron's probes, Dion's first bases and
the parameters after the steps of `_RECORDED`; matrices are (out, in).
"""

import importlib

import jax
from jax import numpy as jnp
import numpy as np
import optax
import pytest

from steepest.optimizers import adamw, muon, soap

_HIDDEN = ('late', 'square', 'tall', 'wide')
_STEPS, _RECORDED = 21, (0, 3, 9, 18, 20)
_ADAMW_OF_RECORDS = {
  'auxiliary_lr': 0.01,
  'auxiliary_b1': 0.8,
  'auxiliary_eps': 1e-10,
}
# Optimizer → learning rate and arguments of its alias; defaults are the rest.
_CASES = {
  'normuon': (0.02, {'b1': 0.95, 'b2': 0.95, 'weight_decay': 0.0}),
  'muonh': (0.018, {'b1': 0.95, **_ADAMW_OF_RECORDS}),
  'adamh': (0.018, {'b1': 0.9, 'b2': 0.95, 'eps': 1e-8, **_ADAMW_OF_RECORDS}),
  'mars': (
    3e-3,
    {'b1': 0.95, 'b2': 0.99, 'eps': 1e-8, 'weight_decay': 0.0, 'gamma': 0.025},
  ),
  'scion': (2**-12, {'b1': 0.9, 'radius': 50.0}),
  'kron': (1e-3, {'b1': 0.9}),
  'dion': (
    0.01,
    {
      'b1': 0.95,
      'rank_fraction': 0.5,
      'weight_decay': 0.0,
      'auxiliary_lr': 3e-3,
    },
  ),
}

pytestmark = pytest.mark.usefixtures('float64')


@pytest.fixture(scope='module')
def trace(golden):
  """The numbers by name, kernels as Flax has them."""
  with np.load(golden / 'newcomers.npz') as arrays:
    return {
      k: x if k.endswith('vector') or k.startswith('q0') else x.swapaxes(-1, -2)
      for k, x in arrays.items()
    }


def _make(name, **changed):
  lr, keys = _CASES[name]
  module = importlib.import_module(f'steepest.optimizers.{name}')
  return getattr(module, name)(lr, **{**keys, **changed})


def _with_bases(state, qs):
  inner = state.inner
  assert [q.shape for q in inner.matrices.q] == [q.shape for q in qs]
  matrices = inner.matrices._replace(q=qs)
  return state._replace(inner=inner._replace(matrices=matrices))


def _compiled(transform):
  """One update, with what Kron draws as an argument."""

  def step(probes, grads, state, params):
    drawn = iter(probes)
    with pytest.MonkeyPatch.context() as patch:
      if probes:
        patch.setattr(jax.random, 'normal', lambda *_: next(drawn))
      updates, state = transform.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  return jax.jit(step)


def _follow(transform, trace, names, wanted):
  step = _compiled(transform)
  params = {n: jnp.asarray(trace[f'init/{n}']) for n in names}
  state = transform.init(params)
  if wanted == 'dion':
    state = _with_bases(state, [jnp.asarray(trace[f'q0/{n}']) for n in _HIDDEN])
  for t in range(_STEPS):
    grads = {n: jnp.asarray(trace[f'grad/{n}'][t]) for n in names}
    probes = ()
    if wanted == 'kron':
      probes = [jnp.asarray(trace[f'probe/{n}'][t]) for n in sorted(names)]
    params, state = step(probes, grads, state, params)
    if t in _RECORDED:
      for n in names:
        right = trace[f'{wanted}/{n}'][_RECORDED.index(t)]
        np.testing.assert_allclose(
          params[n], right, rtol=1e-9, atol=1e-18, err_msg=f'{n}, step {t}'
        )


@pytest.mark.parametrize('name', _CASES)
def test_follows_the_authors(trace, name):
  _follow(_make(name), trace, (*_HIDDEN, 'vector'), name)


def test_cautious_decay_follows_its_code(trace):
  """AdamW of microsoft/dion with its switch on; a kernel and a vector."""
  transform = adamw.adamw(
    3e-3, b1=0.9, b2=0.95, weight_decay=0.1, cautious=True
  )
  _follow(transform, trace, ('head', 'vector'), 'cautious')


@pytest.mark.parametrize('name', [*_CASES, 'muon', 'soap'])
def test_stacked_layers_are_single_matrices(trace, name, monkeypatch):
  """`square` above another matrix, each as it is alone."""
  fixed = np.random.default_rng(0).normal(size=(10, 10))
  monkeypatch.setattr(
    jax.random,
    'normal',
    lambda key, shape, dtype=float: jnp.broadcast_to(
      fixed[: shape[-2], : shape[-1]], shape
    ),
  )
  start = np.stack([trace['init/square'], 0.3 * trace['grad/square'][-1].T])
  grads = [
    np.stack([g, 5 * g.T]) for g in trace['grad/square'][:4].astype(float)
  ]

  def train(pick):
    others = {'muon': muon.muon, 'soap': soap.soap}
    transform = others[name](0.01) if name in others else _make(name)
    params = {'w': jnp.asarray(pick(start))}
    state = transform.init(params)
    update = jax.jit(transform.update)
    for g in grads:
      updates, state = update({'w': pick(g)}, state, params)
      params = optax.apply_updates(params, updates)
    return np.asarray(params['w'])

  stacked = train(lambda x: jnp.asarray(x))
  for i in range(2):
    alone = train(lambda x, i=i: jnp.asarray(x[i]))
    np.testing.assert_allclose(stacked[i], alone, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('name', ['muonh', 'adamh'])
def test_matrices_at_zero_get_a_start_that_is_announced(name):
  params = {'kernel': jnp.zeros((2, 30, 20)).at[1].set(1.0)}
  transform = _make(name)
  with pytest.warns(UserWarning, match='kernel start at zero'):
    state = transform.init(params)
  grads = {'kernel': jnp.ones((2, 30, 20)).at[:, 0, 0].set(3.0)}
  updates, _ = jax.jit(transform.update)(grads, state, params)
  moved = np.asarray(optax.apply_updates(params, updates)['kernel'])
  # Variance 0.33 / fan_in over fan_in · fan_out entries.
  norms = np.linalg.norm(moved, axis=(1, 2))
  np.testing.assert_allclose(norms, [(0.33 * 20) ** 0.5, 600**0.5])
  assert moved[0].std() == pytest.approx((0.33 / 30) ** 0.5, rel=0.02)


def test_switches_of_size():
  """arXiv 2510.05491 and 2502.16982: entries of 0.2; Jordan: √max(1, o/i)."""
  params = {'w': jnp.zeros((6, 24))}
  grads = {'w': jnp.asarray(np.random.default_rng(0).normal(size=(6, 24)))}

  def step(transform):
    state = transform.init(params)
    return jax.jit(transform.update)(grads, state, params)[0]['w']

  exact = step(_make('normuon', scale='rms'))
  assert jnp.sqrt((exact**2).mean()) == pytest.approx(0.2 * 0.02)
  rms, shape = (step(muon.muon(0.01, scale=s)) for s in ('rms', 'shape'))
  np.testing.assert_allclose(rms / shape, 0.2 * 24**0.5 / 2)


def test_iterations_in_bfloat16_are_near():
  """The authors' own precision: up to 3e-2 away, and not the same."""
  gradient = jnp.asarray(np.random.default_rng(0).normal(size=(64, 96)), 'f')
  wide, narrow = (
    muon.orthogonalize([gradient], precision)[0]
    for precision in ('momentum', 'bfloat16')
  )
  assert wide.dtype == narrow.dtype == jnp.float32
  assert 1e-4 < jnp.abs(wide - narrow).max() < 3e-2


@pytest.mark.parametrize(
  'mode, shape, factors',
  [
    ('', (3, 4), [(3, 3), (4, 4)]),
    ('', (1, 4), [(1,), (4, 4)]),
    ('one_diag', (3, 4), [(3, 3), (4,)]),
    # Ties: the last axis as PyTorch has it, a kernel's inputs.
    ('one_diag', (4, 4), [(4,), (4, 4)]),
    ('all_diag', (3, 4), [(3,), (4,)]),
    ('', (3, 9), [(3, 3), (9,)]),
  ],
)
def test_krons_diagonals(mode, shape, factors):
  transform = _make('kron', memory_save_mode=mode, max_size_triangular=8)
  state = transform.init({'w': jnp.zeros(shape)})
  assert [f.shape for f in state.inner.factors[0]] == factors


def test_kron_refits_when_it_is_due():
  """A counter that reaches 1 / probability: 2.5 is every third step."""
  transform = _make('kron', update_probability=0.4)
  params = {'w': jnp.ones((3, 4))}
  state, refitted = transform.init(params), []
  update = jax.jit(transform.update)
  for t in range(9):
    grads = {'w': jnp.asarray(np.random.default_rng(t).normal(size=(3, 4)))}
    before = state.inner.factors[0][0]
    _, state = update(grads, state, params)
    if (before != state.inner.factors[0][0]).any():
      refitted.append(t + 1)
  assert refitted == [3, 6, 9]


def test_scions_balls_by_role(setup, plain):
  """The first step from momentum 0: radius·sign / width of V×D, both ends."""
  shapes = {'embedding': (20, 6), 'readout': (20, 6), 'gain': (6,)}
  params = {k: jnp.zeros(s) for k, s in shapes.items()}
  rng = np.random.default_rng(0)
  grads = {k: jnp.asarray(rng.normal(size=s)) for k, s in shapes.items()}
  of = setup(
    'scion',
    {k: plain(k, norm=2.0 if k == 'readout' else 1.0) for k in shapes},
    lr=0.5,
    outer_radius=30.0,
    vector_radius=4.0,
    clip_norm=0.0,
  )
  found, _, _ = of.update(grads, of.chain.init(params), params)
  for name, size in (('embedding', 30 / 6), ('readout', 2 * 30 / 6)):
    wanted = -0.5 * size * np.sign(grads[name])
    np.testing.assert_allclose(found[name], wanted, rtol=1e-6)
  rms = np.sqrt(np.mean(np.asarray(found['gain']) ** 2))
  assert rms == pytest.approx(0.5 * 4)

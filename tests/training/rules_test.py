"""µP in training: sp at its base, and Table 8 equal to Table 3.

A width of 48 over a base of 16, so that m = 3 is no power of two and rounding
would show.
"""

import dataclasses
import functools

from flax import linen as nn
import jax
from jax import numpy as jnp
import numpy as np
import pytest

from steepest.experiments import base
from steepest.models import config as model_config, parametrization
from steepest.models.parametrization import Parametrization
from steepest.optimizers import build
from steepest.training.state import TrainState
from steepest.training.step import train_step

_OPTIMIZERS = ('adamw', 'lion', 'sophia')
_BASE = 16


class _Table3(Parametrization):
  """The readout's column of Table 3 instead of Table 8's.

  Its entries are those of Table 8 divided by m: so are its initial values and
  its learning rate, gradients are m times as large and curvatures m².
  """

  @property
  def readout_multiplier(self):
    return 1.0

  def readout(self):
    role, init = super().readout()
    m = self.width_ratio
    return role, lambda key, shape, dtype: init(key, shape, dtype) / m

  def factors(self, role):
    factors = super().factors(role)
    if role.kind != 'readout':
      return factors
    m = self.width_ratio
    return dataclasses.replace(factors, lr=1 / m, rho=1.0, eps=1.0)


class _Table3WithoutItsRate(_Table3):
  def factors(self, role):
    return Parametrization.factors(self, role)


def _config(name, optimizer, kind, width, mode='independent'):
  config, _ = base.with_variant(f'{name},{optimizer}')
  config.model.update(
    num_layers=1,
    width=width,
    num_heads=2,
    head_dim=width // 2,
    mlp_dim=2 * width,
    vocab_size=32,
    context=8,
    tie_embeddings=False,
  )
  config.parametrization.update(kind=kind, base_width=_BASE, base_num_heads=2)
  config.dtype.compute = 'float32'
  config.steps = 5
  config.schedule.update(kind='linear', warmup_steps=1)
  config.optimizer.update(
    lr=0.02,
    # Large enough to be seen beside gradients and curvatures.
    eps=1e-3,
    rho=0.1,
    weight_decay=0.05,
    decay_mode=mode,
    clip_norm=0.0,
    hessian_every=2,
    hessian_bias_correction=True,
  )
  return config


def _prepare(
  bare_setup, config, rules_class=Parametrization, dtype=jnp.float32
):
  """Returns the training step, its first state and its hyperparameters."""
  model = model_config.resolve(config.model, 0, config.dtype)
  model = dataclasses.replace(model, compute_dtype=dtype)
  right = parametrization.resolve(config.parametrization, model)
  rules = rules_class(
    **{f.name: getattr(right, f.name) for f in dataclasses.fields(right)}
  )
  module = model_config.find_model(model.name).Model(model, rules)
  tokens = jnp.zeros((1, 8), jnp.int32)
  init = lambda: module.init(jax.random.key(0), tokens)['params']
  boxed = jax.eval_shape(init)
  factors = jax.tree.map(
    lambda p: rules.factors(p.role),
    boxed,
    is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned),
  )
  chain = build.build(config.optimizer, config.schedule, factors)
  setup = bare_setup(
    lambda params, *batch: module.apply({'params': params}, *batch),
    chain=chain,
    dtype=dtype,
  )
  step = functools.partial(train_step, setup)
  params = nn.unbox(jax.jit(init)())
  state = TrainState(jnp.zeros([], jnp.int32), params, chain.init(params))
  args = build.hyperparameters(config.optimizer, config.schedule, config.steps)
  return step, state, jax.tree.map(dtype, args)


def _batch(i):
  tokens = np.random.default_rng(i).integers(0, 32, (4, 9)).astype(np.int32)
  return {'inputs': tokens[:, :-1], 'targets': tokens[:, 1:]}


def _train(bare_setup, config, rules_class=Parametrization, dtype=jnp.float32):
  """Returns losses and all parameters after each step."""
  step, state, args = _prepare(bare_setup, config, rules_class, dtype)
  jitted = jax.jit(step)
  losses, trajectory = [], [state.params]
  for i in range(config.steps):
    state, stats = jitted(state, _batch(i), args, np.uint32(0))
    losses.append(float(stats['train/loss']))
    trajectory.append(state.params)
  return losses, jax.device_get(trajectory)


@pytest.mark.parametrize('optimizer', _OPTIMIZERS)
@pytest.mark.parametrize('name', ['gpt2', 'llama'])
def test_at_the_base_the_step_is_that_of_sp(bare_setup, name, optimizer):
  """The same first state, and the same program operation by operation."""
  programs, states = [], []
  for kind in ('sp', 'mup'):
    config = _config(name, optimizer, kind, _BASE)
    config.model.tie_embeddings = name == 'gpt2'
    step, state, args = _prepare(bare_setup, config)
    jaxpr = jax.make_jaxpr(step)(state, _batch(0), args, np.uint32(0))
    programs.append(
      (str(jaxpr), [np.asarray(c).tolist() for c in jaxpr.consts])
    )
    states.append(state)
  assert programs[0] == programs[1]
  jax.tree.map(np.testing.assert_array_equal, *states)


@pytest.fixture
def float64(monkeypatch):
  """Everything that the product does in float32, in float64."""
  with jax.enable_x64(True):
    monkeypatch.setattr(jnp, 'float32', jnp.float64)
    yield jnp.float64


def _same(a, b, m):
  """Whether two trajectories agree but for the readout's factor m."""

  def close(path, x, y):
    assert x.dtype == np.float64
    scale = m if path[-1].key == 'readout' else 1.0
    return np.allclose(x, scale * y, rtol=1e-9, atol=1e-11)

  agree = jax.tree_util.tree_map_with_path(close, a[1], b[1])
  return np.allclose(a[0], b[0], rtol=1e-11) and all(jax.tree.leaves(agree))


@pytest.mark.parametrize(
  'optimizer, mode',
  [('adamw', 'times_lr'), ('lion', 'independent'), ('sophia', 'times_lr')],
)
def test_tables_3_and_8_train_alike(bare_setup, optimizer, mode, float64):
  """Untied, unclipped, eps and rho by the columns, decay constant."""
  config = _config('gpt2', optimizer, 'mup', 3 * _BASE, mode)
  eighth = _train(bare_setup, config, Parametrization, float64)
  assert _same(eighth, _train(bare_setup, config, _Table3, float64), 3.0)
  if optimizer == 'lion':
    other = _train(bare_setup, config, _Table3WithoutItsRate, float64)
    assert not _same(eighth, other, 3.0)

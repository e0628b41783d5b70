"""Trials trained as one program against the same trials one by one."""

import json
import math
import pathlib

import jax
import numpy as np
import pytest

from steepest.experiments import tiny
from steepest.models import config as model_config
from steepest.training import run as assemble, trials
from steepest.tuning import cells, together
from steepest.tuning.pruning import Pruned

_STEPS = 12


@pytest.fixture(scope='module')
def tokens(tmp_path_factory) -> pathlib.Path:
  path = tmp_path_factory.mktemp('tokens') / 'tokens.npy'
  tokens = np.random.default_rng(0).integers(0, 60, 6000)
  np.save(path, np.minimum(tokens, np.roll(tokens, 1)).astype(np.uint16))
  return path


def _config(tokens, optimizer, name='llama', **keys):
  config = tiny.get_config(f'{name},{optimizer}')
  values = {
    'model.width': 16,
    'model.num_layers': 1,
    'model.num_heads': 2,
    'model.context': 16,
    'model.vocab_size': 64,
    'parametrization.base_width': 16,
    'parametrization.base_head_dim': 8,
    'data.source': f'flat:{tokens}',
    'batch_size': 8,
    'steps': _STEPS,
    'schedule.warmup_steps': 2,
    'optimizer.hessian_every': 4,
    'mesh.data': 1,
  }
  given = {key.replace('__', '.'): value for key, value in keys.items()}
  config.update_from_flattened_dict({**values, **given})
  return config


def _rows(directory):
  lines = (directory / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


def _summary(directory):
  return json.loads((directory / 'summary.json').read_text())


_TIMES = ('seconds', 'wait', 'per_second', 'mfu')


@pytest.mark.parametrize(
  'optimizer',
  [
    pytest.param('adamw', marks=pytest.mark.slow),
    pytest.param('lion', marks=pytest.mark.slow),
    'sophia',
  ],
)
def test_trials_are_those_done_one_by_one(tokens, tmp_path, optimizer):
  configs = [
    _config(tokens, optimizer),
    _config(
      tokens,
      optimizer,
      optimizer__lr=4e-3,
      optimizer__betas=(0.8, 0.95),
      optimizer__weight_decay=1e-2,
      optimizer__rho=0.5,
      schedule__warmup_steps=6,
    ),
    # Diverges; the others go on.
    _config(tokens, optimizer, optimizer__lr=1e38),
  ]
  alone = [tmp_path / f'alone-{i}' for i in range(3)]
  shared = [tmp_path / f'shared-{i}' for i in range(3)]
  wanted = [
    cells.run_once(config, directory, lambda row: None)
    for config, directory in zip(configs, alone)
  ]
  seen = [[], [], []]
  got = together.train(configs, shared, [rows.append for rows in seen])
  assert math.isinf(wanted[2]) and math.isinf(got[2])
  np.testing.assert_allclose(got[:2], wanted[:2], rtol=1e-5)
  for one, other, rows in zip(alone, shared, seen):
    a, b = _rows(one), _rows(other)
    assert [r['step'] for r in a] == [r['step'] for r in b]
    assert len(rows) == len(b)
    for x, y in zip(a, b):
      assert x.keys() == y.keys()
      for key in x:
        if not any(time in key for time in _TIMES):
          np.testing.assert_allclose(y[key], x[key], rtol=2e-3, err_msg=key)
    x, y = _summary(one), _summary(other)
    assert x.keys() == y.keys()
    for key in ('status', 'steps', 'tokens', 'flops', 'data_fingerprint'):
      assert x[key] == y[key]
  assert wanted[0] != wanted[1]
  assert _summary(shared[2])['status'] == 'diverged'
  # What is there is found again.
  assert cells.ended(configs[0], shared[0]) == got[0]
  assert math.isinf(cells.ended(configs[2], shared[2]))


@pytest.mark.parametrize(
  'mesh',
  [{'data': 2}, pytest.param({'data': 2, 'fsdp': 2}, marks=pytest.mark.slow)],
)
def test_trials_on_several_devices_in_micro_batches(tokens, tmp_path, mesh):
  """Against the same trials one by one, on one device, batches whole."""
  rates = (1e-3, 4e-3)
  alone = [_config(tokens, 'sophia', optimizer__lr=lr) for lr in rates]
  wanted = [
    cells.run_once(config, tmp_path / f'alone-{i}', lambda row: None)
    for i, config in enumerate(alone)
  ]
  keys = {f'mesh__{axis}': size for axis, size in mesh.items()}
  keys['microbatches'] = 2
  many = [_config(tokens, 'sophia', optimizer__lr=lr, **keys) for lr in rates]
  shared = [tmp_path / f'shared-{i}' for i in range(2)]
  got = together.train(many, shared, [lambda row: None] * 2)
  assert got[0] != got[1]
  np.testing.assert_allclose(got, wanted, rtol=1e-5)
  for i, directory in enumerate(shared):
    ones = _rows(tmp_path / f'alone-{i}')
    for row, one in zip(_rows(directory), ones, strict=True):
      np.testing.assert_allclose(
        row['train/loss'], one['train/loss'], rtol=1e-5
      )


def test_a_pruned_trial_leaves_the_others(tokens, tmp_path):
  configs = [_config(tokens, 'lion', optimizer__lr=lr) for lr in (1e-3, 2e-3)]

  def prune(row):
    if row['step'] == 4:
      raise Pruned('lags behind', 5)

  workdirs = [tmp_path / 'a', tmp_path / 'b']
  losses = together.train(configs, workdirs, [prune, lambda row: None])
  assert math.isinf(losses[0]) and math.isfinite(losses[1])
  pruned, whole = _summary(workdirs[0]), _summary(workdirs[1])
  assert (pruned['status'], pruned['steps']) == ('pruned', 5)
  assert pruned['tokens'] == 5 * 8 * 16
  assert len(_rows(workdirs[0])) == 5
  assert (whole['status'], whole['steps']) == ('finished', _STEPS)


def test_the_parameters_of_a_run_are_those_that_went_in(tokens):
  config = _config(tokens, 'adamw', mesh__data=2, mesh__fsdp=2)
  model = model_config.resolve(config.model, 64, config.dtype)
  program = assemble.make_program(config, model)
  state = program.init(0)
  wanted = jax.device_get(state.params)
  states = program.stack(state, 2)
  doubled = jax.tree.map(lambda x: x.at[1].multiply(2), states.params)
  for run, factor in ((0, 1), (1, 2)):
    got = program.pick(doubled, run)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(wanted)):
      np.testing.assert_array_equal(g, factor * w)
    shapes = program.state_shapes.params
    assert all(
      g.sharding.is_equivalent_to(s.sharding, g.ndim)
      for g, s in zip(jax.tree.leaves(got), jax.tree.leaves(shapes))
    )


def test_curvature_is_estimated_only_where_it_is_due(tokens):
  """One decision for all: a branch, not a choice between both results."""
  config = _config(tokens, 'sophia')
  data = assemble.open_data(config)
  model = model_config.resolve(config.model, data.vocab_size, config.dtype)
  program = assemble.make_program(config, model)
  args = assemble.build.arguments(config.optimizer, config.schedule, _STEPS)
  states = program.stack(program.init(0), 2)
  batch = program.put_batch(data.batch(0))
  args = trials.stack_arguments([args, args])
  seed = program.put(np.uint32(0))
  compiled = program.compile_many(states, batch, args, seed)
  assert ' conditional(' in compiled.as_text()


def test_unlike_trials_are_refused(tokens, tmp_path):
  nothing = [lambda row: None] * 2
  workdirs = [tmp_path / 'a', tmp_path / 'b']
  configs = [
    _config(tokens, 'sophia', optimizer__hessian_every=n) for n in (4, 5)
  ]
  with pytest.raises(ValueError, match='hessian_every'):
    together.train(configs, workdirs, nothing)
  configs = [_config(tokens, 'lion', model__width=w) for w in (16, 32)]
  with pytest.raises(ValueError, match='unlike programs'):
    together.train(configs, workdirs, nothing)
  configs = [_config(tokens, 'lion', checkpoint_every=4)] * 2
  with pytest.raises(ValueError, match='checkpoint_every=0'):
    together.train(configs, workdirs, nothing)


def test_trials_are_halved_until_memory_holds_them(
  tokens, tmp_path, monkeypatch
):
  configs = [
    _config(tokens, 'lion', optimizer__lr=1e-3 * (i + 1)) for i in range(4)
  ]
  tried = []

  def fits(program, lanes):
    tried.append((len(lanes), trials.needed(program, lanes)))
    return len(lanes) <= 2

  monkeypatch.setattr(trials, 'fits', fits)
  workdirs = [tmp_path / str(i) for i in range(4)]
  losses = together.train(configs, workdirs, [lambda row: None] * 4)
  assert [count for count, _ in tried] == [4, 2, 2]
  assert tried[1][1] < tried[0][1]
  # Parameters and momentum, float32, at least.
  size = _summary(workdirs[0])['parameters']
  assert tried[0][1] > 4 * 2 * 4 * size
  assert len(set(losses)) == 4
  assert jax.devices()[0].memory_stats() is None

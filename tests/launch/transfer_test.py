"""Transfer experiments: their runs, their order, a whole one resumed."""

import json
import math
import os
import pathlib
import subprocess
import sys

from hypothesis import given, strategies as st
import numpy as np
import pytest

from steepest.experiments import transfer as recipe
from steepest.models import config as model_config, parametrization
from steepest.tuning import climb, ladder

_ROOT = pathlib.Path(__file__).parent.parent.parent
_GRID = (1e-3, 2e-3, 4e-3, 8e-3)


def _config():
  config = recipe.get_config()
  config.transfer.lrs_lion = _GRID
  config.transfer.optimizers = 'lion'
  config.transfer.models = 'gpt2'
  return config


def _rules(config, rung):
  run = ladder.run_config(config, rung, 0, 1e-3)
  shapes = model_config.resolve(run.model, 512, run.dtype)
  return run, shapes, parametrization.resolve(run.parametrization, shapes)


@pytest.mark.parametrize('model', ['gpt2', 'llama'])
def test_every_shape_grows_with_the_ratio(model):
  config = recipe.get_config()
  for ratio in (1, 2, 8):
    rung = ladder.Rung(model, 'sophia', 'mup', ratio)
    run, shapes, rules = _rules(config, rung)
    assert run.model.width == 16 * ratio
    assert shapes.head_dim == 16
    assert shapes.num_heads == shapes.num_kv_heads == ratio
    for fan_in in ('width', 'heads', 'mlp'):
      factors = rules.factors(rules.hidden(fan_in)[0])
      assert factors.lr == 1 / ratio
      assert factors.rho == ratio
    assert run.optimizer.rho == config.transfer[f'rho_{model}']
  assert ladder.run_config(config, rung, 2, 3e-3).seed == 2


def _climb(config, tmp_path, loss):
  """Does all runs of a config in order of its tasks; returns them."""
  state, runs = climb.State(config, tmp_path), []
  for task in state.tasks():
    while run := state.next_run(task):
      runs.append(run)
      value = loss(run)
      state.record(run, None if math.isinf(value) else value, 1.0)
    assert state.finished(task)
  assert state.done() == len(runs)
  assert not any(state.left().values())
  return runs


@given(st.floats(2e-4, 4e-2))
def test_the_best_of_every_seed_has_neighbours(best):
  runs = _climb(
    _config(), pathlib.Path('none'), lambda run: math.log(run.lr / best) ** 2
  )
  tried = {}
  for run in runs:
    tried.setdefault((run.rung, run.seed), []).append(run.lr)
  assert len(tried) == 2 * 4 * 3
  for (_, seed), lrs in tried.items():
    assert len(lrs) == len(set(lrs))
    nearest = min(lrs, key=lambda lr: abs(math.log(lr / best)))
    assert min(lrs) < nearest < max(lrs)
    if not seed:
      assert set(_GRID) <= set(lrs)
    else:
      assert len(lrs) <= 5


def test_seed_0_of_everything_comes_first():
  runs = _climb(_config(), pathlib.Path('none'), lambda run: run.lr)
  seeds = [run.seed for run in runs]
  assert seeds == sorted(seeds, key=bool)
  kinds = [run.rung.parametrization for run in runs if not run.seed]
  assert kinds == sorted(kinds)


def test_rates_that_diverge_end_a_search():
  config = _config()
  config.transfer.seeds = 1
  runs = _climb(config, pathlib.Path('none'), lambda run: math.inf)
  assert [run.lr for run in runs] == [*_GRID] * 8


@pytest.mark.parametrize('lrs', [(1e-3, 2e-3, 4e-3), (4e-3, 2e-3, 1e-3, 5e-4)])
def test_a_grid_needs_four_rising_rates(lrs):
  config = _config()
  config.transfer.lrs_lion = lrs
  with pytest.raises(ValueError, match='four or more rising'):
    ladder.grid(config, 'lion')


def test_a_whole_one_is_resumed_and_reported(tmp_path):
  pytest.importorskip('matplotlib')
  tokens = np.random.default_rng(0).integers(0, 60, 4000).astype(np.uint16)
  np.save(tmp_path / 'tokens.npy', tokens)
  values = {
    'data.source': f'flat:{tmp_path / "tokens.npy"}',
    'model.width': 8,
    'model.head_dim': 8,
    'model.num_layers': 1,
    'model.context': 8,
    'model.vocab_size': 64,
    'batch_size': 4,
    'steps': 3,
    'schedule.warmup_steps': 1,
    'transfer.models': 'gpt2',
    'transfer.optimizers': 'lion',
    'transfer.parametrizations': 'mup',
    'transfer.width_ratios': '(2,)',
    'transfer.lrs_lion': '(1e-3,2e-3,4e-3,8e-3)',
    'transfer.max_extensions': 0,
    'transfer.seeds': 2,
    'transfer.refine': 1,
  }
  out = tmp_path / 'out'
  command = [
    sys.executable,
    *('-m', 'launch.transfer', '--config=experiments/transfer.py'),
    *(f'--workdir={out}', '--workers=1'),
    *(f'--config.{k}={v}' for k, v in values.items()),
  ]
  env = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}

  def run(*more):
    return subprocess.run(
      [*command, *more], cwd=_ROOT, env=env, capture_output=True, text=True
    )

  done = run()
  assert done.returncode == 0, done.stderr
  assert done.stdout.splitlines()[-1] == f'transfer: {out / "transfer.json"}'
  result = json.loads((out / 'transfer.json').read_text('utf-8'))
  (cell,) = result['cells']
  assert (cell['optimizer'], cell['base_width']) == ('lion', 8)
  (width,) = cell['widths']
  assert width['width'] == 16
  assert [len(curve['lrs']) for curve in width['curves']] in ([4, 3], [4, 2])
  assert {p.suffix for p in out.glob('transfer.*')} == {'.json', '.svg', '.png'}

  # One run is missing: it alone is done again, and ends the same.
  paths = sorted(out.rglob('summary.json'))
  before = {p: p.stat().st_mtime_ns for p in paths}
  missing = next(p for p in paths if 'seed=0' in str(p))
  missing.unlink()
  assert run().returncode == 0
  after = {p: p.stat().st_mtime_ns for p in paths}
  assert [p for p in paths if before[p] != after[p]] == [missing]
  again = json.loads((out / 'transfer.json').read_text('utf-8'))
  assert again['cells'] == result['cells']


def test_errors_take_one_line(run_command, tmp_path):
  result = run_command('transfer', '--config=experiments/tiny.py')
  assert result.returncode == 1
  assert result.stderr.count('\n') == 1 and 'no transfer' in result.stderr
  result = run_command(
    'transfer',
    '--config=experiments/transfer.py',
    '--report_only',
    f'--workdir={tmp_path}',
  )
  assert result.returncode == 1 and 'no finished run' in result.stderr

"""The GPU round on a CPU: its kernel, and both parts with tiny shapes."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import jax
from jax import numpy as jnp
import numpy as np
import pytest

from steepest.training import loss

_ROOT = pathlib.Path(__file__).parent.parent.parent


@pytest.fixture(scope='module')
def kernel():
  """The file, which is not part of the package."""
  path = _ROOT / 'benchmarks/gpu_round/cross_entropy.py'
  spec = importlib.util.spec_from_file_location('cross_entropy', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def _value_and_gradient(fn, logits_BxLxV, labels_BxL):
  of = lambda logits: fn(logits, {'targets': labels_BxL}, 0.0)[0]
  return jax.jit(jax.value_and_grad(of))(logits_BxLxV)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('V', [64, 300])
def test_kernel_is_the_plain_form(kernel, monkeypatch, dtype, V):
  # A row is whole pieces, or ends within one.
  monkeypatch.setattr(kernel, '_PIECE', 64)
  rng = np.random.default_rng(V)
  logits = jnp.asarray(rng.normal(scale=30, size=(2, 5, V)), dtype)
  labels = rng.integers(0, V, (2, 5)).astype(np.int32)
  labels[0, 0], labels[0, 1] = 0, V - 1
  found, gradient = _value_and_gradient(kernel.training_loss, logits, labels)
  expected, plain = _value_and_gradient(loss.training_loss, logits, labels)
  np.testing.assert_allclose(found, expected, rtol=1e-6)
  assert gradient.dtype == plain.dtype == dtype
  wide = lambda x: np.asarray(x, np.float32)
  # Of entries up to 1 / tokens; bfloat16 may round the other way.
  limit = 1e-7 if dtype == jnp.float32 else 2**-9 / 10
  np.testing.assert_allclose(wide(gradient), wide(plain), rtol=0, atol=limit)


def _dry_run(env, *args):
  done = subprocess.run(
    [sys.executable, '-m', 'benchmarks.gpu_round.run', '--dry_run', *args],
    cwd=_ROOT,
    env=env,
    capture_output=True,
    text=True,
    timeout=900,
  )
  assert done.returncode == 0, done.stderr
  return [json.loads(line) for line in done.stdout.splitlines()]


def test_forms_take_the_same_steps(command_env):
  # Between them they have every patch of a row.
  forms = ('as it is', 'all but the kernel', 'all')
  lines = _dry_run(
    command_env,
    '--part=variants',
    '--rows=124m,llama',
    f'--forms={",".join(forms)}',
    '--torch_python=',
    '--seconds=900',
    '--rounds=2',
  )
  assert lines[-1]['done'] == 'variants'
  for row in ('124m', 'llama'):
    of = [line for line in lines if 'row' in line and line['row'] == row]
    assert {x['form'] for x in of if 'median_ms' in x} == set(forms)
    first = {x['form']: x for x in of if 'loss 1' in x}
    for step in (1, 2):
      losses, norms = (
        [first[form][f'{name} {step}'] for form in forms]
        for name in ('loss', 'gradient norm')
      )
      # By how bfloat16 is rounded alone. An update lowers the loss by more.
      np.testing.assert_allclose(losses, losses[0], rtol=1e-5)
      np.testing.assert_allclose(norms, norms[0], rtol=1e-3)


@pytest.mark.slow
def test_rest_ends(command_env):
  lines = _dry_run(command_env, '--part=rest', '--seconds=800')
  assert lines[-1]['done'] == 'rest'
  of = {x['what']: x for x in lines if 'what' in x}
  assert 'failed' not in str(lines)
  assert of['resumed']['steps'] == 60
  assert of['resumed']['largest_difference'] in (None, 0.0)
  assert of['scores']['n'] == 40

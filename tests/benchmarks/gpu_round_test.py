"""The GPU round on a CPU: its kernels, and both parts with tiny shapes."""

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
def load():
  """Returns a file by its name; none is part of the package."""

  def load_file(name):
    path = _ROOT / f'benchmarks/gpu_round/{name}.py'
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

  return load_file


def _value_and_gradient(fn, logits_BxLxV, labels_BxL):
  of = lambda logits: fn(logits, {'targets': labels_BxL}, 0.0)[0]
  return jax.jit(jax.value_and_grad(of))(logits_BxLxV)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('V', [64, 300])
def test_cross_entropy_is_the_plain_form(load, dtype, V):
  kernel = load('cross_entropy')
  # A row is whole pieces, or ends within one.
  kernel._PIECE = 64
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


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('centred', [True, False])
def test_gradients_behind_a_norm_are_those_of_its_formula(load, dtype, centred):
  norms = load('norms')
  # Several programs, several tokens at once, features short of a power of two.
  norms._PARTS, norms._NUMBERS = 4, 128
  rng = np.random.default_rng(0)
  x, of_x, of_y = (
    jnp.asarray(rng.normal(size=(2, 8, 48)), dtype) for _ in range(3)
  )
  gain = jnp.asarray(rng.normal(size=48), jnp.float32)

  def plain(x, gain):
    wide = x.astype(jnp.float32)
    y = wide - centred * wide.mean(-1, keepdims=True)
    y /= jnp.sqrt((y * y).mean(-1, keepdims=True) + 1e-5)
    return x, (y * gain[None, None]).astype(x.dtype)

  kernel = lambda x, gain: norms.normalized(x, gain, 1e-5, centred)
  gradients = lambda fn: jax.jit(
    lambda x, gain: jax.vjp(fn, x, gain)[1]((of_x, of_y))
  )(x, gain)
  # bfloat16: the last bit of numbers up to 8, once more where they are added.
  for found, expected, atol in zip(
    gradients(kernel),
    gradients(plain),
    (1e-5 if dtype == jnp.float32 else 2**-4, 1e-5),
    strict=True,
  ):
    assert found.dtype == expected.dtype
    wide = np.asarray(found, np.float32), np.asarray(expected, np.float32)
    np.testing.assert_allclose(*wide, rtol=0, atol=atol)


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


# Between them they have every patch of a row.
@pytest.mark.parametrize(
  'row, forms',
  [
    ('124m', ('as it is', 'all but kernels', 'all')),
    pytest.param(
      'llama',
      ('as it is', 'all but kernels', 'all', 'gate and up as one'),
      marks=pytest.mark.slow,
    ),
  ],
)
def test_forms_take_the_same_steps(command_env, row, forms):
  lines = _dry_run(
    command_env,
    '--part=variants',
    f'--rows={row}',
    f'--forms={",".join(forms)}',
    '--torch_python=',
    '--seconds=900',
    '--rounds=2',
  )
  assert lines[-1]['done'] == 'variants'
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

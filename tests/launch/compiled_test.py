"""Compiling a step for devices, and what the compiler says of its memory."""

import importlib.util

import jax
from jax.experimental import topologies
import pytest

from steepest.experiments import base
from steepest.launch import compiled
from steepest.launch import plans


def _config(**keys):
  config, _ = base.with_variant('llama,lion')
  given = {key.replace('__', '.'): value for key, value in keys.items()}
  config.update_from_flattened_dict(
    {
      'model.num_layers': 1,
      'model.width': 64,
      'model.num_heads': 4,
      'model.vocab_size': 256,
      'model.context': 32,
      'batch_size': 8,
      **given,
    }
  )
  return config


def test_the_state_has_the_size_that_the_plan_says():
  config = _config(mesh__fsdp=4)
  real = compiled.compile_step(config, compiled.devices('cpu', 4))
  plan = plans.make_planner(config, compiled.host()).plan(
    plans.setting(config, 4)
  )
  state = plan.memory['parameters'] + plan.memory['optimizer']
  # Beside it, each device has two rows of inputs and targets, and numbers.
  batch = 2 * 2 * 32 * 4
  assert 0 <= real.arguments - state - batch < 1024
  assert real.temporaries > 0 and real.seconds > 0


@pytest.mark.parametrize(
  'chip, count, said',
  [
    ('cpu', 9, '--devices=9: this machine has 8 cpu'),
    ('h100', 1, '--chip=h100: this machine has none'),
    ('v5e', 257, '--devices=257: v5e is known up to 256'),
  ],
)
def test_devices_that_there_are_not(chip, count, said):
  with pytest.raises(ValueError, match=said):
    compiled.devices(chip, count)


def test_without_its_compiler_a_tpu_is_refused(monkeypatch):
  asked = []

  def fail(name, platform):
    asked.append((name, platform))
    raise RuntimeError('no libtpu\nat all')

  monkeypatch.setattr(topologies, 'get_topology_desc', fail)
  with pytest.raises(ValueError, match=r'v5e:2x4: .*steepest\[tpu\].*libtpu'):
    compiled.devices('v5e', 5)
  assert asked == [('v5e:2x4', 'tpu')]


@pytest.mark.slow
@pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None, reason='libtpu is not installed'
)
def test_a_step_compiles_for_a_tpu():
  devices = compiled.devices('v5e', 4)
  assert {d.platform for d in devices} == {'tpu'}
  assert jax.default_backend() == 'cpu'
  real = compiled.compile_step(_config(mesh__fsdp=4), devices)
  assert real.arguments > 0

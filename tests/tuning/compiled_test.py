"""Compiling a step for devices, and what the compiler says of its memory."""

import importlib.util
import math
import re
import types

import jax
from jax._src import lib
from jax._src.cudnn import fused_attention_stablehlo as cudnn
from jax.experimental import topologies
import pytest

from steepest.experiments import base
from steepest.models import config as model_config
from steepest.optimizers import costs
from steepest.training import kernels, run as assemble
from steepest.training.chips import CHIPS
from steepest.tuning import compiled, plans


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
    ('v5e', 257, '--devices=257: v5e is known up to 256'),
  ],
)
def test_devices_that_there_are_not(chip, count, said):
  with pytest.raises(ValueError, match=said):
    compiled.devices(chip, count)


def test_a_gpu_is_described_with_the_libraries_that_are_here(monkeypatch):
  asked = []

  class _Versions:
    cudnn_get_version = staticmethod(lambda: 92_801)
    cuda_runtime_get_version = staticmethod(lambda: 13_050)

  def describe(name, platform, **options):
    asked.append((name, platform, options))
    # More than are asked for, where machines have eight.
    shape = [int(n) for n in options['topology'].split('x')]
    return types.SimpleNamespace(devices=range(math.prod(shape)))

  monkeypatch.setattr(lib, 'cuda_versions', _Versions)
  monkeypatch.setattr(topologies, 'get_topology_desc', describe)
  for count, shape in ((1, '1x1x1'), (8, '1x1x8'), (12, '2x1x8')):
    assert compiled.devices('a100', count) == list(range(count))
    name, platform, options = asked.pop()
    assert (name, platform, options['topology']) == ('', 'cuda', shape)
  said = re.sub(r'\s+', ' ', options['target_config'])
  assert 'dnn_version_info { major: 9 minor: 28 patch: 1 }' in said
  assert 'runtime_version { major: 13 minor: 5 patch: 0 }' in said
  # The CUDA programming guide's table of compute capability 8.0: 164 KB for a
  # multiprocessor, of which a block may take 163.
  assert 'shared_memory_per_core: 167936' in said
  assert 'shared_memory_per_block_optin: 166912' in said
  assert 'major: 8 minor: 0 feature_extension: NONE' in said


@pytest.mark.parametrize('chip', ['h100', 'h200', 'a100'])
def test_a_described_gpu_has_the_peaks_of_the_data_sheet(chip):
  described, planned = compiled.GPUS[chip], CHIPS[chip]
  assert described.bandwidth == pytest.approx(planned.bandwidth, rel=0.002)
  # A little of the memory is the driver's.
  assert 0.98 < described.memory / planned.memory <= 1


def test_without_its_compiler_a_gpu_is_refused(monkeypatch):
  monkeypatch.setattr(lib, 'cuda_versions', None)
  with pytest.raises(ValueError, match=r'h100: .*steepest\[cuda\].*plugin'):
    compiled.devices('h100', 1)


class _Gpu:
  """A GPU that is not here."""

  platform = 'gpu'
  compute_capability = '9.0'


def test_cudnn_is_told_the_capability_for_as_long_as_it_compiles():
  own = cudnn.check_compute_capability
  with compiled.capability(_Gpu()):
    assert cudnn.check_compute_capability('9.0')
    assert not cudnn.check_compute_capability('10.0')
    assert cudnn.is_cuda_compute_capability_equal('9.0')
    assert not cudnn.is_cuda_compute_capability_equal('8.0')
  assert cudnn.check_compute_capability is own
  with compiled.capability(jax.devices()[0]):
    assert cudnn.check_compute_capability is own


def test_another_jax_is_refused_in_one_line(monkeypatch):
  monkeypatch.delattr(cudnn, 'check_compute_capability')
  with pytest.raises(ValueError, match='another way'):
    with compiled.capability(_Gpu()):
      pass


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


@pytest.mark.slow
@pytest.mark.skipif(
  lib.cuda_versions is None, reason="JAX's CUDA plugin is not installed"
)
@pytest.mark.parametrize(
  'chip, count, mesh',
  [
    ('h100', 1, {}),
    ('h200', 8, {'mesh__fsdp': 4}),
    ('a100', 4, {'mesh__fsdp': 2, 'mesh__tensor': 2}),
    ('h100', 4, {'mesh__data': 2, 'mesh__sequence': 2}),
    # Two machines.
    ('h100', 16, {'mesh__fsdp': 8}),
  ],
)
def test_a_step_compiles_for_gpus(chip, count, mesh):
  devices = compiled.devices(chip, count)
  assert {d.platform for d in devices} == {'gpu'}
  assert jax.default_backend() == 'cpu'
  config = _config(batch_size=16, dtype__compute='bfloat16', **mesh)
  real = compiled.compile_step(config, devices)
  found = kernels.kernels(real.text)
  kinds = {k.kind for k in found}
  # Whatever the chip, attention is cuDNN's, forward and backward.
  assert sum(k.count for k in found if k.kind == 'attention') == 2
  assert ('collective' in kinds) == (count > 1)
  plan = plans.make_planner(config, plans.chip(chip)).plan(
    plans.setting(config, count)
  )
  state = plan.memory['parameters'] + plan.memory['optimizer']
  batch = 2 * 4 * 16 * 32
  assert 0 <= real.arguments - state < batch + 2048


@pytest.mark.slow
@pytest.mark.skipif(
  lib.cuda_versions is None, reason="JAX's CUDA plugin is not installed"
)
@pytest.mark.parametrize('optimizer', ['adamw', 'lion', 'sophia'])
@pytest.mark.parametrize('name', ['gpt2', 'llama'])
def test_a_step_on_a_gpu_moves_no_more_than_it_has_to(name, optimizer):
  """Updates go over their bytes once and in place; nothing is transposed."""
  config, _ = base.with_variant(f'{name},{optimizer}')
  config.model.update(
    num_layers=2, width=512, num_heads=8, vocab_size=1024, context=256
  )
  config.batch_size, config.mesh.data = 16, 1
  config.dtype.compute = 'bfloat16'
  devices = compiled.devices('h100', 1)
  found = kernels.kernels(compiled.compile_step(config, devices).text)
  model = model_config.resolve(config.model, 1024, config.dtype)
  program = assemble.make_program(config, model, devices)
  wanted = costs.update_bytes(program.chain, program.state_shapes.params)
  # Outside the branches that measure and estimate.
  steady = [k for k in found if k.certain]
  updates = [
    k
    for k in steady
    if k.name.startswith('loop_add_subtract') and 'jvp' not in k.source
  ]
  # Gradients of matrices have half the bytes of their parameters.
  moved = sum(k.count * (k.read + k.written) for k in updates)
  assert 0.9 * wanted < moved <= wanted
  large = lambda word: [
    k.name for k in steady if word in k.name and k.written > 16 * 256 * 4
  ]
  assert large('copy') == large('transpose') == []

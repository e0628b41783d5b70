"""Compiling a step for devices, and what is read of the program."""

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
from steepest.training import chips, run as run_lib
from steepest.tuning import compiled, plan


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
  host = chips.host()
  real = compiled.compile_step(config, compiled.devices(host, 'cpu', 4))
  memory = plan.plan(config, host, 4).memory
  state = memory['parameters'] + memory['optimizer']
  # Beside it, each device has two rows of inputs and targets, and numbers.
  batch = 2 * 2 * 32 * 4
  assert 0 <= real.arguments - state - batch < 1024
  assert real.temporaries > 0 and real.seconds > 0


@pytest.mark.parametrize(
  'chip, count, said',
  [
    ('cpu', 9, '--devices=9: this machine has 8 cpu'),
    ('v5e', 257, '--devices=257: slices of v5e have'),
  ],
)
def test_devices_that_there_are_not(chip, count, said):
  found = chips.host() if chip == 'cpu' else chips.find(chip)
  with pytest.raises(ValueError, match=said):
    compiled.devices(found, chip, count)


def _devices(name, count):
  return compiled.devices(chips.find(name), name, count)


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
    assert _devices('a100', count) == list(range(count))
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


def test_without_its_compiler_a_gpu_is_refused(monkeypatch):
  monkeypatch.setattr(lib, 'cuda_versions', None)
  with pytest.raises(ValueError, match=r'h100: .*steepest\[cuda\].*plugin'):
    _devices('h100', 1)


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
  with pytest.raises(ValueError, match='project does not know'):
    with compiled.capability(_Gpu()):
      pass


def test_without_its_compiler_a_tpu_is_refused(monkeypatch):
  asked = []

  def fail(name, platform, **_):
    asked.append((name, platform))
    raise RuntimeError('no libtpu\nat all')

  monkeypatch.setattr(topologies, 'get_topology_desc', fail)
  with pytest.raises(ValueError, match=r'v5e:2x4: .*steepest\[tpu\].*libtpu'):
    _devices('v5e', 5)
  assert asked == [('v5e:2x4', 'tpu')]


@pytest.mark.slow
@pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None, reason='libtpu is not installed'
)
@pytest.mark.parametrize(
  'chip, count, mesh',
  [
    ('v5e', 16, {'mesh__fsdp': 16}),
    # This is no grid of v5p's.
    ('v5p', 64, {'mesh__fsdp': 16, 'mesh__tensor': 2}),
    ('v6e', 16, {'mesh__fsdp': 4, 'mesh__tensor': 4}),
  ],
)
def test_a_step_compiles_for_tpus(chip, count, mesh):
  devices = _devices(chip, count)
  assert {d.platform for d in devices} == {'tpu'}
  assert jax.default_backend() == 'cpu'
  config = _config(batch_size=64, dtype__compute='bfloat16', **mesh)
  real = compiled.compile_step(config, devices)
  assert any(k.kind == 'collective' for k in compiled.kernels(real.text))


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
  devices = _devices(chip, count)
  assert {d.platform for d in devices} == {'gpu'}
  assert jax.default_backend() == 'cpu'
  config = _config(batch_size=16, dtype__compute='bfloat16', **mesh)
  real = compiled.compile_step(config, devices)
  found = compiled.kernels(real.text)
  kinds = {k.kind for k in found}
  # Whatever the chip, attention is cuDNN's, forward and backward.
  assert sum(k.count for k in found if k.kind == 'attention') == 2
  assert ('collective' in kinds) == (count > 1)
  memory = plan.plan(config, chips.find(chip), count).memory
  state = memory['parameters'] + memory['optimizer']
  batch = 2 * 4 * 16 * 32
  assert 0 <= real.arguments - state < batch + 2048


@pytest.mark.slow
@pytest.mark.skipif(
  lib.cuda_versions is None, reason="JAX's CUDA plugin is not installed"
)
@pytest.mark.parametrize('optimizer', ['adamw', 'muon', 'soap'])
def test_gpus_send_each_matrix_once(optimizer):
  """Bytes of operands and results of a step with fsdp=8, by formula."""
  width, mlp, vocab, n = 256, 1024, 2048, 8
  config = _config(
    model__width=width,
    model__mlp_dim=mlp,
    model__vocab_size=vocab,
    mesh__fsdp=n,
    dtype__compute='bfloat16',
    optimizer__name=optimizer,
  )
  sent = dict.fromkeys(('all-gather', 'reduce-scatter', 'all-to-all'), 0)
  others = 0
  real = compiled.compile_step(config, _devices('h100', n))
  for k in compiled.kernels(real.text):
    if k.kind == 'collective' and k.steady:
      kind = re.sub(r'(-start)?[.\d]*$', '', k.name.replace('_', '-'))
      if kind in sent:
        sent[kind] += k.count * k.bytes
      else:
        others += k.count * k.bytes
  squares, oblongs = 4 * width**2, 3 * width * mlp
  whole = 2 * (squares + oblongs + 2 * vocab * width)
  # A part and the whole, of weights and of their gradients, in bfloat16.
  assert sent['all-gather'] == pytest.approx(whole * (1 + 1 / n), rel=0.01)
  assert sent['reduce-scatter'] == pytest.approx(whole * (1 + 1 / n), rel=0.01)
  # Gains and norms.
  assert others < 0.01 * whole
  # Each of the four stacks is filled up to eight matrices, of float32, of which
  # a device sends and gets one's worth, there and back (collectives_test.py).
  moved = {
    'adamw': lambda m, n: 0,
    'muon': lambda m, n: 2 * m * n,
    'soap': lambda m, n: 5 * m * n + 2 * m * m + 2 * n * n,
  }[optimizer]
  dealt = 2 * 4 * (2 * moved(width, width) + 2 * moved(width, mlp))
  assert sent['all-to-all'] == dealt


@pytest.mark.slow
@pytest.mark.skipif(
  lib.cuda_versions is None, reason="JAX's CUDA plugin is not installed"
)
@pytest.mark.parametrize('optimizer', ['adamw', 'lion', 'sophia'])
@pytest.mark.parametrize('name', ['gpt2', 'llama'])
def test_a_step_on_a_gpu_moves_no_more_than_it_has_to(name, optimizer):
  """Updates go over their bytes once and in place; nothing is transposed."""
  if optimizer == 'sophia' and jax.__version_info__ < (0, 11):
    pytest.skip('XLA of jax 0.10 copies the curvature at every step')
  config, _ = base.with_variant(f'{name},{optimizer}')
  config.model.update(
    num_layers=2, width=512, num_heads=8, vocab_size=1024, context=256
  )
  config.batch_size, config.mesh.data = 16, 1
  config.dtype.compute = 'bfloat16'
  devices = _devices('h100', 1)
  found = compiled.kernels(compiled.compile_step(config, devices).text)
  model = model_config.resolve(config.model, 1024, config.dtype)
  setup = run_lib.make_setup(config, model, tuple(devices))
  wanted = costs.update_bytes(setup.chain, setup.shapes.params)
  # Outside the branches that measure and estimate.
  steady = [k for k in found if k.steady]
  updates = [
    k
    for k in steady
    if k.name.startswith('loop_add_subtract') and 'jvp' not in k.source
  ]
  # Gradients of matrices have half the bytes of their parameters.
  moved = sum(k.count * k.bytes for k in updates)
  assert 0.9 * wanted < moved <= wanted
  large = lambda word: [
    k.name for k in steady if word in k.name and k.bytes > 2 * 16 * 256 * 4
  ]
  assert large('copy') == large('transpose') == []


# What the reading has to know of a program, as XLA writes it.
_TEXT = """HloModule jit_f, is_scheduled=true, input_output_alias={ {0}: (0, {\
}) }

%fused_two (p0: f32[8,16], p1: bf16[8,16]) -> (f32[8,16], bf16[8,16]) {
  %p0 = f32[8,16]{1,0} parameter(0)
  %p1 = bf16[8,16]{1,0} parameter(1)
  %c.1 = f32[8,16]{1,0} convert(%p1)
  %add.1 = f32[8,16]{1,0} add(%p0, %c.1)
  %c.2 = bf16[8,16]{1,0} convert(%add.1)
  ROOT %tuple.1 = (f32[8,16]{1,0}, bf16[8,16]{1,0}) tuple(%add.1, %c.2)
}

%fused_add_rows (p0.3: f32[1000,16], p1.3: s32[4,1], p2.3: bf16[4,1,16]) -> \
f32[1000,16] {
  %p0.3 = f32[1000,16]{1,0} parameter(0)
  %p1.3 = s32[4,1]{1,0} parameter(1)
  %p2.3 = bf16[4,1,16]{2,1,0} parameter(2)
  %c.4 = f32[4,1,16]{2,1,0} convert(%p2.3)
  ROOT %s = f32[1000,16]{1,0} scatter(%p0.3, %p1.3, %c.4), to_apply=%sum
}

%sum (a: f32[], b.1: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b.1 = f32[] parameter(1)
  ROOT %add.2 = f32[] add(%a, %b.1)
}

%body (t: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %t = (s32[], f32[8,16]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %x = f32[8,16]{1,0} get-tuple-element(%t), index=1
  %in_loop = f32[8,16]{1,0} negate(%x)
  ROOT %tuple.2 = (s32[], f32[8,16]{1,0}) tuple(%i, %in_loop)
}

%condition (t.1: (s32[], f32[8,16])) -> pred[] {
  %t.1 = (s32[], f32[8,16]{1,0}) parameter(0)
  ROOT %true = pred[] constant(true)
}

%small (x.1: f32[8,16]) -> f32[8,16] {
  %half = f32[] constant(0.5)
  %less = f32[] negate(%half)
  %more = f32[] negate(%less)
  ROOT %x.1 = f32[8,16]{1,0} parameter(0)
}

%large (x.2: f32[8,16]) -> f32[8,16] {
  %x.2 = f32[8,16]{1,0} parameter(0)
  ROOT %in_branch.remat2 = f32[8,16]{1,0} copy(%x.2)
}

ENTRY %main (x.3: f32[8,16], h: bf16[8,16], table: f32[1000,16], rows: s32[4,\
1], w: bf16[16,32]) -> f32[8,16] {
  %x.3 = f32[8,16]{1,0} parameter(0), sharding={replicated}
  %h = bf16[8,16]{1,0:T(8,128)(2,1)} parameter(1)
  %table = f32[1000,16]{1,0} parameter(2)
  %rows = s32[4,1]{1,0} parameter(3)
  %w = bf16[16,32]{1,0} parameter(4)
  %one = s32[] constant(1)
  %two = (f32[8,16]{1,0}, bf16[8,16]{1,0}) fusion(%x.3, %h), kind=kLoop, \
calls=%fused_two, output_to_operand_aliasing={{0}: (0, {})}, metadata={\
op_name="jit(f)/block/add" source_line=1}
  %first = f32[8,16]{1,0} get-tuple-element(%two), index=0
  %second = bf16[8,16]{1,0} get-tuple-element(%two), index=1
  %thin = bf16[4,1,16]{2,1,0} constant({...})
  %summed = f32[1000,16]{1,0} fusion(%table, %rows, %thin), kind=kInput, \
calls=%fused_add_rows
  %gemm = (bf16[8,32]{1,0}, s8[4194304]{0}) custom-call(%second, %w), \
custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":{\
"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],\
"rhs_contracting_dimensions":["0"]}}}
  %q = bf16[2,8,4,16]{3,2,1,0} constant({...})
  %attend = (bf16[2,4,8,16]{3,1,2,0}, f32[2,4,8]{2,1,0}, u8[0]{0}) \
custom-call(%q, %q, %q), custom_call_target="__cudnn$fmhaSoftmax", \
backend_config={"cudnn_fmha_backend_config": {"intermediate_tensor_shape": {\
"element_type": "BF16", "dimensions": ["2", "4", "8", "8"]}, "mask_type": \
"CAUSAL"}}
  %y = bf16[2,4,8,16]{3,1,2,0} get-tuple-element(%attend), index=0
  %state = (s32[], f32[8,16]{1,0}) tuple(%one, %first)
  %known = (s32[], f32[8,16]{1,0}) while(%state), condition=%condition, \
body=%body, backend_config={"known_trip_count":{"n":"12"}}
  %unknown = (s32[], f32[8,16]{1,0}) while(%known), condition=%condition, \
body=%body
  %z = f32[8,16]{1,0} get-tuple-element(%unknown), index=1
  ROOT %c = f32[8,16]{1,0} conditional(%one, %z, %z), branch_computations={\
%small, %large}
}
"""
_X, _HALF = 4 * 8 * 16, 2 * 8 * 16


def test_a_program_written_by_hand():
  found = compiled.kernels(_TEXT)
  table, ids, rows = 4 * 1000 * 16, 4 * 4, 2 * 4 * 16
  assert [(k.name, k.kind, k.bytes, k.count) for k in found] == [
    ('two', 'elementwise', 2 * (_X + _HALF), 1),
    ('summed', 'scatter', 2 * table + ids + rows, 1),
    # Not the room that cuBLAS works in.
    ('gemm', 'matrix product', _HALF + 2 * 16 * 32 + 2 * 8 * 32, 1),
    # Three times the same operand; sums of each row.
    ('attend', 'attention', 2 * 1024 + 2 * 1024 + 4 * 64, 1),
    ('in_loop', 'elementwise', 2 * _X, 12),
    ('in_loop', 'elementwise', 2 * _X, 1),
    ('in_branch.remat2', 'copy', 2 * _X, 1),
  ]
  assert [k for k in found if not k.steady] == found[-2:]
  assert found[0].source == 'jit(f)/block/add'


_SCHEDULE = """HloModule jit_f, is_scheduled=true

%both (p: bf16[8,16], w: bf16[16,16]) -> (bf16[8,16], bf16[64,16]) {
  %p = bf16[8,16]{1,0} parameter(0)
  %w = bf16[16,16]{1,0} parameter(1)
  %dot = bf16[8,16]{1,0} dot(%p, %w), lhs_contracting_dims={1}
  %more = bf16[64,16]{1,0} all-gather(%p), dimensions={0}
  ROOT %t = (bf16[8,16]{1,0}, bf16[64,16]{1,0}) tuple(%dot, %more)
}

%alone (q: bf16[8,16]) -> bf16[8,16] {
  %q = bf16[8,16]{1,0} parameter(0)
  ROOT %exchanged = bf16[8,16]{1,0} all-to-all(%q), \
replica_groups={{0,2},{1,3}}, dimensions={0}
}

ENTRY %main (x: bf16[8,16], k: bf16[16,16]) -> bf16[8,16] {
  %x = bf16[8,16]{1,0} parameter(0)
  %k = bf16[16,16]{1,0} parameter(1)
  %waits = (bf16[8,16]{1,0}, bf16[64,16]{1,0}) all-gather-start(%x), \
replica_groups=mesh['data'=8,'fsdp'=8,'tensor'=1] {'fsdp'}, dimensions={0}
  %view = bf16[16,16]{1,0} bitcast(%k)
  %waits_done = bf16[64,16]{1,0} all-gather-done(%waits)
  %works = (bf16[8,16]{1,0}, bf16[1,16]{1,0}) reduce-scatter-start(%x), \
replica_groups=mesh['axis_0'=8,'axis_1'=8] {'axis_0'}, dimensions={0}
  %fused = (bf16[8,16]{1,0}, bf16[64,16]{1,0}) fusion(%x, %k), calls=%both
  %first = bf16[8,16]{1,0} get-tuple-element(%fused), index=0
  %works_done = bf16[1,16]{1,0} reduce-scatter-done(%works)
  %far = ((bf16[8,16]{1,0}), bf16[8,16]{1,0}) async-start(%first), calls=%alone
  %product = bf16[8,16]{1,0} dot(%first, %k), lhs_contracting_dims={1}
  %far_done = bf16[8,16]{1,0} async-done(%far)
  ROOT %now = bf16[8,16]{1,0} all-reduce(%far_done), \
replica_groups=[8,8]<=[8,8]T(1,0), use_global_device_ids=true, to_apply=%sum
}
"""


def test_collectives_hide_behind_what_runs_before_they_end():
  found = compiled.kernels(_SCHEDULE)
  sent = [(k.name, k.bytes, k.hidden) for k in found if k.kind == 'collective']
  assert sent == [
    ('waits', 9 * _HALF, False),
    ('works', _HALF + _HALF // 8, True),
    # The product runs in the same fusion, as on TPUs.
    ('fused', 12 * _HALF, True),
    ('exchanged', 2 * _HALF, True),
    ('now', 2 * _HALF, False),
  ]
  # The eight of a machine, or one each of eight.
  assert [(k.received, k.span) for k in found if k.name != 'fused'][-5:] == [
    *((7 * _HALF, 8), (7 * _HALF // 8, 57), (_HALF, 3), (0, 0)),
    (2 * _HALF, 57),
  ]
  # Data sheets: NVLink has 450 GB/s in a direction, an adapter 400 Gb/s.
  wanted = 7 * _HALF / 450e9 + 2 * _HALF / 50e9
  seconds = compiled.exposed(found, chips.find('h100'))
  assert seconds == pytest.approx(wanted)
  assert math.isnan(compiled.exposed(found, chips.find('t4')))


def test_text_of_no_program_is_refused():
  with pytest.raises(ValueError, match='no ENTRY'):
    compiled.kernels('module @jit_f {\n}\n')


def test_a_step_has_the_kernels_of_its_model():
  """Compiled for this CPU: products are those of both passes."""
  config = _config(mesh__data=2)
  devices = compiled.devices(chips.host(), 'cpu', 2)
  found = compiled.kernels(compiled.compile_step(config, devices).text)
  products = [k for k in found if k.kind == 'matrix product' and k.steady]
  # Seven weights and the readout, each forward, for its input and for itself;
  # attention's two products, each in three forms. XLA may join some.
  assert 24 <= sum(k.count for k in products) <= 30
  # Gradients are reduced once; none of it hides on a CPU.
  sent = [k for k in found if k.kind == 'collective']
  assert sent and not any(k.hidden for k in sent)

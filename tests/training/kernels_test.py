"""What a compiled program reads, writes and multiplies."""

import jax
from jax import numpy as jnp
import numpy as np
import pytest

from steepest.training import chips, flops, kernels, planner

# Everything that the reading has to know of a program, as XLA writes it.
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

%fused_rows (p0.1: f32[1000,16], p1.1: s32[4,1]) -> bf16[4,16] {
  %p0.1 = f32[1000,16]{1,0} parameter(0)
  %c.3 = bf16[1000,16]{1,0} convert(%p0.1)
  %p1.1 = s32[4,1]{1,0} parameter(1)
  ROOT %g = bf16[4,16]{1,0} gather(%c.3, %p1.1), offset_dims={1}
}

%fused_stack (p0.2: f32[10,8,16], p1.2: f32[8,16], p2.2: s32[]) -> f32[10,8,\
16] {
  %p0.2 = f32[10,8,16]{2,1,0} parameter(0)
  %p1.2 = f32[8,16]{1,0} parameter(1)
  %b = f32[1,8,16]{2,1,0} bitcast(%p1.2)
  %p2.2 = s32[] parameter(2)
  %zero = s32[] constant(0)
  ROOT %u = f32[10,8,16]{2,1,0} dynamic-update-slice(%p0.2, %b, %p2.2, %zero)
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
  %stack = f32[10,8,16]{2,1,0} constant({...})
  %one = s32[] constant(1)
  %two = (f32[8,16]{1,0}, bf16[8,16]{1,0}) fusion(%x.3, %h), kind=kLoop, \
calls=%fused_two, output_to_operand_aliasing={{0}: (0, {})}, metadata={\
op_name="jit(f)/block/add" source_line=1}
  %first = f32[8,16]{1,0} get-tuple-element(%two), index=0
  %second = bf16[8,16]{1,0} get-tuple-element(%two), index=1
  %taken = bf16[4,16]{1,0} fusion(%table, %rows), kind=kLoop, calls=%fused_rows
  %stacked = f32[10,8,16]{2,1,0} fusion(%stack, %first, %one), kind=kLoop, \
calls=%fused_stack
  %thin = bf16[4,1,16]{2,1,0} bitcast(%taken)
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
  %all = f32[8,16]{1,0} all-reduce-start(%first), to_apply=%sum
  %all_done = f32[8,16]{1,0} all-reduce-done(%all)
  %gathered = (bf16[8,16]{1,0}, bf16[64,16]{1,0}) all-gather-start(%second), \
dimensions={0}
  %gathered_done = bf16[64,16]{1,0} all-gather-done(%gathered)
  %behind = ((f32[10,8,16]{2,1,0}, f32[8,16]{1,0}, s32[]), \
f32[10,8,16]{2,1,0}, u32[]) fusion-start(%stack, %first, %one), \
kind=kLoop, calls=%fused_stack
  %behind_done = f32[10,8,16]{2,1,0} fusion-done(%behind)
  %scattered = ((f32[8,16]{1,0}), f32[1,16]{1,0}) \
reduce-scatter-start(%first), dimensions={0}, to_apply=%sum
  %passed = (f32[8,16]{1,0}, f32[8,16]{1,0}, u32[], u32[]) \
collective-permute-start(%first), source_target_pairs={{0,1}}
  %scattered_done = f32[1,16]{1,0} reduce-scatter-done(%scattered)
  %state = (s32[], f32[8,16]{1,0}) tuple(%one, %all_done)
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
  found = kernels.kernels(_TEXT)
  said = [(k.name, k.kind, k.read, k.written, k.count) for k in found]
  row = 4 * 16
  assert said == [
    ('two', 'elementwise', _X + _HALF, _X + _HALF, 1),
    # Four rows of the table, and their numbers.
    ('taken', 'elementwise', 4 * row + 16, 2 * 4 * 16, 1),
    # The tenth that is written, and where.
    ('stacked', 'copy', _X + 4, _X, 1),
    # Rows are added to those that are there.
    ('summed', 'scatter', 4 * row + 16 + 2 * 4 * 16, 4 * row, 1),
    # Not the room that cuBLAS works in.
    ('gemm', 'matrix product', _HALF + 2 * 16 * 32, 2 * 8 * 32, 1),
    # Three times the same operand, read once; sums of each row.
    ('attend', 'attention', 2 * 1024, 2 * 1024 + 4 * 64, 1),
    ('all', 'collective', _X, _X, 1),
    ('gathered', 'collective', _HALF, 8 * _HALF, 1),
    # As `stacked`, beside other work.
    ('behind', 'copy', _X + 4, _X, 1),
    ('scattered', 'collective', _X, _X // 8, 1),
    ('passed', 'collective', _X, _X, 1),
    ('in_loop', 'elementwise', _X, _X, 12),
    ('in_loop', 'elementwise', _X, _X, 1),
    ('in_branch.remat2', 'copy', _X, _X, 1),
  ]
  assert [k for k in found if not k.certain] == found[-2:]
  assert [k for k in found if k.again] == found[-1:]
  products = {k.name: k.flops for k in found if k.flops}
  # Two products of attention, of which the mask leaves half.
  attention = 2 * 2 * (2 * 4 * 8 * 8) * 16 // 2
  assert products == {'gemm': 2 * 8 * 16 * 32, 'attend': attention}
  assert found[0].source == 'jit(f)/block/add'


def test_what_is_no_program_is_refused():
  with pytest.raises(ValueError, match='no ENTRY'):
    kernels.kernels('module @jit_f {\n}\n')


def test_the_longer_of_products_and_bytes_takes_the_time():
  chip = chips.CHIPS['h100']
  work = {'name': 'x', 'kind': '', 'source': '', 'certain': True, 'count': 3}
  moves = kernels.Kernel(read=6, written=4, flops=1, **work)
  multiplies = kernels.Kernel(read=6, written=4, flops=10**6, **work)
  seconds = kernels.least_seconds(moves, chip)
  assert seconds == pytest.approx(30 / (chip.bandwidth * planner.COPY))
  seconds = kernels.least_seconds(multiplies, chip)
  assert seconds == pytest.approx(3e6 / (chip.peak * planner.MATMUL))


def _compiled(fn, *shapes):
  shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  return jax.jit(fn).lower(*shapes).compile()


def _total(found, of):
  return sum(k.count * of(k) for k in found)


def test_a_chain_of_products_by_hand():
  a, b, c = (96, 64), (64, 160), (160, 32)
  step = _compiled(lambda a, b, c: (a @ b) @ c, a, b, c)
  found = kernels.kernels(step.as_text())
  products = [k for k in found if k.kind == 'matrix product']
  between = 4 * 96 * 160
  sizes = [4 * int(np.prod(shape)) for shape in (a, b, c)]
  assert _total(products, lambda k: k.read) == sum(sizes) + between
  assert _total(products, lambda k: k.written) == between + 4 * 96 * 32
  assert _total(found, lambda k: k.flops) == 2 * 96 * 160 * (64 + 32)


@pytest.mark.parametrize(
  'fn, shapes',
  [
    (lambda x, w: x @ w, [(64, 96), (96, 32)]),
    (lambda x, y: jnp.tanh(x) * y + 1, [(512, 64), (512, 64)]),
    (lambda x: x[3:7], [(64, 256)]),
  ],
)
def test_bytes_are_those_that_xla_counts(fn, shapes):
  step = _compiled(fn, *shapes)
  found = kernels.kernels(step.as_text())
  moved = _total(found, lambda k: k.read + k.written)
  assert moved == step.cost_analysis()['bytes accessed']


def test_a_loop_multiplies_as_often_as_its_steps_in_a_row():
  def looped(x, ws):
    step = lambda x, w: (jnp.tanh(x @ w), None)
    return jax.lax.scan(step, x, ws)[0].sum()

  def in_a_row(x, ws):
    for i in range(7):
      x = jnp.tanh(x @ ws[i])
    return x.sum()

  counts = []
  for fn in (looped, in_a_row):
    step = _compiled(jax.grad(fn, (0, 1)), (24, 32), (7, 32, 32))
    found = kernels.kernels(step.as_text())
    assert all(k.certain for k in found)
    counts.append(_total(found, lambda k: k.flops))
  # The product forward and two backward.
  assert counts == [3 * 7 * 2 * 24 * 32 * 32] * 2


def test_a_step_has_the_flops_of_the_convention(
  configure, make_program, make_batch, arguments
):
  """Norms' gains and biases are in it though they multiply no matrices."""
  config = configure('gpt2', 'adamw', model__width=64)
  config.model.num_layers = 3
  program = make_program(config)
  batch = make_batch()
  step = program.compile_step(
    program.state_shapes, batch, arguments(config), np.uint32(0)
  )
  found = kernels.kernels(step.as_text())
  params = program.state_shapes.params
  wanted = flops.per_token(params, program.model) * batch['inputs'].size
  assert _total(found, lambda k: k.flops) == pytest.approx(wanted, rel=0.02)
  # Parameters and moments are read and written at least once.
  assert (
    _total(found, lambda k: k.written) > 12 * flops.count(params)['parameters']
  )

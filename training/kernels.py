"""The kernels of a compiled program, read from XLA's optimized text.

What each reads and writes, the FLOPs of its matrix products, and how long that
takes at the rates that the planner assumes. A lower bound: it has the work, and
nothing of how well a kernel does it.

Bytes are those of operands and results, each once. A kernel that slices or
gathers from an operand is charged what it takes of it; one that updates a part
of an operand in place, the part. Matrix products inside fusions and in calls of
cuBLAS and cuDNN are counted; convolutions, as which XLA writes the products of
TPUs, are not.
"""

from collections.abc import Iterator
import dataclasses
import math
import re

from steepest.training import hlo, planner
from steepest.training.chips import Chip

_COLLECTIVES = (
  'all-gather',
  'all-reduce',
  'all-to-all',
  'collective-broadcast',
  'collective-permute',
  'ragged-all-to-all',
  'recv',
  'reduce-scatter',
  'send',
)
# They name or arrange values; no kernel runs.
_NOTHING = (
  'add-dependency',
  'after-all',
  'bitcast',
  'constant',
  'get-tuple-element',
  'opt-barrier',
  'parameter',
  'partition-id',
  'replica-id',
  'tuple',
)
_MOVES = (
  *_NOTHING,
  'broadcast',
  'concatenate',
  'copy',
  'copy-start',
  'dynamic-slice',
  'dynamic-update-slice',
  'pad',
  'reshape',
  'reverse',
  'slice',
  'transpose',
)
# Matrix products of fused attention: the backward pass computes scores again.
_ATTENTION_PRODUCTS = {'forward': 2, 'backward': 5}


@dataclasses.dataclass(frozen=True)
class Kernel:
  """One instruction of the program that does work.

  Attributes:
    name: of the instruction.
    kind: 'matrix product', 'attention', 'reduction', 'elementwise', 'scatter',
      'sort', 'copy', 'collective' or, for what is not known, 'custom call'.
    source: the operation of the model that it comes from; may be empty.
    read: bytes, in one run.
    written: bytes, in one run.
    flops: of matrix products, in one run.
    count: runs in one run of the program.
    certain: False if the text does not say how often it runs: in a loop of
      unknown length, counted once, or in the branch, of several, that moves
      most bytes.
  """

  name: str
  kind: str
  source: str
  read: int
  written: int
  flops: int
  count: int
  certain: bool

  @property
  def again(self) -> bool:
    """Whether it computes again what XLA did not keep, to save memory."""
    return '.remat' in self.name


def kernels(text: str) -> list[Kernel]:
  """Returns the kernels of a compiled program, in the order they run.

  Args:
    text: `as_text()` of what `compile` of JAX returns.

  Raises:
    ValueError: the text is not of a compiled program.
  """
  program, entry = hlo.parse(text)
  return list(_walk(program, entry, 1, True))


def least_seconds(kernel: Kernel, chip: Chip) -> float:
  """Returns how long all runs of a kernel take a chip at the least.

  At the shares of its bandwidth and of its bfloat16 peak that the planner
  assumes, the slower of the two; of a collective, what it takes in memory.
  """
  moved = (kernel.read + kernel.written) / (chip.bandwidth * planner.COPY)
  return kernel.count * max(moved, kernel.flops / (chip.peak * planner.MATMUL))


def _walk(
  program: dict[str, hlo.Computation], name: str, count: int, certain: bool
) -> Iterator[Kernel]:
  computation = program[name]
  for i in computation.by_name.values():
    # Collectives and copies in the background end with an operation that
    # moves nothing.
    if i.opcode in _NOTHING or i.opcode.endswith(('-done', '-update')):
      continue
    if i.opcode == 'while':
      times = i.attribute(r'"known_trip_count":\s*\{"n":\s*"(\d+)"')
      (body,) = i.called('body')
      yield from _walk(
        program, body, count * int(times or 1), certain and times != ''
      )
    elif i.opcode == 'conditional':
      branches = i.called(
        'branch_computations', 'true_computation', 'false_computation'
      )
      yield from max(
        (list(_walk(program, b, count, False)) for b in branches), key=_moved
      )
    elif i.opcode in ('call', 'async-start'):
      for called in i.called('to_apply', 'calls'):
        yield from _walk(program, called, count, certain)
    else:
      yield _kernel(program, computation, i, count, certain)


def _moved(found: list[Kernel]) -> int:
  return sum(k.count * (k.read + k.written) for k in found)


def _kernel(
  program: dict[str, hlo.Computation],
  computation: hlo.Computation,
  i: hlo.Instruction,
  count: int,
  certain: bool,
) -> Kernel:
  fused = i.opcode in ('fusion', 'fusion-start')
  inside = i.called('calls') if fused else []
  body = program[inside[0]] if inside else _alone(computation, i)
  flops = _flops(program, body)
  return Kernel(
    i.name,
    _kind(i, flops, _opcodes(program, body)),
    i.attribute(r'op_name="([^"]*)"'),
    body.read(),
    body.written(),
    flops,
    count,
    certain,
  )


def _alone(computation: hlo.Computation, i: hlo.Instruction) -> hlo.Computation:
  """Returns a computation of one instruction."""
  given = [
    dataclasses.replace(computation.by_name[name], opcode='parameter')
    for name in dict.fromkeys(i.operands)
  ]
  leaves = i.leaves
  if i.opcode == 'copy-start':
    leaves = leaves[:1]
  elif i.opcode.endswith('-start'):
    # Operands may come before the results, and marks behind them.
    leaves = leaves[len(i.operands) :] or leaves
    while len(leaves) > 1 and leaves[-1] == (32, ()):
      leaves = leaves[:-1]
  elif i.opcode == 'custom-call' and len(leaves) > 1:
    # Last comes room to work in, of bytes, which may stay as it is.
    if leaves[-1][0] == 8 and len(leaves[-1][1]) == 1:
      leaves = leaves[:-1]
  alone = dataclasses.replace(i, leaves=leaves)
  return hlo.Computation([*given, alone], i.name)


def _kind(i: hlo.Instruction, flops: int, opcodes: set[str]) -> str:
  if i.opcode.startswith(_COLLECTIVES):
    return 'collective'
  if i.opcode == 'custom-call' and _attention(i):
    return 'attention'
  if flops:
    return 'matrix product'
  if i.opcode == 'custom-call':
    return 'custom call'
  for opcode, kind in (
    ('scatter', 'scatter'),
    ('sort', 'sort'),
    ('reduce', 'reduction'),
  ):
    if opcode in opcodes:
      return kind
  return 'copy' if opcodes <= set(_MOVES) else 'elementwise'


def _opcodes(
  program: dict[str, hlo.Computation], body: hlo.Computation
) -> set[str]:
  found = set()
  for i in body.by_name.values():
    found.add(i.opcode)
    if i.opcode == 'fusion':
      for name in i.called('calls'):
        found |= _opcodes(program, program[name])
  return found - {'fusion'}


def _flops(program: dict[str, hlo.Computation], body: hlo.Computation) -> int:
  total = 0
  for i in body.by_name.values():
    if i.opcode == 'dot':
      total += _product(i, body, r'lhs_contracting_dims=\{([\d,]*)\}')
    elif i.opcode == 'fusion':
      total += sum(_flops(program, program[n]) for n in i.called('calls'))
    elif i.opcode == 'custom-call' and _attention(i):
      total += _attention_flops(i, body)
    elif i.opcode == 'custom-call':
      pattern = r'"lhs_contracting_dimensions":\s*\[([^\]]*)\]'
      total += _product(i, body, pattern) if i.attribute(pattern) else 0
  return total


def _product(i: hlo.Instruction, body: hlo.Computation, pattern: str) -> int:
  shape = body.by_name[i.operands[0]].leaves[0][1]
  summed = [shape[int(n)] for n in re.findall(r'\d+', i.attribute(pattern))]
  # Of cuBLAS, the first result is the product.
  return 2 * math.prod(i.leaves[0][1]) * math.prod(summed)


def _attention(i: hlo.Instruction) -> bool:
  return '$fmha' in i.attribute(r'custom_call_target="([^"]*)"')


def _attention_flops(i: hlo.Instruction, body: hlo.Computation) -> int:
  """Returns FLOPs of cuDNN's attention: half, where the mask is causal."""
  scores = [
    int(n)
    for n in re.findall(
      r'\d+',
      i.attribute(
        r'"intermediate_tensor_shape":.*?"dimensions":\s*\[([^\]]*)\]'
      ),
    )
  ]
  features = body.by_name[i.operands[0]].elements // math.prod(scores[:3])
  backward = 'Backward' in i.attribute(r'custom_call_target="([^"]*)"')
  products = _ATTENTION_PRODUCTS['backward' if backward else 'forward']
  whole = 2 * products * math.prod(scores) * features
  causal = 'CAUSAL' in i.attribute(r'"mask_type":\s*"(\w*)"')
  return whole // 2 if causal else whole

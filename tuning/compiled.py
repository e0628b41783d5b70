"""Compiles a run's step for a chip that need not be here, and reads the result.

Libtpu compiles for a named TPU topology, JAX's CUDA plugin for a description of
GPUs (`jax.experimental.topologies`). The result is XLA's own text of the
program that the chip would run: its memory, its kernels in schedule order, and
which collectives overlap with other kernels.
"""

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import functools
import math
import os
import re
import time
from typing import Any

import jax
from ml_collections import ConfigDict
import numpy as np

from steepest.models import config as model_config
from steepest.optimizers import build
from steepest.training import chips, run as run_lib, step as step_lib
from steepest.tuning import plan

_COLLECTIVES = (
  *('all-gather', 'all-reduce', 'all-to-all', 'collective-broadcast'),
  *('collective-permute', 'ragged-all-to-all', 'recv', 'reduce-scatter'),
  'send',
)
# Opcodes that name or arrange values; no kernel runs.
_NOTHING = (
  *('add-dependency', 'after-all', 'bitcast', 'constant', 'domain'),
  *('get-tuple-element', 'opt-barrier', 'parameter', 'partition-id'),
  *('replica-id', 'tuple'),
)
_MOVES = (
  *('broadcast', 'concatenate', 'copy', 'copy-start', 'dynamic-slice'),
  *('dynamic-update-slice', 'iota', 'pad', 'reshape', 'reverse', 'slice'),
  *('slice-start', 'transpose'),
)
_PRODUCTS = ('dot', 'convolution')
_ATTENTION = ('fmha', 'splash', 'flash_attention')
# A fusion's kind is the first of these that it holds.
_KINDS = {
  **dict.fromkeys(_PRODUCTS, 'matrix product'),
  'scatter': 'scatter',
  'sort': 'sort',
  'reduce': 'reduction',
  'reduce-window': 'reduction',
}


@dataclasses.dataclass(frozen=True)
class Kernel:
  """One instruction of the program that does work.

  Attributes:
    name: of the instruction.
    kind: 'matrix product', 'attention', 'reduction', 'elementwise', 'scatter',
      'sort', 'copy', 'collective' or, if unknown, 'custom call'.
    source: the model's operation that it comes from; may be empty.
    bytes: of its operands and results, each once and whole; it may read or
      write less of one that it slices.
    count: executions per step.
    steady: False for kernels that not every step runs: those in the branch that
      moves most, as where curvature is estimated, and those in a loop of
      unknown length, which is counted once.
    hidden: for a collective, whether kernels run between its start and end.
    received: for a collective, most bytes that come in from other devices.
    span: for a collective, the consecutive devices that a group of it spans.
  """

  name: str
  kind: str
  source: str
  bytes: int
  count: int
  steady: bool
  hidden: bool = False
  received: int = 0
  span: int = 0


@dataclasses.dataclass(frozen=True)
class Compiled:
  """The compiler's account of one device.

  Attributes:
    arguments: bytes of parameters, optimizer state and batch.
    temporaries: bytes of all else, including results that replace no argument.
    seconds: of compilation.
    text: the program, as XLA instructions.
  """

  arguments: int
  temporaries: int
  seconds: float
  text: str


def devices(
  chip: chips.Chip, name: str, count: int, slices: int = 1
) -> list[jax.Device]:
  """Returns `count` devices to compile for, of this machine if it has them.

  Args:
    chip: their type.
    name: of the chip.
    count: over all slices.
    slices: equal TPU slices, joined only by a slower network.

  Raises:
    ValueError: there are none, or too few.
  """
  if chip.is_gpu:
    # Set before JAX looks for devices: its plugin checks the versions of CUDA
    # libraries, some report none without a GPU, and it would not load.
    os.environ.setdefault('JAX_SKIP_CUDA_CONSTRAINTS_CHECK', '1')
  here = [
    d for d in jax.devices() if any(k in d.device_kind for k in chip.kinds)
  ]
  if here:
    if len(here) < count:
      raise ValueError(
        f'--devices={count}: this machine has {len(here)} {name}'
      )
    return here[:count]
  from jax.experimental import topologies

  if chip.is_gpu and not chip.xla:
    described = [n for n, c in chips.CHIPS.items() if c.xla or c.slices]
    chips.among(name, described, f'--chip={name}: --compile knows')
  if chip.is_gpu:
    # Groups joined by fast links × machines per group × GPUs per machine.
    shape = f'{-(-count // chip.host)}x1x{min(count, chip.host)}'
    platform, wanted = 'cuda', ''
  else:
    platform, each = 'tpu', -(-count // slices)
    wanted = f'{name}:{chips.topology(name, each, larger=slices == 1)}'
    # There is no metadata server to ask.
    os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
  try:
    options: dict[str, Any] = {}
    if chip.is_gpu:
      options = {'topology': shape, 'target_config': _target(chip)}
    elif slices > 1:
      options = {'num_slices': slices}
    found = topologies.get_topology_desc(wanted, platform, **options)
    return list(found.devices)[:count]
  except Exception as error:
    raise ValueError(
      f'no compiler for {wanted or name}: install it with pip install '
      f"'steepest[{platform}]' ({str(error).splitlines()[0][:200]})"
    ) from error


def _target(chip: chips.Chip) -> str:
  """Returns XLA's description of a GPU with the libraries installed here."""
  # Private, but the only way: the cuDNN kernels in the compiled program depend
  # on its version.
  from jax._src.lib import cuda_versions

  if cuda_versions is None:
    raise RuntimeError('the CUDA plugin of JAX is not installed')
  return chips.target_config(
    chip,
    cuda_versions.cudnn_get_version(),
    cuda_versions.cuda_runtime_get_version(),
  )


@contextlib.contextmanager
def capability(device: jax.Device) -> Iterator[None]:
  """Lets JAX's cuDNN attention be compiled for a GPU that is not here.

  JAX asks its first GPU what that attention supports, and there may be none.
  The two functions that ask are private: there is no other way.

  Raises:
    ValueError: JAX no longer has them.
  """
  if device.platform != 'gpu' or device in jax.devices():
    yield
    return
  from jax._src.cudnn import fused_attention_stablehlo as cudnn

  numbers = lambda text: tuple(int(n) for n in text.split('.'))
  own = numbers(device.compute_capability)
  answers = {
    'check_compute_capability': lambda asked: own >= numbers(asked),
    'is_cuda_compute_capability_equal': lambda asked: own == numbers(asked),
  }
  kept = {name: getattr(cudnn, name, None) for name in answers}
  if None in kept.values():
    raise ValueError(
      f'JAX {jax.__version__} takes the compute capability in a way that this '
      'project does not know: compile on a machine with such a GPU'
    )
  try:
    for name, answer in answers.items():
      setattr(cudnn, name, answer)
    yield
  finally:
    for name, function in kept.items():
      setattr(cudnn, name, function)


def compile_step(config: ConfigDict, devices: list[jax.Device]) -> Compiled:
  """Compiles the training step of a run for `devices`.

  Raises:
    ValueError: the configuration does not fit together, or the step does not
      fit the devices' memory.
  """
  vocab = plan.vocab_size(config)
  model = model_config.resolve(config.model, vocab, config.dtype)
  setup = run_lib.make_setup(config, model, tuple(devices))
  hypers = build.hyperparameters(
    config.optimizer, config.schedule, config.steps
  )
  start = time.perf_counter()
  try:
    with capability(devices[0]):
      step = step_lib.compile_step(setup, hypers)
  except jax.errors.JaxRuntimeError as error:
    # If Python takes part in compiling, its traceback comes first.
    said = re.search(r'^\w*Error: .*', str(error), re.MULTILINE)
    line = said[0] if said else str(error).splitlines()[0]
    raise ValueError(f'the compiler says: {line[:300]}') from error
  seconds = time.perf_counter() - start
  m, text = step.memory_analysis(), step.as_text()
  if m is None or text is None:
    raise ValueError(
      'the compiler of this JAX reports neither memory nor program'
    )
  return Compiled(
    m.argument_size_in_bytes,
    m.temp_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes,
    seconds,
    text,
  )


@dataclasses.dataclass(frozen=True)
class _Instruction:
  """One line of the program: NAME = TYPE OPCODE(OPERANDS), ATTRIBUTES."""

  name: str
  bytes: int
  opcode: str
  operands: tuple[str, ...]
  attributes: str

  @property
  def is_start(self) -> bool:
    return self.opcode.endswith('-start')

  def attribute(self, pattern: str) -> str:
    """Returns the first group of a match among the attributes, or ''."""
    match = re.search(pattern, self.attributes)
    return match[1] if match else ''

  def called(self, *names: str) -> list[str]:
    """Returns the computations named in these attributes."""
    given = rf'\b(?:{"|".join(names)})=(\{{[^}}]*\}}|%[\w.\-]+)'
    found = re.findall(given, self.attributes)
    return re.findall(r'%([\w.\-]+)', ' '.join(found))


_Program = dict[str, list[_Instruction]]


def kernels(text: str) -> list[Kernel]:
  """Returns the kernels of a compiled program, in the order they run.

  Args:
    text: `as_text()` of the result of JAX's `compile`.

  Raises:
    ValueError: the text is not a compiled program.
  """
  program: _Program = {}
  entry = ''
  lines: list[_Instruction] = []
  for line in text.splitlines():
    if match := re.match(r'(ENTRY )?%?([\w.\-]+) \(.*\{$', line):
      lines = program[match[2]] = []
      entry = match[2] if match[1] else entry
    elif match := re.match(r'\s+(?:ROOT )?%?([\w.\-]+) = (.*)$', line):
      lines.append(_instruction(match[1], match[2]))
  if entry not in program:
    raise ValueError('no text of a compiled program: it has no ENTRY')
  return list(_walk(program, entry, 1, True))


def exposed(found: Sequence[Kernel], chip: chips.Chip) -> float:
  """Returns the seconds of a step in which devices only communicate.

  Counts collectives that overlap with no kernel, at link speed. Overlapped
  collectives may outlast their kernels, whose times the program does not tell.

  Args:
    found: kernels of a program.
    chip: that it runs on.
  """
  return sum(
    k.count * k.received / chip.bandwidth(k.span)
    for k in found
    if k.kind == 'collective' and k.steady and not k.hidden
  )


def _instruction(name: str, text: str) -> _Instruction:
  end = _closing(text, 0) + 1 if text.startswith('(') else text.index(' ')
  start = text.index('(', end)
  close = _closing(text, start)
  return _Instruction(
    name,
    _bytes(text[:end]),
    text[end:start].strip(),
    tuple(re.findall(r'%([\w.\-]+)', text[start:close])),
    text[close + 1 :],
  )


def _closing(text: str, start: int) -> int:
  """Returns the index of the bracket that closes the one at `start`."""
  depth = 0
  for match in re.compile(r'[()]').finditer(text, start):
    depth += 1 if match[0] == '(' else -1
    if not depth:
      return match.start()
  return len(text)


@functools.lru_cache(maxsize=4096)
def _bytes(kind: str) -> int:
  """Returns the bytes of a type's arrays, without scratch space in tuples."""
  total = 0
  for match in re.finditer(r'\b(pred|[a-z]+(\d+)\w*)\[([\d,<=]*)\]', kind):
    shape = [int(n) for n in match[3].replace('<=', '').split(',') if n]
    # cuBLAS and cuDNN return scratch bytes that nobody reads.
    scratch = kind.startswith('(') and match[1] in ('s8', 'u8')
    bits = int(match[2] or 8)
    total += 0 if scratch else -(-bits * math.prod(shape) // 8)
  return total


def _walk(
  program: _Program, name: str, count: int, steady: bool
) -> Iterator[Kernel]:
  lines = program[name]
  sizes = {i.name: i.bytes for i in lines}
  for at, i in enumerate(lines):
    # Asynchronous operations end with one that moves nothing.
    if i.opcode in _NOTHING or i.opcode.endswith(('-done', '-update')):
      continue
    if i.opcode == 'while':
      times = i.attribute(r'"known_trip_count":\s*\{"n":\s*"(\d+)"')
      runs, known = count * int(times or 1), steady and times != ''
      yield from _walk(program, i.called('body')[0], runs, known)
    elif i.opcode == 'conditional':
      branches = i.called(
        'branch_computations', 'true_computation', 'false_computation'
      )
      moved = lambda found: sum(k.count * k.bytes for k in found)
      yield from max(
        (list(_walk(program, b, count, False)) for b in branches), key=moved
      )
    elif i.opcode in ('call', 'async-start'):
      for called in i.called('to_apply', 'calls'):
        for kernel in _walk(program, called, count, steady):
          hidden = kernel.hidden or _hidden(lines, at)
          yield dataclasses.replace(kernel, hidden=hidden)
    else:
      opcodes = _opcodes(program, i)
      kind = _kind(i, opcodes)
      operands = sum(sizes[n] for n in set(i.operands))
      # The type of a start includes its operands.
      both = i.bytes if i.is_start else operands + i.bytes
      kernel = Kernel(
        i.name,
        kind,
        i.attribute(r'op_name="([^"]*)"'),
        both,
        count,
        steady,
      )
      if kind == 'collective':
        hidden = _hidden(lines, at) or bool(opcodes.intersection(_PRODUCTS))
        received = _received(opcodes, operands, both - operands)
        kernel = dataclasses.replace(
          kernel, hidden=hidden, received=received, span=_span(i.attributes)
        )
      yield kernel


def _received(opcodes: set[str], operands: int, results: int) -> int:
  """Returns the bytes that a collective receives, for many devices."""
  if any(o.startswith(('all-gather', 'reduce-scatter')) for o in opcodes):
    return abs(results - operands)
  # An all-reduce is a reduce-scatter, then an all-gather.
  return operands * (1 + any(o.startswith('all-reduce') for o in opcodes))


def _span(attributes: str) -> int:
  """Returns how many consecutive devices a collective's group spans."""
  numbers = lambda text: [int(n) for n in text.split(',')]
  if found := re.search(r'=mesh\[([^\]]*)\] \{([^}]*)\}', attributes):
    span, stride = 1, 1
    for axis, size in reversed(re.findall(r"('\w+')=(\d+)", found[1])):
      span += stride * (int(size) - 1) * (axis in found[2])
      stride *= int(size)
    return span
  iota = r'replica_groups=\[\d+,(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?'
  if found := re.search(iota, attributes):
    ids = np.arange(math.prod(numbers(found[2]))).reshape(numbers(found[2]))
    ids = ids.transpose(numbers(found[3]) if found[3] else None)
    return int(np.ptp(ids.reshape(-1, int(found[1]))[0])) + 1
  lists = r'(?:replica_groups|source_target_pairs)=\{\{([\d,{}]+)\}\}'
  found = re.search(lists, attributes)
  groups = [numbers(g) for g in found[1].split('},{')] if found else []
  return max((max(g) - min(g) + 1 for g in groups), default=0)


def _hidden(lines: list[_Instruction], at: int) -> bool:
  """Returns whether kernels run during the collective started at `at`."""
  names = {lines[at].name} if lines[at].is_start else set()
  for i in lines[at + 1 :] if names else ():
    if names.intersection(i.operands):
      names.add(i.name)
      if i.opcode.endswith('-done'):
        return False
    elif i.opcode.startswith(('fusion', 'custom-call', *_PRODUCTS)):
      return True
  return False


def _opcodes(program: _Program, i: _Instruction) -> set[str]:
  """Returns the opcodes of an instruction and of all that it fuses."""
  if not i.opcode.startswith('fusion'):
    return {i.opcode}
  inside = (j for name in i.called('calls') for j in program[name])
  return set().union(*(_opcodes(program, j) for j in inside))


def _kind(i: _Instruction, opcodes: set[str]) -> str:
  if any(opcode.startswith(_COLLECTIVES) for opcode in opcodes):
    return 'collective'
  if 'custom-call' in opcodes:
    target = i.attribute(r'custom_call_target="([^"]*)"')
    if any(word in f'{target} {i.attributes}' for word in _ATTENTION):
      return 'attention'
    return 'matrix product' if 'cublas' in target else 'custom call'
  for opcode, kind in _KINDS.items():
    if opcode in opcodes:
      return kind
  return 'copy' if opcodes <= {*_MOVES, *_NOTHING} else 'elementwise'

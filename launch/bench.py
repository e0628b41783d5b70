"""Estimates memory and time of a run on chips that you need not have.

    python -m launch.bench --plan --config=experiments/gpt2_124m.py:adamw \\
        --devices=8 --chip=h100

Parameters and optimizer state are exact, other memory is estimated, FLOPs come
from formulas, and hours from the MFU measured on the chip. Nothing is compiled.
Exit status 0: it fits; 3: it does not; 1: an error.

--compile compiles the step for this machine's devices, or for GPUs or TPUs that
it lacks (pip install 'steepest[cuda]' or 'steepest[tpu]'), and reads the
compiled program: memory, kernels, communication between devices, and how much
of it overlaps with computation. --chip=cpu tries both on the CPU.
"""

from collections.abc import Callable
import math
import re
import sys
from typing import TYPE_CHECKING, Any

from absl import flags

from steepest.launch import cli
from steepest.training import chips

if TYPE_CHECKING:
  import jax
  from ml_collections import ConfigDict
  from rich.table import Table

  from steepest.tuning.compiled import Kernel
  from steepest.tuning.plan import StepPlan

_DOES_NOT_FIT = 3
# Number of kernels listed one by one, largest first.
_LISTED = 12


def main() -> None:
  """The command."""
  config = cli.define_config()
  plan = flags.DEFINE_bool('plan', False, 'Plan the run of --config.')
  devices = flags.DEFINE_integer(
    'devices', 1, 'Number of chips.', lower_bound=1
  )
  chip = flags.DEFINE_string(
    'chip', 'h100', f'{", ".join(chips.CHIPS)}, or cpu.'
  )
  price = cli.define_price()
  slices = flags.DEFINE_integer(
    'slices', 1, 'Number of TPU slices.', lower_bound=1
  )
  compile_ = flags.DEFINE_bool(
    'compile', False, 'Compile the step and read the program.'
  )

  def command() -> None:
    if not plan.value and not compile_.value:
      raise ValueError('give --plan or --compile; benchmarks/ measures speed')
    config_ = cli.required(config)
    _bench(
      config_,
      devices.value,
      slices.value,
      chip.value,
      compile_.value,
      price.value,
    )

  cli.run(command, __doc__)


def _bench(
  config: 'ConfigDict',
  count: int,
  slices: int,
  name: str,
  compile_: bool,
  price: float,
) -> None:
  import jax

  if name == 'cpu':
    jax.config.update('jax_num_cpu_devices', count)
  if name == 'cpu' or not compile_:
    # Planning needs no accelerator, and one may be in use.
    jax.config.update('jax_platforms', 'cpu')
  from steepest.training import config as validation
  from steepest.tuning import compiled, plan

  validation.check_ranges(config)
  name = name if name == 'cpu' else chips.name_of(name)
  chip = chips.host() if name == 'cpu' else chips.find(name)
  # First: planning initializes JAX's backends.
  devices = compiled.devices(chip, name, count, slices) if compile_ else []
  planned = plan.plan(config, chip, count)
  _print_plan(config, planned, f'{count} × {name}', price)
  fastest = plan.fastest(config, chip, count)
  peak = planned.peak
  if compile_:
    peak = _compile(config, devices, planned, chip)
  if peak > planned.capacity:
    over = (peak - planned.capacity) / 2**30
    print(f'does not fit, by {over:.1f} GiB a device: {_advice(fastest)}')
    sys.exit(_DOES_NOT_FIT)
  if fastest and fastest[0]:
    print(f'may be faster: {_advice(fastest)}')


def _advice(fastest: 'tuple[dict[str, Any], StepPlan] | None') -> str:
  """Says which keys fit, or make a step faster."""
  if not fastest or not fastest[0]:
    return 'try mesh.fsdp or a smaller batch_size'
  keys, planned = fastest
  words = ' '.join(f'--config.{key}={value}' for key, value in keys.items())
  time = '' if planned.mfu is None else f', {planned.waiting:.3g} s a step'
  return f'try {words} ({planned.peak / 2**30:.1f} GiB a device{time})'


def _print_plan(
  config: 'ConfigDict', planned: 'StepPlan', where: str, price: float
) -> None:
  from rich.table import Table

  from steepest.data.terminal import Console
  from steepest.tuning import plan

  console = Console(soft_wrap=True)
  sizes = ' '.join(f'{axis}={n}' for axis, n in planned.mesh.items())
  console.print(
    f'{config.model.name} {config.optimizer.name}, '
    f'{planned.parameters / 1e6:,.4g} M parameters, on {where}: mesh {sizes}, '
    f'microbatches={config.microbatches}, remat={config.model.remat}'
  )
  table = Table('', 'per device', '', box=None, pad_edge=False)
  table.columns[1].justify = 'right'
  gib = lambda size: f'{size / 2**30:.2f} GiB'
  for part, size in planned.memory.items():
    exact = part in ('parameters', 'optimizer')
    table.add_row(part, gib(size), 'exact' if exact else 'estimate')
  table.add_row('at the fullest moment', gib(planned.peak), 'estimate')
  table.add_row('may be used', gib(planned.capacity))
  console.print(table)
  console.print(
    f'an update of all parameters: {planned.update_flops:.3g} FLOP in matrix '
    f'products, {gib(planned.update_bytes)} read and written'
  )
  sent = ', '.join(f'{n / 1e9:.3g} GB {how}' for how, n in planned.sent.items())
  console.print(
    f'a device sends and gets in a step, by formula: {sent}; not overlapped: '
    f'{_milliseconds(planned.exposed)}'
  )
  kept = config.checkpoints_kept if config.checkpoint_every else 0
  console.print(
    f'a checkpoint: {gib(planned.checkpoint)}, '
    f'{kept} kept and two more while they are written'
    if kept
    else 'no checkpoints: checkpoint_every=0'
  )
  if planned.mfu is None:
    console.print(f'{planned.flops:.3g} FLOP a step; no MFU is known')
    return
  hours = planned.hours(config.steps)
  console.print(
    f'{planned.flops:.3g} FLOP a step: {planned.seconds:.3g} s and '
    f'{planned.tokens / planned.seconds:,.0f} tokens/s at {planned.basis}\n'
    f'{config.steps * planned.tokens / 1e9:,.2f} G tokens: '
    f'{hours:,.1f} h{plan.cost(hours * planned.devices, price)}'
  )


def _milliseconds(seconds: float) -> str:
  unknown = 'not known, nor is the speed of the links'
  return unknown if math.isnan(seconds) else f'{seconds * 1e3:.1f} ms a step'


def _compile(
  config: 'ConfigDict',
  devices: 'list[jax.Device]',
  planned: 'StepPlan',
  chip: 'chips.Chip',
) -> int:
  """Prints memory and kernels of the compiled step; returns bytes a device."""
  from steepest.data.terminal import Console
  from steepest.tuning import compiled

  found = compiled.compile_step(config, devices)
  state = planned.memory['parameters'] + planned.memory['optimizer']
  peak = found.arguments + found.temporaries
  print('\nGiB a device: planned, compiled, error of the plan')
  for part, ours, theirs in (
    ('parameters, optimizer, batch', state, found.arguments),
    ('all else', planned.peak - state, found.temporaries),
    ('in all', planned.peak, peak),
  ):
    print(
      f'{part:30}{ours / 2**30:9.3f}{theirs / 2**30:9.3f}'
      f'{ours / theirs - 1:+9.1%}'
    )
  kernels = compiled.kernels(found.text)
  print(
    f'compiled in {found.seconds:.0f} s; sent with no kernel beside it: '
    f'{_milliseconds(compiled.exposed(kernels, chip))}\n'
  )
  Console(columns=120).print(_kernel_table(kernels))
  return peak


def _kernel_table(kernels: 'list[Kernel]') -> 'Table':
  """Returns a step's kernels by kind, the largest, and its collectives."""
  from rich.table import Table

  table = Table('kernels', '', 'runs', 'GB at most', box=None, pad_edge=False)
  for column in table.columns[2:]:
    column.justify = 'right'
  runs = lambda found: sum(k.count for k in found)
  moved = lambda found: sum(k.count * k.bytes for k in found) / 1e9

  def rows(groups: 'dict[str, list[Kernel]]', note: Callable[..., str]) -> None:
    for name, found in sorted(groups.items(), key=lambda g: -moved(g[1])):
      if found:
        values = f'{runs(found):,}', f'{moved(found):.3f}'
        table.add_row(name, note(found), *values)
    table.add_section()

  steady = [k for k in kernels if k.steady]
  largest = sorted(steady, key=lambda k: -moved([k]))[:_LISTED]
  sent = [k for k in kernels if k.kind == 'collective']
  rows(_grouped(steady, lambda k: k.kind), lambda found: '')
  rows({'every step': steady}, lambda found: '')
  others = [k for k in kernels if not k.steady]
  rows({'in branches': others}, lambda found: 'logging, curvature')
  # The end of an operation's path is its most specific part.
  source = lambda found: '/'.join(found[0].source.split('/')[1:][-2:])
  rows({k.name: [k] for k in largest}, source)
  hidden = lambda found: (
    f'{runs([k for k in found if k.hidden])} run beside other kernels'
  )
  stem = lambda k: re.sub(r'(-start)?[.\d]*$', '', k.name)
  rows(_grouped(sent, stem), hidden)
  return table


def _grouped(
  kernels: 'list[Kernel]', name: 'Callable[[Kernel], str]'
) -> 'dict[str, list[Kernel]]':
  groups: dict[str, list[Kernel]] = {}
  for kernel in kernels:
    groups.setdefault(name(kernel), []).append(kernel)
  return groups


if __name__ == '__main__':
  main()

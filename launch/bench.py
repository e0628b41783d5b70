"""Says what a run would take on chips that are not here.

    python -m launch.bench --plan --config=experiments/gpt2_124m.py:adamw \\
        --devices=8 --chip=h100

Memory by part, FLOPs, communication, step time and hours of the whole run,
from shapes alone: nothing is compiled. Exit status 0: it fits; 3: it does
not, and the nearest settings that do are listed; 1: an error.

With --compile, the step is compiled for this machine's devices, or for GPUs or
TPUs that are not here (pip install 'steepest[cuda]' or 'steepest[tpu]'), and
the plan is held against the compiler's own count of memory. --kernels lists
what the step consists of, with the least time that it takes. --chip=cpu tries
both on the CPU.
"""

import re
import sys
from typing import TYPE_CHECKING

from absl import flags

from steepest.launch import cli

if TYPE_CHECKING:
  from ml_collections import ConfigDict
  from rich.table import Table

  from steepest.training import chips, kernels, planner

  _Groups = dict[tuple[str, str], list[kernels.Kernel]]

_DOES_NOT_FIT = 3
# Rows below the kinds of kernels.
_TOTALS = ('at every step', 'in branches')
# Groups of kernels that are listed one by one.
_LISTED = 25


def main() -> None:
  """The command."""
  config = cli.define_config()
  plan = flags.DEFINE_bool('plan', False, 'Plan the run of --config.')
  devices = flags.DEFINE_integer(
    'devices', 1, 'Chips that it runs on.', lower_bound=1
  )
  chip = flags.DEFINE_string(
    'chip', 'h100', 'h100, h200, a100 (80 GB), v5e, v5p or v6e.'
  )
  compile_ = flags.DEFINE_bool(
    'compile', False, 'Compile the step too, and compare memory.'
  )
  kernels = flags.DEFINE_bool(
    'kernels', False, "With --compile: list the step's kernels."
  )

  def command() -> None:
    if kernels.value and not compile_.value:
      raise ValueError('--kernels: give --compile too')
    if compile_.value:
      _compile(config, devices.value, chip.value, kernels.value)
    elif plan.value:
      _bench(config, devices.value, chip.value)
    else:
      raise ValueError('give --plan or --compile; benchmarks/ measures speed')

  cli.run(command, __doc__)


def _compile(
  holder: flags.FlagHolder, count: int, chip: str, kernels: bool
) -> None:
  config = cli.required(holder)
  import jax

  if chip == 'cpu':
    jax.config.update('jax_platforms', 'cpu')
    jax.config.update('jax_num_cpu_devices', count)
  from steepest.tuning import compiled, plans

  accelerator = compiled.host() if chip == 'cpu' else plans.chip(chip)
  # First, since planning wakes JAX's backends.
  devices = compiled.devices(chip, count)
  if kernels and devices[0].platform == 'tpu':
    raise ValueError('--kernels reads what is compiled for GPUs and CPUs')
  plan = plans.make_planner(config, accelerator).plan(
    plans.setting(config, count)
  )
  real = compiled.compile_step(config, devices)
  state = plan.memory['parameters'] + plan.memory['optimizer']
  rows = (
    ('parameters, optimizer, batch', state, real.arguments),
    ('all else', plan.peak - state, real.temporaries),
    ('in all', plan.peak, real.arguments + real.temporaries),
  )
  print(f'{count} × {chip}, GiB a device: planned, compiled, error of the plan')
  for part, planned, found in rows:
    print(
      f'{part:30}{planned / 2**30:9.3f}{found / 2**30:9.3f}'
      f'{planned / found - 1:+9.1%}'
    )
  print(f'compiled in {real.seconds:.0f} s')
  if kernels:
    _print_kernels(real.text, None if chip == 'cpu' else accelerator)
  over = (real.arguments + real.temporaries - plan.capacity) / 2**30
  if over > 0:
    print(f'does not fit, by {over:.1f} GiB a device; --plan says what does')
    sys.exit(_DOES_NOT_FIT)


def _print_kernels(text: str, chip: 'chips.Chip | None') -> None:
  """Prints kernels by name and by kind; without a chip, no times."""
  from rich.console import Console

  from steepest.training import kernels, planner

  every = kernels.kernels(text)
  found = [k for k in every if k.certain]
  some = [k for k in every if not k.certain]
  names: _Groups = {}
  kinds: _Groups = {}
  for kernel in found:
    # Copies of one differ by numbers at the end.
    name = re.sub(r'(\.\d+|\.clone|\.remat\d*)+$', '', kernel.name)
    names.setdefault((kernel.kind, name), []).append(kernel)
    kinds.setdefault((kernel.kind, ''), []).append(kernel)
  console = Console(highlight=False)
  if not console.is_terminal:
    console = Console(width=120, highlight=False)
  console.print(_kernel_table(names, chip))
  totals = {(_TOTALS[0], ''): found} | (
    {(_TOTALS[1], ''): some} if some else {}
  )
  console.print(_kernel_table({**kinds, **totals}, chip))
  if again := sum(k.again for k in found):
    console.print(
      f'{again} of these XLA added to keep less: they compute again'
    )
  if some:
    console.print(
      'in branches: what not every step does, as measurements that are logged '
      'and curvature; of several branches the one that moves most. Loops of '
      'unknown length, counted once, would be there too'
    )
  if chip:
    console.print(
      f'least ms: bytes at {chip.bandwidth * planner.COPY / 1e12:.2f} TB/s '
      f'or products at {chip.peak * planner.MATMUL / 1e12:.0f} TFLOP/s, '
      'whichever is longer; computed, not measured, and without the time that '
      'collectives take between devices',
    )


def _kernel_table(groups: '_Groups', chip: 'chips.Chip | None') -> 'Table':
  from rich.table import Table

  from steepest.training import kernels

  seconds = lambda k: kernels.least_seconds(k, chip) if chip else 0.0
  moved = lambda k: k.count * (k.read + k.written)
  total = lambda found, of: sum(of(k) for k in found)
  heaviest = lambda k: (seconds(k), moved(k))
  named = any(name for _, name in groups)
  table = Table(box=None, pad_edge=False)
  table.add_column('kind', no_wrap=True, min_width=len('matrix product'))
  if named:
    longest = max(len(name) for _, name in groups)
    table.add_column('kernel', no_wrap=True, min_width=min(longest, 40))
  for title in ('runs', 'GB', 'TFLOP', *(['least ms'] if chip else [])):
    table.add_column(title, justify='right', no_wrap=True)
  if named:
    table.add_column('the longest comes from', overflow='ellipsis')
  order = lambda item: (
    _TOTALS.index(item[0][0]) if item[0][0] in _TOTALS else -1,
    -total(item[1], seconds),
    -total(item[1], moved),
  )
  ranked = sorted(groups.items(), key=order)
  rest = [k for _, found in ranked[_LISTED:] for k in found]
  ranked = ranked[:_LISTED]
  if rest:
    ranked.append((('', f'{len(groups) - _LISTED} others'), rest))
  for (kind, name), found in ranked:
    flops = total(found, lambda k: k.count * k.flops)
    row = [kind, *([name] if named else []), f'{total(found, _runs):,}']
    row.append(f'{total(found, moved) / 1e9:.3f}')
    row.append(f'{flops / 1e12:.3f}' if flops else '')
    if chip:
      row.append(f'{total(found, seconds) * 1e3:.3f}')
    if named:
      row.append(_source(max(found, key=heaviest)) if kind else '')
    table.add_row(*row)
  return table


def _runs(kernel: 'kernels.Kernel') -> int:
  return kernel.count


def _source(kernel: 'kernels.Kernel') -> str:
  """Returns the end of the operation's path, which says most."""
  return '/'.join(kernel.source.split('/')[1:][-2:])


def _bench(holder: flags.FlagHolder, devices: int, chip: str) -> None:
  config = cli.required(holder)
  # Nothing here needs an accelerator, and one may be in use.
  import jax

  jax.config.update('jax_platforms', 'cpu')
  from steepest.training import config as validation
  from steepest.tuning import plans

  validation.check_ranges(config)
  planned = plans.make_planner(config, plans.chip(chip))
  wanted = plans.setting(config, devices)
  result = planned.plan(wanted)
  _print(config, result, f'{devices} × {chip}')
  if result.fits:
    return
  over = (result.peak - result.capacity) / 2**30
  print(f'does not fit, by {over:.1f} GiB a device')
  found = plans.that_fit(planned, wanted)
  print('these fit:' if found else 'no setting fits')
  for other in found:
    keys = ' '.join(
      f'--{key}={value}' if key == 'devices' else f'--config.{key}={value}'
      for key, value in plans.changes(wanted, other.setting).items()
    )
    print(
      f'  {keys}: {other.peak / 2**30:.1f} GiB, {other.step_seconds:.3f} s a '
      f'step, {_hours(config, other):,.1f} h'
    )
  sys.exit(_DOES_NOT_FIT)


def _hours(config: 'ConfigDict', plan: 'planner.Plan') -> float:
  return config.steps * plan.step_seconds / 3600


def _print(config: 'ConfigDict', plan: 'planner.Plan', where: str) -> None:
  from rich.console import Console
  from rich.table import Table

  from steepest.training import mesh

  console = Console(highlight=False)
  sizes = ' '.join(f'{a}={n}' for a, n in zip(mesh.AXES, plan.setting.mesh))
  console.print(
    f'{config.model.name} {config.optimizer.name} on {where}: mesh {sizes}, '
    f'microbatches={plan.setting.microbatches}, remat={plan.setting.remat}',
    soft_wrap=True,
  )
  table = Table('', 'per device', box=None, pad_edge=False)
  table.columns[1].justify = 'right'
  for part, size in plan.memory.items():
    table.add_row(part, f'{size / 2**30:.2f} GiB')
  table.add_row('at the fullest moment', f'{plan.peak / 2**30:.2f} GiB')
  table.add_row('may be used', f'{plan.capacity / 2**30:.2f} GiB')
  for axis, sent in plan.traffic.items():
    if sent:
      table.add_row(f'sent over {axis}, a step', f'{sent / 1e9:.2f} GB')
  for part, seconds in plan.seconds.items():
    table.add_row(f'{part} time', f'{seconds * 1e3:.1f} ms')
  console.print(table)
  tokens = config.batch_size * config.model.context
  console.print(
    f'{plan.flops:.3g} FLOP and {plan.step_seconds:.3f} s a step, '
    f'{tokens / plan.step_seconds:,.0f} tokens/s, MFU {plan.mfu:.1%}, bound by '
    f'{plan.bound}',
    soft_wrap=True,
  )
  console.print(
    f'{config.steps * tokens / 1e9:,.2f} G tokens: '
    f'{_hours(config, plan):,.1f} h',
    soft_wrap=True,
  )


if __name__ == '__main__':
  main()

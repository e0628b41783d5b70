"""Tunes optimizers on proxies, trains targets with the results, compares them.

    python -m launch.study --config=experiments/quickstart.py --workdir=runs/q

For every model × optimizer: a search on a proxy (a grid of learning rates, or
random or TPE trials of several hyperparameters: study.search), µP transfer of
the best values to a wider target, target runs with several seeds, benchmark
scores; then the report. Started again, it skips what is done and goes on.
Started several times with the same --workdir, on machines that share it, the
processes divide the runs among them.

    python -m launch.study --plan --config=experiments/paper_study.py \\
        --chip=h100 --devices=64

says what a study would take on chips that are not here: runs, memory and
GPU-hours of the trials and targets of each cell. Exit status 0: all of it fits;
3: a run does not; 1: an error.
"""

import contextlib
import functools
import json
import os
import pathlib
import sys
import time
from typing import TYPE_CHECKING

from absl import flags

from steepest.launch import cli
from steepest.training import cpu_memory

if TYPE_CHECKING:
  from ml_collections import ConfigDict

  from steepest.tuning.locks import Locks

_DOES_NOT_FIT = 3
# Between looks for runs that other processes have given back.
_POLL_SECONDS = 1.0


def main() -> None:
  """The command."""
  config = cli.define_config()
  workdir = flags.DEFINE_string(
    'workdir', None, 'Directory of the study (default runs/CONFIG).'
  )
  workers = flags.DEFINE_integer(
    'workers',
    0,
    'Processes that train independent cells side by side; 0: one pinned to '
    'each core on a CPU, one on an accelerator.',
    lower_bound=0,
  )
  optimizers = flags.DEFINE_string(
    'optimizers',
    None,
    'What is compared, comma-separated, or all: every one in optimizers/ '
    '(default: study.optimizers of the recipe).',
  )
  lock_timeout = flags.DEFINE_float(
    'lock_timeout',
    300.0,
    'Seconds after which a run of a process that does not answer, on another '
    'machine, is done by somebody else.',
    lower_bound=1.0,
  )
  plan = flags.DEFINE_bool('plan', False, 'Plan only; train nothing.')
  chip = flags.DEFINE_string(
    'chip', 'h100', '--plan: h100, h200, a100 (80 GB), v5e, v5p or v6e.'
  )
  devices = flags.DEFINE_integer(
    'devices', 1, '--plan: chips; a target runs on all.', lower_bound=1
  )

  def start() -> None:
    study = _config(config, optimizers.value)
    if plan.value:
      _plan(study, chip.value, devices.value)
      return
    directory = pathlib.Path(workdir.value or cli.default_workdir(config))
    _study(study, directory.absolute(), workers.value, lock_timeout.value)

  cli.run(start, __doc__)


def _config(holder: flags.FlagHolder, optimizers: str | None) -> 'ConfigDict':
  """Returns the study's configuration, its optimizers by name."""
  config = cli.required(holder)
  if 'study' not in config:
    raise ValueError(
      '--config is no study: start from experiments/quickstart.py'
    )
  from steepest.training import config as validation
  from steepest.tuning import cells, parity

  validation.check_ranges(config)
  config.study.optimizers = optimizers or config.study.optimizers
  config.study.optimizers = ','.join(cells.optimizers(config))
  for note in parity.notes(config):
    print(f'note: {note}', file=sys.stderr)
  return config


def _study(
  config: 'ConfigDict', workdir: pathlib.Path, workers: int, lock_timeout: float
) -> None:
  from steepest.data import corpus
  from steepest.models import config as model_config
  from steepest.training import config as validation
  from steepest.tuning import cells, locks

  for cell in cells.cells(config):
    # Hours before the first of them would find it out.
    target = cells.target_config(config, cell, {}, 0)
    try:
      validation.check_ranges(target)
      model_config.resolve(target.model, config.study.vocab_size, target.dtype)
    except ValueError as error:
      keys = ['width_ratio', *(f'axis_{name}' for name, _ in cell.point)]
      given = ', '.join(f'study.{key}={config.study[key]}' for key in keys)
      raise ValueError(f'targets of {cell}, {given}: {error}') from error
  start = time.perf_counter()
  with locks.Locks(workdir, lock_timeout) as held:
    with held.wait(workdir):
      config = corpus.ready(config, workdir)
      _write_config(config, workdir)
    _run(config, workdir, workers, held)
    with held.wait(workdir):
      _report(workdir, time.perf_counter() - start)


def _plan(config: 'ConfigDict', chip: str, devices: int) -> None:
  # Nothing here needs an accelerator, and one may be in use.
  import jax
  from rich.console import Console

  jax.config.update('jax_platforms', 'cpu')
  from steepest.training import chips
  from steepest.tuning import plan

  console = Console(highlight=False)
  if not console.is_terminal:
    console = Console(width=140, highlight=False)
  with console.status('planning'):
    found = plan.stages(config, chips.find(chip), devices)
  console.print(plan.table(found))
  print(plan.summary(found, chip, devices))
  if not all(stage.plan.fits for stage in found):
    sys.exit(_DOES_NOT_FIT)


def _write_config(config: 'ConfigDict', workdir: pathlib.Path) -> None:
  path = workdir / 'config.json'
  temporary = path.with_name(f'.{path.name}.tmp')
  values = json.loads(config.to_json())
  temporary.write_text(json.dumps(values, indent=2) + '\n', 'utf-8')
  os.replace(temporary, path)


def _run(
  config: 'ConfigDict',
  workdir: pathlib.Path,
  workers: int,
  locks: 'Locks',
) -> None:
  """Runs all cells; each first searches, then trains its targets."""
  from steepest.tuning import cells, plan, pool, schedule, study

  plans = study.Plan(config, workdir)
  todo = [cell for cell in cells.cells(config) if not plans.done(cell)]
  if not todo:
    return
  # Without an accelerator, workers that are pinned to cores where they can be.
  pinned = (
    workers == 0
    and hasattr(os, 'sched_setaffinity')
    and not cpu_memory.has_accelerator()
  )
  count = workers or (len(os.sched_getaffinity(0)) if pinned else 1)
  count = min(count, schedule.breadth(config, todo))
  with contextlib.ExitStack() as stack:
    pool_ = stack.enter_context(pool.Pool(count, pinned, workdir / 'logs'))
    timed = functools.partial(plan.time_steps, pool_)
    print(plan.time_left(plans, count, timed), flush=True)
    display = stack.enter_context(study.Display(plans, count))
    runs = schedule.Schedule(
      config, workdir, todo, locks, display.best, display.failed
    )
    idle = set(range(count))
    while True:
      for worker in sorted(idle):
        if task := runs.take(worker):
          pool_.start(worker, task.job)
          idle.remove(worker)
      if runs.over:
        break
      # An idle worker waits for what other processes are at.
      message = pool_.next_message(_POLL_SECONDS if idle else None)
      locks.check()
      if message is None:
        display.refresh()
        continue
      display.show(message)
      if message['kind'] not in ('done', 'failed'):
        continue
      idle.add(message['worker'])
      error = message['error'] if message['kind'] == 'failed' else None
      runs.ended(message['worker'], error)
  failures = [f'{cell}: {error}' for cell, error in runs.failures.items()]
  if failures:
    raise ValueError('; '.join(failures))


def _report(workdir: pathlib.Path, seconds: float) -> None:
  from rich.console import Console

  from steepest.eval.comparing import comparison
  from steepest.eval.report import report
  from steepest.experiments import base
  from steepest.training import config as validation

  # What older runs lack is what was done before there was a key for it.
  defaults = validation.as_json(base.get_config())
  result = comparison.compare(comparison.load_runs([str(workdir)], defaults))
  command = ['python', '-m', 'launch.study', *sys.argv[1:]]
  path = report.write(result, workdir / 'report', command)
  console = Console()
  if not console.is_terminal:
    console = Console(width=120)
  report.print_table(result, console)
  print(f'computed for {seconds / 60:.1f} minutes')
  print(f'report: {path}')


if __name__ == '__main__':
  main()

"""Tunes optimizers on proxies, trains targets with the results, compares them.

    python -m launch.study --config=experiments/quickstart.py --workdir=runs/q

For every model × optimizer: a search on a proxy (study.search), µP transfer of
the best values to a wider target, target runs with several seeds, benchmark
scores; then the report. Started again, it skips what is done and goes on.

    python -m launch.study --plan --config=experiments/paper_study.py \\
        --chip=h100 --devices=64

says what a study would take on chips that are not here: runs, memory and
GPU-hours of the trials and targets of each cell. Exit status 0: all of it fits;
3: a run does not; 1: an error.
"""

import json
import os
import pathlib
import sys
import time
from typing import TYPE_CHECKING

from absl import flags

from steepest.launch import cli

if TYPE_CHECKING:
  from ml_collections import ConfigDict

_DOES_NOT_FIT = 3


def main() -> None:
  """The command."""
  config = cli.define_config()
  workdir = flags.DEFINE_string(
    'workdir', None, 'Directory of the study (default runs/CONFIG).'
  )
  workers = flags.DEFINE_integer(
    'workers',
    0,
    'Most runs side by side, 1: in this process; 0: as many as accelerators '
    'hold, or one pinned to each core on a CPU.',
    lower_bound=0,
  )
  address = flags.DEFINE_string(
    'engine',
    '',
    'HOST:PORT of a running Ray, or auto, whose machines train the runs '
    '(docs/launching.md); default: this machine alone.',
  )
  optimizers = flags.DEFINE_string(
    'optimizers',
    None,
    'What is compared, comma-separated, names or ./mine.py, or all: every one '
    'in optimizers/ '
    '(default: study.optimizers of the recipe).',
  )
  plan = flags.DEFINE_bool('plan', False, 'Plan only; train nothing.')
  chip = flags.DEFINE_string(
    'chip', 'h100', '--plan: h100, h200, a100 (80 GB), v5e, v5p or v6e.'
  )
  devices = flags.DEFINE_integer(
    'devices', 1, '--plan: chips in all.', lower_bound=1
  )

  def start() -> None:
    study = _config(config, optimizers.value)
    if plan.value:
      _plan(study, chip.value, devices.value)
      return
    directory = pathlib.Path(workdir.value or cli.default_workdir(config))
    _study(study, directory.absolute(), workers.value, address.value)

  cli.run(start, __doc__)


def _config(holder: flags.FlagHolder, optimizers: str | None) -> 'ConfigDict':
  """Returns the study's configuration, its optimizers by name."""
  config = cli.required(holder)
  if 'study' not in config:
    raise ValueError(
      '--config is no study: start from experiments/quickstart.py'
    )
  from steepest.models import config as model_config
  from steepest.training import config as validation
  from steepest.tuning import cells, search

  validation.check_ranges(config)
  config.study.optimizers = optimizers or config.study.optimizers
  validation.make_absolute(config)
  config.study.optimizers = ','.join(cells.optimizers(config))
  for note in search.notes(config):
    print(f'note: {note}', file=sys.stderr)
  search.complete(config)
  for cell in cells.cells(config):
    # Hours before the first of them would find it out.
    target = cells.target_config(config, cell, {}, 0)
    try:
      cells.search_of(config, cell)
      validation.check_ranges(target)
      model_config.resolve(target.model, config.study.vocab_size, target.dtype)
    except ValueError as error:
      keys = ['width_ratio', *(f'axis_{name}' for name, _ in cell.point)]
      given = ', '.join(f'study.{key}={config.study[key]}' for key in keys)
      raise ValueError(f'targets of {cell}, {given}: {error}') from error
  return config


def _study(
  config: 'ConfigDict', workdir: pathlib.Path, workers: int, address: str
) -> None:
  from steepest.data import corpus, locks
  from steepest.training import processes
  from steepest.tuning import engine, study as tuning_study, timing

  start = time.perf_counter()
  with locks.hold(workdir, 'at this study'):
    with engine.machines(address, workers) as machines:
      config = corpus.ready(config, workdir)
      study = tuning_study.Study(config, workdir)
      _write_config(config, workdir)
      phases = tuning_study.phases(config, machines.machine)
      if not processes.has_accelerator():
        # Should this process be a slot.
        most = max(size for _, size in phases)
        os.environ.update(engine.cpu_devices(most))
      for kinds, size in phases:
        most = max(1, study.breadth(kinds))
        with machines.engine(size, most, workdir / 'logs') as slots:
          if kinds is phases[0][0]:
            tuning_study.check(study, slots, machines.machine)
          tuning_study.run(study, slots, kinds)
          if kinds is phases[-1][0]:
            study.raise_failures()
            timing.run(config, workdir, slots)
    _report(workdir, time.perf_counter() - start)


def _plan(config: 'ConfigDict', chip: str, devices: int) -> None:
  # Nothing here needs an accelerator, and one may be in use.
  import jax

  jax.config.update('jax_platforms', 'cpu')
  from steepest.data.terminal import Console
  from steepest.training import chips
  from steepest.tuning import plan

  console = Console(columns=140)
  with console.status('planning'):
    found = plan.stages(config, chips.find(chip), devices)
  console.print(plan.table(found))
  print(plan.summary(found, chip, devices))
  if not all(stage.plan.fits for stage in found):
    sys.exit(_DOES_NOT_FIT)


def _write_config(config: 'ConfigDict', workdir: pathlib.Path) -> None:
  from steepest.training import metrics

  metrics.write_json(workdir / 'config.json', json.loads(config.to_json()))


def _report(workdir: pathlib.Path, seconds: float) -> None:
  # --help need not wait for the plot library.
  from steepest.data.terminal import Console
  from steepest.report import report
  from steepest.training import config as training_config

  command = ['python', '-m', 'launch.study', *sys.argv[1:]]
  earlier = training_config.of_earlier_runs()
  path = report.run(
    [workdir], workdir / 'report', command, earlier, Console(columns=120)
  )
  print(f'computed for {seconds / 60:.1f} minutes')
  print(f'report: {path}')


if __name__ == '__main__':
  main()

"""Tunes optimizers on proxies, trains targets with the best values and reports.

    python -m launch.study --config=experiments/quickstart.py --workdir=runs/q

For each model × optimizer, it searches on a proxy (study.search), transfers the
best values to a wider target by µP, trains the target with several seeds and
scores it on benchmarks; then it writes the report. Started again, it resumes.
--targets=slurm|sky|xmanager|files submits each target as a separate job, as
launch.submit does (--chip, --devices, …); run it again to collect the targets
that have finished.

    python -m launch.study --plan --config=experiments/paper_study.py \\
        --chip=h100 --devices=64

estimates the study on chips that you need not have: runs, memory and chip-hours
of the trials and targets of each cell. Exit status 0: every run fits; 3: one
does not; 1: an error.

On SIGTERM or Ctrl-C, running trials and targets save and stop, with exit status
75; a second signal exits at once. The same command resumes the study.

With --minutes=N, it lists the runs that fit into N minutes, does them, most
important first, saves and stops; --plan --minutes=N lists them for --chip.
"""

import argparse
from collections.abc import Iterator
import contextlib
import gc
import json
import os
import pathlib
import signal
import sys
import time
from typing import TYPE_CHECKING

from absl import flags

from steepest.launch import cli

if TYPE_CHECKING:
  from ml_collections import ConfigDict

  from steepest.data.buckets import Stage
  from steepest.launch.submitters.targets import Targets
  from steepest.tuning.budget import Budget

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
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
    'Maximum number of concurrent runs; 1: in this process; 0: as many as the '
    'accelerators hold, or on a CPU one pinned to each core.',
    lower_bound=0,
  )
  address = flags.DEFINE_string(
    'engine',
    '',
    'HOST:PORT of a running Ray cluster, or auto: train on its machines '
    '(docs/launching.md). Default: only this machine.',
  )
  optimizers = flags.DEFINE_string(
    'optimizers',
    None,
    'Optimizers to compare: comma-separated names or paths (./mine.py), or '
    'all: every one in optimizers/ (default: study.optimizers of the recipe).',
  )
  plan = flags.DEFINE_bool('plan', False, 'Plan only; train nothing.')
  price = cli.define_price()
  targets = flags.DEFINE_enum(
    'targets',
    None,
    [place for place in cli.PLACES if place != 'local'],
    'Where to submit each target as a separate job (default: train here).',
  )
  options = cli.define_place()

  def start() -> None:
    from steepest.data import buckets

    study, given = _config(config, optimizers.value), options()
    if plan.value:
      away = targets.value is not None
      _plan(study, given, away, price.value)
      return
    directory = _directory(workdir.value or cli.default_workdir(config))
    sent = None
    if targets.value is not None:
      from steepest.launch.submitters import targets as elsewhere

      sent = elsewhere.Targets(targets.value, given, directory)
    if given.dry_run:
      if sent is None:
        raise ValueError('--dry_run needs --targets; --plan estimates a study')
      print(sent.describe(study))
      return
    if sent is not None:
      sent.check(study)
    # Checkpoints of runs that have ended need no copy.
    choice = buckets.unfinished if sent is None else buckets.trials
    with buckets.staged(directory, 'at this study', choice) as stage:
      _run(study, stage, workers.value, address.value, sent, given.minutes)

  cli.run(start, __doc__, addresses=('workdir',))


def _directory(workdir: str) -> str:
  """Returns the absolute path of a study's directory, or its address."""
  from steepest.data import buckets

  if buckets.is_address(workdir):
    return workdir.rstrip('/')
  return str(pathlib.Path(workdir).absolute())


def _config(holder: flags.FlagHolder, optimizers: str | None) -> 'ConfigDict':
  """Returns the study's configuration with the optimizers of --optimizers."""
  config = cli.required(holder)
  if 'study' not in config:
    raise ValueError(
      '--config is not a study: start from experiments/quickstart.py'
    )
  from steepest.tuning import search, study

  config.study.optimizers = optimizers or config.study.optimizers
  study.complete(config)
  for note in search.notes(config):
    print(f'note: {note}', file=sys.stderr)
  return config


def _run(
  config: 'ConfigDict',
  stage: 'Stage',
  workers: int,
  address: str,
  targets: 'Targets | None',
  minutes: float | None,
) -> None:
  from steepest.data import corpus, locks
  from steepest.training import metrics, processes
  from steepest.tuning import (
    budget as budgets,
    engine,
    study as tuning_study,
    timing,
  )

  start, budget = time.perf_counter(), budgets.Budget(minutes)
  workdir = stage.directory
  with locks.hold(workdir, 'at this study'), _stoppable(workdir, budget):
    with engine.machines(address, workers) as machines:
      config = corpus.ready(config, workdir)
      # Any machine that trains or resumes reads the data there.
      config.data.source = stage.address(config.data.source)
      stage.push()
      send = targets.send if targets else None
      shared = stage if address else None
      study = tuning_study.Study(config, workdir, send, shared)
      metrics.write_json(workdir / 'config.json', json.loads(config.to_json()))
      away = targets is not None
      phases = tuning_study.phases(config, machines.machine, away)
      if not processes.has_accelerator():
        # In case this process is a slot.
        most = max(size for _, size in phases)
        os.environ.update(engine.cpu_devices(most))
      for kinds, size in phases:
        most = max(1, study.breadth(kinds))
        with machines.engine(size, most, workdir / 'logs') as slots:
          if kinds is phases[0][0]:
            tuning_study.check(study, slots, machines.machine)
          tuning_study.run(study, slots, kinds, budget)
          if kinds is phases[-1][0]:
            study.raise_failures()
            if not away and study.over and budget.left > 0:
              timing.run(config, workdir, slots)
    if budget.ended:
      return
    if left := len(study.left()) if minutes is not None else 0:
      print(f'time is up with {left} runs left: the same command resumes')
    if study.has_results:
      _report(workdir, time.perf_counter() - start)


@contextlib.contextmanager
def _stoppable(workdir: pathlib.Path, budget: 'Budget') -> Iterator[None]:
  """Ends the study's time at the first signal.

  Its runs save and stop; then this process exits with a stopped run's status.
  """
  from steepest.training import interrupts
  from steepest.tuning import worker

  stop = workdir / worker.STOP
  stop.unlink(missing_ok=True)

  def receive(number: int, frame: object) -> None:
    if stop.exists():
      os._exit(interrupts.EXIT_CODE)
    stop.touch()
    budget.end()
    name = signal.Signals(number).name
    print(f'{name}: running trials and targets save and stop', file=sys.stderr)

  before = {n: signal.signal(n, receive) for n in _SIGNALS}
  try:
    yield
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
  if stop.exists():
    print('stopped: the same command resumes', file=sys.stderr)
    stop.unlink()
    sys.exit(interrupts.EXIT_CODE)


def _plan(
  config: 'ConfigDict', given: argparse.Namespace, away: bool, price: float
) -> None:
  # Planning needs no accelerator, and one may be in use.
  import jax

  jax.config.update('jax_platforms', 'cpu')
  from steepest.data.terminal import Console
  from steepest.training import chips
  from steepest.tuning import budget, stages

  console = Console(columns=140)
  with console.status('planning'):
    chip, devices = chips.name_of(given.chip or 'h100'), given.devices
    # A target that is its own job has all of them.
    machine = devices if away else 0
    # It would go through what each trace leaves, which is no garbage.
    gc.disable()
    found = stages.of_study(config, chips.find(chip), devices, machine)
  console.print(stages.table(found))
  print(stages.summary(found, chip, devices, price))
  if given.minutes is not None:
    said = (
      f'timed steps will tell what {given.minutes:g} minutes are enough for'
    )
    if all(stage.plan.mfu for stage in found):
      said = budget.within(found, devices, given.minutes)
    print(said)
  if not all(stage.plan.fits for stage in found):
    sys.exit(_DOES_NOT_FIT)


def _report(workdir: pathlib.Path, seconds: float) -> None:
  # --help need not wait for the plot library.
  from steepest.data.terminal import Console
  from steepest.report import report, runs
  from steepest.training import config as training_config

  command = ['python', '-m', 'launch.study', *sys.argv[1:]]
  known = runs.Known(**training_config.known())
  path = report.run(
    [workdir], workdir / 'report', command, known, Console(columns=120)
  )
  print(f'computed for {seconds / 60:.1f} minutes')
  print(f'report: {path}')


if __name__ == '__main__':
  main()

"""Tests whether learning rates carry over from narrow to wide models (µP).

    python -m launch.transfer --config=experiments/transfer.py \\
        --workdir=runs/transfer

Trains every model × optimizer × parametrization at several widths, each with
a grid of learning rates and several seeds, and compares where the best rate
lies. Started again, it skips the runs that are done and goes on. Leaves
transfer.json, transfer.svg and transfer.png in the workdir; --report_only
writes them from the runs that are there.
"""

import importlib.util
import os
import pathlib
from typing import TYPE_CHECKING

from absl import flags

from steepest.launch import cli
from steepest.training import cpu_memory

if TYPE_CHECKING:
  from ml_collections import ConfigDict


def main() -> None:
  """The command."""
  config = cli.define_config()
  workdir = flags.DEFINE_string(
    'workdir', None, 'Directory of the experiment (default runs/CONFIG).'
  )
  workers = flags.DEFINE_integer(
    'workers',
    0,
    'Processes that train side by side; 0: one pinned to each core on a CPU, '
    'one on an accelerator.',
    lower_bound=0,
  )
  report_only = flags.DEFINE_bool(
    'report_only', False, 'Train nothing; report the runs that are there.'
  )
  cli.run(
    lambda: _transfer(config, workdir.value, workers.value, report_only.value),
    __doc__,
  )


def _transfer(
  holder: flags.FlagHolder, given: str | None, workers: int, report_only: bool
) -> None:
  config = cli.required(holder)
  if 'transfer' not in config:
    raise ValueError(
      '--config is no transfer experiment: start from experiments/transfer.py'
    )
  if importlib.util.find_spec('matplotlib') is None:
    raise ValueError(
      "the figures need matplotlib: pip install 'steepest[figures]'"
    )
  workdir = pathlib.Path(given or cli.default_workdir(holder)).absolute()
  if not report_only:
    from steepest.training import config as validation
    from steepest.tuning import ladder

    validation.check_ranges(config)
    todo = ladder.rungs(config)
    for rung in todo:
      lr = ladder.grid(config, rung.optimizer)[0]
      ladder.run_config(config, rung, 0, lr)
    workdir.mkdir(parents=True, exist_ok=True)
    config = _ready(config, workdir)
    _run(config, workdir, workers)
  _report(workdir)


def _ready(config: 'ConfigDict', workdir: pathlib.Path) -> 'ConfigDict':
  """Returns the configuration with its data in place."""
  from ml_collections import ConfigDict

  from steepest.data import corpus

  wanted = ConfigDict(config.to_dict())
  wanted.study = {
    'corpus': config.transfer.corpus,
    'vocab_size': config.transfer.vocab_size,
  }
  ready = corpus.ready(wanted, workdir)
  del ready.study
  return ready


def _run(config: 'ConfigDict', workdir: pathlib.Path, workers: int) -> None:
  """Does all runs; those of one shape go to one worker."""
  from steepest.tuning import climb, pool

  state = climb.State(config, workdir)
  tasks = [task for task in state.tasks() if not state.finished(task)]
  if not tasks:
    return
  # Without an accelerator, workers that are pinned to cores where they can be.
  pinned = (
    workers == 0
    and hasattr(os, 'sched_setaffinity')
    and not cpu_memory.has_accelerator()
  )
  count = workers or (len(os.sched_getaffinity(0)) if pinned else 1)
  with (
    pool.Pool(count, pinned, workdir / 'logs') as pool_,
    climb.Display(state, count) as display,
  ):
    climb.climb(state, tasks, pool_, display)


def _report(workdir: pathlib.Path) -> None:
  from rich.console import Console

  from steepest.eval.parametrization import transfer
  from steepest.eval.plots import transfer as transfer_plots
  from steepest.training import metrics

  result = transfer.analyse(transfer.load(workdir))
  metrics.write_json(workdir / 'transfer.json', result)
  transfer_plots.write(result, workdir)
  console = Console()
  if not console.is_terminal:
    console = Console(width=120)
  transfer.print_table(result, console)
  print(f'transfer: {workdir / "transfer.json"}')


if __name__ == '__main__':
  main()

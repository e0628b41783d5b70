"""Tunes optimizers on proxies, trains targets with the results, compares them.

    python -m launch.study --config=experiments/quickstart.py --workdir=runs/q

For every model × optimizer: a learning-rate search on a proxy, µP transfer of
the best rate to a wider target, target runs with several seeds, benchmark
scores; then the report. Started again, it skips what is done and goes on.
"""

import json
import os
import pathlib
import sys
import time
from typing import TYPE_CHECKING, Any

from absl import flags

from steepest.launch import cli
from steepest.launch import cpu_memory

if TYPE_CHECKING:
  from ml_collections import ConfigDict


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
  cli.run(lambda: _study(config, workdir.value, workers.value), __doc__)


def _study(holder: flags.FlagHolder, given: str | None, workers: int) -> None:
  config = cli.required(holder)
  if 'study' not in config:
    raise ValueError(
      '--config is no study: start from experiments/quickstart.py'
    )
  workdir = pathlib.Path(given or cli.default_workdir(holder)).absolute()
  from steepest.launch import cells
  from steepest.launch import corpus

  for cell in cells.cells(config):
    cells.grid(config, cell)
  workdir.mkdir(parents=True, exist_ok=True)
  config = corpus.ready(config, workdir)
  _write_config(config, workdir)
  start = time.perf_counter()
  _run(config, workdir, workers)
  _report(workdir, time.perf_counter() - start)


def _write_config(config: 'ConfigDict', workdir: pathlib.Path) -> None:
  path = workdir / 'config.json'
  temporary = path.with_name(f'.{path.name}.tmp')
  values = json.loads(config.to_json())
  temporary.write_text(json.dumps(values, indent=2) + '\n', 'utf-8')
  os.replace(temporary, path)


def _run(config: 'ConfigDict', workdir: pathlib.Path, workers: int) -> None:
  """Runs all cells; each first searches, then trains its targets."""
  from steepest.launch import cells
  from steepest.launch import plan
  from steepest.launch import pool

  todo = plan.Plan(config, workdir)
  jobs = [
    {'kind': 'search', 'study': str(workdir), **vars(cell)}
    for cell in cells.cells(config)
    if not todo.done(cell)
  ]
  if not jobs:
    return
  # Without an accelerator, workers that are pinned to cores where they can be.
  pinned = (
    workers == 0
    and hasattr(os, 'sched_setaffinity')
    and not cpu_memory.has_accelerator()
  )
  count = workers or (len(os.sched_getaffinity(0)) if pinned else 1)
  count = min(count, len(jobs))
  failures = []
  with (
    pool.Pool(count, pinned, workdir / 'logs') as workers_,
    plan.Display(todo, count) as display,
  ):
    busy: dict[int, dict[str, Any]] = {}
    for worker in range(count):
      busy[worker] = jobs.pop(0)
      workers_.start(worker, busy[worker])
    for message in workers_.messages():
      worker = message['worker']
      display.show(busy[worker], message)
      if message['kind'] not in ('done', 'failed'):
        continue
      job = busy.pop(worker)
      if message['kind'] == 'failed':
        failures.append(
          f'{job["model"]}-{job["optimizer"]}: {message["error"]}'
        )
      elif job['kind'] == 'search':
        jobs.append({**job, 'kind': 'targets', 'lr': message['lr']})
      for idle in set(range(count)) - set(busy):
        if jobs:
          busy[idle] = jobs.pop(0)
          workers_.start(idle, busy[idle])
      if not busy:
        break
  if failures:
    raise ValueError('; '.join(failures))


def _report(workdir: pathlib.Path, seconds: float) -> None:
  from rich.console import Console

  from steepest.eval import comparison
  from steepest.eval import report

  result = comparison.compare(comparison.load_runs([str(workdir)]))
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

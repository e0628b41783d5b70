"""Takes a study's jobs from stdin, one JSON line each; ends with its parent.

Jobs: {"kind": "search" | "targets", "study": DIR, "model", "optimizer", "lr"};
{"kind": "run", "config": CONFIG, "directory": DIR} trains one run.
Messages on stdout: `row` (a logged row of a run), `run` (a run ended), `done`
(with the best `lr` of a search) and `failed` (with `error`).
"""

import json
import math
import os
import pathlib
import queue
import sys
import threading
from typing import Any

from steepest.launch import cpu_memory


def main() -> None:
  """The process; its argument is the core it stays on, if any."""
  cpu_memory.keep()
  if len(sys.argv) > 1:
    # Before JAX starts: its thread pools follow the cores they are given.
    os.sched_setaffinity(0, {int(sys.argv[1])})
  # Only messages may go to stdout, whatever libraries print.
  messages = os.fdopen(os.dup(1), 'w', encoding='utf-8')
  os.dup2(2, 1)
  jobs: queue.Queue[str] = queue.Queue()
  threading.Thread(target=_read, args=(jobs,), daemon=True).start()

  def say(kind: str, **values: Any) -> None:
    messages.write(json.dumps({'kind': kind, **values}) + '\n')
    messages.flush()

  while True:
    job = json.loads(jobs.get())
    try:
      say('done', lr=_do(job, say))
    except Exception as error:
      import traceback

      traceback.print_exc()
      say('failed', error=' '.join(str(error).split()))


def _read(jobs: queue.Queue[str]) -> None:
  for line in sys.stdin:
    jobs.put(line)
  os._exit(1)


def _do(job: dict[str, Any], say: Any) -> float | None:
  """Does one job and returns the best rate of a search."""
  from ml_collections import ConfigDict

  from steepest.launch import cells

  if job['kind'] == 'run':
    run_config = ConfigDict(job['config'])
    directory = job['directory']
    on_row = lambda row: say(
      'row', run=directory, steps=run_config.steps, row=row
    )
    loss = cells.run_once(run_config, pathlib.Path(directory), on_row)
    say('run', run=directory, loss=loss if math.isfinite(loss) else None)
    return None
  workdir = pathlib.Path(job['study'])
  config = ConfigDict(json.loads((workdir / 'config.json').read_text('utf-8')))
  cell = cells.Cell(job['model'], job['optimizer'])

  def run(run_config: ConfigDict, directory: pathlib.Path) -> float:
    name = str(directory.relative_to(workdir))
    on_row = lambda row: say('row', run=name, steps=run_config.steps, row=row)
    loss = cells.run_once(run_config, directory, on_row)
    say('run', run=name, loss=loss if math.isfinite(loss) else None)
    return loss

  if job['kind'] == 'search':
    return cells.search(config, cell, workdir, run)
  for seed in range(config.study.seeds):
    target = cells.target_config(config, cell, job['lr'], seed)
    run(target, cells.target_dir(workdir, cell, seed))
  return None


if __name__ == '__main__':
  main()

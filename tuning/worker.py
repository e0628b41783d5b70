"""Takes jobs from stdin, one JSON line each; ends with its parent.

Jobs: {"kind": "run", "config": CONFIG, "directory": DIR} trains one run. It may
have "watch": {"window": STEPS, "limits": [[steps done, loss], …]}, above which
the run ends early (tuning/pruning.py).
{"kind": "time", "config": CONFIG} does a run whose directory is thrown away.
Messages on stdout: `row` (a logged row of a run), `run` (a run ended),
`timed` (with the `seconds` of a step), `done` and `failed` (with `error`).
"""

from collections.abc import Callable
import json
import math
import os
import pathlib
import queue
import sys
import tempfile
import threading
from typing import Any

from steepest.training import cpu_memory


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
      _do(job, say)
      say('done')
    except Exception as error:
      import traceback

      traceback.print_exc()
      say('failed', error=' '.join(str(error).split()))


def _read(jobs: queue.Queue[str]) -> None:
  for line in sys.stdin:
    jobs.put(line)
  os._exit(1)


def _do(job: dict[str, Any], say: Callable[..., None]) -> None:
  """Does one job."""
  from ml_collections import ConfigDict

  from steepest.eval import evaluation
  from steepest.training import run as assemble
  from steepest.tuning import cells, pruning

  if job['kind'] == 'time':
    config = ConfigDict(job['config'])
    with tempfile.TemporaryDirectory() as directory:
      summary = assemble.train(config, directory, {})
    say('timed', seconds=summary['seconds'] / config.steps)
    return
  config = ConfigDict(job['config'])
  name = job['directory']
  watcher = None
  if job['watch'] is not None:
    limits = {int(done): loss for done, loss in job['watch']['limits']}
    watcher = pruning.Watch(limits, job['watch']['window'], config.log_every)

  def on_row(row: dict[str, Any]) -> None:
    say('row', run=name, steps=config.steps, row=row)
    if watcher:
      watcher(row)

  make_evaluate = evaluation.evaluator(
    config.eval_tasks, config.eval_tasks_data, config.eval_tasks_limit
  )
  loss = cells.run_once(config, pathlib.Path(name), on_row, make_evaluate)
  say('run', run=name, loss=loss if math.isfinite(loss) else None)


if __name__ == '__main__':
  main()

"""Trains one model.

    python -m launch.train --config=experiments/tiny.py:gpt2,adamw \\
        --config.data.source=shards:DIR --workdir=runs/tiny

Started again with the same workdir, it resumes; a finished run does not change.
The workdir gets config.json, env.json, metrics.jsonl, TensorBoard events,
checkpoints/, on accelerators programs/ (compiled programs), and at the end
summary.json. `launch.submit` starts several processes that share a run and its
workdir (training/processes.py). A workdir at gs:// or s3:// is written through
a local copy (data/buckets.py).
"""

from collections.abc import Iterator
import contextlib
import functools
import pathlib
import secrets
import sys
from typing import TYPE_CHECKING

from absl import flags

from steepest.launch import cli

if TYPE_CHECKING:
  from steepest.data import buckets


def main() -> None:
  """The command."""
  config = cli.define_config()
  workdir = flags.DEFINE_string(
    'workdir', None, 'Directory of the run (default runs/CONFIG-VARIANT).'
  )
  restart = flags.DEFINE_bool(
    'restart',
    False,
    'Resume although the workdir has lost checkpoints or rows: from the '
    'newest checkpoint left, or from the first step.',
  )
  train = lambda: _train(config, workdir.value, restart.value)
  cli.run(train, __doc__, addresses=('workdir',))


def _train(
  holder: flags.FlagHolder, workdir: str | None, restart: bool
) -> None:
  config = cli.required(holder)
  # JAX takes seconds to start; --help and mistyped keys need not wait.
  from steepest.data import locks
  from steepest.eval import evaluation
  from steepest.training import interrupts, mesh, processes, run
  from steepest.tuning import status

  workdir = workdir or cli.default_workdir(holder)
  first = processes.join() == 0
  try:
    with (
      interrupts.StopSignals(config.stop_grace_seconds) as stop,
      _directory(workdir, first) as (directory, stage),
    ):
      mesh.keep_programs(directory / 'programs')
      train = functools.partial(
        run.train,
        config,
        directory,
        overrides=cli.overrides(holder),
        make_evaluate=evaluation.evaluator(
          config.eval_tasks, config.eval_tasks_data, config.eval_tasks_limit
        ),
        stop=stop.requested,
        restart=restart,
        stage=stage,
      )
      if not first:
        # Only the first process shows progress.
        train()
        return
      held = locks.hold(directory, 'training there')
      with held, status.TrainingDisplay(config, workdir) as display:
        summary = train(on_row=display.on_row)
  except interrupts.Stopped as stopped:
    print(stopped, file=sys.stderr)
    sys.exit(interrupts.EXIT_CODE)
  display.finish(summary)
  if config.eval_tasks:
    _show_scores(directory, config.eval_tasks)


@contextlib.contextmanager
def _directory(
  workdir: str, first: bool
) -> 'Iterator[tuple[pathlib.Path, buckets.Stage | None]]':
  """Gives the directory of a run; of one in a bucket, a copy.

  The processes share the first one's copy if all see it. Else each has its own,
  which comes with what keeps it equal to the bucket.
  """
  from steepest.data import buckets
  from steepest.training import processes

  if not buckets.is_address(workdir):
    yield pathlib.Path(workdir), None
    return
  import jax

  with contextlib.ExitStack() as stack:
    stage = buckets.Stage(buckets.copy_of(workdir))
    if first:
      stage = stack.enter_context(buckets.staged(workdir, 'training there'))
    mark = stage.directory / '.lock.job'

    def draw() -> str:
      drawn = secrets.token_hex()
      if first:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.write_text(drawn)
      return drawn

    drawn = processes.gathered(draw)[0]
    sees = lambda: mark.exists() and mark.read_text() == drawn
    if all(processes.gathered(sees)):
      yield stage.directory, None
      return
    join = lambda: stack.enter_context(
      buckets.joined(workdir, f'process-{jax.process_index()}')
    )
    # The first one changes nothing before all have their copies.
    stage = processes.together(lambda: stage if first else join())
    yield stage.directory, stage


def _show_scores(workdir: pathlib.Path, wanted: str) -> None:
  """Prints the scores of the last step, and names tasks that have none."""
  from steepest.data import reading, terminal
  from steepest.eval import evaluation, tasks

  path = workdir / 'eval' / 'results.json'
  scored: list[str] = []
  if path.exists():
    read = reading.json_object(path)
    results = evaluation.Results(read['info'], read['metrics'], [], [])
    results.show(terminal.Console())
    scored = results.info['tasks']
  missing = [t.name for t in tasks.select(wanted).tasks if t.name not in scored]
  if missing:
    how = f'launch.evaluate --model=ckpt:{workdir} --tasks={wanted} --out=DIR'
    if not any((workdir / 'checkpoints').glob('[0-9]*')):
      how = 'it saved no checkpoint to score (checkpoint_every=0)'
    print(
      f'note: {workdir} had finished and does not change: no scores of '
      f'{", ".join(missing[:5])}{" and others" * (len(missing) > 5)}: {how}',
      file=sys.stderr,
    )


if __name__ == '__main__':
  main()

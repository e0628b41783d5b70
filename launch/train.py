"""Trains one model.

    python -m launch.train --config=experiments/tiny.py:gpt2,adamw \\
        --config.data.source=shards:DIR --workdir=runs/tiny

Started again with the same workdir, it goes on where it was; a finished run
is left as it is. The workdir gets config.json, env.json, metrics.jsonl,
TensorBoard events, checkpoints/, on accelerators programs/ (what was compiled)
and at the end summary.json. As one of several processes (training/processes.py;
`launch.submit` starts them) it does its part of the run in a workdir that all
of them see.
"""

import functools
import pathlib
import sys

from absl import flags

from steepest.launch import cli


def main() -> None:
  """The command."""
  config = cli.define_config()
  workdir = flags.DEFINE_string(
    'workdir', None, 'Directory of the run (default runs/CONFIG-VARIANT).'
  )
  restart = flags.DEFINE_bool(
    'restart',
    False,
    'Go on although the workdir lacks checkpoints or rows that it had: from '
    'the newest checkpoint left, or from the first step.',
  )
  cli.run(lambda: _train(config, workdir.value, restart.value), __doc__)


def _train(
  holder: flags.FlagHolder, workdir: str | None, restart: bool
) -> None:
  config = cli.required(holder)
  # JAX starts up for seconds; --help and mistyped keys need not wait.
  from steepest.data import locks
  from steepest.eval import evaluation
  from steepest.training import interrupts, mesh, processes, run
  from steepest.tuning import status

  workdir = workdir or cli.default_workdir(holder)
  first = processes.join() == 0
  mesh.keep_programs(pathlib.Path(workdir) / 'programs')
  train = functools.partial(
    run.train,
    config,
    workdir,
    overrides=cli.overrides(holder),
    make_evaluate=evaluation.evaluator(
      config.eval_tasks, config.eval_tasks_data, config.eval_tasks_limit
    ),
    restart=restart,
  )
  try:
    with interrupts.StopSignals(config.stop_grace_seconds) as stop:
      if not first:
        # The first process shows what goes on, the others help.
        train(stop=stop.requested)
        return
      held = locks.hold(pathlib.Path(workdir), 'training there')
      with held, status.TrainingDisplay(config, workdir) as display:
        summary = train(on_row=display.on_row, stop=stop.requested)
  except interrupts.Stopped as stopped:
    print(stopped, file=sys.stderr)
    sys.exit(interrupts.EXIT_CODE)
  display.finish(summary)
  if config.eval_tasks:
    _show_scores(pathlib.Path(workdir), config.eval_tasks)


def _show_scores(workdir: pathlib.Path, wanted: str) -> None:
  """Prints the scores of the last step, and says which were not asked then."""
  from steepest.data import reading
  from steepest.eval import evaluation, tasks
  from steepest.launch import scores

  path = workdir / 'eval' / 'results.json'
  scored: list[str] = []
  if path.exists():
    read = reading.json_object(path)
    results = evaluation.Results(read['info'], read['metrics'], [], [])
    scores.show(results)
    scored = results.info['tasks']
  missing = [t.name for t in tasks.select(wanted).tasks if t.name not in scored]
  if missing:
    how = f'launch.evaluate --model=ckpt:{workdir} --tasks={wanted} --out=DIR'
    if not any((workdir / 'checkpoints').glob('[0-9]*')):
      how = 'it saved no checkpoint to score (checkpoint_every=0)'
    print(
      f'note: {workdir} had finished and stays as it is, without scores of '
      f'{", ".join(missing[:5])}{" and others" * (len(missing) > 5)}: {how}',
      file=sys.stderr,
    )


if __name__ == '__main__':
  main()

"""Compares runs: writes a page that opens offline, and prints its tables.

    python -m launch.report --runs=runs/study --out=runs/study/report
    python -m launch.report --compare=scores/a,scores/b --out=scores/a-b

--runs: directories are searched for runs; those with stage=final are compared,
those with stage=tune tell how each optimizer was tuned. Runs may still be under
way. A directory with the tables of a report is read likewise. --claims: a page
of a paper's claims, each with what it rests on.
--compare: two models, each scored by launch.evaluate (its --out) or at the end
of its training (its workdir), question by question.
"""

from collections.abc import Sequence
import pathlib
import shlex
import sys

from absl import flags

from steepest.launch import cli


def main() -> None:
  """The command."""
  runs = flags.DEFINE_list(
    'runs', [], 'Run directories, directories that hold some, or tables.'
  )
  compare = flags.DEFINE_list(
    'compare', [], 'Two directories with results.json of the same tasks.'
  )
  out = cli.define_required(
    'out', 'Directory for report.html or compare.html, and its tables.', 'DIR'
  )
  step_times = flags.DEFINE_string(
    'step_times',
    '',
    'JSON like the timing.json of a study, which it stands for.',
  )
  insist = flags.DEFINE_bool(
    'accept_unequal_budgets',
    False,
    'Rank losses and scores of optimizers that were not tuned alike too.',
  )
  claims = flags.DEFINE_bool(
    'claims',
    False,
    'Write claims.md too: what arXiv 2507.08472 claims beside what was found.',
  )

  def run() -> None:
    if bool(runs.value) == bool(compare.value):
      raise ValueError(
        '--runs is missing: give --runs=DIR,… or --compare=DIR,DIR'
        if not runs.value
        else 'give either --runs or --compare'
      )
    if compare.value and len(compare.value) != 2:
      raise ValueError(
        f'--compare takes two directories, there are {len(compare.value)}'
      )
    command = ['python', '-m', 'launch.report', *sys.argv[1:]]
    if compare.value:
      path = _compare(_copies(compare.value), out.value, command)
    else:
      # --help need not wait for the plot library.
      from steepest.data.terminal import Console
      from steepest.report import report, runs as runs_lib
      from steepest.training import config

      path = report.run(
        _copies(runs.value),
        out.value,
        command,
        runs_lib.Known(**config.known()),
        Console(columns=120),
        insist=insist.value,
        step_times=step_times.value,
        claims_too=claims.value,
      )
    print(f'report: {path}')

  places = ('runs', 'compare', 'out')
  cli.run(lambda: cli.write(out, run), __doc__, addresses=places)


def _copies(directories: Sequence[str]) -> list[str]:
  """Returns directories, those of buckets as copies without checkpoints."""
  from steepest.data import buckets

  return [str(buckets.read(name, buckets.rows)) for name in directories]


def _compare(
  directories: Sequence[str], out: str, command: Sequence[str]
) -> pathlib.Path:
  from steepest.data.terminal import Console
  from steepest.report import pairs

  first, second = map(pairs.read, directories)
  pairing = pairs.compare(first, second)
  path = pairs.write(pairing, out, {'Command': shlex.join(command)})
  pairs.print_table(pairing, Console(columns=120))
  return path


if __name__ == '__main__':
  main()

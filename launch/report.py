"""Compares runs: writes an offline HTML page and prints its tables.

    python -m launch.report --runs=runs/study --out=runs/study/report
    python -m launch.report --compare=scores/a,scores/b --out=scores/a-b

--runs searches directories for runs, finished or not, or reads a report's
tables. It compares runs with stage=final; those with stage=tune show how each
optimizer was tuned. --claims adds a page with a paper's claims and the evidence
for each.
--compare compares two models question by question, each scored by
launch.evaluate (give its --out) or during training (give its workdir).
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
    'runs', [], 'Run directories, directories of runs, or tables.'
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
    "JSON file to use in place of a study's timing.json.",
  )
  insist = flags.DEFINE_bool(
    'accept_unequal_budgets',
    False,
    'Also rank losses and scores of optimizers that were not tuned alike.',
  )
  claims = flags.DEFINE_bool(
    'claims',
    False,
    'Also write claims.md: the claims of arXiv 2507.08472 and the findings.',
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
  """Returns directories; of a bucket's, copies without checkpoints."""
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

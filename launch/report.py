"""Compares runs: writes a page that opens offline, and prints its tables.

    python -m launch.report --runs=runs/study --out=runs/study/report
    python -m launch.report --compare=scores/a,scores/b --out=scores/a-b

--runs: directories are searched for runs; those with stage=final are compared,
those with stage=tune give the learning-rate curves. Runs may still be under
way. --transfer: what launch.transfer found about wider models. --claims: a
page of a paper's claims, each with what it rests on.
--compare: two models, each scored by launch.evaluate (its --out) or at the end
of its training (its workdir), question by question.
"""

import pathlib
import sys

from absl import flags
from rich.console import Console

from steepest.launch import cli


def main() -> None:
  """The command."""
  runs = flags.DEFINE_list(
    'runs', [], 'Run directories, or directories that hold some.'
  )
  compare = flags.DEFINE_list(
    'compare', [], 'Two directories with results.json of the same tasks.'
  )
  out = flags.DEFINE_string(
    'out',
    None,
    'Directory for report.html, report.json and report.md, or compare.html '
    'and compare.json.',
  )
  transfer = flags.DEFINE_string(
    'transfer',
    '',
    'Workdir of launch.transfer, whose transfer.json the report shows too.',
  )
  accept = flags.DEFINE_bool(
    'accept_unequal_budgets',
    False,
    'Rank losses and scores of optimizers that were not tuned alike too.',
  )
  page = flags.DEFINE_bool(
    'claims',
    False,
    'Write claims.md too: what arXiv 2507.08472 claims beside what was found.',
  )
  cli.run(
    lambda: _report(
      runs.value,
      compare.value,
      out.value,
      accept.value,
      transfer.value,
      page.value,
    ),
    __doc__,
  )


def _report(
  paths: list[str],
  compared: list[str],
  out: str | None,
  accept: bool,
  transfer_dir: str,
  claims_too: bool,
) -> None:
  if bool(paths) == bool(compared):
    raise ValueError(
      '--runs is missing: give --runs=DIR,… or --compare=DIR,DIR'
      if not paths
      else 'give either --runs or --compare'
    )
  if compared and len(compared) != 2:
    raise ValueError(
      f'--compare takes two directories, there are {len(compared)}'
    )
  if not out:
    raise ValueError('--out is missing: give --out=DIR')
  if compared:
    print(f'report: {_compare(compared, out)}')
    return
  # --help need not wait for the plot library.
  from steepest.eval.comparing import claims, comparison
  from steepest.eval.parametrization import transfer
  from steepest.eval.plots import widths as width_plots
  from steepest.eval.report import page as report_page, report
  from steepest.experiments import base
  from steepest.training import config as validation

  # What older runs lack is what was done before there was a key for it.
  defaults = validation.as_json(base.get_config())
  found = comparison.load_runs(paths, defaults)
  result = comparison.compare(found, accept_unequal_budgets=accept)
  widths = transfer.read(transfer_dir) if transfer_dir else None
  path = report.write(result, out, _command(), widths)
  if claims_too:
    widths = widths or width_plots.own_result(result.runs)
    text = claims.claims_page(result, widths)
    report_page.replace(path.with_name('claims.md'), text)
  report.print_table(result, _console())
  print(f'report: {path}')


def _compare(directories: list[str], out: str) -> pathlib.Path:
  from steepest.eval.comparing import pairs
  from steepest.eval.report import pairs as report_pairs

  pairing = pairs.compare(*map(pairs.read, directories))
  path = report_pairs.write(pairing, out, _command())
  report_pairs.print_table(pairing, _console())
  return path


def _command() -> list[str]:
  return ['python', '-m', 'launch.report', *sys.argv[1:]]


def _console() -> Console:
  console = Console()
  return console if console.is_terminal else Console(width=120)


if __name__ == '__main__':
  main()

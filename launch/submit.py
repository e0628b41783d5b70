"""Runs a recipe on a cluster, as a sweep, or in several processes.

    python -m launch.submit --to=slurm --config=experiments/gpt2_124m.py:lion \\
        --chip=h100 --devices=16 --sweep=optimizer.lr=1e-4,2e-4 --dry_run

--to=local runs several processes on this machine as one JAX program; slurm, sky
and xmanager write a script and submit it; files writes a JSON file for other
launchers. --dry_run prints the script and the plan of launch.bench --plan, and
changes nothing. --option=KEY=VALUE sets an option of --to; docs/launching.md
lists them. Arguments after `--` are passed to the command, as in
`… -- --targets=slurm` for a study.
"""

import argparse
import pathlib
from typing import TYPE_CHECKING

from absl import flags
from ml_collections import config_flags

from steepest.launch import cli

if TYPE_CHECKING:
  from ml_collections import ConfigDict


def main() -> None:
  """The command."""
  config = cli.define_config()
  options = cli.define_place()
  place = flags.DEFINE_enum('to', None, cli.PLACES, 'Where to run.')
  workdir = flags.DEFINE_string(
    'workdir', None, 'Directory of the runs (default runs/CONFIG-VARIANT).'
  )
  sweep = flags.DEFINE_multi_string(
    'sweep', [], 'KEY=VALUE,VALUE,…: one run per value; all combinations.'
  )
  words: list[str] = []
  cli.run(
    lambda: _submit(
      config, options(), place.value, workdir.value, sweep.value, words
    ),
    __doc__,
    words,
    addresses=('workdir',),
  )


def _submit(
  holder: flags.FlagHolder,
  options: argparse.Namespace,
  place: str | None,
  workdir: str | None,
  sweep: list[str],
  words: list[str],
) -> None:
  config = cli.required(holder)
  if place is None:
    raise ValueError(f'give --to={"|".join(cli.PLACES)}')
  from steepest.launch.submitters import job as jobs, places

  study = 'study' in config
  if options.minutes is not None and not study:
    raise ValueError('--minutes is for studies; a run has --hours')
  home = places.workdir_of(place, workdir or cli.default_workdir(holder))
  fixed = cli.overrides(holder)
  # A study is one process on each machine, with slots for its runs.
  many = study and options.processes > 1
  own = (f'--workers={options.processes}',) if many else ()
  given = config_flags.get_config_filename(flags.FLAGS[holder.name])
  recipe = places.recipe_of(place, given)
  within = () if options.minutes is None else (f'--minutes={options.minutes}',)
  units, configs = [], []
  for point, values in jobs.sweep(config, sweep) if sweep else [('', {})]:
    directory = f'{home}/{point}' if point else home
    arguments = (
      f'--config={recipe}',
      *jobs.overrides(fixed | values),
      *own,
      *within,
      *words,
    )
    units.append(jobs.Unit(directory, arguments, point))
    changed: ConfigDict = config.copy_and_resolve_references()
    changed.update_from_flattened_dict(values)
    configs.append(changed)
  name = jobs.name_of(pathlib.PurePath(home).name)
  job = places.describe(place, options, units, name, home, study)
  job, submission, text = places.prepare(place, job, configs, options.check)
  if options.dry_run:
    print(text)
  else:
    places.hand_over(place, job, submission)


if __name__ == '__main__':
  main()

"""Runs a recipe somewhere else, or several times, or in several processes.

    python -m launch.submit --to=slurm --config=experiments/gpt2_124m.py:lion \\
        --chip=h100 --devices=16 --sweep=optimizer.lr=1e-4,2e-4 --dry_run

--to=local runs processes on this machine that JAX joins; slurm and xmanager
write a script and hand it over. --dry_run prints that script and what
launch.bench --plan says of the runs, and touches nothing. --option=KEY=VALUE
sets what only one place has; docs/launching.md lists them.
"""

import argparse
import dataclasses
import importlib
import os
import pathlib
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

from absl import flags
from ml_collections import config_flags

from steepest.launch import cli

if TYPE_CHECKING:
  from ml_collections import ConfigDict

  from steepest.launch.submitters import job as jobs
  from steepest.tuning.plan import StepPlan

_PLACES = ('local', 'slurm', 'xmanager')
# Places that see this machine's files.
_SAME_FILES = ('local', 'slurm')
# JAX would leave a quarter of a GPU's memory unused.
_GPU_MEMORY = {'XLA_PYTHON_CLIENT_MEM_FRACTION': '.95'}
# Of the planned time: a run's limit.
_MARGIN = 1.25
_ROOT = pathlib.Path(__file__).resolve().parent.parent


def main() -> None:
  """The command."""
  config = cli.define_config()
  define = flags.DEFINE_multi_string
  defined = {
    'to': flags.DEFINE_enum('to', None, _PLACES, 'Where it runs.'),
    'workdir': flags.DEFINE_string(
      'workdir', None, 'Directory of the runs (default runs/CONFIG-VARIANT).'
    ),
    'sweep': define(
      'sweep', [], 'KEY=VALUE,VALUE,…: a run for each; several: each with each.'
    ),
    'chip': flags.DEFINE_string(
      'chip', '', "h100, h200, a100, v5e, v5p or v6e; '': no accelerator."
    ),
    'devices': flags.DEFINE_integer(
      'devices', 1, 'Accelerators of a run.', lower_bound=1
    ),
    'nodes': flags.DEFINE_integer(
      'nodes',
      1,
      'Machines that --processes share; with a --chip: what --devices need.',
      lower_bound=1,
    ),
    'processes': flags.DEFINE_integer(
      'processes',
      0,
      'Processes of a run; 0: one a GPU or TPU machine, else one. Of a study: '
      'workers that share its runs.',
      lower_bound=0,
    ),
    'restarts': flags.DEFINE_integer(
      'restarts', 3, 'Times to start again without progress.', lower_bound=0
    ),
    'hours': flags.DEFINE_float(
      'hours', None, 'Limit of a run (default: from the plan).', lower_bound=0.1
    ),
    'option': define('option', [], 'KEY=VALUE of the place.'),
    'env': define('env', [], 'NAME=VALUE of the runs; no secrets.'),
    'check': flags.DEFINE_bool('check', True, 'Refuse what will not fit.'),
    'dry_run': flags.DEFINE_bool('dry_run', False, 'Print, submit nothing.'),
  }

  def command() -> None:
    values = {name: flag.value for name, flag in defined.items()}
    _submit(config, argparse.Namespace(**values))

  cli.run(command, __doc__)


def _submit(holder: flags.FlagHolder, options: argparse.Namespace) -> None:
  config = cli.required(holder)
  if options.to is None:
    raise ValueError(f'give --to={"|".join(_PLACES)}')
  place = importlib.import_module(f'steepest.launch.submitters.{options.to}')
  points, job = _describe(holder, config, options, place.OPTIONS)
  plans, why_none = _plans(config, job, points)
  over = max([plan.peak - plan.capacity for plan in plans], default=0) / 2**30
  if options.check and over > 0:
    raise ValueError(
      f'does not fit, by {over:.1f} GiB a device (launch.bench --plan says of '
      'what); --nocheck submits it all the same'
    )
  if plans and job.hours is None:
    longest = max(plan.hours(config.steps) for plan in plans)
    # Evaluation, compilation and checkpoints come on top.
    hours = round(_MARGIN * longest + 0.5, 1)
    job = dataclasses.replace(job, hours=hours)
  submission = place.submission(job)
  if options.dry_run:
    print('\n'.join(_summary(config, job, options.to, plans, why_none)))
    print(submission.describe())
  elif options.to == 'local':
    place.run(job)
  else:
    _hand_over(submission)


def _describe(
  holder: flags.FlagHolder,
  config: 'ConfigDict',
  options: argparse.Namespace,
  known: dict[str, tuple[str, str]],
) -> tuple[list[dict[str, Any]], 'jobs.Job']:
  """Returns the points of the sweep and the job."""
  from steepest.launch.submitters import job as jobs
  from steepest.training import chips

  is_gpu = bool(options.chip) and chips.find(options.chip).is_gpu
  if not options.chip and options.devices > 1:
    raise ValueError(f'--devices={options.devices}: of which --chip?')
  if not options.chip and options.processes % options.nodes:
    raise ValueError(
      f'--processes={options.processes} do not divide over --nodes='
      f'{options.nodes}'
    )
  workdir = options.workdir or cli.default_workdir(holder)
  name = jobs.name_of(pathlib.PurePath(workdir).name)
  if options.to in _SAME_FILES:
    workdir = os.path.abspath(workdir)
  if not workdir.isprintable():
    raise ValueError(f'--workdir={workdir!r}: has unprintable characters')
  fixed = cli.overrides(holder)
  points = jobs.sweep(config, options.sweep) if options.sweep else [('', {})]
  study = 'study' in config
  if study and options.devices > 1:
    raise ValueError(
      f'--devices={options.devices}: a worker of a study trains on one; '
      '--processes says how many workers there are'
    )
  # A study has one process, which hands its runs to workers of its own.
  many = study and options.processes > 1
  own = (f'--workers={options.processes}',) if many else ()
  units: list[jobs.Unit] = []
  for point, values in points:
    directory = f'{workdir}/{point}' if point else workdir
    arguments = (
      f'--config={_recipe(holder)}',
      *jobs.overrides(fixed | values),
      *own,
    )
    units.append(jobs.Unit(directory, arguments, point))
  folder = pathlib.Path('runs', name, 'submit')
  if options.to in _SAME_FILES:
    folder = pathlib.Path(workdir, 'submit')
  processes = 0 if study else options.processes
  if not processes and options.to == 'local' and is_gpu:
    processes = options.devices
  return [values for _, values in points], jobs.Job(
    name,
    f'steepest.launch.{"study" if study else "train"}',
    tuple(units),
    _ROOT,
    folder,
    options.chip,
    options.devices,
    options.nodes,
    processes,
    options.restarts,
    options.hours,
    (_GPU_MEMORY if is_gpu else {}) | jobs.environment(options.env),
    jobs.options(options.option, known, options.to),
  )


def _recipe(holder: flags.FlagHolder) -> str:
  """Returns --config as any machine with the source finds it."""
  found = config_flags.get_config_filename(flags.FLAGS[holder.name])
  path, colon, variant = found.partition(':')
  resolved = pathlib.Path(path).resolve()
  if resolved.is_relative_to(_ROOT):
    path = resolved.relative_to(_ROOT).as_posix()
  return f'{path}{colon}{variant}'


def _plans(
  config: 'ConfigDict', job: 'jobs.Job', points: list[dict[str, Any]]
) -> 'tuple[list[StepPlan], str]':
  """Returns the plan of each run, or why there are none."""
  if not job.chip:
    return [], 'no accelerator'
  if 'study' in config:
    return [], 'launch.study --plan has those of a study'
  import jax

  # Nothing here needs an accelerator, and one may be in use.
  jax.config.update('jax_platforms', 'cpu')
  from steepest.training import chips, config as validation
  from steepest.tuning import plan

  found = []
  for point in points:
    changed = config.copy_and_resolve_references()
    changed.update_from_flattened_dict(point)
    validation.check_ranges(changed)
    try:
      found.append(plan.plan(changed, chips.find(job.chip), job.devices))
    except ValueError as error:
      if 'set model.vocab_size' in str(error):
        return [], str(error)
      raise
  return found, ''


def _summary(
  config: 'ConfigDict',
  job: 'jobs.Job',
  place: str,
  plans: 'list[StepPlan]',
  why_none: str,
) -> list[str]:
  """Returns lines that say what is to run."""
  runs = 'one run' if len(job.units) == 1 else f'{len(job.units)} runs'
  lines = [f'# {job.name}: {runs} of {job.module} on {place}']
  if job.chip:
    # One process a GPU with SLURM, else one a machine.
    processes = {'slurm': job.devices, 'local': max(job.processes, 1)}
    lines.append(
      f'# each: {job.devices} × {job.chip}, machines: {job.hosts} of '
      f'{job.per_host}, processes: {processes.get(place, job.hosts)}'
    )
  elif job.processes > 1:
    lines.append(f'# each: {job.processes} processes')
  if why_none:
    lines.append(f'# no plan: {why_none}')
  for unit, plan in zip(job.units, plans):
    mesh = ' '.join(f'{axis}={size}' for axis, size in plan.mesh.items())
    lines.append(
      f'# {unit.point or "plan"}: mesh {mesh}; {plan.peak / 2**30:.1f} of '
      f'{plan.capacity / 2**30:.1f} GiB a device; {plan.seconds:.3f} s a step; '
      f'{plan.hours(config.steps):.1f} h'
    )
  return lines


def _hand_over(submission: 'jobs.Submission') -> None:
  """Writes the files and runs the commands."""
  program, hint = submission.needs
  if shutil.which(program) is None:
    raise FileNotFoundError(
      f'no {program} here: {hint}, or add --dry_run to see what it would get'
    )
  from steepest.data import files

  for path, text in submission.files.items():
    files.write(path, [text.encode()])
    print(f'wrote {path}')
  for argv in submission.commands:
    done = subprocess.run(argv, check=False)
    if done.returncode:
      raise ChildProcessError(f'{argv[0]} ended with {done.returncode}')


if __name__ == '__main__':
  main()

"""What all places share: flags, plans and submission."""

import argparse
import dataclasses
import importlib
import math
import os
import pathlib
import secrets
import shutil
import subprocess
from types import ModuleType
from typing import TYPE_CHECKING

from steepest.data import buckets, files
from steepest.experiments import base
from steepest.launch.submitters import inputs, job as jobs
from steepest.training import chips

if TYPE_CHECKING:
  from ml_collections import ConfigDict

  from steepest.tuning.plan import StepPlan

# Places that see this machine's files.
_SAME_FILES = ('local', 'slurm', 'files')
# By default JAX leaves a quarter of a GPU's memory unused.
_GPU_MEMORY = {'XLA_PYTHON_CLIENT_MEM_FRACTION': '.95'}
# A run's time limit, as a multiple of its planned time.
_MARGIN = 1.25
# Minutes that a study's job gets beyond --minutes, to start and to write its
# report before the signal that comes five minutes before the end.
_AROUND = 15
# This checkout; in an installation, a directory without setup.py.
_SOURCE = pathlib.Path(__file__).resolve().parent.parent.parent


def root_of(place: str) -> pathlib.Path:
  """Returns the directory that a place runs its commands in, or is sent.

  Places without this machine's files get the checkout; an installation sends
  the current directory.
  """
  sent = place not in _SAME_FILES and (_SOURCE / 'setup.py').exists()
  return _SOURCE if sent else pathlib.Path.cwd()


def recipe_of(place: str, spec: str) -> str:
  """Returns a recipe, FILE.py[:VARIANT], as the machines find it.

  Recipes of the package are experiments/F.py on any machine.

  Raises:
    ValueError: it is not in the directory that the place is sent.
  """
  path, colon, variant = spec.partition(':')
  found, shipped = pathlib.Path(path).resolve(), pathlib.Path(base.__file__)
  root = root_of(place)
  if found.is_relative_to(shipped.resolve().parent):
    path = f'experiments/{found.relative_to(shipped.resolve().parent)}'
  elif place not in _SAME_FILES:
    if not found.is_relative_to(root):
      raise ValueError(
        f'--config={path}: --to={place} sends only {root}: copy it there'
      )
    path = found.relative_to(root).as_posix()
  return f'{path}{colon}{variant}'


def workdir_of(place: str, workdir: str) -> str:
  """Returns a run's directory as the machines see it.

  Raises:
    ValueError: it has unprintable characters, or is an unsupported address.
  """
  if buckets.is_address(workdir):
    workdir = workdir.rstrip('/')
  elif place in _SAME_FILES:
    workdir = os.path.abspath(workdir)
  if not workdir.isprintable():
    raise ValueError(f'--workdir={workdir!r}: has unprintable characters')
  return workdir


def describe(
  place: str,
  options: argparse.Namespace,
  units: list[jobs.Unit],
  name: str,
  home: str,
  study: bool = False,
) -> jobs.Job:
  """Returns a job from the flags of launch/cli.py.

  Args:
    place: where it runs.
    options: values of the flags.
    units: runs.
    name: of the job.
    home: directory of all runs, as the machines see it.
    study: whether a unit is a study.

  Raises:
    ValueError: the flags contradict each other.
  """
  chip = chips.name_of(options.chip) if options.chip else ''
  is_gpu = bool(chip) and chips.find(chip).is_gpu
  devices, processes = options.devices, 0 if study else options.processes
  if study and chip and options.nodes > 1:
    devices = options.nodes * chips.find(chip).host
  if not chip and devices > 1:
    raise ValueError(f'--devices={devices}: give their --chip')
  if not chip and processes % options.nodes:
    raise ValueError(
      f'--processes={processes} do not divide over --nodes={options.nodes}'
    )
  if not processes and place == 'local' and is_gpu:
    processes = devices
  hours, away = options.hours, buckets.is_address(home)
  if study and hours is None and options.minutes is not None:
    hours = (options.minutes + _AROUND) / 60
  folder = pathlib.Path('runs', jobs.name_of(pathlib.PurePath(home).name))
  if place in _SAME_FILES:
    folder = pathlib.Path.cwd() / folder if away else pathlib.Path(home)
  job = jobs.Job(
    name,
    f'steepest.launch.{"study" if study else "train"}',
    tuple(units),
    root_of(place),
    folder / 'submit',
    chip,
    devices,
    options.nodes,
    processes,
    options.restarts,
    hours,
    (_GPU_MEMORY if is_gpu else {}) | jobs.environment(options.env),
    jobs.options(options.option, _module(place).OPTIONS, place),
  )
  installs = 'install' in job.options and job.options['install']
  if place not in _SAME_FILES and not installs:
    if not (job.root / 'setup.py').exists():
      raise ValueError(
        f'--to={place}: sends a checkout of steepest, but this is an '
        'installation: run it from a checkout'
        + ', or add --option=install=WHAT'
        * ('install' in job.options)
      )
  if study and job.hosts > 1 and place not in ('slurm', 'sky'):
    raise ValueError(
      f'--to={place}: a study takes one machine there, not {job.hosts}; use '
      '--targets or --engine for more (docs/launching.md)'
    )
  return job


def prepare(
  place: str, job: jobs.Job, configs: 'list[ConfigDict]', check: bool
) -> tuple[jobs.Job, jobs.Submission, str]:
  """Plans a job's runs and checks that their inputs exist; changes nothing.

  Args:
    place: where it runs.
    job: the job.
    configs: of the units.
    check: whether to refuse runs that do not fit or whose inputs are missing.

  Returns:
    The job with its time limit, what the place would get, and both as text.

  Raises:
    FileNotFoundError: an input of a run does not exist.
    ValueError: a run does not fit, or the place has no such machines.
  """
  unseen = []
  for name in inputs.read_by(configs):
    if place not in _SAME_FILES or '://' in name:
      unseen.append(name)
    elif check:
      inputs.check(name)
  plans, why_none = _plans(job, configs)
  over = max([plan.peak - plan.capacity for plan in plans], default=0) / 2**30
  if check and over > 0:
    raise ValueError(
      f'does not fit, by {over:.1f} GiB a device (see launch.bench --plan); '
      '--nocheck submits it anyway'
    )
  hours = [plan.hours(config.steps) for plan, config in zip(plans, configs)]
  if hours and job.hours is None and not math.isnan(max(hours)):
    # Rounded up: the plan leaves out evaluation, compilation and checkpoints.
    limit = round(_MARGIN * max(hours) + 0.5, 1)
    job = dataclasses.replace(job, hours=limit)
  submission = _module(place).submission(job)
  summary = _summary(job, place, plans, hours, why_none)
  summary += [f'# read there, not checked from here: {n}' for n in unseen]
  return job, submission, '\n'.join([*summary, submission.describe()])


def _module(place: str) -> ModuleType:
  return importlib.import_module(f'steepest.launch.submitters.{place}')


def _plans(
  job: jobs.Job, configs: 'list[ConfigDict]'
) -> 'tuple[list[StepPlan], str]':
  """Returns the plan of each run, or why there are none."""
  if not job.chip:
    return [], 'no accelerator'
  if job.is_study:
    return [], 'launch.study --plan estimates a study'
  import jax

  # Planning needs no accelerator, and one may be in use.
  jax.config.update('jax_platforms', 'cpu')
  from steepest.training import config as validation
  from steepest.tuning import plan

  found = []
  for config in configs:
    validation.check_ranges(config)
    try:
      found.append(plan.plan(config, chips.find(job.chip), job.devices))
    except ValueError as error:
      if 'set model.vocab_size' in str(error):
        return [], str(error)
      raise
  return found, ''


def _summary(
  job: jobs.Job,
  place: str,
  plans: 'list[StepPlan]',
  hours: list[float],
  why_none: str,
) -> list[str]:
  """Returns lines that describe a job."""
  runs = 'one run' if len(job.units) == 1 else f'{len(job.units)} runs'
  lines = [f'# {job.name}: {runs} of {job.module} on {place}']
  if job.chip:
    # SLURM starts a process for each GPU, other places one for each machine.
    processes = {'slurm': job.devices, 'local': max(job.processes, 1)}
    if job.is_study:
      processes = {}
    lines.append(
      f'# each: {job.devices} × {job.chip}, machines: {job.hosts} of '
      f'{job.per_host}, processes: {processes.get(place, job.hosts)}'
    )
  elif job.processes > 1:
    lines.append(f'# each: {job.processes} processes')
  if why_none:
    lines.append(f'# no plan: {why_none}')
  for unit, plan, of_run in zip(job.units, plans, hours):
    mesh = ' '.join(f'{axis}={size}' for axis, size in plan.mesh.items())
    lines.append(
      f'# {unit.point or "plan"}: mesh {mesh}; {plan.peak / 2**30:.1f} of '
      f'{plan.capacity / 2**30:.1f} GiB a device; '
      + (
        f'{plan.seconds:.3f} s a step; {of_run:.1f} h'
        if plan.mfu
        else 'no MFU is known, so hours are unknown'
      )
    )
  return lines


def check_program(submission: jobs.Submission) -> None:
  """Raises a FileNotFoundError if the program that submits is missing."""
  program, hint = submission.needs
  if program and shutil.which(program) is None:
    raise FileNotFoundError(
      f'no {program} here: {hint}, or add --dry_run to see the submission'
    )


def hand_over(place: str, job: jobs.Job, submission: jobs.Submission) -> None:
  """Writes the files and runs the commands; waits for local runs.

  Raises:
    OSError: a program is missing or failed.
  """
  if place == 'local':
    _module(place).run(job)
    return
  check_program(submission)
  for path, text in submission.files.items():
    files.write(path, [text.encode()])
    print(f'wrote {path}')
  for argv in submission.commands:
    drawn = {name: secrets.token_hex(32) for name in submission.secrets}
    done = subprocess.run(argv, env=os.environ | drawn, check=False)
    if done.returncode:
      raise ChildProcessError(f'{argv[0]} ended with {done.returncode}')

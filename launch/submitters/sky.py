"""SkyPilot: a task file a run, for any cloud, Kubernetes and TPU VMs.

Managed jobs (`sky jobs launch`) find machines, again where spot ones are taken
away, and start again what fails; the run goes on from its last checkpoint,
which the machines need to share: in a bucket, which several need to have
mounted. Each machine is one process; SkyPilot tells it which, and the address
of the first. A slice of TPUs is one node, whose machines JAX knows. The
machines of a study of several are those of a Ray of its own, beside SkyPilot's.
"""

import shlex

import yaml

from steepest.launch.submitters import job as jobs
from steepest.training import chips

# Keys of a task's resources, so that misspelt ones are found here.
_RESOURCES = """
  accelerator_args accelerators any_of autostop cloud cpus disk_size disk_tier
  image_id infra instance_type job_recovery labels local_disk max_hourly_cost
  memory network_tier ordered ports priority region use_spot zone
"""
OPTIONS = {
  'bucket': ('', 'Mounted at /bucket, as in gs://NAME: --workdir=/bucket/RUN.'),
  'install': (
    '',
    "What pip installs there, such as 'steepest[cuda] @ git+URL' or a wheel in "
    "this directory; '': the checkout.",
  ),
  '*': (
    _RESOURCES,
    'Any other: a key of resources, such as infra, use_spot or image_id.',
  ),
}
_OWN = ('bucket', 'install')
_GPUS = {
  **{name: name.upper() for name, chip in chips.CHIPS.items() if chip.is_gpu},
  'a100': 'A100-80GB',
}
# By generation, and what a slice's name counts of a chip.
_TPUS = {'v5e': ('v5litepod', 1), 'v5p': ('v5p', 2), 'v6e': ('v6e', 1)}
# Of the first machine. SkyPilot's own Ray has 6380.
_PORT = 8476
_FIRST = 'first=$(head -n 1 <<< "$SKYPILOT_NODE_IPS")'
_TOKEN = 'RAY_AUTH_TOKEN'


def submission(job: jobs.Job) -> jobs.Submission:
  """Returns a task file for each run, and the commands that start them.

  Raises:
    ValueError: there is no such slice of TPUs.
  """
  files, commands = {}, []
  secrets = (_TOKEN,) if job.is_study and job.hosts > 1 else ()
  for i, unit in enumerate(job.units):
    number = f'-{i}' if len(job.units) > 1 else ''
    path = job.folder / f'{job.name}{number}.yaml'
    files[path] = _task(job, unit, f'{job.name}{number}')
    # -d: the jobs are SkyPilot's now, and the next one is to start.
    secret = [f'--secret={name}' for name in secrets]
    commands.append(('sky', 'jobs', 'launch', '-y', '-d', *secret, str(path)))
  hint = 'pip install skypilot in an environment of its own'
  return jobs.Submission(files, tuple(commands), ('sky', hint), secrets)


def _task(job: jobs.Job, unit: jobs.Unit, name: str) -> str:
  tpu = bool(job.chip) and not job.is_gpu
  nodes = 1 if tpu else job.hosts
  run = []
  environment = dict(job.environment)
  command = shlex.join(unit.command('python', job.module))
  if tpu and job.hosts > 1:
    if job.is_study:
      raise ValueError(
        f'{job.devices} × {job.chip}: a study has one machine of TPUs, not '
        f'{job.hosts}; its --targets may have more (docs/launching.md)'
      )
    environment['STEEPEST_DISTRIBUTED'] = 'auto'
  elif nodes > 1 and job.is_study:
    run += [
      _FIRST,
      f'export FIRST=$first:{_PORT} PYTHON=python',
      'RANK=$SKYPILOT_NODE_RANK CPUS=$(nproc)',
      f': "${{{_TOKEN}:?start this with sky jobs launch --secret={_TOKEN}}}"',
      f'set -- {command}',
    ]
    command = jobs.RAY_NODE.strip()
  elif nodes > 1:
    run += [
      _FIRST,
      f'export STEEPEST_COORDINATOR=$first:{_PORT}',
      'export STEEPEST_PROCESSES=$SKYPILOT_NUM_NODES',
      'export STEEPEST_PROCESS=$SKYPILOT_NODE_RANK',
    ]
  run.append(command)
  bucket = job.options['bucket']
  own = {k: v for k, v in job.options.items() if k not in _OWN}
  task = {
    'name': name,
    # With what .gitignore leaves of it.
    'workdir': str(job.root),
    'num_nodes': nodes,
    'resources': {
      **_accelerators(job),
      'job_recovery': {
        'max_restarts_on_errors': job.restarts,
        # What asks to be started again is no error.
        'recover_on_exit_codes': [jobs.STOPPED],
      },
      **{key: _value(value) for key, value in own.items()},
    },
    **(
      {'file_mounts': {'/bucket': {'source': bucket, 'mode': 'MOUNT'}}}
      if bucket
      else {}
    ),
    'envs': environment,
    'setup': f'pip install {_installed(job)}',
    'run': '\n'.join(run),
  }
  return yaml.dump(
    task, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**6
  )


def _installed(job: jobs.Job) -> str:
  """Returns what pip installs on the machines."""
  if job.options['install']:
    return shlex.quote(job.options['install'])
  extras = 'test' if not job.chip else 'cuda' if job.is_gpu else 'tpu'
  if job.is_study and job.is_gpu and job.hosts > 1:
    extras += ',ray'
  if job.in_buckets:
    extras += ',buckets'
  return f"-c constraints.txt -e '.[{extras}]'"


def _accelerators(job: jobs.Job) -> dict[str, object]:
  if not job.chip:
    return {}
  if job.is_gpu:
    return {'accelerators': {_GPUS[job.chip]: job.per_host}}
  chips.among(job.chip, [*_GPUS, *_TPUS], f'--chip={job.chip}: --to=sky has')
  # Raises where there is no such slice.
  chips.topology(job.chip, job.devices)
  generation, cores = _TPUS[job.chip]
  return {'accelerators': {f'tpu-{generation}-{cores * job.devices}': 1}}


def _value(text: str) -> object:
  """Returns true, false and whole numbers as what they are."""
  words = {'true': True, 'false': False}
  return int(text) if text.isdigit() else words.get(text, text)


class _Dumper(yaml.SafeDumper):
  """Shows texts of several lines as such."""


def _text(dumper: _Dumper, text: str) -> yaml.Node:
  style = '|' if '\n' in text else None
  return dumper.represent_scalar('tag:yaml.org,2002:str', text, style=style)


_Dumper.add_representer(str, _text)

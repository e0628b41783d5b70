"""SkyPilot: a task file for each run, on any cloud, Kubernetes and TPU VMs.

Managed jobs (`sky jobs launch`) find machines, replace spot machines that are
taken away, and restart runs that fail. A run resumes from its last checkpoint,
so its workdir must be in a bucket, mounted if several machines share the run.
Each machine runs one process; SkyPilot gives it its rank and the first
machine's address. A TPU slice is one node, whose machines JAX finds. A study on
several machines has its own Ray cluster, beside SkyPilot's.
"""

import shlex

import yaml

from steepest.launch.submitters import job as jobs
from steepest.training import chips

# Keys of a task's resources, to catch misspelt ones here.
_RESOURCES = """
  accelerator_args accelerators any_of autostop cloud cpus disk_size disk_tier
  image_id infra instance_type job_recovery labels local_disk max_hourly_cost
  memory network_tier ordered ports priority region use_spot zone
"""
OPTIONS = {
  'bucket': (
    '',
    'Bucket such as gs://NAME, mounted at /bucket: --workdir=/bucket/RUN.',
  ),
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
# Generation in a slice's name, and the units per chip that the name counts.
_TPUS = {'v5e': ('v5litepod', 1), 'v5p': ('v5p', 2), 'v6e': ('v6e', 1)}
# Port of the first machine. SkyPilot's own Ray has 6380.
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
    # -d returns once the job is submitted.
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
        f'{job.devices} × {job.chip}: a study takes one TPU machine, not '
        f'{job.hosts}; its --targets may take more (docs/launching.md)'
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
    # SkyPilot leaves out what .gitignore names.
    'workdir': str(job.root),
    'num_nodes': nodes,
    'resources': {
      **_accelerators(job),
      'job_recovery': {
        'max_restarts_on_errors': job.restarts,
        # A stopped run asks to be restarted; that is no error.
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
  # Raises if there is no such slice.
  chips.topology(job.chip, job.devices)
  generation, cores = _TPUS[job.chip]
  return {'accelerators': {f'tpu-{generation}-{cores * job.devices}': 1}}


def _value(text: str) -> object:
  """Parses true, false and whole numbers; returns other text as it is."""
  words = {'true': True, 'false': False}
  return int(text) if text.isdigit() else words.get(text, text)


class _Dumper(yaml.SafeDumper):
  """Writes multi-line strings as literal blocks."""


def _text(dumper: _Dumper, text: str) -> yaml.Node:
  style = '|' if '\n' in text else None
  return dumper.represent_scalar('tag:yaml.org,2002:str', text, style=style)


_Dumper.add_representer(str, _text)

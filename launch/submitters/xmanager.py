"""XManager: a launch script to run in a separate environment.

XManager's pins clash with this project's, so only the script imports it. Each
point of a sweep is a work unit; several machines are one job group. They find
each other by CLUSTER_SPEC on Vertex AI and by the pods' names on Kubernetes.
The script packs the commit at HEAD: XManager would pack the whole directory,
with runs and environments.
"""

import pprint
import shlex

from steepest.launch.submitters import job as jobs
from steepest.training import chips

OPTIONS = {
  'executor': ('vertex', 'local, vertex or kubernetes.'),
  'image': ('python:3.12', 'Image that the package is installed into.'),
  'memory_gib': ('', "Memory of a machine in GiB; '': all of it."),
  'mount': ('', 'Directory mounted in a local run under the same path.'),
}
_EXECUTORS = {'local': 'Local', 'vertex': 'Vertex', 'kubernetes': 'Kubernetes'}
# Vertex AI's machine types by GPU and number of GPUs. XManager knows none for
# these GPUs and would ask for one that cannot have them.
_MACHINES = {
  'h100': {n: f'a3-highgpu-{n}g' for n in (1, 2, 4, 8)},
  'h200': {8: 'a3-ultragpu-8g'},
  'a100': {n: f'a2-ultragpu-{n}g' for n in (1, 2, 4, 8)},
}
_RESOURCES = {
  'h100': 'h100',
  'h200': 'h200',
  'a100': 'a100_80gib',
  'v5e': 'tpu_v5e',
  'v5p': 'tpu_v5p',
  'v6e': 'tpu_v6e',
}

_SCRIPT = '''"""Launches {name} on XManager.

    pip install xmanager 'kubernetes<36'    # in an environment of its own
    xmanager launch THIS_FILE
"""

import contextlib
import pathlib
import subprocess
import tempfile
from typing import Iterator

from absl import app
from xmanager import xm
from xmanager import xm_local
{imports}
_NAME = {name!r}
_ROOT = {root!r}
# What each machine runs, with the arguments of its unit.
_COMMANDS = {commands}
# Each is a work unit: the arguments of one run.
_UNITS = {units}
_ENVIRONMENT = {environment}
_HOSTS = {hosts}

{machine}
@contextlib.contextmanager
def _source() -> Iterator[str]:
  """Yields a directory with the commit at HEAD."""
  git = ['git', '-C', _ROOT, 'archive', 'HEAD']
  archive = subprocess.run(git, check=True, capture_output=True).stdout
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder, 'steepest')
    path.mkdir()
    subprocess.run(['tar', '-x', '-C', path], input=archive, check=True)
    yield str(path)


def _requirements({parameters}) -> xm.JobRequirements:
  return xm.JobRequirements({resources})


def _executable(experiment: xm.Experiment, source: str) -> xm.Executable:
  [executable] = experiment.package(
    [
      xm.python_container(
        xm_local.{executor}.Spec(),
        entrypoint=xm.CommandList(_COMMANDS),
        path=source,
        base_image={image!r},
        docker_instructions=[
          'COPY steepest/ /steepest',
          'WORKDIR /steepest',
          'RUN pip install -c constraints.txt -e ".[{extra}]"',
        ],
        env_vars=_ENVIRONMENT,
      )
    ]
  )
  return executable

{unit}

def main(_) -> None:
  with (
    xm_local.create_experiment(experiment_title=_NAME) as experiment,
    _source() as source,
  ):
    executable = _executable(experiment, source)
    for arguments in _UNITS:
      experiment.add(_unit(executable, arguments))


if __name__ == '__main__':
  app.run(main)
'''
# XManager restarts nothing, and bash, the container's first process, would not
# pass on a signal to stop.
_ENTRYPOINT = """train() {{
  local left={restarts} status stopping=
  trap 'stopping=1; kill -TERM "$!"' TERM
  while :; do
    python -m {module} "$@" &
    wait "$!"
    status=$?
    if [ -n "$stopping" ]; then wait "$!"; return "$?"; fi
    if (( status == 0 || left == 0 )); then return "$status"; fi
    left=$(( left - 1 ))
  done
}}
train "$@"
"""
_MACHINE = """
# XManager asks for n1-standard-4 if it knows no machine with such a GPU.
_spec_of = vertex.get_machine_spec
vertex.get_machine_spec = lambda job: {{
  **_spec_of(job),
  'machine_type': {machine!r},
}}

"""
_SINGLE = """
def _unit(executable: xm.Executable, arguments: list[str]) -> xm.Job:
  executor = xm_local.{executor}({arguments})
  return xm.Job(executable, executor, args=arguments)
"""
_VERTEX = """
def _unit(executable: xm.Executable, arguments: list[str]) -> xm.JobGroup:
  # Vertex AI's first pool must be one machine; the CLUSTER_SPEC that it sets
  # tells each process its rank.
  make = lambda replicas: xm.Job(
    executable,
    xm_local.Vertex(requirements=_requirements(replicas)),
    args=arguments,
  )
  return xm.JobGroup(first=make(1), others=make(_HOSTS - 1))
"""
_KUBERNETES = """
def _unit(executable: xm.Executable, arguments: list[str]):
  async def make(work_unit: xm.WorkUnit) -> None:
    first = addressing.k8s_pod_domain(
      'host0', work_unit.experiment_id, work_unit.work_unit_id
    )
    hosts = {{}}
    for i in range(_HOSTS):
      hosts[f'host{{i}}'] = xm.Job(
        executable,
        xm_local.Kubernetes({arguments}),
        args=arguments,
        env_vars={{
          'STEEPEST_COORDINATOR': first,
          'STEEPEST_PROCESSES': str(_HOSTS),
          'STEEPEST_PROCESS': str(i),
        }},
      )
    work_unit.add(xm.JobGroup(**hosts))

  return make
"""


def submission(job: jobs.Job) -> jobs.Submission:
  """Returns the launch script and the command that runs it.

  Raises:
    ValueError: the executor is unknown or has no such machine.
  """
  executor = job.options['executor']
  if executor not in _EXECUTORS:
    raise ValueError(
      f'--option=executor={executor}: give one of {", ".join(_EXECUTORS)}'
    )
  if executor != 'local' and job.chip:
    said = f'--chip={job.chip}: --to=xmanager has'
    chips.among(job.chip, _RESOURCES, said)
  if executor == 'local' and job.hosts > 1:
    raise ValueError('--option=executor=local: takes only one machine')
  path = job.folder / f'{job.name.replace("-", "_")}_xm.py'
  return jobs.Submission(
    {path: _script(job)},
    (('xmanager', 'launch', str(path)),),
    ('xmanager', 'pip install xmanager in a separate environment'),
  )


def _script(job: jobs.Job) -> str:
  executor = job.options['executor']
  # A TPU slice is one job, however many machines it has.
  several = job.hosts > 1 and job.is_gpu
  forms = {'vertex': _VERTEX, 'kubernetes': _KUBERNETES}
  unit = (forms[executor] if several else _SINGLE).format(
    executor=_EXECUTORS[executor], arguments=_executor_arguments(job)
  )
  replicas = several and executor == 'vertex'
  imports = machine = ''
  if several and executor == 'kubernetes':
    imports = 'from xmanager.contrib import addressing\n'
  if executor == 'vertex' and job.is_gpu:
    imports = 'from xmanager.cloud import vertex\n'
    machine = _MACHINE.format(machine=_machine(job))
  units = [[*unit.arguments, f'--workdir={unit.workdir}'] for unit in job.units]
  environment = dict(job.environment)
  if job.hosts > 1 and not several:
    environment['STEEPEST_DISTRIBUTED'] = 'auto'
  show = lambda value: pprint.pformat(value, width=60, sort_dicts=False)
  commands = _ENTRYPOINT.format(
    restarts=job.restarts, module=shlex.quote(job.module)
  )
  return _SCRIPT.format(
    name=job.name,
    imports=imports,
    machine=machine,
    root=str(job.root),
    commands=show(commands.splitlines()),
    units=show(units),
    environment=show(environment),
    hosts=job.hosts,
    parameters='replicas: int' if replicas else '',
    resources=_resources(job, replicas),
    executor=_EXECUTORS[executor],
    image=job.options['image'],
    extra=('tpu' if job.chip and not job.is_gpu else 'cuda')
    + ',buckets' * job.in_buckets,
    unit=unit,
  )


def _machine(job: jobs.Job) -> str:
  """Returns Vertex AI's name of a machine with the job's GPUs."""
  machines = _MACHINES[job.chip]
  if job.per_host not in machines:
    counts = ', '.join(map(str, machines))
    raise ValueError(
      f'--devices={job.devices}: Vertex AI machines have {counts} × {job.chip}'
    )
  return machines[job.per_host]


def _executor_arguments(job: jobs.Job) -> str:
  arguments = ['requirements=_requirements()']
  mount = job.options['mount']
  if job.options['executor'] == 'local' and mount:
    volumes = f'{{{mount!r}: {mount!r}}}'
    arguments.append(
      f'docker_options=xm_local.DockerOptions(volumes={volumes})'
    )
  if job.options['executor'] == 'kubernetes' and job.is_gpu:
    # Otherwise it selects nodes by a label that GKE sets only for older GPUs.
    arguments.append("cloud_provider='any'")
  return ', '.join(arguments)


def _resources(job: jobs.Job, replicas: bool) -> str:
  arguments = []
  if job.options['executor'] == 'local':
    # Any of this machine's GPUs will do.
    if job.chip:
      arguments.append(f'local_gpu={job.per_host}')
  elif job.is_gpu:
    arguments.append(f'{_RESOURCES[job.chip]}={job.per_host}')
  elif job.chip:
    topology = chips.topology(job.chip, job.devices)
    arguments.append(f'{_RESOURCES[job.chip]}={topology!r}')
  if job.options['memory_gib']:
    arguments.append(f'memory={float(job.options["memory_gib"]):g} * xm.GiB')
  if replicas:
    arguments.append('replicas=replicas')
  return ', '.join(arguments)

"""XManager: a launch script in its form, for an environment of its own.

XManager's pins clash with this project's, so it is named in the script alone.
A sweep's points are work units. Several machines are one job group: Vertex AI
tells its machines who is who, on Kubernetes the pods' names do.
"""

import pprint

from steepest.launch import job as jobs
from steepest.launch.submitters import tpu

OPTIONS = {
  'executor': ('vertex', 'local, vertex or kubernetes.'),
  'image': ('python:3.12', 'Image that the package is installed into.'),
  'memory_gib': ('', "Memory of a machine; '': as many as it has."),
}
_EXECUTORS = {'local': 'Local', 'vertex': 'Vertex', 'kubernetes': 'Kubernetes'}
_RESOURCES = {
  'h100': 'h100',
  'h200': 'h200',
  'a100': 'a100_80gib',
  'v5e': 'tpu_v5e',
  'v5p': 'tpu_v5p',
  'v6e': 'tpu_v6e',
}

_SCRIPT = '''"""Launches {name} on XManager.

    pip install xmanager    # in an environment of its own
    xmanager launch THIS_FILE
"""

import pathlib

from absl import app
from xmanager import xm
from xmanager import xm_local
{imports}
_NAME = {name!r}
_ROOT = {root!r}
_MODULE = {module!r}
# Each is a work unit: the arguments of one run.
_UNITS = {units}
_ENVIRONMENT = {environment}
_HOSTS = {hosts}


def _requirements({parameters}) -> xm.JobRequirements:
  return xm.JobRequirements({resources})


def _executable(experiment: xm.Experiment) -> xm.Executable:
  folder = pathlib.Path(_ROOT).name
  [executable] = experiment.package(
    [
      xm.python_container(
        xm_local.{executor}.Spec(),
        entrypoint=xm.ModuleName(_MODULE),
        path=_ROOT,
        base_image={image!r},
        docker_instructions=[
          f'COPY {{folder}}/ /steepest',
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
  with xm_local.create_experiment(experiment_title=_NAME) as experiment:
    executable = _executable(experiment)
    for arguments in _UNITS:
      experiment.add(_unit(executable, arguments))


if __name__ == '__main__':
  app.run(main)
'''
_SINGLE = """
def _unit(executable: xm.Executable, arguments: list[str]) -> xm.Job:
  executor = xm_local.{executor}(requirements=_requirements())
  return xm.Job(executable, executor, args=arguments)
"""
_VERTEX = """
def _unit(executable: xm.Executable, arguments: list[str]) -> xm.JobGroup:
  # Vertex AI wants its first pool to be one machine; CLUSTER_SPEC, which it
  # sets, tells each process which it is.
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
        xm_local.Kubernetes(requirements=_requirements()),
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
    ValueError: the executor is unknown or has one machine only.
  """
  executor = job.options['executor']
  if executor not in _EXECUTORS:
    raise ValueError(
      f'--option=executor={executor}: there are {", ".join(_EXECUTORS)}'
    )
  if executor == 'local' and job.hosts > 1:
    raise ValueError('--option=executor=local: has one machine only')
  path = job.folder / f'{job.name.replace("-", "_")}_xm.py'
  return jobs.Submission(
    {path: _script(job)},
    (('xmanager', 'launch', str(path)),),
    ('xmanager', 'pip install xmanager in an environment of its own'),
  )


def _script(job: jobs.Job) -> str:
  executor = job.options['executor']
  # A slice of TPUs is one job however many machines it has.
  several = job.hosts > 1 and job.chip in jobs.GPUS
  forms = {'vertex': _VERTEX, 'kubernetes': _KUBERNETES}
  unit = (forms[executor] if several else _SINGLE).format(
    executor=_EXECUTORS[executor]
  )
  replicas = several and executor == 'vertex'
  imports = ''
  if several and executor == 'kubernetes':
    imports = 'from xmanager.contrib import addressing\n'
  units = [[*unit.arguments, f'--workdir={unit.workdir}'] for unit in job.units]
  environment = dict(job.environment)
  if job.hosts > 1 and not several:
    environment['STEEPEST_DISTRIBUTED'] = 'auto'
  show = lambda value: pprint.pformat(value, width=60, sort_dicts=False)
  return _SCRIPT.format(
    name=job.name,
    imports=imports,
    root=str(job.root),
    module=job.module,
    units=show(units),
    environment=show(environment),
    hosts=job.hosts,
    parameters='replicas: int' if replicas else '',
    resources=_resources(job, replicas),
    executor=_EXECUTORS[executor],
    image=job.options['image'],
    extra='tpu' if job.chip and job.chip not in jobs.GPUS else 'cuda',
    unit=unit,
  )


def _resources(job: jobs.Job, replicas: bool) -> str:
  words = []
  if job.chip in jobs.GPUS:
    words.append(f'{_RESOURCES[job.chip]}={job.per_host}')
  elif job.chip:
    topology = tpu.slice_of(job.chip, job.devices).topology
    words.append(f'{_RESOURCES[job.chip]}={topology!r}')
  if job.options['memory_gib']:
    words.append(f'memory={float(job.options["memory_gib"]):g} * xm.GiB')
  if replicas:
    words.append('replicas=replicas')
  return ', '.join(words)

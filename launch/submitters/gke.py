"""Google Kubernetes Engine: a JobSet for each run.

Nodes of GPUs run a process each, told apart by the index of their pod; on TPU
slices JAX reads from GKE's environment who is who. When a pod fails, all of
the run's start again from the last checkpoint.
"""

from typing import Any

import yaml

from steepest.launch.submitters import job as jobs, tpu

OPTIONS = {
  'image': ('', 'Container image that has the package installed; needed.'),
  'namespace': ('default', 'Kubernetes namespace.'),
  'claim': ('', 'Persistent volume claim for data and runs, at /data.'),
  'queue': ('', 'Kueue queue.'),
  'secret': ('', 'Kubernetes secret whose entries become variables.'),
  'spot': ('', 'yes: on nodes that may be pre-empted.'),
}
_GPU_LABELS = {
  'h100': 'nvidia-h100-80gb',
  'h200': 'nvidia-h200-141gb',
  'a100': 'nvidia-a100-80gb',
}
_PORT = 8476
_INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
# Seconds between the signal to stop and the end.
_GRACE = 300


def submission(job: jobs.Job) -> jobs.Submission:
  """Returns the manifests and the command that applies them.

  Raises:
    ValueError: an option that is needed is missing.
  """
  if not job.chip:
    raise ValueError('--to=gke: give --chip')
  if not job.options['image']:
    raise ValueError('--to=gke: give --option=image=REGISTRY/IMAGE:TAG')
  if job.machines_share and not job.options['claim']:
    raise ValueError(
      '--to=gke: the machines must share the workdir: give '
      '--option=claim=CLAIM and a --workdir under /data'
    )
  manifests = [_jobset(job, i) for i in range(len(job.units))]
  path = job.folder / f'{job.name}.yaml'
  return jobs.Submission(
    {path: yaml.safe_dump_all(manifests, sort_keys=False)},
    (('kubectl', 'apply', '-f', str(path)),),
    ('kubectl', 'install it and get the credentials of the cluster'),
  )


def _jobset(job: jobs.Job, i: int) -> dict[str, Any]:
  name = job.name if len(job.units) == 1 else f'{job.name}-{i}'
  labels = {'app': 'steepest', 'steepest/job': job.name}
  if job.options['queue']:
    labels['kueue.x-k8s.io/queue-name'] = job.options['queue']
  annotations = {'steepest/sweep': job.units[i].point}
  if job.chip not in jobs.GPUS:
    # One slice is one node pool.
    annotations['alpha.jobset.sigs.k8s.io/exclusive-topology'] = (
      'cloud.google.com/gke-nodepool'
    )
  return {
    'apiVersion': 'jobset.x-k8s.io/v1alpha2',
    'kind': 'JobSet',
    'metadata': {
      'name': name,
      'namespace': job.options['namespace'],
      'labels': labels,
      'annotations': annotations,
    },
    'spec': {
      'failurePolicy': {'maxRestarts': job.restarts},
      'replicatedJobs': [
        {
          'name': 'worker',
          'replicas': 1,
          'template': {
            'spec': {
              'parallelism': job.hosts,
              'completions': job.hosts,
              'completionMode': 'Indexed',
              'backoffLimit': 0,
              **_deadline(job),
              'template': {'spec': _pod(job, job.units[i], name)},
            }
          },
        }
      ],
    },
  }


def _deadline(job: jobs.Job) -> dict[str, int]:
  if job.hours is None:
    return {}
  return {'activeDeadlineSeconds': round(job.hours * 3600)}


def _pod(job: jobs.Job, unit: jobs.Unit, name: str) -> dict[str, Any]:
  selector, limits = _node(job)
  if job.options['spot'] == 'yes':
    selector['cloud.google.com/gke-spot'] = 'true'
  mounts = [{'name': 'shm', 'mountPath': '/dev/shm'}]
  volumes: list[dict[str, Any]] = [
    {'name': 'shm', 'emptyDir': {'medium': 'Memory'}}
  ]
  if job.options['claim']:
    mounts.append({'name': 'data', 'mountPath': '/data'})
    claim = {'claimName': job.options['claim']}
    volumes.append({'name': 'data', 'persistentVolumeClaim': claim})
  container = {
    'name': 'train',
    'image': job.options['image'],
    'command': [_literal(w) for w in unit.command('python', job.module)],
    'env': _environment(job, name),
    'resources': {'limits': limits},
    'volumeMounts': mounts,
  }
  if job.options['secret']:
    container['envFrom'] = [{'secretRef': {'name': job.options['secret']}}]
  return {
    'restartPolicy': 'Never',
    'terminationGracePeriodSeconds': _GRACE,
    'nodeSelector': selector,
    'tolerations': [{'operator': 'Exists', 'effect': 'NoSchedule'}],
    'containers': [container],
    'volumes': volumes,
  }


def _literal(text: str) -> str:
  # Kubernetes would put variables in place of $(NAME).
  return text.replace('$(', '$$(')


def _node(job: jobs.Job) -> tuple[dict[str, str], dict[str, int]]:
  if job.chip in jobs.GPUS:
    label = {'cloud.google.com/gke-accelerator': _GPU_LABELS[job.chip]}
    return label, {'nvidia.com/gpu': job.per_host}
  slice_ = tpu.slice_of(job.chip, job.devices)
  labels = {
    'cloud.google.com/gke-tpu-accelerator': slice_.gke_label,
    'cloud.google.com/gke-tpu-topology': slice_.topology,
  }
  return labels, {'google.com/tpu': job.per_host}


def _environment(job: jobs.Job, name: str) -> list[dict[str, Any]]:
  variables: list[dict[str, Any]] = [
    {'name': key, 'value': _literal(value)}
    for key, value in job.environment.items()
  ]
  if job.hosts == 1:
    return variables
  if job.chip not in jobs.GPUS:
    return [*variables, {'name': 'STEEPEST_DISTRIBUTED', 'value': 'auto'}]
  # Pods of a JobSet are JOBSET-JOB-REPLICA-INDEX in the JobSet's own domain.
  first = f'{name}-worker-0-0.{name}:{_PORT}'
  return [
    *variables,
    {'name': 'STEEPEST_COORDINATOR', 'value': first},
    {'name': 'STEEPEST_PROCESSES', 'value': str(job.hosts)},
    {
      'name': 'STEEPEST_PROCESS',
      'valueFrom': {'fieldRef': {'fieldPath': _INDEX}},
    },
  ]

"""Cloud TPU VMs: a script that asks for a slice and runs on all its machines.

The slice is a queued resource; the script waits for it, copies the source,
installs it, trains, and tries again a limited number of times, from the last
checkpoint, if the command fails on any machine. It does not delete the slice:
its last line says how to.
"""

import shlex

from steepest.launch.submitters import job as jobs, tpu

OPTIONS = {
  'project': ('', 'Google Cloud project; needed.'),
  'zone': ('', 'Zone of the slice; needed.'),
  'bucket': ('', 'Bucket for data and runs, mounted at ~/bucket.'),
  'spot': ('', 'yes: a slice that may be pre-empted.'),
  'runtime': ('', "Software version of the machines; '': the chip's."),
}

_SCRIPT = r"""#!/bin/bash
set -euo pipefail
cd -- {root}
where=(--project={project} --zone={zone})
queue() {{
  gcloud compute tpus queued-resources "$1" {name} "${{where[@]}}" "${{@:2}}"
}}
on_all() {{
  gcloud compute tpus tpu-vm ssh {name} "${{where[@]}}" --worker=all \
    --command="$1"
}}

queue describe > /dev/null 2>&1 ||
  queue create --node-id={name} --accelerator-type={type} \
    --runtime-version={runtime}{spot}
state=
until [ "$state" = ACTIVE ]; do
  sleep {poll}
  state=$(queue describe --format='value(state.state)')
  case "$state" in
    FAILED | SUSPENDED) echo "{name}: $state" >&2; exit 1 ;;
  esac
done

archive=$(mktemp --suffix=.tar.gz)
git archive --format=tar.gz --output="$archive" HEAD
gcloud compute tpus tpu-vm scp "$archive" {name}:steepest.tar.gz \
  "${{where[@]}}" --worker=all
rm -- "$archive"
on_all {install}
{mount}
train() {{
  local left={restarts}
  until on_all "$1"; do
    if (( left == 0 )); then
      echo "failed $(( {restarts} + 1 )) times" >&2
      return 1
    fi
    left=$(( left - 1 ))
  done
}}
{runs}
echo 'done; to delete the slice:'
echo {delete}
"""
# Seconds between questions whether the slice is there.
_POLL = 30
_INSTALL = (
  'mkdir -p steepest && tar -xzf steepest.tar.gz -C steepest && cd steepest && '
  'python3 -m venv .venv && .venv/bin/pip install -q -c constraints.txt -e '
  "'.[tpu]'"
)


def submission(job: jobs.Job) -> jobs.Submission:
  """Returns the script and the command that runs it.

  Raises:
    ValueError: an option that is needed is missing.
  """
  if not job.chip or job.chip in jobs.GPUS:
    raise ValueError('--to=tpu-vm: give --chip=v5e, v5p or v6e')
  for key in ('project', 'zone'):
    if not job.options[key]:
      raise ValueError(f'--to=tpu-vm: give --option={key}=…')
  if job.hosts > 1 and not job.options['bucket']:
    raise ValueError(
      f'--to=tpu-vm: the {job.hosts} machines must share the workdir: give '
      '--option=bucket=NAME and a --workdir under ../bucket'
    )
  if job.hosts == 1 and job.machines_share:
    raise ValueError('--to=tpu-vm: one slice is one worker of a study')
  path = job.folder / f'{job.name}.sh'
  return jobs.Submission(
    {path: _script(job)},
    (('bash', str(path)),),
    ('gcloud', 'install the Google Cloud CLI and log in'),
  )


def _script(job: jobs.Job) -> str:
  quote, options = shlex.quote, job.options
  slice_ = tpu.slice_of(job.chip, job.devices)
  bucket = options['bucket']
  mount = (
    f'mkdir -p bucket && {{ mountpoint -q bucket || gcsfuse --implicit-dirs '
    f'{quote(bucket)} bucket; }}'
  )
  # One after the other on the same slice.
  runs = [f'train {quote(_remote(job, unit))}' for unit in job.units]
  delete = [
    *'gcloud compute tpus queued-resources delete'.split(),
    job.name,
    f'--project={options["project"]}',
    f'--zone={options["zone"]}',
    '--force',
  ]
  return _SCRIPT.format(
    root=quote(str(job.root)),
    project=quote(options['project']),
    zone=quote(options['zone']),
    name=job.name,
    type=slice_.accelerator_type,
    runtime=quote(options['runtime'] or slice_.runtime),
    spot=' --spot' if options['spot'] == 'yes' else '',
    install=quote(_INSTALL),
    mount=f'on_all {quote(mount)}\n' if bucket else '',
    restarts=job.restarts,
    poll=_POLL,
    runs='\n'.join(runs),
    delete=quote(shlex.join(delete)),
  )


def _remote(job: jobs.Job, unit: jobs.Unit) -> str:
  """Returns what each machine does for a run."""
  variables = dict(job.environment)
  if job.hosts > 1:
    variables['STEEPEST_DISTRIBUTED'] = 'auto'
  settings = [f'{name}={value}' for name, value in variables.items()]
  command = unit.command('.venv/bin/python', job.module)
  return f'cd steepest && {shlex.join(["env", *settings, *command])}'

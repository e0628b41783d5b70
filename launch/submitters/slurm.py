"""SLURM: a script for sbatch; a sweep is an array, one task a run.

srun starts one process for each accelerator and tells each how to find the
others. A run that is pre-empted or runs out of time goes back to the queue and
continues from its last checkpoint. One that fails is tried again, a limited
number of times without progress.
"""

import re
import shlex

from steepest.launch.submitters import job as jobs

OPTIONS = {
  'python': ('python', 'Python of the machines.'),
  'setup': ('', 'Shell line that runs first, such as `. .venv/bin/activate`.'),
  '*': (
    '',
    'Any other: a long option of sbatch, such as partition or account.',
  ),
}
_OWN = ('python', 'setup')

# What training exits with when a signal stopped it: training/interrupts.py.
_STOPPED = 75

_BODY = r"""
set -u
cd -- {root}
{setup}case "${{SLURM_ARRAY_TASK_ID:-0}}" in
{cases}
esac
{exports}
number=${{SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}}
number=$number${{SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}}
# Steps of the newest checkpoint.
progress() {{
  ls -- "$workdir/checkpoints" 2> /dev/null |
    grep -xE '[0-9]+' | sort -n | tail -n 1
}}
diverged() {{ grep -qs '"status": "diverged"' -- "$workdir/summary.json"; }}
# SLURM gives a pre-empted job time to save, and takes one that ends in it for
# finished.
preempted() {{
  SLURM_TIME_FORMAT=standard scontrol show job "$number" |
    grep -q 'PreemptTime=[0-9]'
}}
stopping=
signalled=

# Sent {warning} s before the time is over.
stop() {{ stopping=1; signalled=1; kill -TERM "$step"; }}
trap stop USR1
# A pre-empted job's processes get this too, and save.
trap 'signalled=1' TERM

futile=0
before=$(progress)
while :; do
  srun --kill-on-bad-exit=1 "$@" &
  step=$!
  status=127
  while :; do
    # A trapped signal interrupts the waiting, not the step.
    signalled=
    wait "$step" 2> /dev/null
    waited=$?
    # 127: it was waited for before.
    if (( waited != 127 )); then status=$waited; fi
    if [ -z "$signalled" ]; then break; fi
  done
  if (( status == 0 )); then exit 0; fi
  if [ -n "$stopping" ] || {{ (( status == {stopped} )) && preempted; }}; then
    echo "stopped: $number goes back to the queue" >&2
    scontrol requeue "$number"
    exit 0
  fi
  if (( status == {stopped} )); then exit {stopped}; fi
  if diverged; then exit "$status"; fi
  now=$(progress)
  futile=$(( futile + 1 ))
  if [ "$now" != "$before" ]; then futile=0; before=$now; fi
  if (( futile > {restarts} )); then
    echo "status $status and no progress in $futile tries" >&2
    exit "$status"
  fi
  echo "status $status: again from checkpoint ${{now:-none}}" >&2
done
"""
# Seconds before the end of the time that a run starts to save.
_WARNING = 300


def submission(job: jobs.Job) -> jobs.Submission:
  """Returns the script and the command that submits it."""
  path = job.folder / f'{job.name}.sbatch'
  return jobs.Submission(
    {path: _script(job)},
    (('sbatch', str(path)),),
    ('sbatch', 'run this where SLURM is'),
  )


def _script(job: jobs.Job) -> str:
  cases = []
  for i, unit in enumerate(job.units):
    line = shlex.join(unit.command(job.options['python'], job.module))
    cases.append(
      f'{i}) workdir={shlex.quote(unit.workdir)}\n  set -- {line} ;;'
    )
  setup = job.options['setup']
  exports = [
    f'export {name}={shlex.quote(value)}'
    for name, value in job.environment.items()
  ]
  body = _BODY.format(
    root=shlex.quote(str(job.root)),
    setup=f'{setup}\n' if setup else '',
    cases='\n'.join(cases),
    exports=''.join(f'{line}\n' for line in exports),
    restarts=job.restarts,
    stopped=_STOPPED,
    warning=_WARNING,
  )
  return f'#!/bin/bash\n{_directives(job)}\n{body}'


def _directives(job: jobs.Job) -> str:
  sweep = len(job.units) > 1
  tasks = job.per_host or job.processes or 1
  log = job.folder / ('%x-%A_%a.log' if sweep else '%x-%j.log')
  values = {
    'job-name': job.name,
    'nodes': str(job.hosts),
    'ntasks-per-node': str(tasks),
    **({'gpus-per-node': str(job.per_host)} if job.per_host else {}),
    **({'time': _clock(job.hours)} if job.hours else {}),
    **({'array': f'0-{len(job.units) - 1}'} if sweep else {}),
    'signal': f'B:USR1@{_WARNING}',
    'open-mode': 'append',
    'output': str(log),
  }
  values |= {k: v for k, v in job.options.items() if k not in _OWN}
  lines = [f'#SBATCH --{key}={_directive(v)}' for key, v in values.items()]
  return '\n'.join([*lines, '#SBATCH --requeue'])


def _directive(value: str) -> str:
  """Returns a value as sbatch reads it: it takes quotes, not expansions."""
  if re.search(r'["\\]', value):
    raise ValueError(f'{value!r}: SLURM takes no quotes or backslashes here')
  return value if re.fullmatch(r'[\w@%+=:,./-]*', value) else f'"{value}"'


def _clock(hours: float) -> str:
  minutes = round(hours * 60)
  return f'{minutes // 60}:{minutes % 60:02}:00'

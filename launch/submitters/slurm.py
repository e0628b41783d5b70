"""SLURM: a script for sbatch; a sweep is an array, one task for each run.

srun starts one process for each accelerator and tells each how to find the
others. Before the time limit, and before preemption, SLURM sends SIGTERM to the
processes, not to the script: they save and exit with a status that says so, and
the script requeues the job, which resumes from its checkpoint. scancel ends the
script first. A run that fails is retried on the same machines, a limited number
of times without progress.
"""

import re
import shlex
import textwrap

from steepest.data import buckets, downloads
from steepest.launch.submitters import job as jobs

# Long options of sbatch 24.05, to catch misspelt ones here; a cluster's plugins
# may add others.
_SBATCH = """
  account acctg-freq array batch bb bbf begin chdir clusters comment constraint
  contiguous core-spec cores-per-socket cpu-freq cpus-per-gpu cpus-per-task
  deadline delay-boot dependency distribution error exclude exclusive export
  export-file extra extra-node-info get-user-env gid gpu-bind gpu-freq gpus
  gpus-per-node gpus-per-socket gpus-per-task gres gres-flags hint hold input
  job-name kill-on-invalid-dep licenses mail-type mail-user mcs-label mem
  mem-bind mem-per-cpu mem-per-gpu mincpus network nice no-kill no-requeue
  nodefile nodelist nodes ntasks ntasks-per-core ntasks-per-gpu ntasks-per-node
  ntasks-per-socket open-mode output overcommit oversubscribe partition power
  prefer priority profile propagate qos reboot requeue reservation signal
  sockets-per-node spread-job switches thread-spec threads-per-core time
  time-min tmp tres-bind tres-per-task uid use-min-nodes wait wait-all-nodes
  wckey
"""
OPTIONS = {
  'python': ('python', 'Python of the machines.'),
  'setup': ('', 'Shell line that runs first, such as `. .venv/bin/activate`.'),
  '*': (
    _SBATCH,
    'Any other: a long option of sbatch, such as partition or account.',
  ),
}
_OWN = ('python', 'setup')


_BODY = r"""
set -u
cd -- {root}
{setup}{exports}case "${{SLURM_ARRAY_TASK_ID:-0}}" in
{cases}
esac
{ray}
# Checksum of the progress: checkpoints, and ended runs of a study.
kept() {{
  find "$workdir" -path '*/checkpoints/*' -prune ! -name '*[!0-9]*' -print \
    -o -name summary.json -print 2> /dev/null | sort | cksum
}}
rows() {{ cksum "$workdir/metrics.jsonl" 2> /dev/null; }}

futile=0
while :; do
  kept=$(kept) rows=$(rows)
  srun {step} "$@"
  status=$?
  case $status in
    0) exit 0 ;;
    {stopped} | 143)
      echo "stopped: requeueing $SLURM_JOB_ID" >&2
      scontrol requeue "$SLURM_JOB_ID"
      exit $status ;;
  esac
  if grep -qs '"status": "diverged"' -- "$workdir/summary.json"; then
    exit $status
  fi
  if (( status < 128 )) && [ "$(rows)" = "$rows" ]; then
    echo "status $status and no new metrics: not retried" >&2
    exit $status
  fi
  futile=$(( futile + 1 ))
  if [ "$(kept)" != "$kept" ]; then futile=0; fi
  if (( futile > {restarts} )); then
    echo "status $status and no progress in $futile tries" >&2
    exit $status
  fi
  echo "status $status: restarting from the last checkpoint" >&2
done
"""
# Script of each task of a study on several nodes, one task a node.
_RAY = r"""
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export FIRST=$first:$(( 20000 + SLURM_JOB_ID % 10000 ))
export PYTHON={python}
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_TOKEN
node='
  RANK=$SLURM_NODEID CPUS=$SLURM_CPUS_ON_NODE
{node}'
"""
# Seconds before the time limit at which a run starts to save.
_WARNING = 300
# Seconds that the others get once one process has ended.
_WAIT = 15


def submission(job: jobs.Job) -> jobs.Submission:
  """Returns the script and the command that submits it."""
  path = job.folder / f'{job.name}.sbatch'
  return jobs.Submission(
    {path: _script(job)},
    (('sbatch', str(path)),),
    ('sbatch', 'run this where SLURM is'),
  )


def _script(job: jobs.Job) -> str:
  python = job.options['python']
  several = job.is_study and job.hosts > 1
  # Not killed at once: processes that were asked to stop exit one by one.
  step = f'--kill-on-bad-exit=0 --wait={_WAIT}'
  if job.is_study:
    # The study pins its slots to cores itself.
    step += ' --cpu-bind=none'
  if several:
    step += ' bash -c "$node" node'
  cases = []
  for i, unit in enumerate(job.units):
    line = shlex.join(unit.command(python, job.module))
    cases.append(f'{i}) workdir={_seen(unit.workdir)}\n  set -- {line} ;;')
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
    ray=_ray(python) if several else '',
    step=step,
    restarts=job.restarts,
    stopped=jobs.STOPPED,
  )
  return f'#!/bin/bash\n{_directives(job)}\n{body}'


def _seen(workdir: str) -> str:
  """Returns the directory the script checks; for a bucket, the run's copy."""
  if not buckets.is_address(workdir):
    return shlex.quote(workdir)
  copy = buckets.copy_of(workdir).relative_to(downloads.cache_dir().absolute())
  return f'"${{STEEPEST_CACHE:-.cache}}"/{shlex.quote(str(copy))}'


def _ray(python: str) -> str:
  node = textwrap.indent(jobs.RAY_NODE.strip(), '  ')
  return _RAY.format(python=shlex.quote(python), node=node)


def _directives(job: jobs.Job) -> str:
  sweep = len(job.units) > 1
  tasks = job.per_host or max(1, job.processes // job.hosts)
  if job.is_study:
    tasks = 1
  log = job.folder / ('%x-%A_%a.log' if sweep else '%x-%j.log')
  values = {
    'job-name': job.name,
    'nodes': str(job.hosts),
    'ntasks-per-node': str(tasks),
    **({'gpus-per-node': str(job.per_host)} if job.per_host else {}),
    **({'time': _clock(job.hours)} if job.hours else {}),
    **({'array': f'0-{len(job.units) - 1}'} if sweep else {}),
    'signal': f'TERM@{_WARNING}',
    'open-mode': 'append',
    'output': str(log),
  }
  values |= {k: v for k, v in job.options.items() if k not in _OWN}
  lines = [f'#SBATCH --{key}={_directive(v)}' for key, v in values.items()]
  if job.is_study and 'cpus-per-task' not in job.options:
    # A study uses all cores, as slots or to feed the accelerators.
    lines.append('#SBATCH --exclusive')
  return '\n'.join([*lines, '#SBATCH --requeue'])


def _directive(value: str) -> str:
  """Returns a value for sbatch, which reads quotes but expands nothing."""
  if re.search(r'["\\]', value):
    raise ValueError(f'{value!r}: SLURM takes no quotes or backslashes here')
  return value if re.fullmatch(r'[\w@%+=:,./-]*', value) else f'"{value}"'


def _clock(hours: float) -> str:
  minutes = round(hours * 60)
  return f'{minutes // 60}:{minutes % 60:02}:00'

"""A JSON file for each job, for launchers that this project does not know.

`runs` holds the command, workdir and sweep point of each run; `machines`,
`accelerators` and `hours` say what one run needs. docs/launching.md lists the
variables with which several processes find each other.
"""

import json

from steepest.launch.submitters import job as jobs

OPTIONS = {'python': ('python', 'Python of the machines.')}


def submission(job: jobs.Job) -> jobs.Submission:
  """Returns the file, and no command."""
  described = {
    'name': job.name,
    'machines': job.hosts,
    'accelerators': {job.chip: job.per_host} if job.chip else {},
    'processes': job.processes or (job.devices if job.is_gpu else job.hosts),
    'hours': job.hours,
    'restarts': job.restarts,
    'environment': job.environment,
    'runs': [
      {
        'point': unit.point,
        'workdir': unit.workdir,
        'command': unit.command(job.options['python'], job.module),
      }
      for unit in job.units
    ],
  }
  text = json.dumps(described, indent=2, ensure_ascii=False) + '\n'
  return jobs.Submission({job.folder / f'{job.name}.json': text}, (), ('', ''))

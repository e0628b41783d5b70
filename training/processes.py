"""Joins this process to the others of its job, before JAX uses a device.

A launcher says so in the environment:

    STEEPEST_COORDINATOR=HOST:PORT  of process 0
    STEEPEST_PROCESSES=N            in all
    STEEPEST_PROCESS=I              this one, from 0
    STEEPEST_DISTRIBUTED=auto       instead: ask what manages the machines

Tasks of an `srun` and machines of a Vertex AI job need neither: SLURM and
CLUSTER_SPEC say who they are.
"""

import json
import os

import jax

_EXPLICIT = ('STEEPEST_COORDINATOR', 'STEEPEST_PROCESSES', 'STEEPEST_PROCESS')


def join() -> int:
  """Joins the job, if there is one, and returns this process's index.

  Returns at once if there is one process only.

  Raises:
    ValueError: the environment says half of it, or what is no number.
  """
  os.environ.update(_from_cluster_spec())
  given = [name for name in _EXPLICIT if os.environ.get(name)]
  if given:
    _join_explicitly(given)
  elif _managed():
    # JAX knows SLURM, Cloud TPU, GKE and Open MPI.
    jax.distributed.initialize()
  else:
    return 0
  return jax.process_index()


def _from_cluster_spec() -> dict[str, str]:
  """Returns what Vertex AI says of its machines, in our variables."""
  text = os.environ.get('CLUSTER_SPEC')
  if not text or os.environ.get('STEEPEST_COORDINATOR'):
    return {}
  spec = json.loads(text)
  pools, task = spec['cluster'], spec['task']
  hosts = [(name, i) for name in sorted(pools) for i in range(len(pools[name]))]
  return {
    'STEEPEST_COORDINATOR': pools[hosts[0][0]][0],
    'STEEPEST_PROCESSES': str(len(hosts)),
    'STEEPEST_PROCESS': str(hosts.index((task['type'], int(task['index'])))),
  }


def _managed() -> bool:
  """Whether something else started several processes."""
  asked = os.environ.get('STEEPEST_DISTRIBUTED', '')
  if asked not in ('', 'auto'):
    raise ValueError(f'STEEPEST_DISTRIBUTED={asked!r}: must be auto')
  # Set for each task that srun starts, not for the script that calls it.
  tasks = os.environ.get('SLURM_STEP_NUM_TASKS', '1')
  return asked == 'auto' or (tasks.isdigit() and int(tasks) > 1)


def _join_explicitly(given: list[str]) -> None:
  missing = [name for name in _EXPLICIT if name not in given]
  if missing:
    raise ValueError(f'{given[0]} is set, {missing[0]} is not: set all three')
  coordinator, count, index = (os.environ[name] for name in _EXPLICIT)
  if not (count.isdigit() and index.isdigit() and int(index) < int(count)):
    raise ValueError(
      f'STEEPEST_PROCESS={index} of STEEPEST_PROCESSES={count}: must be whole '
      'numbers, the first below the second'
    )
  host, _, port = coordinator.rpartition(':')
  if not host or not port.isdigit():
    raise ValueError(f'STEEPEST_COORDINATOR={coordinator!r}: give HOST:PORT')
  if int(count) == 1:
    return
  # On one machine, nobody outside it can join.
  local = host in ('127.0.0.1', 'localhost')
  jax.distributed.initialize(
    coordinator,
    int(count),
    int(index),
    cluster_detection_method='deactivate',
    coordinator_bind_address=coordinator if local else None,
  )

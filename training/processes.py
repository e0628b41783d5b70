"""This process: its memory, its rank, and work shared with other processes.

A launcher's environment variables say which of several processes this is:

    STEEPEST_COORDINATOR=HOST:PORT  of process 0
    STEEPEST_PROCESSES=N            in all
    STEEPEST_PROCESS=I              this one, from 0
    STEEPEST_DISTRIBUTED=auto       instead: ask what manages the machines

Tasks of an `srun` and machines of a Vertex AI job need none of these: SLURM and
CLUSTER_SPEC identify them.
"""

from collections.abc import Callable
import ctypes
import glob
import importlib.util
import json
import os
import sys
from typing import TypeVar

_T = TypeVar('_T')

_LARGEST = 2**31 - 1
# Parameters of mallopt(3), from malloc.h, their environment variables (without
# MALLOC_), and values.
_KEEPING = (
  (-4, 'MMAP_MAX_', 0),
  (-1, 'TRIM_THRESHOLD_', _LARGEST),
  # Other threads' arenas are too small for large buffers.
  (-8, 'ARENA_MAX', 1),
)
_EXPLICIT = ('STEEPEST_COORDINATOR', 'STEEPEST_PROCESSES', 'STEEPEST_PROCESS')
# Length of messages between processes, at first.
_MESSAGE_BYTES = 2048


def keep_memory() -> None:
  """Tells glibc to reuse large buffers, which makes training on a CPU faster.

  XLA allocates a step's temporary buffer anew each time, and glibc maps and
  unmaps large ones, so the kernel clears every page again at every step.

  Call it before this process starts threads: those that exist have arenas of
  their own, which later ones may share. Processes that this one starts do so
  from their beginning. Does nothing with another C library or if there is an
  accelerator.
  """
  if not sys.platform.startswith('linux') or has_accelerator():
    return
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (OSError, AttributeError):
    return  # Another C library.
  for parameter, _, value in _KEEPING:
    mallopt(parameter, value)
  os.environ.update(memory_variables())


def memory_variables() -> dict[str, str]:
  """Returns what makes glibc keep memory in a process that starts with it."""
  return {f'MALLOC_{name}': str(value) for _, name, value in _KEEPING}


def has_accelerator() -> bool:
  """Returns whether JAX may find a GPU or TPU, without starting JAX."""
  return local_devices()[0] != 'cpu'


def local_devices() -> tuple[str, list[str]]:
  """Returns this machine's platform and devices, without starting JAX.

  A process that starts JAX takes the accelerators away from others.

  Returns:
    'gpu' and ids for CUDA_VISIBLE_DEVICES, 'tpu' and the chips' numbers, or
    'cpu' and the numbers of the cores that this process may use.
  """
  if os.environ.get('JAX_PLATFORMS') != 'cpu':
    nodes = sorted(glob.glob('/dev/nvidia[0-9]*'))
    visible = os.environ.get('CUDA_VISIBLE_DEVICES')
    gpus = [str(i) for i in range(len(nodes))]
    if nodes and visible is not None:
      gpus = [name for name in visible.split(',') if name not in ('', '-1')]
    if not nodes and glob.glob('/dev/kfd'):
      # AMD: one process gets all GPUs.
      gpus = ['0']
    if gpus:
      return 'gpu', gpus
    chips = glob.glob('/dev/accel[0-9]*')
    if importlib.util.find_spec('libtpu') is not None:
      # Newer TPU generations; other devices use these nodes too.
      chips += glob.glob('/dev/vfio/[0-9]*')
    if chips:
      return 'tpu', [str(i) for i in range(len(chips))]
  if hasattr(os, 'sched_getaffinity'):
    return 'cpu', [str(core) for core in sorted(os.sched_getaffinity(0))]
  return 'cpu', [str(core) for core in range(os.cpu_count() or 1)]


def join() -> int:
  """Joins the job, if there is one, and returns this process's index.

  Returns at once if there is only one process.

  Raises:
    ValueError: the environment is incomplete, or has a malformed number.
  """
  # Not at the top: the allocator must be set up before JAX starts.
  import jax

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


def together(work: Callable[[], _T]) -> _T:
  """Returns the result of `work` here, once every process has done its own.

  All processes must call it in the same order.

  Raises:
    OSError, ValueError: what `work` raised here; with several processes, all
      raise the error of the first that failed.
  """
  done: list[_T] = []
  gathered(lambda: done.append(work()))
  return done[0]


def gathered(work: Callable[[], _T]) -> list[_T]:
  """Returns the results of all processes, JSON values, like `together`."""
  import jax

  if jax.process_count() == 1:
    return [work()]
  try:
    told = ['', work()]
  except (OSError, ValueError) as e:
    told = ['OSError' if isinstance(e, OSError) else 'ValueError', str(e)]
  results = []
  for kind, result in map(json.loads, _exchange(json.dumps(told).encode())):
    if kind:
      raise (OSError if kind == 'OSError' else ValueError)(result)
    results.append(result)
  return results


def _exchange(message: bytes) -> list[bytes]:
  """Returns the messages of all processes, which are not NUL."""
  from jax.experimental import multihost_utils
  import numpy as np

  def gather(size: int) -> list[bytes]:
    padded = np.frombuffer(message[:size].ljust(size, b'\0'), np.uint8)
    return [m.tobytes() for m in multihost_utils.process_allgather(padded)]

  size = _MESSAGE_BYTES
  told = gather(size)
  # A longer message leaves no room for a NUL, and all try again.
  while any(m[-1] for m in told):
    size *= 16
    told = gather(size)
  return [m.rstrip(b'\0') for m in told]


def _from_cluster_spec() -> dict[str, str]:
  """Translates Vertex AI's description of its machines into our variables."""
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
  """Whether a cluster manager started several processes."""
  asked = os.environ.get('STEEPEST_DISTRIBUTED', '')
  if asked not in ('', 'auto'):
    raise ValueError(f'STEEPEST_DISTRIBUTED={asked!r}: must be auto')
  # Set for each task that srun starts, not for the calling script.
  tasks = os.environ.get('SLURM_STEP_NUM_TASKS', '1')
  return asked == 'auto' or (tasks.isdigit() and int(tasks) > 1)


def _join_explicitly(given: list[str]) -> None:
  import jax

  missing = [name for name in _EXPLICIT if name not in given]
  if missing:
    raise ValueError(f'{given[0]} is set, {missing[0]} is not: set all three')
  coordinator, count, index = (os.environ[name] for name in _EXPLICIT)
  if not (count.isdigit() and index.isdigit() and int(index) < int(count)):
    raise ValueError(
      f'STEEPEST_PROCESS={index} of STEEPEST_PROCESSES={count}: must be '
      'integers, the first below the second'
    )
  host, _, port = coordinator.rpartition(':')
  if not host or not port.isdigit():
    raise ValueError(f'STEEPEST_COORDINATOR={coordinator!r}: give HOST:PORT')
  if int(count) == 1:
    return
  # On one machine, keep outsiders from joining.
  local = host in ('127.0.0.1', 'localhost')
  jax.distributed.initialize(
    coordinator,
    int(count),
    int(index),
    cluster_detection_method='deactivate',
    coordinator_bind_address=coordinator if local else None,
  )

"""Slots on several machines: actors on a running Ray cluster (Ray Core).

    ray start --head                    on the first machine, then
    ray start --address=FIRST:6379      on each other one

An actor keeps what it has compiled. Jobs are JSON values, paths and names of
functions, so nothing large goes through Ray; all machines see the same files
and the same installation. Jobs of a lost node resume elsewhere from their
checkpoints.

Ray's wire format is cloudpickle: whoever can connect can run code. So a token
is always required; SECURITY.md says what else to do.
"""

from collections.abc import Callable, Sequence
import logging
import os
import pathlib
import socket
import sys
import threading
from typing import Any, NamedTuple

from steepest.training import processes
from steepest.tuning import engine

_MODE = 'RAY_AUTH_MODE'
# Ray reads it on import.
os.environ.setdefault(_MODE, 'token')
os.environ.setdefault('RAY_USAGE_STATS_ENABLED', '0')

import ray  # noqa: E402
from ray import exceptions  # noqa: E402
from ray.util import scheduling_strategies  # noqa: E402

# Ray's names of devices, in the order in which slots look for them.
_RESOURCES = ('GPU', 'TPU', 'CPU')


class _Slot(NamedTuple):
  """A slot's node, and its index among that node's slots."""

  node: str
  place: int


class Cluster:
  """The machines of a Ray cluster; as a context manager it disconnects.

  Attributes:
    machine: devices of the smallest machine; 1 for CPUs, with one device per
      process.
  """

  def __init__(self, address: str, workers: int = 0):
    """Joins a Ray cluster as a driver.

    Args:
      address: HOST:PORT of its head, or 'auto': this machine's. `ray start`
        must have been run on this machine too.
      workers: most slots; 0: as many as fit.

    Raises:
      OSError: there is none, or it refuses the token.
      ValueError: the environment asks for Ray without a token.
    """
    if os.environ[_MODE] != 'token':
      raise ValueError(
        f'{_MODE}={os.environ[_MODE]}: who reaches Ray can run code; set '
        f'{_MODE}=token where Ray is started too (SECURITY.md)'
      )
    host, _, port = address.rpartition(':')
    try:
      if address != 'auto':
        # Ray itself would retry for minutes.
        socket.create_connection((host, int(port)), 10).close()
      ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError, exceptions.RayError) as error:
      lines = str(error).splitlines() or ['']
      raise OSError(
        f'--engine={address}: no Ray there accepts this token '
        f'({lines[0]}): start it (docs/launching.md) or omit --engine'
      ) from error
    self._resource = next(
      r for r in _RESOURCES if any(_count(node, r) for node in _alive())
    )
    counts = [_count(node, self._resource) for node in _alive()]
    smallest = min(count for count in counts if count)
    self.machine = 1 if self._resource == 'CPU' else smallest
    self._workers = workers

  def __enter__(self) -> 'Cluster':
    return self

  def __exit__(self, *_: object) -> None:
    ray.shutdown()

  def engine(self, size: int, most: int, logs: pathlib.Path) -> 'RayEngine':
    """Returns up to `most` slots of `size` devices each."""
    most = min(most, self._workers or most)
    return RayEngine(self._resource, size, most, logs)

  def cores(self, logs: pathlib.Path) -> 'RayEngine':
    """Returns one slot per core."""
    return RayEngine('CPU', 1, self._workers or sys.maxsize, logs)


class RayEngine(engine.Engine):
  """Slots on all nodes of a Ray cluster, one actor each.

  Nodes that join get slots; those of lost nodes vanish.
  """

  def __init__(self, resource: str, size: int, most: int, logs: pathlib.Path):
    """Starts nothing yet.

    Args:
      resource: Ray's name of the devices: 'GPU', 'TPU' or 'CPU'.
      size: devices of a slot.
      most: slots at once.
      logs: directory for the workers' output.

    Raises:
      ValueError: no node has that many devices.
    """
    super().__init__()
    self._resource, self._size, self._most = resource, size, most
    self._logs = logs
    self._slots: dict[int, _Slot] = {}
    self._next = 0
    self._actors: dict[int, Any] = {}
    self._lock = threading.RLock()
    if not any(_count(node, resource) >= size for node in _alive()):
      raise ValueError(
        f'a run of {size} {resource}s: no machine of this engine has as many; '
        'use a smaller mesh (study.trial_mesh, study.target)'
      )

  @property
  def slots(self) -> Sequence[int]:
    """Numbers of the slots available now.

    Raises:
      JobFailedError: all machines are lost.
    """
    with self._lock:
      nodes = {node['NodeID']: node for node in _alive()}
      for number, slot in list(self._slots.items()):
        if slot.node not in nodes:
          del self._slots[number]
          self._actors.pop(number, None)
      known = {slot.node for slot in self._slots.values()}
      for name in sorted(set(nodes) - known):
        for index in range(_count(nodes[name], self._resource) // self._size):
          if len(self._slots) < self._most:
            self._slots[self._next] = _Slot(name, index)
            self._next += 1
      if not self._slots:
        raise engine.JobFailedError(
          'no machine is left in the engine: run the same command again when '
          'there is one'
        )
      return sorted(self._slots)

  def _call(
    self, slot: int, function: Callable[[Any], Any], job: Any
  ) -> tuple[Any, str | None]:
    try:
      return ray.get(self._actor(slot).call.remote(function, job))
    except (exceptions.RayActorError, exceptions.NodeDiedError) as error:
      with self._lock:
        actor = self._actors.pop(slot, None)
        if actor is not None:
          # It may only be cut off; files are fenced (training/attempt.py).
          ray.kill(actor)
      raise engine.WorkerDied(self._elsewhere(slot)) from error
    except exceptions.RayError as error:
      return None, str(error).splitlines()[-1]

  def _actor(self, slot: int) -> Any:
    with self._lock:
      if slot not in self._slots:
        # The worker died between two jobs.
        raise engine.WorkerDied(self._elsewhere(slot))
      if slot not in self._actors:
        at = self._slots[slot]
        options: dict[str, dict[str, Any]] = {
          'GPU': {'num_cpus': 0, 'num_gpus': self._size},
          'CPU': {'num_cpus': self._size},
          'TPU': {'num_cpus': 0, 'resources': {'TPU': self._size}},
        }
        # A process that Ray has started has threads.
        variables = {}
        if self._resource == 'CPU':
          variables = processes.memory_variables()
        strategy = scheduling_strategies.NodeAffinitySchedulingStrategy(
          at.node, soft=False
        )
        self._actors[slot] = (
          ray.remote(_Worker)
          .options(
            **options[self._resource],
            scheduling_strategy=strategy,
            runtime_env={'env_vars': variables},
          )
          .remote(
            slot,
            at,
            self._size if self._resource == 'CPU' else 0,
            self._logs / f'worker-{slot}.log',
            os.getcwd(),
          )
        )
      return self._actors[slot]

  def _elsewhere(self, slot: int) -> int | None:
    """Returns a replacement for a lost slot; None if it still exists."""
    left = self.slots
    if slot in left or self._closed:
      return None
    return min(left, key=lambda number: self._load[number])

  def _stop(self) -> None:
    with self._lock:
      for actor in self._actors.values():
        ray.kill(actor)

  def _hint(self) -> str:
    return f', see {self._logs}'


class _Worker:
  """The process of a slot."""

  def __init__(
    self, slot: int, at: _Slot, cores: int, log: pathlib.Path, directory: str
  ):
    # The base of relative paths.
    os.chdir(directory)
    own: tuple[int, ...] = ()
    if cores:
      # Ray counts cores, but does not pin processes to them.
      usable = sorted(os.sched_getaffinity(0))
      own = tuple(usable[at.place * cores : (at.place + 1) * cores])
    place = engine.Place(own, engine.cpu_devices(cores) if cores else {})
    engine.enter(slot, place, log, at.node)

  def call(
    self, function: Callable[[Any], Any], job: Any
  ) -> tuple[Any, str | None]:
    return engine.call(function, job, True)


def _alive() -> list[dict[str, Any]]:
  return [node for node in ray.nodes() if node['Alive']]


def _count(node: dict[str, Any], resource: str) -> int:
  held = node['Resources']
  return int(held[resource]) if resource in held else 0

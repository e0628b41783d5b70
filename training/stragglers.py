"""Finds which of several processes holds up the others.

A run's processes wait for each other in every step, so a step takes as long as
the slowest. Every five seconds and five steps, what each of P processes needs
by itself is measured:

* host: seconds per step outside the devices' work, mostly for data;
* step: seconds of one step that begins after the previous one has ended;
* probe: seconds that its own devices take for a few matrix products, divided by
  the share of the time in which the process ran at all.

The process that waits least for the others has the smallest ratio of step to
probe; this ratio converts every process's probe to seconds per step.
"""

import collections
from collections.abc import Mapping
import math
import socket
import statistics
import time

import jax
from jax import numpy as jnp
from jax.experimental import multihost_utils
import numpy as np

from steepest.training import flops
from steepest.training.state import Setup

# A process is slow if it takes this many times the median.
SLOW = 1.5
# FLOPs of the probe relative to a step's.
_SHARE = 0.05
# Least seconds and steps between two measurements, which drain the devices'
# queues.
_EVERY = 5.0, 5
# Number of measurements whose median counts.
_KEPT = 3
# Seconds until a process is reported again.
_AGAIN = 600.0
_LONGEST_NAME = 64
# Rows and dtype of a probe's matrices, on accelerators and on CPUs.
_SIZES = (2048, jnp.bfloat16), (256, jnp.float32)


def alone(
  host_P: np.ndarray, step_P: np.ndarray, probe_P: np.ndarray
) -> np.ndarray:
  """Returns the seconds per step that each process needs by itself."""
  times_P: np.ndarray = host_P + (step_P / probe_P).min() * probe_P
  return times_P


class Stragglers:
  """Measures processes, at the same steps in all of them."""

  def __init__(self, setup: Setup):
    """Joins the processes; all of them must create one."""
    self._kept: collections.deque[np.ndarray] = collections.deque(maxlen=_KEPT)
    self._told: dict[int, float] = {}
    self._before: tuple[int, float, float, float] | None = None
    self._next = 0
    devices = setup.mesh.local_devices
    n, dtype = _SIZES[devices[0].platform == 'cpu']
    tokens = setup.batch_size * setup.model.context / setup.mesh.size
    work = _SHARE * tokens * flops.per_token(setup.shapes.params, setup.model)
    count = max(1, round(work / (2 * n**3)))
    # Averages each row, so that products keep their values.
    matrix_NxN = np.full((n, n), 1 / n, dtype)
    self._matrices = [jax.device_put(matrix_NxN, d) for d in devices]
    self._products = jax.jit(
      lambda x_NxN: jax.lax.fori_loop(0, count, lambda _, y: y @ x_NxN, x_NxN)
    )
    self._probe()  # Compiles.
    name = socket.gethostname().encode()[:_LONGEST_NAME]
    names = multihost_utils.process_allgather(
      np.frombuffer(name.ljust(_LONGEST_NAME), np.uint8)
    )
    self._hosts = [bytes(n).decode('utf-8', 'replace').strip() for n in names]

  def due(self, step: int) -> bool:
    """Returns whether to measure a step; the same in every process."""
    return step >= self._next

  def measure(
    self, step: int, seconds: float, outside: float, paused: float
  ) -> dict[str, float]:
    """Returns the timings for rows from here on, {} the first time.

    Args:
      step: the step that has ended.
      seconds: how long it took.
      outside: seconds spent outside of steps since the start.
      paused: seconds since the start in which the process did not run.
    """
    probe, now = self._probe(), time.perf_counter()
    before, self._before = self._before, (step, outside, paused, now)
    if before is None:
      return {}
    steps = step - before[0]
    ran = 1 - (paused - before[2]) / (now - before[3])
    own = (outside - before[1]) / steps, seconds, probe / max(ran, 0.01)
    pace = (now - before[3]) / steps
    told = multihost_utils.process_allgather(np.array([*own, pace], np.float32))
    # The first process's pace, so that all agree.
    self._next = step + max(_EVERY[1], math.ceil(_EVERY[0] / told[0, 3]))
    self._kept.append(told[:, :3])
    host_P, step_P, probe_P = np.median(self._kept, 0).T
    times = alone(host_P, step_P, probe_P).tolist()
    # Of two processes, the median is the faster one's.
    slowest, median = max(times), statistics.median_low(times)
    row = {f'process/seconds/{i}': t for i, t in enumerate(times)}
    row |= {
      'process/slowest_seconds': slowest,
      'process/median_seconds': median,
    }
    if slowest >= SLOW * median:
      row['process/slow'] = times.index(slowest)
    return row

  def news(self, row: Mapping[str, float]) -> str:
    """Says which process a row shows as slow; '' if none or just reported."""
    if 'process/slow' not in row:
      return ''
    slow, now = int(row['process/slow']), time.monotonic()
    if slow in self._told and now - self._told[slow] < _AGAIN:
      return ''
    self._told[slow] = now
    slowest = row['process/slowest_seconds']
    return (
      f'process {slow} on {self._hosts[slow]} takes {slowest:.3g} s a step by '
      'itself, '
      f'{slowest / row["process/median_seconds"]:.1f} times the median of all, '
      'who wait for it'
    )

  def _probe(self) -> float:
    start = time.perf_counter()
    jax.block_until_ready([self._products(m) for m in self._matrices])
    return time.perf_counter() - start

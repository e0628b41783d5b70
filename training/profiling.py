"""A trace of some steps by JAX's profiler, for TensorBoard and Perfetto."""

from collections.abc import Sequence
import pathlib
from typing import Any

import jax


class Profile:
  """Writes DIRECTORY/plugins/profile/TIME/HOST.xplane.pb and .trace.json.gz."""

  def __init__(self, directory: pathlib.Path, steps: Sequence[int]):
    """Traces nothing yet.

    Args:
      directory: of the run.
      steps: first step that is traced, and the first that is no more; (): none.
    """
    self._directory = directory
    self._first, self._end = steps or (0, 0)
    self._traces = False

  def __enter__(self) -> 'Profile':
    return self

  def __exit__(self, *error: object) -> None:
    self._stop()

  def before(self, step: int, running: Any) -> None:
    """Begins or ends, as is due before a step.

    Args:
      step: that comes next.
      running: arrays of the step before, which may be under way.
    """
    if self._traces and step >= self._end:
      jax.block_until_ready(running)
      self._stop()
    elif not self._traces and self._first <= step < self._end:
      jax.block_until_ready(running)
      jax.profiler.start_trace(self._directory)
      self._traces = True

  def _stop(self) -> None:
    if self._traces:
      self._traces = False
      jax.profiler.stop_trace()

"""Traces some steps with JAX's profiler, for TensorBoard and Perfetto."""

from collections.abc import Sequence
import pathlib
from typing import Any

import jax


class Profile:
  """Writes DIRECTORY/plugins/profile/TIME/HOST.xplane.pb and .trace.json.gz."""

  def __init__(self, directory: pathlib.Path, steps: Sequence[int]):
    """Traces nothing yet.

    Args:
      directory: the run's directory.
      steps: first traced step, and first step no longer traced; (): none.
    """
    self._directory = directory
    self._first, self._end = steps or (0, 0)
    self._traces = False

  def __enter__(self) -> 'Profile':
    return self

  def __exit__(self, *error: object) -> None:
    self._stop()

  def before(self, step: int, running: Any) -> None:
    """Starts or ends the trace if due before a step.

    Args:
      step: the next step.
      running: arrays of the previous step, which may still be running.
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

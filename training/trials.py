"""Trains several runs of one shape as one program.

They read the same batches from the same initial weights and differ in the
compiled step's arguments alone. Each leaves in its workdir what it would leave
alone. N runs; B batch, L length.
"""

from collections.abc import Callable, Sequence
import functools
import time
from typing import Any

import jax
from jax import numpy as jnp

from steepest.optimizers import build
from steepest.optimizers.build import Arguments
from steepest.training import metrics, summary
from steepest.training.loop import Loop
from steepest.training.program import Program
from steepest.training.step import TrainState
from steepest.training.watchdog import Spike

# Of the device's memory, the rest being left to evaluation and fragments.
_SHARE = 0.9


class Lane(Loop):
  """One of several runs; its times are its share of the common ones."""

  _out: metrics.Writer

  def begin(self) -> None:
    """Opens its files."""
    self._out = self._writer(0)
    self._out.write_hparams(self._hparams)
    table = summary.parameter_table(self.program)
    self._out.write_texts(0, {'parameters': table})

  def end(self) -> None:
    """Closes its files."""
    self._out.close()

  def spend(self, what: str, seconds: float) -> None:
    """Adds its share of a time."""
    self._seconds[what] += seconds

  def record(
    self, step: int, stats: dict[str, Any], params: Callable[[], Any]
  ) -> None:
    """Writes a step's numbers, and evaluates where that is due.

    Args:
      step: that was done.
      stats: its numbers.
      params: returns the run's parameters after it.

    Raises:
      Diverged: a number is not finite.
      Exception: whatever the callback for rows raises.
    """
    try:
      row = self._read((step, stats))
    except Spike as spike:
      raise self._as_diverged(spike) from None
    if self._pause(step + 1):
      row |= self._evaluate(params(), step + 1)
    self._write(self._out, row, always=step + 1 == self.config.steps)

  def due(self, done: int) -> bool:
    """Returns whether something is evaluated after `done` steps."""
    return self._pause(done)

  def summarise(self) -> dict[str, Any]:
    """Returns what summary.json holds at the end."""
    return self._summary(self.config.steps)

  @property
  def arguments(self) -> Arguments:
    return self._args

  @property
  def seed(self) -> jax.Array:
    return self._seed


def train(
  lanes: Sequence[Lane], init: Callable[[], TrainState]
) -> list[dict[str, Any] | Exception]:
  """Trains all runs from the first step to the last.

  A run that diverges, or whose callback raises, is over; the others go on. No
  checkpoint is written.

  Args:
    lanes: of one program, with the same data, seed and steps.
    init: makes the state that all of them start from.

  Returns:
    Of each its summary, or the exception that ended it.
  """
  program = lanes[0].program
  states = program.stack(init(), len(lanes))
  args = program.put(stack_arguments([lane.arguments for lane in lanes]))
  running = _Running(lanes)
  steps = lanes[0].config.steps
  batches = lanes[0].data.train(0)
  pending: tuple[int, Any] | None = None
  try:
    for lane in lanes:
      lane.begin()
    for step in range(steps):
      running.timed('data')
      batch = program.put_batch(next(batches))
      running.timed('train')
      before = program.compile_seconds
      states, stats = program.step_many(
        states, batch, args, lanes[0].seed, lanes[0].written(step)
      )
      running.compiled(program.compile_seconds - before)
      # The last step's numbers are read while this one runs.
      running.record(pending, states)
      pending = step, stats
      if lanes[0].due(step + 1):
        running.record(pending, states)
        pending = None
      if not running.lanes:
        break
  finally:
    for lane in lanes:
      lane.end()
  return [
    running.endings[i] if i in running.endings else lane.summarise()
    for i, lane in enumerate(lanes)
  ]


class _Running:
  """The runs that are not over, and where their time goes."""

  def __init__(self, lanes: Sequence[Lane]):
    self.lanes = dict(enumerate(lanes))
    self.endings: dict[int, Exception] = {}
    self._what = 'data'
    self._since = time.perf_counter()

  def timed(self, what: str) -> None:
    """Books the time so far; what follows goes to `what`."""
    now = time.perf_counter()
    self._spend(self._what, now - self._since)
    self._what, self._since = what, now

  def compiled(self, seconds: float) -> None:
    """Moves time of compilation from training."""
    self._spend('compile', seconds)
    self._spend('train', -seconds)

  def record(self, pending: tuple[int, Any] | None, states: TrainState) -> None:
    """Waits for a step's numbers and gives each run its own."""
    if pending is None:
      return
    step, stats = pending
    values = jax.device_get(stats)
    due = self.lanes and next(iter(self.lanes.values())).due(step + 1)
    # Each evaluation books its own time.
    self.timed('none' if due else 'train')
    for i, lane in list(self.lanes.items()):
      try:
        lane.record(
          step,
          {name: value_N[i] for name, value_N in values.items()},
          functools.partial(lane.program.evaluation_params, states, i),
        )
      except Exception as error:
        self.endings[i] = error
        del self.lanes[i]
    self.timed('train')

  def _spend(self, what: str, seconds: float) -> None:
    if what == 'none':
      return
    for lane in self.lanes.values():
      lane.spend(what, seconds / len(self.lanes))


def stack_arguments(args: Sequence[Arguments]) -> Arguments:
  """Returns arguments with an axis for the runs, for Program.step_many.

  Raises:
    ValueError: one of build.SHARED differs, which all runs have to share.
  """
  for name in build.SHARED:
    every = {float(getattr(a, name)) for a in args}
    if len(every) > 1:
      raise ValueError(
        f'trials with optimizer.{name}={sorted(every)} cannot share a '
        'program: set study.vmapped_trials=0'
      )
  stacked = Arguments(*(jnp.stack(values) for values in zip(*args)))
  return stacked._replace(
    **{name: getattr(args[0], name) for name in build.SHARED}
  )


def fits(program: Program, lanes: Sequence[Lane]) -> bool:
  """Returns whether the device's memory holds the program of these runs.

  Always where the device does not tell how much it has, as CPUs. Compiles.
  """
  device = program.mesh.local_devices[0]
  stats = device.memory_stats() or {}
  if 'bytes_limit' not in stats:
    return True
  return needed(program, lanes) <= _SHARE * stats['bytes_limit']


def needed(program: Program, lanes: Sequence[Lane]) -> int:
  """Returns the bytes on a device that a step of these runs takes."""
  count = len(lanes)
  one = program.state_shapes
  wider = lambda s: jax.ShapeDtypeStruct((count, *s.shape), s.dtype)
  states = TrainState(one.step, *jax.tree.map(wider, tuple(one[1:])))
  args = program.put(stack_arguments([lane.arguments for lane in lanes]))
  batch = next(iter(lanes[0].data.train(0)))
  compiled = program.compile_many(
    states, program.put_batch(batch), args, lanes[0].seed
  )
  sizes = compiled.memory_analysis()
  return int(
    sizes.argument_size_in_bytes
    + sizes.output_size_in_bytes
    + sizes.temp_size_in_bytes
    - sizes.alias_size_in_bytes
  )

"""Compiles variants of one training step and times them in turn."""

from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
import contextlib
import dataclasses
import os
import time
from typing import Any

import jax

from benchmarks import jax_step
from benchmarks.gpu_round.variants import Variant
from steepest.training import state as state_lib


@dataclasses.dataclass
class Program:
  """A form of the step.

  Attributes:
    variant: what it is.
    trainer: the model, its batch and what else a step takes.
    step: compiled.
  """

  variant: Variant
  trainer: jax_step.Trainer
  step: jax.stages.Compiled

  @property
  def bytes(self) -> int:
    """Of the device, by the compiler: arguments and all else."""
    m = self.step.memory_analysis()
    new = m.output_size_in_bytes - m.alias_size_in_bytes
    return m.argument_size_in_bytes + m.temp_size_in_bytes + new

  def first(self) -> dict[str, float]:
    """Returns loss and norm of the gradient of the first step and the second.

    From the initial weights, so that forms may be compared.
    """
    # Memory may not hold two states.
    self.trainer.state = None
    self.trainer.state = state_lib.init(self.trainer.setup, 0)
    found = {}
    for i in (1, 2):
      _, stats = self._run(1)
      found[f'loss {i}'] = float(stats['train/loss'])
      found[f'gradient norm {i}'] = float(stats['grad_norm'])
    return found

  def seconds(self, count: int) -> float:
    """Returns the time of `count` steps, after one that is not timed."""
    return self._run(count, first=1)[0]

  def _run(self, count: int, first: int = 0) -> tuple[float, Any]:
    """Returns the time of `count` steps after `first`, and their last rows."""
    t = self.trainer
    t.state, held = None, self.variant.state(t.setup, t.state)
    held, _ = self._steps(held, first)
    jax.block_until_ready(held)
    start = time.perf_counter()
    held, stats = self._steps(held, count)
    jax.block_until_ready(held)
    seconds = time.perf_counter() - start
    t.state = self.variant.plain(held)
    return seconds, stats

  def _steps(self, held: Any, count: int) -> tuple[Any, Any]:
    t, stats = self.trainer, None
    for _ in range(count):
      # Without the measurements of a logged step.
      held, stats = self.step(held, t.batch, t.hypers, t.seed, t.flags[False])
    return held, stats


def compile_all(
  forms: Mapping[str, tuple[Variant, jax_step.Trainer]],
  until: float,
  say: Callable[..., None],
) -> dict[str, Program]:
  """Traces one after the other and compiles side by side.

  Args:
    forms: by name.
    until: time.monotonic() after which no other than the first is begun.
    say: gets what is to be reported, as keywords.

  Returns:
    Programs by name, without those that failed or were not begun.
  """
  found: dict[str, Program] = {}

  def compiled(lowered: Any, options: Mapping[str, Any]) -> Any:
    start = time.monotonic()
    program = lowered.compile(compiler_options=dict(options) or None)
    return program, time.monotonic() - start

  with futures.ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // 2)) as pool:
    begun = {}
    for name, (variant, trainer) in forms.items():
      if begun and time.monotonic() > until:
        say(form=name, left_out='no time left to compile it')
        continue
      with failing(name, say):
        lowered = variant.lower(trainer.setup, trainer.hypers)
        begun[name] = pool.submit(compiled, lowered, variant.options)
    for name, future in begun.items():
      with failing(name, say):
        step, seconds = future.result()
        program = Program(*forms[name], step)
        say(form=name, compile_seconds=seconds, GB=program.bytes / 1e9)
        found[name] = program
  return found


@contextlib.contextmanager
def failing(name: str, say: Callable[..., None]) -> Iterator[None]:
  """Says what goes wrong with a form, whatever it is: the others go on."""
  try:
    yield
  except Exception as error:
    first = (str(error).splitlines() or [''])[0]
    say(form=name, failed=f'{type(error).__name__}: {first}')


def rounds(
  programs: Mapping[str, Callable[[int], float]],
  steps: int,
  until: float,
  say: Callable[..., None],
  most: int = 0,
) -> dict[str, list[float]]:
  """Times programs in turn; returns the seconds of a step of each round.

  Args:
    programs: (steps) → their seconds, by name; each round begins with the next
      one.
    steps: that are timed.
    until: time.monotonic() after which no round begins but the first.
    say: gets each time, as keywords.
    most: rounds; 0: as many as there is time for.
  """
  names = list(programs)
  found: dict[str, list[float]] = {name: [] for name in names}
  number = 0
  while names and number != (most or None):
    if number and time.monotonic() > until:
      break
    for name in (*names[number % len(names) :], *names[: number % len(names)]):
      seconds = programs[name](steps) / steps
      say(form=name, round=number, ms=1e3 * seconds)
      found[name].append(seconds)
    number += 1
  return found

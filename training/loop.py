"""The training loop: steps, evaluation, checkpoints, bookkeeping."""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
import math
import os
import pathlib
import time
from typing import Any, Protocol

from clu import parameter_overview
import jax
import numpy as np

from steepest.optimizers.build import Arguments
from steepest.training import flops
from steepest.training import metrics
from steepest.training.checkpoint import Checkpointer
from steepest.training.program import Program
from steepest.training.step import TrainState


class Data(Protocol):
  """What the loop reads; data/pipeline.py has it."""

  fingerprint: str

  def train(self, first_step: int) -> Iterator[dict[str, np.ndarray]]: ...

  def validation(self) -> dict[str, list[dict[str, np.ndarray]]]: ...


@dataclasses.dataclass(frozen=True)
class LoopConfig:
  """Keys of experiments/base.py that the loop itself reads."""

  seed: int
  steps: int
  log_every: int
  eval_every: int
  eval_sequences: int
  eval_tasks: str
  eval_tasks_every: int
  checkpoint_every: int
  checkpoints_kept: int


@dataclasses.dataclass(frozen=True)
class Callbacks:
  """What others add to the loop.

  Attributes:
    evaluate: (params, steps done, whether the run ends) → benchmark scores.
    on_row: called with each logged row.
    writers: (first step) → further writers of metrics.
  """

  evaluate: Callable[[Any, int, bool], dict[str, float]] | None = None
  on_row: Callable[[dict[str, Any]], None] | None = None
  writers: Callable[[int], list[metrics.Writer]] = lambda first: []


class Diverged(ValueError):
  """The loss or the update stopped being a number, at `step`."""

  def __init__(self, message: str, step: int):
    super().__init__(message)
    self.step = step


class Loop:
  """One run in its workdir; goes on where an earlier one stopped.

  `hparams` are shown in TensorBoard beside the table of parameters.
  """

  def __init__(
    self,
    program: Program,
    data: Data,
    args: Arguments,
    config: LoopConfig,
    workdir: str | os.PathLike[str],
    callbacks: Callbacks,
    hparams: Mapping[str, Any],
  ):
    self.program = program
    self.data = data
    self.config = config
    self.workdir = pathlib.Path(workdir)
    self.callbacks = callbacks
    self._hparams = hparams
    self._args = program.put(args)
    self._seed = program.put(np.uint32(config.seed))
    self._seconds = dict.fromkeys(
      ('train', 'data', 'eval', 'checkpoint', 'compile'), 0.0
    )
    self._tokens_per_step = program.batch_size * program.model.context
    self._per_token = flops.per_token(
      program.state_shapes.params, program.model
    )
    peak = flops.peak(program.mesh.devices.flat[0])
    self._peak = peak and peak * program.mesh.size
    self._validation: dict[str, list[dict[str, jax.Array]]] | None = None
    self._losses: dict[str, float] = {}

  def run(self, init: Callable[[], TrainState]) -> dict[str, Any]:
    """Trains to the last step and returns what summary.json holds.

    Args:
      init: makes the state where there is no checkpoint.

    Raises:
      Diverged: names the step; the last good checkpoint is kept.
    """
    checkpointer = None
    if self.config.checkpoint_every:
      checkpointer = Checkpointer(
        self.workdir / 'checkpoints', self.config.checkpoints_kept
      )
    try:
      state, first = self._start(init, checkpointer)
      writer = self._writer(first)
      try:
        if first == 0:
          writer.write_hparams(self._hparams)
          writer.write_texts(0, {'parameters': self._overview()})
        self._steps(state, first, writer, checkpointer)
      finally:
        writer.close()
    finally:
      if checkpointer is not None:
        checkpointer.close()
    return self._summary(self.config.steps)

  def _writer(self, first: int) -> metrics.Writer:
    """Returns what writes; of several processes, the first does."""
    if jax.process_index():
      return metrics.Writers([])
    files = metrics.MetricWriter(self.workdir, first)
    return metrics.Writers([files, *self.callbacks.writers(first)])

  def _overview(self) -> str:
    table = parameter_overview.get_parameter_overview(
      self.program.state_shapes.params, include_stats=False
    )
    return f'<pre>{table}</pre>'

  def diverged(self, error: Diverged) -> dict[str, Any]:
    """Returns what summary.json holds of a run that ended with `error`."""
    return {
      **self._summary(error.step),
      'status': 'diverged',
      'diverged_at_step': error.step,
      'train_loss': None,
      'eval_loss': None,
      'eval_loss_by_source': {},
    }

  def _start(
    self, init: Callable[[], TrainState], checkpointer: Checkpointer | None
  ) -> tuple[TrainState, int]:
    latest = checkpointer.latest() if checkpointer else None
    if checkpointer is None or latest is None:
      return init(), 0
    if latest > self.config.steps:
      raise ValueError(
        f'{self.workdir} holds {latest} steps, steps={self.config.steps} '
        'asks for fewer: use another --workdir'
      )
    state, books = checkpointer.restore(self.program.state_shapes, latest)
    if books['data_fingerprint'] != self.data.fingerprint:
      raise ValueError(
        f'{self.workdir} was trained on other data than data.source gives '
        'now: restore the data or use another --workdir'
      )
    self._seconds |= books['seconds']
    self._losses = books['losses']
    return state, latest

  def _steps(
    self,
    state: TrainState,
    first: int,
    writer: metrics.Writer,
    checkpointer: Checkpointer | None,
  ) -> None:
    batches = self.data.train(first)
    pending: tuple[int, Any] | None = None
    for step in range(first, self.config.steps):
      with self._timed('data'):
        batch = self.program.put_batch(next(batches))
      before = self.program.compile_seconds
      with self._timed('train'):
        state, stats = self.program.step(state, batch, self._args, self._seed)
        # The last step's numbers are read while this one runs.
        row = self._read(pending)
      spent = self.program.compile_seconds - before
      self._seconds['train'] -= spent
      self._seconds['compile'] += spent
      if row:
        self._write(writer, row)
      pending = step, stats
      if self._pause(step + 1):
        with self._timed('train'):
          row = self._read(pending)
        pending = None
        row |= self._evaluate(state.params, step + 1)
        self._write(writer, row, always=True)
        self._save(state, step + 1, writer, checkpointer)
    if first == self.config.steps:
      self._evaluate(state.params, first)

  def _pause(self, done: int) -> bool:
    c = self.config
    every = (c.eval_every, c.eval_tasks_every, c.checkpoint_every)
    return done == c.steps or any(n and done % n == 0 for n in every)

  def _read(self, pending: tuple[int, Any] | None) -> dict[str, Any]:
    """Waits for a step's numbers and returns its row, {} without one."""
    if pending is None:
      return {}
    step, stats = pending
    row = {name: float(v) for name, v in jax.device_get(stats).items()}
    bad = [name for name, value in row.items() if not math.isfinite(value)]
    if bad:
      raise Diverged(
        f'diverged at step {step}: {bad[0]} is {row[bad[0]]}; lower '
        f'optimizer.lr; {self._last_good()}',
        step,
      )
    return {'step': step, 'tokens': (step + 1) * self._tokens_per_step, **row}

  def _last_good(self) -> str:
    latest = self.workdir / 'checkpoints'
    if not self.config.checkpoint_every:
      return 'no checkpoint was asked for'
    return f'the last good checkpoint is kept in {latest}'

  def _write(
    self, writer: metrics.Writer, row: dict[str, Any], always=False
  ) -> None:
    step = row['step']
    row['seconds'] = seconds = self._seconds['train']
    row['data/wait_seconds'] = self._seconds['data']
    row['tokens_per_second'] = row['tokens'] / max(seconds, 1e-9)
    if self._peak:
      row['mfu'] = row['tokens_per_second'] * self._per_token / self._peak
    if always or step % self.config.log_every == 0:
      writer.write_scalars(step, {k: v for k, v in row.items() if k != 'step'})
    if self.callbacks.on_row:
      self.callbacks.on_row(row)

  def _evaluate(self, params: Any, done: int) -> dict[str, float]:
    """Returns the evaluations that are due after `done` steps."""
    c, last = self.config, done == self.config.steps
    scores: dict[str, float] = {}
    with self._timed('eval'):
      if c.eval_sequences and (
        last or (c.eval_every and done % c.eval_every == 0)
      ):
        scores |= self._validation_losses(params)
        self._losses = scores
      every = c.eval_tasks_every
      if c.eval_tasks and self.callbacks.evaluate:
        if last or (every and done % every == 0):
          tasks = self.callbacks.evaluate(params, done, last)
          scores = scores | {f'eval/{k}': v for k, v in tasks.items()}
    return scores

  def _validation_losses(self, params: Any) -> dict[str, float]:
    """Returns eval/loss, the mean over sequences, and each source's."""
    if self._validation is None:
      self._validation = {
        source: [self.program.put_batch(batch) for batch in batches]
        for source, batches in self.data.validation().items()
      }
    losses: dict[str, float] = {}
    total, count = 0.0, 0
    for source, batches in self._validation.items():
      parts = jax.device_get(
        [self.program.eval_loss(params, batch) for batch in batches]
      )
      source_total = sum(float(loss) for loss, _ in parts)
      source_count = sum(int(rows) for _, rows in parts)
      losses[f'eval/loss/{source}'] = source_total / source_count
      total, count = total + source_total, count + source_count
    return {'eval/loss': total / count, **losses} if count else {}

  def _save(
    self,
    state: TrainState,
    done: int,
    writer: metrics.Writer,
    checkpointer: Checkpointer | None,
  ) -> None:
    every = self.config.checkpoint_every
    if checkpointer is None or (done % every and done != self.config.steps):
      return
    with self._timed('checkpoint'):
      writer.flush()
      books = {
        'seconds': dict(self._seconds),
        'losses': self._losses,
        'data_fingerprint': self.data.fingerprint,
      }
      checkpointer.save(state, done, books)

  @contextlib.contextmanager
  def _timed(self, what: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
      yield
    finally:
      self._seconds[what] += time.perf_counter() - start

  def _summary(self, steps: int) -> dict[str, Any]:
    rows = metrics.read_rows(self.workdir)
    tail = rows[-max(1, round(len(rows) * 0.05)) :]
    tokens = steps * self._tokens_per_step
    passes = 0
    if self.program.chain.wants_curvature:
      passes = steps // int(self._args.hessian_every)
    seconds = self._seconds['train']
    memory = self.program.mesh.local_devices[0].memory_stats() or {}
    peak = 'peak_bytes_in_use'
    return {
      'status': 'finished',
      'steps': steps,
      'tokens': tokens,
      'seconds': seconds,
      'data_wait_seconds': self._seconds['data'],
      'compile_seconds': self._seconds['compile'],
      'eval_seconds': self._seconds['eval'],
      'checkpoint_seconds': self._seconds['checkpoint'],
      'train_loss': (
        float(np.mean([r['train/loss'] for r in tail])) if tail else None
      ),
      'eval_loss': self._losses['eval/loss'] if self._losses else None,
      'eval_loss_by_source': {
        name.removeprefix('eval/loss/'): value
        for name, value in self._losses.items()
        if name != 'eval/loss'
      },
      'tokens_per_second': tokens / max(seconds, 1e-9),
      'mfu': (
        tokens * self._per_token / seconds / self._peak if self._peak else None
      ),
      'mfu_convention': flops.CONVENTION,
      **flops.count(self.program.state_shapes.params),
      'flops': self._per_token
      * self._tokens_per_step
      * (steps + passes * flops.CURVATURE_COST[self.program.estimator]),
      'curvature_passes': passes,
      'data_fingerprint': self.data.fingerprint,
      'peak_memory_bytes': memory[peak] if peak in memory else None,
    }

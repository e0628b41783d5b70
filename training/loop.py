"""The training loop: steps, evaluation, checkpoints, bookkeeping."""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import math
import os
import pathlib
import time
from typing import Any

import jax
import numpy as np

from steepest.optimizers.build import Arguments
from steepest.training import chips, flops, metrics, summary
from steepest.training.checkpoint import Checkpointer
from steepest.training.events import Events
from steepest.training.given import Callbacks, Data, LoopConfig
from steepest.training.program import Program
from steepest.training.signals import Stopped
from steepest.training.stall import StallTimer
from steepest.training.step import TrainState
from steepest.training.validation import Validation


class Diverged(ValueError):
  """A logged number stopped being finite, at `step`."""

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
    self._checkpoints = self.workdir / 'checkpoints'
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
    peak = chips.peak(program.mesh.devices.flat[0])
    self._peak = peak and peak * program.mesh.size
    self._validation: Validation | None = None
    self._losses: dict[str, float] = {}
    self._events = Events(workdir, writes=jax.process_index() == 0)
    self._step = 0
    self._stall = StallTimer(
      config.stall_seconds,
      f'process {jax.process_index()} of {jax.process_count()}',
    )

  def run(self, init: Callable[[], TrainState]) -> dict[str, Any]:
    """Trains to the last step and returns what summary.json holds.

    Args:
      init: makes the state where there is no checkpoint.

    Raises:
      Diverged: names the step; the last good checkpoint is kept.
      Stopped: a stop was asked for; a checkpoint of that step is kept.
    """
    checkpointer = None
    if self.config.checkpoint_every:
      checkpointer = Checkpointer(
        self._checkpoints,
        self.config.checkpoints_kept,
        warn=lambda text: self._events.add('checkpoint', self._step, text),
      )
    try:
      state, first = self._start(init, checkpointer)
      with self._stall:
        self._train(state, first, checkpointer)
    finally:
      if checkpointer is not None:
        checkpointer.close()
    return self._summary(self.config.steps)

  def _train(
    self, state: TrainState, first: int, checkpointer: Checkpointer | None
  ) -> None:
    """Trains from step `first` to the last."""
    writer = self._writer(first)
    try:
      if first == 0:
        writer.write_hparams(self._hparams)
        table = summary.parameter_table(self.program)
        writer.write_texts(0, {'parameters': table})
      self._steps(state, first, writer, checkpointer)
    finally:
      writer.close()

  def _writer(self, first: int) -> metrics.Writer:
    """Returns what writes; of several processes, the first does."""
    if jax.process_index():
      return metrics.Writers([])
    warn = lambda text: self._events.add('metrics', self._step, text)
    files = metrics.MetricWriter(self.workdir, first, warn)
    return metrics.Writers([files, *self.callbacks.writers(warn)])

  def _diverged(self, step: int, text: str) -> Diverged:
    where = 'no checkpoint was asked for'
    if self.config.checkpoint_every:
      where = f'the last good checkpoint is kept in {self._checkpoints}'
    return Diverged(
      f'diverged at step {step}: {text}; lower optimizer.lr; {where}', step
    )

  def diverged(self, error: Diverged) -> dict[str, Any]:
    """Returns what summary.json holds of a run that ended with `error`."""
    return {
      **self._summary(error.step),
      'status': 'diverged',
      'diverged_at_step': error.step,
      'train_loss': None,
      'eval_loss': None,
      'eval_loss_by_source': {},
      'eval_bits_per_byte': None,
      'eval_bits_per_byte_by_source': {},
    }

  def pruned(self, steps: int) -> dict[str, Any]:
    """Returns what summary.json holds of a trial ended after `steps` steps."""
    return {**self._summary(steps), 'status': 'pruned', 'eval_loss': None}

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
      self._step = step
      with self._timed('data'):
        rows = next(batches)
      before = self.program.compile_seconds
      # The first step is compiled, which may take any time.
      watched = self._stall.step() if step > first else contextlib.nullcontext()
      with self._timed('train'), watched:
        batch = self.program.put_batch(rows)
        state, stats = self.program.step(
          state,
          batch,
          self._args,
          self._seed,
          self.written(step),
        )
        # The last step's numbers are read while this one runs.
        row = self._read(pending)
      spent = self.program.compile_seconds - before
      self._seconds['train'] -= spent
      self._seconds['compile'] += spent
      if row:
        self._write(writer, row)
      pending = step, stats
      stop, due = self.callbacks.stop(step + 1), self._pause(step + 1)
      if stop or due:
        with self._timed('train'), self._stall.step():
          row = self._read(pending)
        pending = None
        params = self.program.evaluation_params(state)
        row |= self._evaluate(params, step + 1)
        # A stop leaves the rows that there would be without it.
        self._write(writer, row, always=due)
        self._save(state, step + 1, writer, checkpointer, stop)
        if stop and step + 1 < self.config.steps:
          raise self._stopped(step + 1)
    if first == self.config.steps:
      self._evaluate(self.program.evaluation_params(state), first)

  def written(self, step: int) -> bool:
    """Returns whether a step's row is, whatever stops the run."""
    return step % self.config.log_every == 0 or self._pause(step + 1)

  def _stopped(self, steps: int) -> Stopped:
    kept = 'run the same command again to go on'
    if not self.config.checkpoint_every:
      kept = 'nothing was kept: set checkpoint_every'
    return Stopped(
      f'stopped after {steps} of {self.config.steps} steps; {kept}', steps
    )

  def _pause(self, done: int) -> bool:
    c = self.config
    every = (c.eval_every, c.eval_tasks_every, c.checkpoint_every)
    return done == c.steps or any(n and done % n == 0 for n in every)

  def _read(self, pending: tuple[int, Any] | None) -> dict[str, Any]:
    """Waits for a step's numbers and returns its row, {} without one."""
    if pending is None:
      return {}
    step, stats = pending
    values = self.program.chain.named(jax.device_get(stats))
    row = {name: float(v) for name, v in values.items()}
    for name, value in row.items():
      if not math.isfinite(value):
        raise self._diverged(step, f'{name} is {value}')
    return {'step': step, 'tokens': (step + 1) * self._tokens_per_step, **row}

  def _write(
    self, writer: metrics.Writer, row: dict[str, Any], always=False
  ) -> None:
    step = row['step']
    row['seconds'] = seconds = self._seconds['train']
    row['data/wait_seconds'] = self._seconds['data']
    row['tokens_per_second'] = row['tokens'] / max(seconds, 1e-9)
    if self._peak:
      row['mfu'] = row['tokens_per_second'] * self._per_token / self._peak
    if always or self.written(step):
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
        if self._validation is None:
          self._validation = Validation(
            self.program, self.data.validation(), self.data.bytes_per_token
          )
        scores |= self._validation.losses(params)
        self._losses = scores
      every = c.eval_tasks_every
      if c.eval_tasks and self.callbacks.evaluate:
        if last or (every and done % every == 0):
          tasks = self.callbacks.evaluate(params, done, last)
          scores = scores | {f'eval/{k}': v for k, v in tasks.items()}
    return scores

  def _save(
    self,
    state: TrainState,
    done: int,
    writer: metrics.Writer,
    checkpointer: Checkpointer | None,
    now: bool,
  ) -> None:
    every = self.config.checkpoint_every
    if checkpointer is None:
      return
    last = done == self.config.steps
    if done % every and not last and not now:
      return
    with self._timed('checkpoint'):
      try:
        writer.flush()
      except OSError as error:
        # Its rows come before it; without them there is none.
        self._events.add(
          'metrics', done, f'no room for rows, nor a checkpoint: {error}'
        )
        return
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
    passes = 0
    if self.program.chain.wants_curvature:
      passes = steps // int(self._args.hessian_every)
    return {
      **summary.summarise(
        self.program,
        metrics.read_rows(self.workdir),
        steps,
        self._seconds,
        self._losses,
        passes,
        self._peak,
      ),
      'data_fingerprint': self.data.fingerprint,
    }

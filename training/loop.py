"""The training loop: steps, rows, evaluations, checkpoints."""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
import math
import os
import pathlib
import sys
import time
from typing import Any, Protocol

import jax
from jax.experimental import multihost_utils
import numpy as np

from steepest.data import buckets
from steepest.optimizers import role_statistics
from steepest.training import (
  chips,
  flops,
  mesh as mesh_lib,
  metrics,
  state as state_lib,
  summary,
)
from steepest.training.checkpoint import Checkpointer
from steepest.training.interrupts import StallTimer, Stopped
from steepest.training.profiling import Profile
from steepest.training.state import Setup, TrainState
from steepest.training.step import compile_step
from steepest.training.stragglers import Stragglers
from steepest.training.validation import Validation

# The step, its statistics on the devices, and the latest process timings.
_Pending = tuple[int, Any, dict[str, float]]
# One in this many rows has per-layer statistics, which are most of a row.
_LAYERS_EVERY = 10


class Data(Protocol):
  """The data that the loop reads; data/pipeline.py implements it."""

  fingerprint: str

  @property
  def bytes_per_token(self) -> Mapping[str, float]: ...

  def train(self, first_step: int) -> Iterator[dict[str, np.ndarray]]: ...

  def validation(self) -> dict[str, list[dict[str, np.ndarray]]]: ...


@dataclasses.dataclass(frozen=True)
class LoopConfig:
  """Keys of experiments/base.py that the loop reads."""

  seed: int
  steps: int
  log_every: int
  eval_every: int
  eval_sequences: int
  eval_tasks: str
  eval_tasks_every: int
  checkpoint_every: int
  checkpoints_kept: int
  stall_seconds: float
  profile_steps: tuple[int, ...]

  def due(self, done: int) -> bool:
    """Returns whether anything but a step follows `done` steps."""
    every = (self.eval_every, self.eval_tasks_every, self.checkpoint_every)
    return done == self.steps or any(n and done % n == 0 for n in every)

  def written(self, step: int) -> bool:
    """Returns whether a step's row is written."""
    return step % self.log_every == 0 or self.due(step + 1)

  def whole(self, step: int) -> bool:
    """Returns whether a step's row has per-layer statistics."""
    return step % (_LAYERS_EVERY * self.log_every) == 0 or self.due(step + 1)


@dataclasses.dataclass(frozen=True)
class Callbacks:
  """What others add to the loop.

  Attributes:
    evaluate: (params, steps done, whether the run ends) → benchmark scores.
    on_row: called with each row.
    stop: (steps done) → whether to save and stop; called once per step.
    writers: (function that reports a failure) → additional metrics writers.
    check: raises if another attempt owns the run's directory; called before
      anything is written there.
    began: start of the run's first attempt, as of time.time(); None: now.
    stage: the workdir's, if each process has its own copy of one in a bucket.
  """

  evaluate: Callable[[Any, int, bool], dict[str, float]] | None = None
  on_row: Callable[[dict[str, Any]], None] | None = None
  stop: Callable[[int], bool] = lambda steps: False
  writers: Callable[[Callable[[str], None]], list[metrics.Writer]] = (
    lambda warn: []
  )
  check: Callable[[], None] = lambda: None
  began: float | None = None
  stage: buckets.Stage | None = None


class Ended(ValueError):
  """A run ended before its last step.

  Attributes:
    status: how it ended, as in summary.json.
    steps: steps done.
    summary: contents of summary.json.
  """

  status = ''

  def __init__(self, message: str, steps: int):
    super().__init__(message)
    self.steps = steps
    self.summary: dict[str, Any] = {}


class Diverged(Ended):
  """A logged number is not finite after `steps` steps."""

  status = 'diverged'


class Pruned(Ended):
  """A trial was ended early; `Callbacks.on_row` raises it."""

  status = 'pruned'


def fit(
  setup: Setup,
  data: Data,
  hypers: Mapping[str, Any],
  config: LoopConfig,
  workdir: str | os.PathLike[str],
  callbacks: Callbacks,
  hparams: Mapping[str, Any],
  init: Callable[[], TrainState],
  restart: bool = False,
) -> dict[str, Any]:
  """Trains to the last step and returns what summary.json holds.

  Resumes from the newest checkpoint in the workdir.

  Args:
    setup: constants of the programs.
    data: the data to read.
    hypers: hyperparameters by name.
    config: the loop's keys.
    workdir: the run's directory.
    callbacks: what others add.
    hparams: shown in TensorBoard beside the table of parameters.
    init: makes the state if there is no checkpoint.
    restart: continue even if checkpoints or rows of the workdir are gone.

  Raises:
    Diverged: names the step; the last good checkpoint is kept.
    Pruned: a callback ended the run.
    Stopped: a stop was requested; a checkpoint of that step is kept.
    ValueError: the workdir holds another run's checkpoints, or has lost
      checkpoints or rows.
  """
  record = _Record(setup, data, hypers, config, workdir, callbacks)
  put = lambda tree: mesh_lib.replicate(setup.mesh, tree)
  operands, seed = put(dict(hypers)), put(np.uint32(config.seed))
  flags = put((np.bool_(False), np.bool_(True)))
  with record.summarised(), contextlib.ExitStack() as stack:
    checkpointer = record.open_checkpoints(stack)
    state, first = _start(record, checkpointer, init, restart)
    record.open_writer(stack, first, hparams)
    stack.enter_context(record.stall)
    profile = stack.enter_context(Profile(record.workdir, config.profile_steps))
    stragglers = Stragglers(setup) if jax.process_count() > 1 else None
    record.begin(first)
    batches = data.train(first)
    compiled = None
    pending: _Pending | None = None
    lag: dict[str, float] = {}
    for step in range(first, config.steps):
      record.step = step
      # Not watched: the first step connects the processes; the next waits.
      watch = record.stall.step if step > first + 1 else contextlib.nullcontext
      with record.timed('data'), watch():
        rows = next(batches)
      if compiled is None:
        with record.timed('compile'):
          compiled = record.compile(rows)
      measure = config.written(step)
      row: dict[str, Any] = {}
      profile.before(step, pending)
      trace = jax.profiler.StepTraceAnnotation('train', step_num=step)
      with record.timed('train'), watch(), trace:
        batch = mesh_lib.put_batch(setup.mesh, rows, setup.batch_size)
        # Processes are timed separately while no step is running.
        apart = None
        if stragglers and measure and step > first and stragglers.due(step):
          apart = stragglers
          row, pending = record.read(pending), None
        start = time.perf_counter()
        state, stats = compiled(state, batch, operands, seed, flags[measure])
        if apart:
          jax.block_until_ready(stats)
          lag = record.lag(apart, time.perf_counter() - start)
        # Read the last step's statistics while this one runs.
        row = row or record.read(pending)
      if row:
        record.write(row)
      pending = step, role_statistics.kept(stats, measure), lag
      stop, due = callbacks.stop(step + 1), config.due(step + 1)
      if stop or due:
        with record.timed('train'), watch():
          row, pending = record.read(pending), None
        params = state_lib.evaluation_params(setup, state)
        row |= record.evaluate(params, step + 1)
        # A stop leaves the same rows as a run without it.
        record.write(row, always=due)
        record.save(checkpointer, state, step + 1, now=stop)
        if stop and step + 1 < config.steps:
          raise record.stopped(step + 1)
    if first == config.steps:
      record.evaluate(state_lib.evaluation_params(setup, state), first)
  return record.summary('finished', config.steps)


def _start(
  record: '_Record',
  checkpointer: Checkpointer | None,
  init: Callable[[], TrainState],
  restart: bool,
) -> tuple[TrainState, int]:
  """Returns the state to resume from, and the steps done."""
  latest = checkpointer.latest() if checkpointer else None
  if checkpointer is None:
    return init(), 0
  if latest is None:
    lost = checkpointer.recorded()
    if lost is not None and not restart:
      raise ValueError(
        f'{checkpointer.directory} had a checkpoint of step {lost} and has '
        'none now: restore it, delete the run, or start from the first step '
        'with launch.train --restart'
      )
    return init(), 0
  if latest > record.config.steps:
    raise ValueError(
      f'{record.workdir} holds {latest} steps, steps={record.config.steps} '
      'asks for fewer: use another --workdir'
    )
  state, metadata = checkpointer.restore_run(record.setup, latest)
  if metadata['data_fingerprint'] != record.data.fingerprint:
    raise ValueError(
      f'{record.workdir} was trained on other data than the present '
      'data.source: restore the data or use another --workdir'
    )
  held = record.count_rows(latest)
  # Earlier versions' checkpoints do not record the number of rows.
  if 'rows' in metadata and held != metadata['rows']:
    found = (
      f'{record.workdir / "metrics.jsonl"} has {held} rows before step '
      f'{latest}, {metadata["rows"]} were written'
    )
    if not restart:
      raise ValueError(f'{found}: restore it, or resume with --restart')
    record.tell('metrics', found)
  record.seconds |= metadata['seconds']
  record.losses = metadata['losses']
  return state, latest


def _start_number() -> int:
  """Returns a number that all processes share, unique to this start."""
  now = int(time.time())
  if jax.process_count() > 1:
    now = int(multihost_utils.broadcast_one_to_all(np.uint32(now)))
  return now


class _Record:
  """What a run records: rows, evaluations, checkpoints, times.

  Attributes:
    step: the current step.
    seconds: spent so far on each of summary.PHASES.
    stall: watches the steps.
    losses: the latest validation losses.
  """

  def __init__(
    self,
    setup: Setup,
    data: Data,
    hypers: Mapping[str, Any],
    config: LoopConfig,
    workdir: str | os.PathLike[str],
    callbacks: Callbacks,
  ):
    self.setup, self.data, self.config = setup, data, config
    self.workdir = pathlib.Path(workdir)
    self.step = 0
    self.seconds = dict.fromkeys(summary.PHASES, 0.0)
    self._created = self._left = time.perf_counter()
    began = callbacks.began
    self._before = 0.0 if began is None else max(0.0, time.time() - began)
    self._doing = 'other', self._left
    self.losses: dict[str, float] = {}
    self._hypers, self._callbacks = hypers, callbacks
    self._events = metrics.Events(workdir, writes=jax.process_index() == 0)
    self.stall = StallTimer(
      config.stall_seconds,
      self.workdir / 'logs' / f'stall-{_start_number()}',
      self._where,
      self._tell_stall,
      callbacks.stage,
    )
    self._writers: list[metrics.Writer] = []
    self._rows = 0
    self._validation: Validation | None = None
    self._flops_per_token = flops.per_token(setup.shapes.params, setup.model)
    peak = chips.peak(setup.mesh.devices.flat[0])
    self._peak = peak and peak * setup.mesh.size

  @contextlib.contextmanager
  def timed(self, what: str) -> Iterator[None]:
    """Counts its body's time as `what`, and the time before it as other."""
    start = time.perf_counter()
    self.seconds['other'] += start - self._left
    self._doing = what, start
    try:
      yield
    finally:
      self._left = time.perf_counter()
      self._doing = 'other', self._left
      self.seconds[what] += self._left - start

  def begin(self, first: int) -> None:
    """From here on counts untimed seconds as other, and speed since `first`."""
    self._left = time.perf_counter()
    self._paced = self._tokens(first), self.seconds['train']

  def lag(self, stragglers: Stragglers, seconds: float) -> dict[str, float]:
    """Returns process timings for the row of a step that took `seconds`."""
    row = stragglers.measure(
      self.step,
      seconds,
      self.seconds['data'] + self.seconds['other'],
      self.stall.paused,
    )
    news = stragglers.news(row)
    if news:
      self.tell('process', news)
    return row

  def _total(self) -> float:
    """Returns the seconds since the run's first start."""
    total = self._before + time.perf_counter() - self._created
    # A clock may have been changed between attempts.
    return max(total, sum(self.seconds.values()), 1e-9)

  def _where(self) -> dict[str, Any]:
    what, since = self._doing
    return {
      'doing': summary.PHASES[what],
      'waits': what == 'train',
      'seconds': time.perf_counter() - since,
      'step': self.step,
    }

  def _tell_stall(self, text: str, speaks: bool) -> None:
    if speaks:
      metrics.Events(self.workdir, writes=True).add('stall', self.step, text)
    else:
      print(f'error: {text}', file=sys.stderr, flush=True)

  @contextlib.contextmanager
  def summarised(self) -> Iterator[None]:
    """Attaches the contents of summary.json to an error that ends the run."""
    try:
      yield
    except Ended as error:
      error.summary = self.summary(error.status, error.steps)
      raise

  def compile(self, rows: Mapping[str, Any]) -> Any:
    """Returns the step compiled for batches like `rows`."""
    try:
      return compile_step(self.setup, self._hypers, 'segment_ids' in rows)
    except jax.errors.JaxRuntimeError:
      # A signal to a process group also ends the compiler's processes.
      if self._callbacks.stop(self.step):
        raise self.stopped(self.step) from None
      raise

  def count_rows(self, first: int) -> int:
    """Counts and returns the rows of steps before `first`."""
    self._rows, _ = metrics.rows_before(self.workdir, first)
    return self._rows

  def tell(self, kind: str, text: str) -> None:
    """Records an event."""
    self._events.add(kind, self.step, text)

  def open_checkpoints(
    self, stack: contextlib.ExitStack
  ) -> Checkpointer | None:
    """Opens the checkpoints, if any are to be saved; `stack` closes them."""
    if not self.config.checkpoint_every:
      return None
    checkpointer = Checkpointer(
      self.workdir / 'checkpoints',
      self.config.checkpoints_kept,
      warn=lambda text: self._events.add('checkpoint', self.step, text),
      check=self._callbacks.check,
      stage=self._callbacks.stage,
    )

    def close() -> None:
      with self.timed('checkpoint'):
        checkpointer.close()

    stack.callback(close)
    return checkpointer

  def open_writer(
    self,
    stack: contextlib.ExitStack,
    first: int,
    hparams: Mapping[str, Any],
  ) -> None:
    """Opens the metrics writers; only the first process writes."""
    if jax.process_index():
      return
    self._callbacks.check()
    # The summary of an earlier end no longer holds.
    (self.workdir / 'summary.json').unlink(missing_ok=True)
    warn = lambda text: self._events.add('metrics', self.step, text)
    files = metrics.MetricWriter(self.workdir, first, warn)
    self._writers = [files, *self._callbacks.writers(warn)]
    for writer in self._writers:
      stack.callback(writer.close)
      if first == 0:
        writer.write_hparams(hparams)
        table = summary.parameter_table(self.setup)
        writer.write_texts(0, {'parameters': table})

  def read(self, pending: _Pending | None) -> dict[str, Any]:
    """Waits for a step's statistics and returns its row, {} if None."""
    if pending is None:
      return {}
    step, stats, lag = pending
    values = self.setup.chain.named(jax.device_get(stats))
    row = {name: float(v) for name, v in values.items()}
    for name, value in row.items():
      if not math.isfinite(value):
        kept = 'no checkpoint was asked for'
        if self.config.checkpoint_every:
          where = self.workdir / 'checkpoints'
          kept = f'the last good checkpoint is kept in {where}'
        raise Diverged(
          f'diverged at step {step}: {name} is {value}; lower optimizer.lr; '
          f'{kept}',
          step,
        )
    return {'step': step, 'tokens': self._tokens(step + 1), **row, **lag}

  def _tokens(self, steps: int) -> int:
    return steps * self.setup.batch_size * self.setup.model.context

  def write(self, row: dict[str, Any], always: bool = False) -> None:
    """Writes a row if one is due; its speed is that since the last one."""
    step = row['step']
    row['seconds'] = seconds = self.seconds['train']
    tokens, before = self._paced
    row['data/wait_seconds'] = self.seconds['data']
    row['goodput'] = seconds / self._total()
    recent = max(seconds - before, 1e-9)
    row['tokens_per_second'] = (row['tokens'] - tokens) / recent
    if self._peak:
      achieved = row['tokens_per_second'] * self._flops_per_token
      row['mfu'] = achieved / self._peak
    if always or self.config.written(step):
      self._callbacks.check()
      whole = self.config.whole(step)
      values = {
        k: v
        for k, v in row.items()
        if k != 'step' and (whole or '/layer/' not in k)
      }
      for writer in self._writers:
        writer.write_scalars(step, values)
      self._rows += 1
      self._paced = row['tokens'], seconds
    if self._callbacks.on_row:
      self._callbacks.on_row(row)

  def evaluate(self, params: Any, done: int) -> dict[str, float]:
    """Returns the evaluations that are due after `done` steps."""
    c, last = self.config, done == self.config.steps
    due = lambda every: last or (every and done % every == 0)
    scores: dict[str, float] = {}
    with self.timed('eval'):
      if c.eval_sequences and due(c.eval_every):
        if self._validation is None:
          self._validation = Validation(
            self.setup, self.data.validation(), self.data.bytes_per_token
          )
        scores |= self._validation.losses(params)
        self.losses = scores
      evaluate = self._callbacks.evaluate
      if c.eval_tasks and evaluate and due(c.eval_tasks_every):
        tasks = evaluate(params, done, last)
        scores = scores | {f'eval/{k}': v for k, v in tasks.items()}
    return scores

  def save(
    self,
    checkpointer: Checkpointer | None,
    state: TrainState,
    done: int,
    now: bool,
  ) -> None:
    """Saves a checkpoint if one is due, or `now`."""
    last = done == self.config.steps
    if checkpointer is None:
      return
    if done % self.config.checkpoint_every and not last and not now:
      return
    with self.timed('checkpoint'):
      try:
        # Rows are written before their checkpoint; if they fail, so does it.
        for writer in self._writers:
          writer.flush()
      except OSError as error:
        self._events.add(
          'metrics', done, f'no room for rows, nor a checkpoint: {error}'
        )
        return
      metadata = {
        'seconds': dict(self.seconds),
        'losses': self.losses,
        'data_fingerprint': self.data.fingerprint,
        'rows': self._rows,
      }
      checkpointer.save(state, done, metadata)

  def stopped(self, steps: int) -> Stopped:
    kept = 'run the same command again to go on'
    if not self.config.checkpoint_every:
      kept = 'nothing was kept: set checkpoint_every'
    return Stopped(
      f'stopped after {steps} of {self.config.steps} steps; {kept}', steps
    )

  def summary(self, status: str, steps: int) -> dict[str, Any]:
    """Returns what summary.json holds after `steps` steps."""
    passes = 0
    if self.setup.chain.wants_curvature:
      passes = steps // int(self._hypers['hessian_every'])
    # A failed run's numbers would be mistaken for those of a finished one.
    finished, diverged = status == 'finished', status == 'diverged'
    with self.timed('other'):
      pass
    values = summary.summarise(
      self.setup,
      [] if diverged else metrics.last_rows(self.workdir, summary.TAIL),
      steps,
      self.seconds,
      self.losses if finished else {},
      passes,
      self._peak,
    )
    values['goodput'] = summary.goodput(self.seconds, self._total())
    values |= {'data_fingerprint': self.data.fingerprint, 'status': status}
    return values | ({'diverged_at_step': steps} if diverged else {})

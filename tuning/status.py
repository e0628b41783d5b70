"""The status of runs, read from the files in their directories.

`launch.watch` shows any number of runs, `StudyDisplay` those of a running
study, `TrainingDisplay` this process's own.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import itertools
import math
import os
import pathlib
import re
import threading
import time
from typing import Any, Self

from ml_collections import ConfigDict
import numpy as np
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from steepest.data import locks, reading
from steepest.data.terminal import Console, escape, progress
from steepest.experiments import outside

# Keys read from each file, by reading.KINDS.
_CONFIG = {'steps': '?count', 'checkpoint_every': '?count'}
_SUMMARY = {'status': '?text', 'steps': '?count'}
_ROW = {
  'step': 'count',
  'tokens': 'count',
  'seconds': 'number of at least 0',
  'data/wait_seconds': 'number of at least 0',
  'tokens_per_second': 'number above 0',
  'train/loss': 'number, finite or not',
  'mfu': '?number',
  'goodput': '?number',
  'process/slow': '?count',
  'process/slowest_seconds': '?number',
  'process/median_seconds': '?number above 0',
}
_TIMES = 'process/slowest_seconds', 'process/median_seconds'
_EVENT = {'time': 'number', 'kind': 'text', 'step': 'count'}
_STEPS = re.compile('0|[1-9][0-9]{0,17}')
# Rows from which slope, throughput and data wait are computed.
_RECENT = 50
# Latest events to look through for news.
_EVENTS = 500
# A run stalls after this multiple of its usual time between rows.
_STALL = 10
_SHORTEST_STALL = 120.0
# Checkpoints that may be missed.
_MISSED = 3
# Acceptable share of the time spent waiting for data.
_WAIT = 0.1
# Acceptable rise over the best recent loss, in nats.
_RISE = 0.5
# Seconds for which an event is news.
_NEWS = 600.0
# In display order; a summary may name others, all of them ended.
_STATES = ('running', 'diverged', 'dead', 'waiting', 'stopped', 'finished')
# A study's lock covers its runs, which are at most this deep below it.
_ABOVE = 4
# A run that no process holds has stopped after this many quiet seconds.
_QUIET = 10.0
_COLUMNS = (
  'step',
  'loss',
  'slope/1000',
  'tokens/s',
  'MFU',
  'goodput',
  'data wait',
  'checkpoint',
  'left',
)


@dataclasses.dataclass(frozen=True)
class Status:
  """The status of a run.

  Attributes:
    path: of its directory.
    state: 'waiting', 'running', 'unreadable' or how it ended; 'stopped' if its
      process left it in order, 'dead' if that is gone, or gives no sign of life
      on another machine.
    done: steps done.
    steps: total steps.
    loss: of the latest row, in nats.
    slope: of the recent loss, in nats per thousand steps.
    tokens_per_second: recent.
    mfu: recent.
    goodput: share of the time since the run first began spent in steps.
    wait: share of the recent time spent waiting for data.
    checkpoint: steps of the newest.
    checkpoint_age: seconds since it was written.
    left: seconds to the end, at the recent pace.
    alarms: problems that need attention.
  """

  path: pathlib.Path
  state: str
  done: int
  steps: int
  loss: float | None = None
  slope: float | None = None
  tokens_per_second: float | None = None
  mfu: float | None = None
  goodput: float | None = None
  wait: float | None = None
  checkpoint: int | None = None
  checkpoint_age: float | None = None
  left: float | None = None
  alarms: tuple[str, ...] = ()


def find(roots: Sequence[str]) -> list[pathlib.Path]:
  """Returns the directories of runs under `roots`, studies included.

  Raises:
    FileNotFoundError: a root does not exist or holds no run.
  """
  found: dict[pathlib.Path, None] = {}
  for root in map(pathlib.Path, roots):
    if not root.is_dir():
      raise FileNotFoundError(f'{root}: no such directory')
    runs = list(_runs(root))
    if not runs and not (root / 'config.json').exists():
      raise FileNotFoundError(f'{root}: holds no run yet, no config.json')
    found |= dict.fromkeys(runs)
  return list(found)


def _runs(root: pathlib.Path) -> Iterator[pathlib.Path]:
  # Skip what a training run removes, or what is deleted meanwhile.
  for name, folders, files in os.walk(root):
    folders.sort()
    folder = pathlib.Path(name)
    if 'config.json' in files and _is_run(folder, files):
      folders.clear()
      yield folder


def _is_run(folder: pathlib.Path, files: Sequence[str]) -> bool:
  try:
    config = reading.json_object(folder / 'config.json')
  except (OSError, ValueError):
    # It may be a model's, or an unreadable run's.
    return 'metrics.jsonl' in files
  # A study's config has `steps` and `study`; models have a config.json too.
  return 'steps' in config and 'study' not in config


def read(run: pathlib.Path, now: float) -> Status:
  """Returns the status of a run at the time `now`, as of time.time()."""
  try:
    return _read(run, now)
  except Exception as error:
    # No error in one run may hide the others.
    said = ' '.join(f'{error}'.replace(f'{run}{os.sep}', '').split())
    said = f'cannot be read: {type(error).__name__}: {said}'
    return Status(run, 'unreadable', 0, 0, alarms=(said[:200],))


def _read(run: pathlib.Path, now: float) -> Status:
  config = reading.json_object(run / 'config.json')
  reading.require(config, _CONFIG, 'config.json')
  summary: dict[str, Any] = {}
  with contextlib.suppress(FileNotFoundError):
    summary = reading.json_object(run / 'summary.json')
    reading.require(summary, _SUMMARY, 'summary.json')
  rows = _tail(run / 'metrics.jsonl', _RECENT)
  for row in rows:
    reading.require(row, _ROW, 'metrics.jsonl')
  steps = config['steps'] if 'steps' in config else 0
  if 'status' in summary and _is_last(summary, steps):
    state = summary['status']
  else:
    state = _state(run, rows, now)
  values: dict[str, Any] = {}
  if rows:
    values |= _pace(rows)
    values['loss'] = rows[-1]['train/loss']
    values['goodput'] = rows[-1]['goodput'] if 'goodput' in rows[-1] else None
    per_step = values.pop('seconds_per_step')
    if per_step is not None and state == 'running':
      values['left'] = per_step * max(0, steps - rows[-1]['step'] - 1)
  newest = _newest_checkpoint(run / 'checkpoints')
  if newest is not None:
    values['checkpoint'], written = newest
    values['checkpoint_age'] = max(0.0, now - written)
  done = rows[-1]['step'] + 1 if rows else 0
  found = Status(run, state, done, steps, **values)
  alarms = _alarms(found, config, rows, now)
  return dataclasses.replace(found, alarms=tuple(alarms))


def _state(run: pathlib.Path, rows: list[dict[str, Any]], now: float) -> str:
  """Returns the state of a run that has not ended."""
  holder = locks.holder(run, _ABOVE)
  if holder == 'dead':
    return 'dead'
  if not rows:
    return 'waiting'
  quiet = _quiet(run, now)
  if holder == 'none' and quiet > max(_QUIET, 3 * _interval(rows)):
    return 'stopped'
  if holder == 'elsewhere' and quiet > _patience(rows):
    return 'dead'
  return 'running'


def table(found: Sequence[Status], rows: int | None) -> Table:
  """Returns the table of at most `rows` runs, the most active first."""
  states = [*_STATES, *sorted({s.state for s in found} - set(_STATES))]
  ranked = sorted(found, key=lambda s: (not s.alarms, states.index(s.state)))
  shown = ranked if rows is None else ranked[: max(1, rows)]
  counts = {state: sum(s.state == state for s in found) for state in states}
  title = ', '.join(f'{n} {state}' for state, n in counts.items() if n)
  if len(shown) < len(found):
    title += f'; {len(found) - len(shown)} not shown'
  view = Table(
    'run', title=Text(title), title_justify='left', box=None, pad_edge=False
  )
  for column in _COLUMNS:
    view.add_column(column, justify='right', no_wrap=True)
  view.add_column('alarms', overflow='fold')
  names = _names([s.path for s in shown])
  for name, s in zip(names, shown):
    age = '' if s.checkpoint_age is None else f' ({_clock(s.checkpoint_age)})'
    view.add_row(
      Text(name),
      f'{s.done}/{s.steps}',
      _number(s.loss, '.4f'),
      _number(s.slope, '+.4f'),
      _number(s.tokens_per_second, ',.0f'),
      _number(s.mfu, '.1%'),
      _number(s.goodput, '.0%'),
      _number(s.wait, '.0%'),
      '–' if s.checkpoint is None else f'{s.checkpoint}{age}',
      Text(s.state if s.left is None else _clock(s.left)),
      Text('; '.join(s.alarms), style='bold red'),
    )
  return view


def _pace(rows: list[dict[str, Any]]) -> dict[str, Any]:
  """Returns slope, throughput, MFU and data wait of recent rows."""
  first, last = rows[0], rows[-1]
  values: dict[str, Any] = {'seconds_per_step': None}
  steps = last['step'] - first['step']
  seconds = last['seconds'] - first['seconds']
  if steps <= 0 or seconds <= 0:
    return values
  rate = (last['tokens'] - first['tokens']) / seconds
  waited = last['data/wait_seconds'] - first['data/wait_seconds']
  values['seconds_per_step'] = (seconds + waited) / steps
  values['tokens_per_second'] = rate
  values['wait'] = waited / (seconds + waited)
  if 'mfu' in last:
    # The row's MFU is the mean since the start.
    values['mfu'] = last['mfu'] * rate / last['tokens_per_second']
  x, y = np.array([(r['step'], r['train/loss']) for r in rows], float).T
  x -= x.mean()
  values['slope'] = 1000 * float((x * y).sum() / (x * x).sum())
  return values


def _alarms(
  found: Status, config: dict[str, Any], rows: list[dict[str, Any]], now: float
) -> list[str]:
  if found.state == 'diverged':
    return [f'diverged at step {found.done}']
  if found.state == 'dead' and rows:
    since = _clock(_quiet(found.path, now))
    news = _news(found.path / 'events.jsonl', now)
    return [f'no process is left, quiet for {since}', *news]
  if found.state != 'running':
    return []
  alarms = []
  # Rows hold only numbers, but other programs may have written them.
  if found.loss is None or not math.isfinite(found.loss):
    alarms.append('loss is not a number')
  else:
    losses = [row['train/loss'] for row in rows]
    best = min(losses)
    if len(losses) >= 5 and float(np.median(losses[-5:])) > best + _RISE:
      alarms.append(f'loss rose from {best:.3f}')
  quiet = _quiet(found.path, now)
  if quiet > _patience(rows):
    alarms.append(f'no progress for {_clock(quiet)}')
  alarms += filter(None, [_slow(rows[-1])])
  if found.wait is not None and found.wait > _WAIT:
    alarms.append('waits for data')
  every = config['checkpoint_every'] if 'checkpoint_every' in config else 0
  if every and found.done - (found.checkpoint or 0) > _MISSED * every:
    alarms.append('checkpoints are missing')
  alarms += _news(found.path / 'events.jsonl', now)
  return alarms


def _slow(row: Mapping[str, Any]) -> str:
  """Names the process that all others wait for, by a row; '' for none."""
  if not {'process/slow', *_TIMES} <= row.keys():
    return ''
  slowest, median = (row[key] for key in _TIMES)
  return f'process {row["process/slow"]} is {slowest / median:.1f}x slower'


def _patience(rows: list[dict[str, Any]]) -> float:
  """Returns the seconds without a row after which a run has stalled."""
  return max(_SHORTEST_STALL, _STALL * _interval(rows))


def _interval(rows: list[dict[str, Any]]) -> float:
  """Returns the most seconds between two recent rows."""
  spent = [row['seconds'] + row['data/wait_seconds'] for row in rows]
  return max((b - a for a, b in zip(spent, spent[1:])), default=0.0)


def _quiet(run: pathlib.Path, now: float) -> float:
  """Returns the seconds since a run wrote its last row."""
  return now - (run / 'metrics.jsonl').stat().st_mtime


def _news(path: pathlib.Path, now: float) -> list[str]:
  """Returns a run's recent events, the latest of each kind."""
  latest = {}
  for event in _tail(path, _EVENTS):
    reading.require(event, _EVENT, path.name)
    if now - event['time'] < _NEWS:
      latest[event['kind']] = f'{event["kind"]} at step {event["step"]}'
  return list(latest.values())


def _newest_checkpoint(folder: pathlib.Path) -> tuple[int, float] | None:
  """Returns the steps of the newest checkpoint and when it was written."""
  names = os.listdir(folder) if folder.is_dir() else []
  for steps in sorted(map(int, filter(_STEPS.fullmatch, names)), reverse=True):
    # It may be deleted or moved meanwhile.
    with contextlib.suppress(OSError):
      return steps, (folder / str(steps)).stat().st_mtime
  return None


def _is_last(summary: dict[str, Any], steps: int) -> bool:
  """Whether a summary matches the run as it is configured now."""
  return summary['status'] != 'finished' or summary['steps'] >= steps


def _tail(path: pathlib.Path, count: int) -> list[dict[str, Any]]:
  """Returns the last complete rows of a JSON lines file."""
  if not path.exists():
    return []
  last = itertools.islice(reading.objects_backwards(path), count)
  return [found for _, found in last][::-1]


def _names(paths: Sequence[pathlib.Path]) -> list[str]:
  """Returns the paths relative to their common parent."""
  if len(paths) < 2:
    return [str(path) for path in paths]
  top = pathlib.Path(os.path.commonpath([p.absolute().parent for p in paths]))
  return [str(path.absolute().relative_to(top)) for path in paths]


def _number(value: float | None, form: str) -> str:
  if value is None:
    return '–'
  return format(value, form if abs(value) < 1e12 else '.3g')


def _clock(seconds: float) -> str:
  """Formats a time as 45 s, 12 min, 3:05 h or 2.5 d."""
  if seconds < 100:
    return f'{seconds:.0f} s'
  if seconds < 6000:
    return f'{seconds / 60:.0f} min'
  if seconds < 172_800:
    return f'{seconds // 3600:.0f}:{seconds % 3600 // 60:02.0f} h'
  return f'{seconds / 86_400:.1f} d'


def describe(row: Mapping[str, Any]) -> str:
  """Formats loss, tokens/s and MFU of a row."""
  mfu = f'{row["mfu"]:.1%}' if 'mfu' in row else 'n/a'
  evaluated = f' val {row["eval/loss"]:.3f}' if 'eval/loss' in row else ''
  slow = _slow(row)
  return (
    f'loss {row["train/loss"]:.3f}{evaluated} '
    f'{row["tokens_per_second"]:,.0f} tok/s mfu {mfu}{slow and f" {slow}"}'
  )


class TrainingDisplay:
  """A progress bar; without a terminal, a line every tenth of the run."""

  def __init__(self, config: ConfigDict, workdir: str):
    self._steps = config.steps
    self._workdir = workdir
    self._console = Console()
    names = config.model.name, config.optimizer.name
    shown = ' '.join(map(outside.stem, names))
    self._bar = progress(shown, 'step', config.steps)

  def __enter__(self) -> Self:
    self._bar.set_postfix_str('compiling')
    return self

  def __exit__(self, *error: object) -> None:
    self._bar.close()

  def finish(self, summary: Mapping[str, Any]) -> None:
    """Prints where the run ended."""
    loss = summary['eval_loss']
    validation = '' if loss is None else f', validation loss {loss:.4f}'
    self._console.print(
      f'{summary["steps"]} steps, {summary["tokens"]:,} tokens, train loss '
      f'{summary["train_loss"]:.4f}{validation}: {self._workdir}',
      soft_wrap=True,
    )

  def on_row(self, row: Mapping[str, Any]) -> None:
    """Shows a logged row."""
    done = row['step'] + 1
    status = describe(row)
    if not self._bar.n:
      # A resumed run did its earlier steps at another time.
      self._bar.initial = self._bar.n = done
    self._bar.update(done - self._bar.n)
    self._bar.set_postfix_str(escape(status))
    tenth = max(1, self._steps // 10)
    if self._bar.disable and done % tenth == 0:
      tokens = row['tokens'] / done * (self._steps - done)
      left = _clock(tokens / row['tokens_per_second'])
      self._console.print(
        f'step {done}/{self._steps} {status} {left} left', soft_wrap=True
      )


class StudyDisplay:
  """A bar for a study and a line per slot, read from run directories.

  Without a terminal, prints a line for every run that ends and every minute.
  """

  def __init__(
    self,
    weights: Mapping[pathlib.Path, float],
    ended: Sequence[pathlib.Path],
    slots: Sequence[int],
  ):
    """Shows nothing yet.

    Args:
      weights: run directory → the run's computation, in any unit.
      ended: directories of ended runs.
      slots: of the engine.
    """
    self.console = Console()
    self._weights = dict(weights)
    self._ended = set(ended)
    self._running: dict[int, tuple[pathlib.Path, str]] = {}
    self._slots = slots
    # Run directory → the share of the run that is done.
    self._done = {
      path: 1.0 if path in self._ended else _share(path) for path in weights
    }
    self._start = time.monotonic()
    self._before = self._fraction()
    self._live = Live(
      console=self.console,
      get_renderable=self._view,
      refresh_per_second=2,
      transient=True,
    )
    self._stop = threading.Event()

  def __enter__(self) -> Self:
    if self.console.is_terminal:
      self._live.start()
    else:
      threading.Thread(target=self._say_on, daemon=True).start()
    return self

  def __exit__(self, *error: object) -> None:
    self._stop.set()
    if self.console.is_terminal:
      self._live.stop()

  def begin(self, slot: int, directory: pathlib.Path, label: str) -> None:
    """Shows that a slot has begun a run."""
    self._running[slot] = directory, label
    # Extended searches add runs on the way.
    mean = math.fsum(self._weights.values()) / len(self._weights)
    self._weights.setdefault(directory, mean)

  def end(self, slot: int, text: str, stopped: bool = False) -> None:
    """Shows that a slot's run has ended, and how, or was stopped."""
    directory, _ = self._running.pop(slot)
    if not stopped:
      self._ended.add(directory)
      self._done[directory] = 1.0
    self.say(text)

  def say(self, text: str) -> None:
    """Prints a line that starts with the share of the study done."""
    self.console.print(f'{self._fraction():4.0%} {text}', soft_wrap=True)

  def _say_on(self) -> None:
    while not self._stop.wait(60):
      self.say(self._status())

  def _view(self) -> Table:
    view = Table.grid(padding=(0, 1))
    bar = lambda share: ProgressBar(total=1.0, completed=share, width=24)
    view.add_row(Text('study'), bar(self._fraction()), self._status())
    for slot in sorted({*self._slots, *self._running}):
      if slot not in self._running:
        view.add_row(Text(f'slot {slot}'), bar(0.0), 'idle')
        continue
      directory, label = self._running[slot]
      now = read(directory, time.time())
      text = 'starting'
      if now.done:
        mfu = 'n/a' if now.mfu is None else f'{now.mfu:.1%}'
        left = '' if now.left is None else f' {_clock(now.left)} left'
        text = (
          f'step {now.done}/{now.steps} loss {_number(now.loss, ".3f")} '
          f'{_number(now.tokens_per_second, ",.0f")} tok/s mfu {mfu}{left}'
        )
      view.add_row(Text(label), bar(now.done / max(1, now.steps)), text)
    return view

  def _status(self) -> str:
    """Returns how many runs have ended, and the time left at this pace."""
    said = f'{len(self._ended)} of {len(self._weights)} runs'
    done, spent = self._fraction(), time.monotonic() - self._start
    if done - self._before < 0.01:
      return said
    left = spent * (1 - done) / (done - self._before)
    return f'{said}, {_clock(left)} left'

  def _fraction(self) -> float:
    for directory, _ in list(self._running.values()):
      self._done[directory] = _share(directory)
    done = [self._weights[path] * x for path, x in list(self._done.items())]
    return math.fsum(done) / math.fsum(self._weights.values())


def _share(directory: pathlib.Path) -> float:
  """Returns the share of its steps that a run has done."""
  now = read(directory, time.time())
  return now.done / max(1, now.steps)

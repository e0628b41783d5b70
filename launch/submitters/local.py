"""This machine: processes of one JAX program, supervised and restarted.

Each process gets its share of the accelerators. If one fails, the others are
stopped and all restart from the last checkpoint, a limited number of times
without progress.
"""

import contextlib
import ctypes
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from types import FrameType
from typing import IO

from steepest.data import buckets
from steepest.launch.submitters import job as jobs

OPTIONS = {
  'grace_seconds': ('60', 'Seconds between asking to stop and killing.'),
}
_POLL_SECONDS = 0.1
# Seconds that the others get to report errors once one process has failed.
_AFTER_FAILURE = 1.0


def submission(job: jobs.Job) -> jobs.Submission:
  """Returns the commands; `run` starts those of a unit together."""
  commands = []
  for unit in job.units:
    for i in range(max(job.processes, 1)):
      settings = [f'{k}={v}' for k, v in _environment(job, i, 'PORT').items()]
      command = unit.command(sys.executable, job.module)
      commands.append(('env', *settings, *command))
  return jobs.Submission({}, tuple(commands), (sys.executable, ''))


def run(job: jobs.Job) -> None:
  """Runs the units one after the other.

  Raises:
    ChildProcessError: one failed for good.
  """
  with _Signals() as asked:
    for unit in job.units:
      Supervisor(job, unit, asked).run()


class _Signals:
  """Records SIGTERM and SIGINT, which ask for an orderly end."""

  def __init__(self) -> None:
    self.number: int | None = None

  def __enter__(self) -> '_Signals':
    for number in (signal.SIGTERM, signal.SIGINT):
      signal.signal(number, self._receive)
    return self

  def __exit__(self, *_: object) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
      signal.signal(number, signal.SIG_DFL)

  def _receive(self, number: int, frame: FrameType | None) -> None:
    self.number = number


class Supervisor:
  """The processes of one run."""

  def __init__(self, job: jobs.Job, unit: jobs.Unit, asked: _Signals):
    """Starts nothing yet."""
    self._job = job
    self._unit = unit
    self._asked = asked
    self._count = max(job.processes, 1)
    self._grace = float(job.options['grace_seconds'])
    self._workdir = pathlib.Path(unit.workdir)
    self._logs = self._workdir / 'logs'
    if buckets.is_address(unit.workdir):
      # Logs lie elsewhere: the run deletes files of its copy that the bucket
      # lacks.
      self._workdir = buckets.copy_of(unit.workdir)
      self._logs = job.folder / 'logs' / unit.point

  def run(self) -> None:
    """Returns when the run has finished.

    Raises:
      ChildProcessError: it failed for good.
      SystemExit: a signal asked for an orderly end.
    """
    futile, before = 0, self._progress()
    while True:
      failure = self._once()
      if self._asked.number is not None:
        print(f'stopped by signal {self._asked.number}', file=sys.stderr)
        sys.exit(jobs.STOPPED)
      if failure is None:
        return
      if self._diverged():
        raise ChildProcessError(f'{failure}: the run diverged')
      now = self._progress()
      futile = 0 if now > before else futile + 1
      before = max(now, before)
      if futile > self._job.restarts:
        raise ChildProcessError(
          f'{failure}; no progress in {futile} tries, the last checkpoint is '
          f'of step {now}: see {self._logs}'
        )
      print(
        f'{failure}: all restart from step {now}',
        file=sys.stderr,
        flush=True,
      )

  def _once(self) -> str | None:
    """Runs all processes to the end; returns what went wrong, if anything."""
    port = _free_port()
    with contextlib.ExitStack() as files:
      processes = [self._start(i, port, files) for i in range(self._count)]
      failure = None
      while failure is None and any(p.poll() is None for p in processes):
        if self._asked.number is not None:
          break
        failure = _failed(processes)
        time.sleep(_POLL_SECONDS)
      failure = failure or _failed(processes)
      # If one has ended, the others would wait for it forever.
      asked = self._asked.number is not None
      self._stop(processes, self._grace if asked else _AFTER_FAILURE)
      return failure

  def _start(
    self, i: int, port: int, files: contextlib.ExitStack
  ) -> subprocess.Popen[bytes]:
    out: IO[bytes] | None = None
    if self._count > 1:
      self._logs.mkdir(parents=True, exist_ok=True)
      log = (self._logs / f'process-{i}.log').open('ab')
      # Only the first process writes to the terminal.
      out = None if i == 0 else files.enter_context(log)
    return subprocess.Popen(
      self._unit.command(sys.executable, self._job.module),
      env={**os.environ, **_environment(self._job, i, str(port))},
      stdin=subprocess.DEVNULL,
      stdout=out,
      stderr=None if i == 0 else out,
      cwd=self._job.root,
      preexec_fn=_end_with_parent,
    )

  def _stop(
    self, processes: list[subprocess.Popen[bytes]], grace: float
  ) -> None:
    for process in processes:
      if process.poll() is None:
        process.terminate()
    end = time.monotonic() + grace
    for process in processes:
      try:
        process.wait(max(0.0, end - time.monotonic()))
      except subprocess.TimeoutExpired:
        process.kill()
        process.wait()

  def _progress(self) -> int:
    """Returns the steps of the newest checkpoint, 0 without one."""
    folder = self._workdir / 'checkpoints'
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    return max((int(name) for name in names if name.isdigit()), default=0)

  def _diverged(self) -> bool:
    path = self._workdir / 'summary.json'
    if not path.exists():
      return False
    return json.loads(path.read_text('utf-8'))['status'] == 'diverged'


def _environment(job: jobs.Job, i: int, port: str) -> dict[str, str]:
  variables = dict(job.environment)
  if job.processes > 1:
    variables |= {
      'STEEPEST_COORDINATOR': f'127.0.0.1:{port}',
      'STEEPEST_PROCESSES': str(job.processes),
      'STEEPEST_PROCESS': str(i),
    }
    if job.is_gpu:
      each, rest = divmod(job.devices, job.processes)
      if rest:
        raise ValueError(
          f'--devices={job.devices} do not divide over --processes='
          f'{job.processes}'
        )
      own = range(i * each, (i + 1) * each)
      variables['CUDA_VISIBLE_DEVICES'] = ','.join(map(str, own))
  return variables


def _failed(processes: list[subprocess.Popen[bytes]]) -> str | None:
  """Describes the process that probably failed first, if any failed."""
  codes = {i: code for i, p in enumerate(processes) if (code := p.poll())}
  if not codes:
    return None
  # When a signal kills one, the others soon exit with a positive status,
  # sometimes before this looks.
  i = min(codes, key=lambda i: (codes[i] > 0, i))
  how = f'status {codes[i]}'
  if codes[i] < 0:
    how = f'signal {signal.Signals(-codes[i]).name}'
  return f'process {i} of {len(processes)} ended with {how}'


def _free_port() -> int:
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    return int(s.getsockname()[1])


def _end_with_parent() -> None:
  """Asks Linux to stop this process when the launcher dies."""
  if sys.platform.startswith('linux'):
    # PR_SET_PDEATHSIG of prctl(2).
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)

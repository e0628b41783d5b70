"""Runs commands, here or from a wheel, with one start-up for all of them."""

import contextlib
import fcntl
import functools
import json
import os
import pathlib
import select
import shutil
import socket
import subprocess
import sys
from typing import Any, NamedTuple
import venv
import zipfile

import pytest

_ROOT = pathlib.Path(__file__).parent.parent.parent

# Imports once, then forks for each command; no device is touched before.
_FORKS = """
import importlib, json, os, sys, traceback
from steepest.training import run
from steepest.tuning import status
for line in sys.stdin:
  codes = []
  for name, argv, out, err in json.loads(line):
    pid = os.fork()
    if not pid:
      for fd, path in ((0, os.devnull), (1, out), (2, err)):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), fd)
      sys.argv = [f'launch/{name}.py', *argv]
      code = 0
      try:
        importlib.import_module(f'steepest.launch.{name}').main()
      except SystemExit as error:
        code = error.code or 0
      except BaseException:
        traceback.print_exc()
        code = 99
      sys.stdout.flush()
      sys.stderr.flush()
      os._exit(code)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
  print(json.dumps(codes), flush=True)
"""


class Result(NamedTuple):
  """Exit status and what was written."""

  code: int
  out: str
  err: str


@pytest.fixture(scope='session')
def fork_commands(command_env, tmp_path_factory):
  """Returns a function that runs a list of (command, arguments).

  All calls share the start of one Python, but for those that name another, its
  directory or variables.
  """
  log = tmp_path_factory.mktemp('forks') / 'log'

  @contextlib.contextmanager
  def start(python=sys.executable, cwd=_ROOT, **env):
    process = subprocess.Popen(
      [python, '-c', _FORKS],
      cwd=cwd,
      env={**command_env, **env},
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=log.open('a'),
      text=True,
    )
    with process:
      try:
        yield process
      finally:
        process.kill()

  def run(
    commands: list[tuple[str, list[str]]], *other: Any, **env: str
  ) -> list[Result]:
    where = tmp_path_factory.mktemp('commands')
    jobs = [
      (name, argv, str(where / f'{i}.out'), str(where / f'{i}.err'))
      for i, (name, argv) in enumerate(commands)
    ]
    given = start(*other, **env) if other or env else None
    with given or contextlib.nullcontext(shared()) as process:
      process.stdin.write(json.dumps(jobs) + '\n')
      process.stdin.flush()
      ready, _, _ = select.select([process.stdout], [], [], 600)
      line = process.stdout.readline() if ready else ''
    assert line, log.read_text()
    return [
      Result(code, *(pathlib.Path(p).read_text('utf-8') for p in job[2:]))
      for code, job in zip(json.loads(line), jobs)
    ]

  with contextlib.ExitStack() as stack:
    shared = functools.cache(lambda: stack.enter_context(start()))
    yield run


@pytest.fixture(scope='session')
def installed(tmp_path_factory) -> pathlib.Path:
  """An interpreter that has version 9.8.7 from the wheel of `make dist`.

  The first of pytest's workers to need it makes it for all.
  """
  for package in ('build', 'setuptools_scm'):
    pytest.importorskip(package)
  of_all = tmp_path_factory.getbasetemp()
  if 'PYTEST_XDIST_WORKER' in os.environ:
    of_all = of_all.parent
  where = of_all / 'wheel'
  with (of_all / 'wheel.lock').open('w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    if not (where / 'done').exists():
      _install(where)
      (where / 'done').touch()
  return where / 'venv' / 'bin' / 'python'


def _install(where: pathlib.Path) -> None:
  source = where / 'source'
  # Building leaves files beside the source, and takes what git knows.
  not_built = ('.*', '__pycache__', '*.egg-info', 'build', 'dist', 'runs')
  ignore = shutil.ignore_patterns(*not_built, 'docs', 'tests')
  shutil.copytree(_ROOT, source, ignore=ignore)
  git = ['git', '-C', source, '-c', 'user.name=x', '-c', 'user.email=x']
  for words in (
    ['init', '--quiet'],
    ['add', '.'],
    ['commit', '--quiet', '--message=x'],
    ['tag', 'v9.8.7'],
  ):
    subprocess.run([*git, *words], check=True)
  # Neither environment nor index are made or asked.
  make = ['make', '--directory', source, '--assume-old=.venv/.complete']
  tools = where / 'tools'
  tools.mkdir()
  (tools / 'python').symlink_to(sys.executable)
  path = os.pathsep.join(p for p in sys.path if p.endswith('-packages'))
  subprocess.run(
    [*make, 'dist', f'BIN={tools}'],
    env={**os.environ, 'PYTHONPATH': path},
    check=True,
    capture_output=True,
  )
  assert (source / 'dist' / 'steepest-9.8.7.tar.gz').is_file()
  venv.create(where / 'venv', symlinks=True)
  [site] = (where / 'venv').glob('lib/python*/site-packages')
  others = [path for path in sys.path if path.endswith('-packages')]
  (site / 'others.pth').write_text('\n'.join(others))
  # That is what installing a wheel of Python alone does.
  [wheel] = (source / 'dist').glob('*.whl')
  zipfile.ZipFile(wheel).extractall(site)
  code = (
    'from importlib import metadata; from steepest.launch import train; '
    'print(train.__file__, metadata.version("steepest"))'
  )
  done = subprocess.run(
    [where / 'venv' / 'bin' / 'python', '-c', code],
    cwd=where,
    capture_output=True,
    text=True,
  )
  path, version = done.stdout.split()
  assert path.startswith(str(site)) and version == '9.8.7', done


@pytest.fixture(scope='module')
def compiled_once(tmp_path_factory) -> dict[str, str]:
  """Variables by which JAX keeps what is compiled, for later starts.

  Of an entry whose writer is killed JAX says that it is damaged, and compiles.
  """
  return {
    'JAX_COMPILATION_CACHE_DIR': str(tmp_path_factory.mktemp('compiled')),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  }


@pytest.fixture
def start_processes(command_env):
  """Returns a function that starts all processes of one run.

  It takes their number, what follows `python` and variables; what has not ended
  when the test does is killed.
  """
  started = []

  def start(count: int, words: list[str], **env: str):
    with socket.socket() as s:
      s.bind(('127.0.0.1', 0))
      env['STEEPEST_COORDINATOR'] = f'127.0.0.1:{s.getsockname()[1]}'
    # With what a test's servers have added since.
    env = {**os.environ, **command_env, **env, 'STEEPEST_PROCESSES': str(count)}
    made = [
      subprocess.Popen(
        [sys.executable, *words],
        cwd=_ROOT,
        env={**env, 'STEEPEST_PROCESS': str(i)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
      )
      for i in range(count)
    ]
    started.extend(made)
    return made

  yield start
  for process in started:
    process.kill()
    process.wait()

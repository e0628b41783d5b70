"""Runs commands, here or from a wheel, with one start-up for all of them."""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
from typing import NamedTuple
import venv
import zipfile

import pytest

_ROOT = pathlib.Path(__file__).parent.parent.parent

# Imports once, then forks for each command; no device is touched before.
_FORKS = """
import importlib, json, os, sys, traceback
from steepest.training import run
from steepest.tuning import status
results = []
for name, argv, out, err in json.load(sys.stdin):
  pid = os.fork()
  if not pid:
    for fd, path in ((1, out), (2, err)):
      os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), fd)
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
  results.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
print(json.dumps(results))
"""


class Result(NamedTuple):
  """Exit status and what was written."""

  code: int
  out: str
  err: str


@pytest.fixture(scope='session')
def fork_commands(command_env, tmp_path_factory):
  """Returns a function that runs a list of (command, arguments)."""

  def run(
    commands: list[tuple[str, list[str]]],
    python: str = sys.executable,
    cwd: pathlib.Path = _ROOT,
    **env: str,
  ) -> list[Result]:
    where = tmp_path_factory.mktemp('commands')
    jobs = [
      (name, argv, str(where / f'{i}.out'), str(where / f'{i}.err'))
      for i, (name, argv) in enumerate(commands)
    ]
    done = subprocess.run(
      [python, '-c', _FORKS],
      input=json.dumps(jobs),
      cwd=cwd,
      env={**command_env, **env},
      capture_output=True,
      text=True,
      timeout=600,
    )
    assert done.returncode == 0, done.stderr
    codes = json.loads(done.stdout.splitlines()[-1])
    return [
      Result(code, *(pathlib.Path(p).read_text('utf-8') for p in job[2:]))
      for code, job in zip(codes, jobs)
    ]

  return run


@pytest.fixture(scope='session')
def installed(tmp_path_factory) -> pathlib.Path:
  """An interpreter that has version 9.8.7 from the wheel of `make dist`."""
  for package in ('build', 'setuptools_scm'):
    pytest.importorskip(package)
  where = tmp_path_factory.mktemp('wheel')
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
  found = where / 'venv' / 'bin' / 'python'
  code = (
    'from importlib import metadata; from steepest.launch import train; '
    'print(train.__file__, metadata.version("steepest"))'
  )
  done = subprocess.run(
    [found, '-c', code], cwd=where, capture_output=True, text=True
  )
  path, version = done.stdout.split()
  assert path.startswith(str(site)) and version == '9.8.7', done
  return found


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
    env = {**command_env, **env, 'STEEPEST_PROCESSES': str(count)}
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

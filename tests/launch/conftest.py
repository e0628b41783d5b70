"""Runs commands one after the other without paying for start-up each time."""

import json
import pathlib
import subprocess
import sys
from typing import NamedTuple

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

#!/usr/bin/env python3
"""Runs a pack of launch.pack on a machine without a package index.

    ./run --minutes=12

Installs the pack into its own directory, checks the devices, prepares text,
does as much as fits into the minutes and writes results.tar.gz. Run again, it
resumes.
"""

# Runs before anything is installed, so it imports only the standard library.
import argparse
from collections.abc import Iterator
import contextlib
import json
import math
import os
import pathlib
import signal
import subprocess
import sys
import tarfile
import time
from typing import Any
import venv

RESULTS = 'results.tar.gz'
# Directory of the pack's study or run.
WORKDIR = 'work'
# Parts of it that nobody needs to resume.
_LEFT_OUT = ('report', 'data', '.lock')
# Share of the time reserved for the report and results, and at most seconds.
_RESERVE, _LONGEST = 0.05, 60.0
# Seconds that a command has to save once it is asked to stop.
_GRACE = 20.0
_DEVICES = (
  'import jax; x = jax.numpy.ones((128, 128)); (x @ x).block_until_ready(); '
  'found = jax.devices(); '
  'print(len(found), "×", found[0].device_kind, "by jax", jax.__version__)'
)


def main() -> None:
  """The command."""
  begin = time.monotonic()
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument(
    '--minutes', type=float, help='time limit (default: none)'
  )
  parser.add_argument(
    '--checkpoints', action='store_true', help='include checkpoints in results'
  )
  options = parser.parse_args()
  if options.minutes is not None and options.minutes < 0:
    parser.error(f'--minutes={options.minutes}: give 0 or more')
  os.chdir(pathlib.Path(__file__).resolve().parent)
  pack = json.loads(pathlib.Path('pack.json').read_text('utf-8'))
  have = '.'.join(map(str, sys.version_info[:2]))
  if have != pack['python']:
    sys.exit(
      f'error: this pack is for Python {pack["python"]}, this is {have}: start '
      f'it as python{pack["python"]} run'
    )
  python, status = _install(pack['system']), 0
  _look_at_devices(python)
  end = math.inf if options.minutes is None else begin + 60 * options.minutes
  reserve = min(_RESERVE * (end - time.monotonic()), _LONGEST)
  for name, words in pack['commands']:
    if not status and time.monotonic() < end - reserve:
      status = _do(python, name, words, end, reserve)
  _collect(options.checkpoints)
  print(f'wrote {RESULTS}')
  sys.exit(status)


def _install(system: bool) -> str:
  """Creates the virtual environment, once; returns its Python."""
  home = pathlib.Path('environment')
  python, done = str(home.absolute() / 'bin' / 'python'), home / 'complete'
  if done.exists():
    return python
  print('installing')
  venv.create(home, system_site_packages=system, clear=True, symlinks=True)
  [site] = home.glob('lib/python*/site-packages')
  (site / 'steepest.pth').write_text(f'{pathlib.Path("code").absolute()}\n')
  if wheels := sorted(map(str, pathlib.Path('wheels').glob('*.whl'))):
    # pip runs from its wheel without being installed.
    [pip] = pathlib.Path('wheels').glob('pip-*.whl')
    command = [python, str(pip / 'pip'), 'install', '--quiet', '--no-deps']
    command += ['--no-index', '--disable-pip-version-check', '--no-compile']
    if subprocess.run([*command, *wheels]).returncode:
      sys.exit('error: the wheels could not be installed')
  done.touch()
  return python


def _look_at_devices(python: str) -> None:
  done = subprocess.run(
    [python, '-c', _DEVICES], capture_output=True, text=True
  )
  if done.returncode:
    lines = done.stderr.strip().splitlines() or ['no message']
    sys.exit(f'error: JAX does not work here: {lines[-1]}')
  print(done.stdout.strip(), flush=True)
  gpus = list(pathlib.Path('/dev').glob('nvidia[0-9]*'))
  if gpus and 'JAX_PLATFORMS' not in os.environ and 'cpu ' in done.stdout:
    sys.exit(
      f'error: this machine has {len(gpus)} GPUs and JAX sees none: pack with '
      '--extras=cuda, or set JAX_PLATFORMS=cpu to run without them'
    )


def _do(
  python: str, name: str, words: list[str], end: float, reserve: float
) -> int:
  """Runs a command, stops it when the time is up; returns its exit status.

  Args:
    python: interpreter of the virtual environment.
    name: of the command.
    words: its arguments.
    end: when the time is up, on the monotonic clock.
    reserve: seconds before `end` kept for report and results.
  """
  stop = end - reserve
  if name == 'study' and end < math.inf:
    # It should stop by itself; if not, it is stopped to save the results.
    left = stop - time.monotonic()
    words, stop = [*words, f'--minutes={left / 60:.3f}'], end
  process = subprocess.Popen([python, '-m', f'steepest.launch.{name}', *words])
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, _: process.send_signal(number))
  try:
    return process.wait(max(0.0, stop - time.monotonic()))
  except subprocess.TimeoutExpired:
    print('time is up: saving', flush=True)
    process.terminate()
  with contextlib.suppress(subprocess.TimeoutExpired):
    process.wait(_GRACE)
  process.kill()
  process.wait()
  return 0


def _collect(checkpoints: bool) -> None:
  """Writes the archive: ended runs; with `checkpoints`, all runs."""
  work, part = pathlib.Path(WORKDIR), pathlib.Path(f'{RESULTS}.part')
  # Makes paths relative to the pack, which may be anywhere.
  here = json.dumps(f'{pathlib.Path.cwd()}/')[1:-1]
  with tarfile.open(part, 'w:gz') as tar:
    for path in kept(work, checkpoints):
      if path.name == 'config.json':
        path.write_text(path.read_text('utf-8').replace(here, ''), 'utf-8')
      name = pathlib.PurePath('results', path.relative_to(work)).as_posix()
      tar.add(path, name, recursive=False, filter=_nameless)
  os.replace(part, RESULTS)
  if not checkpoints and (left_out := _unfinished(work)):
    print(
      f'{len(left_out)} runs have not ended and are left out; --checkpoints '
      'includes what they saved'
    )


def kept(work: pathlib.Path, checkpoints: bool) -> Iterator[pathlib.Path]:
  """Yields the files of a study or run that are worth copying.

  Args:
    work: its directory.
    checkpoints: whether to include checkpoints, and runs that have not ended.
  """
  left_out = set() if checkpoints else _unfinished(work)
  for path in sorted(work.rglob('*')):
    parts = path.relative_to(work).parts
    if parts[0] in _LEFT_OUT or path.is_symlink() or not path.is_file():
      continue
    if checkpoints or not (
      'checkpoints' in parts or left_out & {*path.parents}
    ):
      yield path


def _unfinished(work: pathlib.Path) -> set[pathlib.Path]:
  """Returns the directories of runs that have not ended."""
  found = {path.parent for path in work.rglob('config.json')}
  # A study's own directory has a config.json but is no run.
  return {
    path
    for path in found
    if 'study' not in _read(path / 'config.json')
    and 'status' not in _read(path / 'summary.json')
  }


def _read(path: pathlib.Path) -> Any:
  try:
    return json.loads(path.read_text('utf-8'))
  except (OSError, ValueError):
    return ()


def _nameless(member: tarfile.TarInfo) -> tarfile.TarInfo:
  member.uid = member.gid = 0
  member.uname = member.gname = ''
  return member


if __name__ == '__main__':
  main()

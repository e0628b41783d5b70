#!/usr/bin/env python3
"""Runs a pack of launch.pack where no package index can be reached.

    ./run --minutes=12

Installs what the pack brings into its own directory, looks at the devices, does
what fits into the minutes and leaves results.tar.gz. Run again, it goes on.
"""

# Runs before anything is installed: the standard library alone.
import argparse
import json
import os
import pathlib
import signal
import subprocess
import sys
import tarfile
import time
from types import FrameType
import venv

RESULTS = 'results.tar.gz'
# Where the study or run of a pack is.
WORKDIR = 'work'
# What of it is of use to nobody who goes on from it.
LEFT_OUT = ('report', 'data', '.lock')
# Share of the time, and most seconds, that is kept for the report and results.
_RESERVE, _LONGEST = 0.05, 60.0
# Seconds that what runs has to save once it is asked to stop.
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
  parser.add_argument('--minutes', type=float, help='what there is time for')
  parser.add_argument(
    '--checkpoints', action='store_true', help='results hold checkpoints too'
  )
  options = parser.parse_args()
  if options.minutes is not None and options.minutes < 0:
    parser.error(f'--minutes={options.minutes}: give 0 or more')
  os.chdir(pathlib.Path(__file__).resolve().parent)
  pack = json.loads(pathlib.Path('pack.json').read_text('utf-8'))
  have = '.'.join(map(str, sys.version_info[:2]))
  if have != pack['python']:
    _end(
      f'this pack is for Python {pack["python"]}, this is {have}: start it as '
      f'python{pack["python"]} run'
    )
  end = None if options.minutes is None else begin + 60 * options.minutes
  python = _install(pack)
  _look_at_devices(python)
  status = _train(python, pack['module'], end)
  _collect(options.checkpoints)
  print(f'wrote {RESULTS}')
  sys.exit(status)


def _install(pack: dict[str, object]) -> str:
  """Makes the environment, once; returns its Python."""
  home = pathlib.Path('environment')
  python = str(home.absolute() / 'bin' / 'python')
  done = home / 'complete'
  if done.exists():
    return python
  print('installing')
  system = bool(pack['system'])
  venv.create(home, system_site_packages=system, clear=True, symlinks=True)
  wheels = sorted(pathlib.Path('wheels').glob('*.whl'))
  [site] = home.glob('lib/python*/site-packages')
  (site / 'steepest.pth').write_text(f'{pathlib.Path("code").absolute()}\n')
  # A wheel of pip runs as it is.
  pip = [wheel for wheel in wheels if wheel.name.startswith('pip-')]
  if wheels and not pip:
    _end('wheels/ lacks pip: pack again')
  if wheels:
    command = [python, str(pip[0] / 'pip'), 'install', '--quiet', '--no-deps']
    command += ['--no-index', '--disable-pip-version-check', '--no-compile']
    if subprocess.run([*command, *map(str, wheels)]).returncode:
      _end('the wheels could not be installed')
  done.touch()
  return python


def _look_at_devices(python: str) -> None:
  done = subprocess.run(
    [python, '-c', _DEVICES], capture_output=True, text=True
  )
  if done.returncode:
    lines = done.stderr.strip().splitlines() or ['no message']
    _end(f'JAX does not work here: {lines[-1]}')
  print(done.stdout.strip())
  asked = os.environ.get('JAX_PLATFORMS')
  gpus = list(pathlib.Path('/dev').glob('nvidia[0-9]*'))
  if gpus and asked is None and 'cpu ' in done.stdout:
    _end(
      f'this machine has {len(gpus)} GPUs and JAX sees none: pack with '
      '--extras=cuda, or set JAX_PLATFORMS=cpu to do without them'
    )


def _train(python: str, module: str, end: float | None) -> int:
  """Runs the study or run until its end or the time's; returns its status."""
  command = [python, '-m', f'steepest.launch.{module}']
  command += ['--config=recipe.py', f'--workdir={WORKDIR}']
  stop = None
  if end is not None:
    left = end - time.monotonic()
    stop = end - min(_RESERVE * left, _LONGEST)
    if module == 'study':
      minutes = max(0.0, stop - time.monotonic()) / 60
      command.append(f'--minutes={minutes:.3f}')
      # It stops by itself; if it does not, the results are worth more.
      stop = end
  process = subprocess.Popen(command)

  def forward(number: int, frame: FrameType | None) -> None:
    process.send_signal(number)

  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, forward)
  try:
    process.wait(None if stop is None else max(0.0, stop - time.monotonic()))
  except subprocess.TimeoutExpired:
    print('time is up: saving', flush=True)
    process.terminate()
    try:
      process.wait(_GRACE)
    except subprocess.TimeoutExpired:
      process.kill()
      process.wait()
    return 0
  return process.returncode


def _collect(checkpoints: bool) -> None:
  """Writes the archive: runs that have ended, with checkpoints all."""
  work, part = pathlib.Path(WORKDIR), pathlib.Path(f'{RESULTS}.part')
  # As seen from the pack, which may have been anywhere.
  here = json.dumps(f'{pathlib.Path.cwd()}/')[1:-1]
  left_out = set()
  with tarfile.open(part, 'w:gz') as tar:
    for path in sorted(work.rglob('*')):
      parts = path.relative_to(work).parts
      if parts[0] in LEFT_OUT or path.is_symlink() or not path.is_file():
        continue
      if not checkpoints and unfinished(work, path):
        if path.name == 'config.json':
          left_out.add(path)
        continue
      if path.name == 'config.json':
        path.write_text(path.read_text('utf-8').replace(here, ''), 'utf-8')
      name = '/'.join(('results', *parts))
      tar.add(path, name, recursive=False, filter=_nameless)
  os.replace(part, RESULTS)
  if left_out:
    print(
      f'{len(left_out)} runs have not ended and are left out; --checkpoints '
      'brings what they saved'
    )


def unfinished(work: pathlib.Path, path: pathlib.Path) -> bool:
  """Returns whether a file is a checkpoint or of a run that has not ended.

  Args:
    work: directory of a study or of a run.
    path: below it.
  """
  parts = path.relative_to(work).parts
  if 'checkpoints' in parts:
    return True
  above = path.parents[: len(parts)]
  runs = [p for p in above if (p / 'config.json').is_file()]
  # Of a study, the outermost is not a run.
  return any(
    'study' not in json.loads((run / 'config.json').read_text('utf-8'))
    and not _ended(run)
    for run in runs
  )


def _nameless(member: tarfile.TarInfo) -> tarfile.TarInfo:
  member.uid = member.gid = 0
  member.uname = member.gname = ''
  return member


def _ended(run: pathlib.Path) -> bool:
  """Returns whether a run has ended, however it did."""
  try:
    return 'status' in json.loads((run / 'summary.json').read_text('utf-8'))
  except (OSError, ValueError):
    return False


def _end(message: str) -> None:
  print(f'error: {message}', file=sys.stderr)
  sys.exit(1)


if __name__ == '__main__':
  main()

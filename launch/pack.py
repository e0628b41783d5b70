"""Packs a study or run for a machine that no package index can be reached from.

    python -m launch.pack --config=experiments/quickstart.py --out=quick.tar \\
        --platform=manylinux_2_28_x86_64 --python=3.12

There, in the one folder of the archive, `./run --minutes=12` installs, does
what fits into the minutes and leaves results.tar.gz. Back here

    python -m launch.pack --config=experiments/quickstart.py \\
        --merge=results.tar.gz

takes it into the study's directory, which launch.report reads and launch.study
goes on with; packed again, the study goes on from there.
"""

from collections.abc import Callable, Iterator
import contextlib
import json
import os
import pathlib
import shutil
import sys
import sysconfig
import tarfile
import tempfile
from typing import TYPE_CHECKING, Any

from absl import flags

from steepest.launch import cli

if TYPE_CHECKING:
  from ml_collections import ConfigDict

_MB = 10**6
# Parts that are named where a pack is too large.
_NAMED = 5
_RECIPE = '''"""What was packed."""

import json
import pathlib

from ml_collections import ConfigDict


def get_config(arg: str = '') -> ConfigDict:
  """Takes no variant."""
  path = pathlib.Path(__file__).with_name('recipe.json')
  return ConfigDict(json.loads(path.read_text('utf-8')))
'''


def main() -> None:
  """The command."""
  config = cli.define_config()
  text, many = flags.DEFINE_string, flags.DEFINE_list
  workdir = text(
    'workdir',
    None,
    'Directory of the study or run, which goes with it (default runs/CONFIG).',
  )
  out = text('out', None, 'FILE.tar or a directory; neither may exist.')
  machine = os.uname().machine
  platform = text(
    'platform',
    f'manylinux_2_28_{machine}',
    'Of the wheels: manylinux_2_N_x86_64 or …_aarch64, glibc 2.N.',
  )
  python = text(
    'python', sysconfig.get_python_version(), 'Python of that machine.'
  )
  extras = many('extras', [], 'Of the package, such as cuda.')
  have = text(
    'have',
    None,
    'What `pip list` says on that machine: these packages are left out.',
  )
  limit = flags.DEFINE_integer(
    'limit_mb', 4000, 'Most megabytes.', lower_bound=1
  )
  checkpoints = flags.DEFINE_bool(
    'checkpoints', False, 'Bring the checkpoints of the directory along.'
  )
  merge = text('merge', None, 'results.tar.gz to take into the directory.')

  def start() -> None:
    given = cli.required(config)
    home = pathlib.Path(workdir.value or cli.default_workdir(config)).absolute()
    if merge.value is not None:
      _merge(given, home, pathlib.Path(merge.value))
      return
    if out.value is None:
      raise ValueError('--out is missing: give --out=FILE.tar')
    from steepest.launch.packing import wheels

    wheels.check(platform.value, python.value)
    left = wheels.listed(pathlib.Path(have.value)) if have.value else ()
    target = pathlib.Path(out.value).absolute()
    with _written(target) as folder:
      _write_inputs(given, home, folder, checkpoints.value)
      module = 'study' if 'study' in given else 'train'
      about = {'module': module, 'python': python.value, 'system': bool(left)}
      _write_code(folder, about)
      (folder / 'wheels').mkdir()
      wheels.download(
        folder / 'wheels', platform.value, python.value, extras.value, left
      )
      size = _check_size(folder, limit.value)
    print(f'{target}: {size / _MB:,.0f} MB; there: ./run --minutes=N')

  cli.run(start, __doc__)


@contextlib.contextmanager
def _written(target: pathlib.Path) -> Iterator[pathlib.Path]:
  """Has a directory filled and makes it the target, a .tar or a directory."""
  if target.exists():
    raise ValueError(f'--out={target}: is there already')
  target.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(
    dir=target.parent, prefix='.pack-'
  ) as directory:
    parts = pathlib.Path(directory)
    folder = parts / target.name.removesuffix('.tar')
    folder.mkdir()
    yield folder
    if target.suffix != '.tar':
      os.rename(folder, target)
      return
    with tarfile.open(parts / 'pack.tar', 'w') as tar:
      tar.add(folder, folder.name)
    os.rename(parts / 'pack.tar', target)


def _ready(config: 'ConfigDict', workdir: pathlib.Path) -> dict[str, Any]:
  """Returns a checked configuration with its data in place, as JSON."""
  from ml_collections import ConfigDict

  from steepest.data import benchmarks, corpus
  from steepest.training import config as config_lib
  from steepest.tuning import study

  if 'study' in config:
    study.complete(config)
    config = corpus.ready(config, workdir)
  else:
    config_lib.check_ranges(config)
    config_lib.make_absolute(config)
    config = ConfigDict(config.to_dict())
    if config.eval_tasks:
      directory = benchmarks.locate(config.eval_tasks_data)
      config.eval_tasks_data = str(directory.absolute())
  if config.data.source.partition(':')[0] not in ('shards', 'flat'):
    raise ValueError(
      f'data.source={config.data.source}: give shards:DIR or flat:FILE'
    )
  return config_lib.as_json(config)


def _names() -> tuple[dict[str, str], Callable[[str], str]]:
  """Returns a table of files and their names in a pack, and what fills it."""
  found: dict[str, str] = {}

  def place(path: str) -> str:
    if '://' in path:
      raise ValueError(f'{path}: only files of this machine can be packed')
    name = pathlib.PurePath(path).name
    return found.setdefault(path, f'inputs/{len(found)}/{name}')

  return found, place


def _renamed(table: dict[str, str]) -> Callable[[dict[str, Any]], Any]:
  """Returns what names the files of a configuration by a table."""
  from steepest.launch.packing import inputs

  known = lambda path: table[path] if path in table else path
  return lambda config: inputs.relocated(config, known)


def _write_inputs(
  config: 'ConfigDict',
  workdir: pathlib.Path,
  folder: pathlib.Path,
  checkpoints: bool,
) -> None:
  """Writes recipe, files that it names, and what was done already."""
  from steepest.data import files, locks
  from steepest.eval import questions, tasks
  from steepest.launch.packing import inputs, run
  from steepest.training import metrics

  with locks.hold(workdir, 'packing this'):
    values = _ready(config, workdir)
    table, place = _names()
    packed = inputs.relocated(values, place)
    for path, name in table.items():
      source = pathlib.Path(path).expanduser()
      if not source.exists():
        raise FileNotFoundError(f'{path}: there is no such file')
      target = folder / name
      target.parent.mkdir(parents=True)
      if path == values['eval_tasks_data']:
        target.mkdir()
        chosen = tasks.select(values['eval_tasks']).tasks
        for stem in questions.stems(chosen):
          found = questions.find_file(source, stem)
          for file in (found, source / f'{stem}.origin'):
            if file.exists():
              shutil.copy(file, target)
      elif source.is_dir():
        shutil.copytree(source, target)
      else:
        shutil.copy(source, target)
    metrics.write_json(folder / 'recipe.json', packed)
    files.write(folder / 'recipe.py', [_RECIPE.encode()])
    _copy_done(workdir, folder / run.WORKDIR, _renamed(table), checkpoints)


def _copy_done(
  workdir: pathlib.Path,
  target: pathlib.Path,
  rename: Callable[[dict[str, Any]], Any],
  checkpoints: bool,
) -> None:
  """Copies what was done already: runs that ended, with checkpoints all."""
  from steepest.launch.packing import run
  from steepest.training import metrics

  for path in sorted(workdir.rglob('*')):
    parts = path.relative_to(workdir).parts
    if parts[0] in run.LEFT_OUT or not path.is_file():
      continue
    if not checkpoints and run.unfinished(workdir, path):
      continue
    copy = target.joinpath(*parts)
    copy.parent.mkdir(parents=True, exist_ok=True)
    if path.name == 'config.json':
      metrics.write_json(copy, rename(json.loads(path.read_text('utf-8'))))
    else:
      shutil.copy(path, copy)


def _write_code(folder: pathlib.Path, about: dict[str, Any]) -> None:
  """Writes the package as it is here, and what runs it."""
  import importlib.metadata

  from steepest.data import files
  from steepest.launch.packing import run
  from steepest.training import environment, metrics

  root = pathlib.Path(__file__).resolve().parent.parent
  code = folder / 'code'
  for path in root.iterdir():
    if (path / '__init__.py').is_file():
      ignore = shutil.ignore_patterns('__pycache__')
      shutil.copytree(path, code / 'steepest' / path.name, ignore=ignore)
  commit = environment.git_commit() or ''
  files.write(code / 'steepest' / environment.COMMIT, [commit.encode()])
  version = importlib.metadata.version('steepest')
  text = f'Metadata-Version: 2.1\nName: steepest\nVersion: {version}\n'
  info = code / f'steepest-{version}.dist-info'
  files.write(info / 'METADATA', [text.encode()])
  metrics.write_json(folder / 'pack.json', about)
  shutil.copy(run.__file__, folder / 'run')
  (folder / 'run').chmod(0o755)


def _check_size(folder: pathlib.Path, limit: int) -> int:
  """Returns the bytes of a pack; raises a ValueError if there are too many."""
  sizes = {p: p.stat().st_size for p in folder.rglob('*') if p.is_file()}
  total = sum(sizes.values())
  if total > limit * _MB:
    largest = sorted(sizes, key=sizes.__getitem__, reverse=True)[:_NAMED]
    named = ', '.join(
      f'{p.relative_to(folder)} {sizes[p] / _MB:,.1f}' for p in largest
    )
    raise ValueError(
      f'the pack has {total / _MB:,.1f} MB, --limit_mb={limit}; the largest '
      f'files: {named}'
    )
  return total


def _merge(
  config: 'ConfigDict', workdir: pathlib.Path, archive: pathlib.Path
) -> None:
  from ml_collections import ConfigDict

  from steepest.data import locks
  from steepest.launch.packing import inputs
  from steepest.training import metrics
  from steepest.tuning import merge, study

  if not archive.is_file():
    raise FileNotFoundError(f'--merge={archive}: there is no such file')
  with locks.hold(workdir, 'merging into this'):
    values = _ready(config, workdir)
    table, place = _names()
    inputs.relocated(values, place)
    back = _renamed({name: path for path, name in table.items()})
    # A run takes the place of its directory, a study's runs that of theirs.
    beside = workdir if 'study' in values else workdir.parent
    with merge.unpacked(archive, beside) as found:
      if 'study' in values:
        at = workdir / 'config.json'
        into = study.Study(ConfigDict(values), workdir)
        merged = merge.into_study(into, found, back)
        if merged.taken and not at.exists():
          metrics.write_json(at, values)
      else:
        merged = merge.Merged([], [], {})
        merge.take(merged, '.', ConfigDict(values), workdir, found, back)
  for name, why in merged.refused.items():
    print(f'left out {name}: {why}', file=sys.stderr)
  count = len(merged.taken)
  print(
    f'{workdir}: {count} run{"s" * (count != 1)}, {len(merged.kept)} were '
    f'there already, {len(merged.refused)} left out'
  )


if __name__ == '__main__':
  main()

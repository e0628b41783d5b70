"""Writes packs and merges their results."""

import argparse
from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
import importlib.metadata
import json
import os
import pathlib
import re
import shutil
import tarfile
import tempfile
from typing import Any

from ml_collections import ConfigDict

from steepest.data import (
  buckets,
  corpus,
  decontamination,
  files,
  locks,
  tokenizers,
)
from steepest.data.preparing import documents
from steepest.data.preparing.options import Options
from steepest.eval import questions, tasks
from steepest.experiments import base
from steepest.launch.packing import run, wheels
from steepest.training import config as config_lib, environment, metrics
from steepest.tuning import merge, study

_MB = 10**6
# Number of files that the error of a too large pack names.
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


# Keys that name files, and the regular expression of the names in their values,
# as in './mine.py:100,adamw'.
_FILES = {
  'data.source': r'(?<=:).+',
  'model.init_from': r'(?<=:).+',
  'eval_tasks_data': '.+',
} | dict.fromkeys(
  (
    'model.name',
    'optimizer.name',
    'eval_tasks',
    'study.models',
    'study.optimizers',
  ),
  r'[^,\s][^,]*\.py',
)


def named(config: dict[str, Any]) -> dict[str, str]:
  """Maps each file that a configuration names to its name in a pack.

  Args:
    config: of a run or a study, as in config.json.

  Raises:
    ValueError: a file is neither on this machine nor in a bucket.
  """
  found: dict[str, str] = {}
  for key, value in _values(config):
    for path in re.findall(_FILES[key], value):
      buckets.is_address(path)  # Or it raises.
      name = pathlib.PurePath(path).name
      found.setdefault(path, f'inputs/{len(found)}/{name}')
  return found


def relocated(
  config: dict[str, Any], names: Mapping[str, str]
) -> dict[str, Any]:
  """Returns a configuration with its files renamed by a table."""
  moved = lambda match: names[match[0]] if match[0] in names else match[0]
  found = ConfigDict(config)
  for key, value in _values(config):
    found.update_from_flattened_dict({key: re.sub(_FILES[key], moved, value)})
  return config_lib.as_json(found)


def _values(config: dict[str, Any]) -> list[tuple[str, str]]:
  """Returns keys and values that name files."""
  found = base.flatten(ConfigDict(config)).items()
  wanted = _FILES.keys() - (
    {'eval_tasks_data'} if not config['eval_tasks'] else set()
  )
  return [(key, value) for key, value in found if key in wanted]


def write(
  config: ConfigDict,
  stage: buckets.Stage,
  out: pathlib.Path,
  asked: argparse.Namespace,
) -> str:
  """Writes a pack and returns a line with its size.

  Args:
    config: of a study or run.
    stage: of its directory; its results so far are packed too.
    out: a .tar or a directory that does not exist yet.
    asked: values of launch.pack's flags, and `text`: options of text that is
      prepared there, into data.source, or None.

  Raises:
    OSError: a file is missing, or a wheel cannot be downloaded.
    ValueError: the configuration is invalid, or the pack too large.
  """
  wheels.check(asked.platform, asked.python)
  have = wheels.listed(pathlib.Path(asked.have)) if asked.have else ()
  with _written(out) as folder:
    with locks.hold(stage.directory, 'packing this'):
      commands = _write_inputs(config, stage, folder, asked)
    _write_code(folder)
    about = {'python': asked.python, 'system': bool(have), 'commands': commands}
    metrics.write_json(folder / 'pack.json', about)
    at = folder / 'wheels'
    at.mkdir()
    wheels.download(at, asked.platform, asked.python, asked.extras, have)
    size = _check_size(folder, asked.limit_mb)
  return f'{out}: {size / _MB:,.0f} MB; there: ./run --minutes=N'


def take_back(
  config: ConfigDict, stage: buckets.Stage, archive: pathlib.Path
) -> merge.Merged:
  """Merges a pack's results.tar.gz into the directory of its study or run.

  Raises:
    OSError: there is no such file.
    ValueError: the configuration is invalid, or the archive damaged.
  """
  if not archive.is_file():
    raise FileNotFoundError(f'--merge={archive}: no such file')
  workdir = stage.directory
  with locks.hold(workdir, 'merging into this'):
    values = _ready(config, stage)
    paths = {name: path for path, name in named(values).items()}
    back = lambda held: relocated(held, paths)
    whole, beside = ConfigDict(values), workdir.parent
    waiting = lambda: [(whole, workdir)]
    if 'study' in values:
      into, beside = study.Study(whole, workdir), workdir
      waiting = lambda: [(one.config, one.directory) for one in into.waiting()]
    with merge.unpacked(archive, beside) as found:
      merged = merge.into(workdir, waiting, found, back)
    if merged.taken and not (workdir / 'config.json').exists():
      metrics.write_json(workdir / 'config.json', values)
    return merged


@contextlib.contextmanager
def _written(target: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields a directory to fill, then makes it the target: .tar or directory."""
  if target.exists():
    raise ValueError(f'--out={target}: already exists')
  target.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=target.parent, prefix='.pack-') as parts:
    folder = ready = pathlib.Path(parts) / target.name.removesuffix('.tar')
    folder.mkdir()
    yield folder
    if target.suffix == '.tar':
      ready = folder.with_name('pack.tar')
      with tarfile.open(ready, 'w') as tar:
        tar.add(folder, folder.name)
    os.rename(ready, target)


def _ready(config: ConfigDict, stage: buckets.Stage) -> dict[str, Any]:
  """Returns the checked configuration as JSON, once its data is there."""
  if 'study' in config:
    study.complete(config)
  else:
    config_lib.check_ranges(config)
    config_lib.make_absolute(config)
  source = config.data.source
  if (source or 'study' not in config) and not re.match(
    '(shards|flat):', source
  ):
    raise ValueError(f'data.source={source}: give shards:DIR or flat:FILE')
  config = corpus.ready(config, stage.directory)
  # As launch.study names it.
  config.data.source = stage.address(config.data.source)
  stage.push()
  return config_lib.as_json(config)


def _write_inputs(
  config: ConfigDict,
  stage: buckets.Stage,
  folder: pathlib.Path,
  asked: argparse.Namespace,
) -> list[tuple[str, list[str]]]:
  """Writes recipe, files and results; returns the commands to run there."""
  text, source = asked.text, config.data.source.removeprefix('shards:')
  if text is not None and (
    source == config.data.source or pathlib.Path(source).exists()
  ):
    raise ValueError(
      f'data.source={config.data.source}: with --input give shards:DIR, a '
      'directory that does not exist yet: ./run prepares it there'
    )
  values, workdir = _ready(config, stage), stage.directory
  names = named(values)
  for path, name in names.items():
    if text is None or path != source:
      chosen = values['eval_tasks'] if path == values['eval_tasks_data'] else ''
      _copy(buckets.read(path).expanduser(), folder / name, chosen)
  metrics.write_json(folder / 'recipe.json', relocated(values, names))
  files.write(folder / 'recipe.py', [_RECIPE.encode()])
  for file in run.kept(workdir, asked.checkpoints):
    target = folder / run.WORKDIR / file.relative_to(workdir)
    _copy(file, target)
    if file.name == 'config.json':
      held = json.loads(file.read_text('utf-8'))
      metrics.write_json(target, relocated(held, names))
  what = 'study' if 'study' in values else 'train'
  commands = [(what, ['--config=recipe.py', f'--workdir={run.WORKDIR}'])]
  if text is not None:
    commands.insert(0, ('prepare', _write_text(text, names[source], folder)))
  return commands


def _copy(source: pathlib.Path, target: pathlib.Path, chosen: str = '') -> None:
  """Copies a file or a directory; of benchmarks, only those of some tasks."""
  target.parent.mkdir(parents=True, exist_ok=True)
  if not source.exists():
    raise FileNotFoundError(
      f'{source}: no such file, but the configuration names it; text for '
      'missing shards is packed with --input and --tokenizer'
    )
  if not source.is_dir():
    shutil.copy(source, target)
    return
  stems = questions.stems(tasks.select(chosen).tasks) if chosen else []
  wanted = {questions.find_file(source, stem).name for stem in stems}
  wanted |= {f'{stem}.origin' for stem in stems}
  leave = lambda _, names: set(names) - wanted if stems else ()
  shutil.copytree(source, target, ignore=leave)


def _write_text(text: Options, out: str, folder: pathlib.Path) -> list[str]:
  """Writes the text to prepare; returns the flags to prepare it there."""
  at = folder / 'inputs'
  text.check()
  found = documents.find(text.inputs, text.text_field)
  for one in found:
    if not one.mtime_ns:
      raise ValueError(f'--input={one.name}: only files can be packed')
  paths = [pathlib.Path(one.name).absolute() for one in found]
  top = os.path.commonpath([path.parent for path in paths])
  for path in paths:
    _copy(path, at / 'text' / path.relative_to(top))
  there = dataclasses.asdict(text) | {'inputs': 'inputs/text/**', 'out': out}
  if not text.tokenizer.startswith('bpe-train:'):
    tokenizers.load(text.tokenizer).save(at / 'tokenizer')
    there['tokenizer'] = 'hf:inputs/tokenizer'
  if text.decontaminate:
    for path in decontamination.find(text.decontaminate_data):
      _copy(path, at / 'benchmarks' / path.name)
    there['decontaminate_data'] = 'inputs/benchmarks'
  there['input'] = there.pop('inputs')
  return [f'--{name}={value}' for name, value in there.items()]


def _write_code(folder: pathlib.Path) -> None:
  """Writes the package as it is here, and its `run` script."""
  root, code = pathlib.Path(environment.__file__).parents[1], folder / 'code'
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
  shutil.copy(run.__file__, folder / 'run')
  (folder / 'run').chmod(0o755)


def _check_size(folder: pathlib.Path, limit: int) -> int:
  """Returns a pack's size in bytes; raises a ValueError above the limit."""
  sizes = {p: p.stat().st_size for p in folder.rglob('*') if p.is_file()}
  total = sum(sizes.values())
  if total > limit * _MB:
    largest = sorted(sizes, key=sizes.__getitem__, reverse=True)[:_NAMED]
    named = ', '.join(
      f'{p.relative_to(folder)} {sizes[p] / _MB:,.1f}' for p in largest
    )
    raise ValueError(
      f'the pack has {total / _MB:,.1f} MB, over --limit_mb={limit}; largest '
      f'files, in MB: {named}'
    )
  return total

"""The files and directories that runs read, and whether they exist."""

from collections.abc import Iterable, Iterator
import pathlib

from ml_collections import ConfigDict

from steepest.experiments import base

# Kinds of KIND:PATH, and the file that must be there ('': the path itself).
_FILES = {
  **dict.fromkeys(('flat', 'hub', 'tfds'), ''),
  'shards': 'manifest.json',
  'hf': 'config.json',
}


def read_by(configs: Iterable[ConfigDict]) -> list[str]:
  """Returns what runs read, as KEY=VALUE without repeats."""
  return list(dict.fromkeys(name for c in configs for name in _read_by(c)))


def check(name: str) -> None:
  """Raises a FileNotFoundError if an input does not exist.

  Args:
    name: KEY=VALUE, from `read_by`.
  """
  value = name.partition('=')[2]
  if not value:
    raise FileNotFoundError(f'{name}: nothing to train on: give shards:DIR')
  kind, _, rest = value.partition(':')
  if kind == 'tfds' and not rest.startswith(('/', '.', '~')):
    # A name that TFDS looks up in its own directory.
    return
  path = pathlib.Path(rest if kind in _FILES else value).expanduser()
  if kind in _FILES:
    path /= _FILES[kind]
  if not path.exists():
    raise FileNotFoundError(
      f'{name}: {path.absolute()} does not exist; --nocheck submits it anyway'
    )


def _read_by(config: ConfigDict) -> Iterator[str]:
  study = 'study' in config
  if config.data.source or not study:
    yield f'data.source={config.data.source}'
  for key, value in (
    ('model.init_from', config.model.init_from),
    ('eval_tasks_data', config.eval_tasks_data if config.eval_tasks else ''),
  ):
    if value and value != 'hub':
      yield f'{key}={value}'
  keys = ['model.name', 'optimizer.name', 'eval_tasks']
  keys += ['study.models', 'study.optimizers'] if study else []
  values = base.flatten(config)
  for key in keys:
    for word in values[key].split(','):
      if (path := word.partition(':')[0]).endswith('.py'):
        yield f'{key}={path}'

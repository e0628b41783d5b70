"""What runs read, and whether it is where they look for it."""

from collections.abc import Iterable, Iterator
import pathlib

from ml_collections import ConfigDict

from steepest.experiments import base

# What names a file or a directory, and what lies in that directory.
_FILES = {
  **dict.fromkeys(('flat', 'hub', 'tfds'), ''),
  'shards': 'manifest.json',
  'hf': 'config.json',
}


def read_by(configs: Iterable[ConfigDict]) -> list[str]:
  """Returns KEY=VALUE of what some runs read, each once."""
  return list(dict.fromkeys(name for c in configs for name in _read_by(c)))


def check(name: str) -> None:
  """Raises a FileNotFoundError if what is read is not there.

  Args:
    name: KEY=VALUE, as `read_by` returns it.
  """
  value = name.partition('=')[2]
  if not value:
    raise FileNotFoundError(f'{name}: nothing to train on: give shards:DIR')
  kind, _, rest = value.partition(':')
  if kind == 'tfds' and not rest.startswith(('/', '.', '~')):
    # TFDS knows the name, in its own directory.
    return
  path = pathlib.Path(rest if kind in _FILES else value).expanduser()
  if kind in _FILES:
    path /= _FILES[kind]
  if not path.exists():
    raise FileNotFoundError(
      f'{name}: {path.absolute()} is not there; --nocheck submits it anyway'
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

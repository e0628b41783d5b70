"""Files that a configuration names: where else they may be."""

from collections.abc import Callable
import copy
import re
from typing import Any

Place = Callable[[str], str]


def relocated(config: dict[str, Any], place: Place) -> dict[str, Any]:
  """Returns a configuration whose files are elsewhere.

  Args:
    config: of a run or of a study, as config.json holds it.
    place: path as it is named → path to name instead.
  """
  found = copy.deepcopy(config)
  found['data']['source'] = _after_colon(config['data']['source'], place)
  found['model']['init_from'] = _after_colon(
    config['model']['init_from'], place
  )
  for group in ('model', 'optimizer'):
    found[group]['name'] = _files(config[group]['name'], place)
  found['eval_tasks'] = _files(config['eval_tasks'], place)
  if config['eval_tasks'] and config['eval_tasks_data']:
    found['eval_tasks_data'] = place(config['eval_tasks_data'])
  if 'study' in config:
    for key in ('models', 'optimizers'):
      found['study'][key] = _files(config['study'][key], place)
  return found


def _after_colon(spec: str, place: Place) -> str:
  """Returns KIND:PATH with another path."""
  kind, colon, path = spec.partition(':')
  return f'{kind}:{place(path)}' if path else spec


def _files(names: str, place: Place) -> str:
  """Returns names with other paths of those that are files, './mine.py:100'."""
  words = []
  for word in names.split(','):
    match = re.fullmatch(r'\s*(.+\.py)((?::\d+)?)\s*', word)
    words.append(f'{place(match[1])}{match[2]}' if match else word)
  return ','.join(words)

"""Run directories as frames: what was set, what happened, what was scored.

Reads today's and earlier formats of config.json, env.json, metrics.jsonl,
summary.json, eval/results.json and eval/predictions.jsonl, and a study's
config.json and timing.json.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
import json
import math
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import json as arrow_json

from steepest.data import reading
from steepest.eval import tasks

# Keys of every run's config; others are read where they are needed.
_REQUIRED = (
  dict.fromkeys(
    'stage model.name optimizer.name parametrization.kind'.split(), 'text'
  )
  | dict.fromkeys(
    'steps batch_size model.width model.num_layers model.context'.split(),
    'count above 0',
  )
  | {'seed': 'count', 'optimizer.lr': 'number above 0'}
)
_STATUSES = ('finished', 'diverged', 'pruned')
# Kinds of the keys of each file, by reading.KINDS.
_SUMMARY = {
  'status': 'text',
  'steps': 'count',
  'tokens': 'count',
  'seconds': 'number of at least 0',
  'data_fingerprint': 'text',
  'diverged_at_step': '?count or null',
  'mfu': '?number or null',
  'eval_loss_by_source': '?object or null',
  'eval_bits_per_byte_by_source': '?object or null',
  'curvature_passes': '?count or null',
  'parameters': '?count above 0 or null',
  'parameters_without_embeddings': '?count or null',
  'optimizer_state_bytes': '?number or null',
  'peak_memory_bytes': '?number or null',
  'goodput': '?object of numbers',
} | {
  f'{what}_seconds': '?number or null'
  for what in ('data_wait', 'compile', 'eval', 'checkpoint')
}
_FINISHED = {
  'train_loss': 'number',
  'eval_loss': 'number or null',
  'tokens_per_second': 'number above 0',
  'flops': 'number above 0',
}
_ENV = {
  'devices': '?list of texts',
  'device_kind': '?text',
  'optimizer': '?object',
  'versions': '?object',
}
_INFO = {'data': 'object of objects', 'limit': '?count'}
_PREDICTION = {
  'task': 'text',
  'metric': 'text',
  'doc_id': 'text, number or list of them',
  'pred': 'text, number or list of them',
  'gold': 'text, number or list of them',
}
_TIMING = {'device': 'text', 'commit': 'text', 'groups': 'list of objects'}
_GROUP = {'group': 'object', 'repeats': 'list of objects'}
_AGAIN = 'write the file again or remove the run'
METRICS = ('acc', 'acc_norm', 'perplexity')
# Logged points kept per run, besides all evaluations.
_POINTS = 400
# Bytes of rows read at a time.
_BLOCK = 1 << 23
# Bytes that a thread parses at once. A longer row is read the slow way.
_PARSED = 1 << 20


COLUMNS = {
  name: columns.split()
  for name, columns in (
    ('points', 'run step tokens seconds train/loss eval/loss'),
    ('scores', 'run task metric value stderr n chance questions limit'),
    ('answers', 'run task metric question right'),
    (
      'timing',
      'study group optimizer repeat seconds_per_step device commit',
    ),
    ('studies', 'study'),
  )
}


class Known(NamedTuple):
  """What is known about configurations, today's and earlier ones.

  Attributes:
    defaults: groups and keys; supplies keys that a run's config lacks because
      it predates them.
    ignored: keys that have no effect.
    study: defaults of the group that studies add.
    ranges: key → least and largest value.
  """

  defaults: Mapping[str, Any] = {}
  ignored: Collection[str] = ()
  study: Mapping[str, Any] = {}
  ranges: Mapping[str, tuple[float, float]] = {}


def directories_in(root: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields every run directory at or under `root`."""
  for directory, children, files in os.walk(root):
    children.sort()
    if 'config.json' in files and 'metrics.jsonl' in files:
      children.clear()
      yield pathlib.Path(directory)


def read(
  directories: Mapping[pathlib.Path, pathlib.Path], known: Known
) -> dict[str, pd.DataFrame]:
  """Returns the frames of `tables.Tables` by name.

  Args:
    directories: resolved path → path as given.
    known: about their configurations.

  Raises:
    ValueError: a file is not valid or lacks a key.
  """
  shared = pathlib.Path(os.path.commonpath([p.parent for p in directories]))
  parts: dict[str, list[Any]] = {name: [] for name in ('runs', *COLUMNS)}
  studies: dict[pathlib.Path, str] = {}
  for resolved, path in directories.items():
    name = resolved.relative_to(shared).as_posix()
    study = _study_of(resolved)
    if study is not None and study not in studies:
      studies[study] = os.path.relpath(study, shared)
      parts['studies'].append(
        {'study': studies[study]} | flatten(_read_config(study, known))
      )
      if (timing := study / 'timing.json').exists():
        parts['timing'] += read_timing(timing, studies[study])
    run, points = _read_run(path, name, known)
    scored = _read_scores(path, name)
    run['study'] = '' if study is None else studies[study]
    parts['runs'].append(run)
    parts['points'].append(points)
    for table, frame in scored.items():
      parts[table].append(frame)
  return {name: as_frame(name, rows) for name, rows in parts.items()}


def as_frame(name: str, parts: Sequence[Any]) -> pd.DataFrame:
  """Returns the frame of a table, with its columns even if it has no rows."""
  columns = list(COLUMNS[name]) if name in COLUMNS else None
  if not parts:
    return pd.DataFrame(columns=columns)
  if isinstance(parts[0], dict):
    return pd.DataFrame(list(parts))
  return pd.concat(parts, ignore_index=True)


def _study_of(directory: pathlib.Path) -> pathlib.Path | None:
  """Returns the nearest directory above whose config.json is a study's."""
  for parent in directory.parents[:4]:
    path = parent / 'config.json'
    if path.exists():
      config = reading.json_object(path, _AGAIN)
      return parent if 'study' in config else None
  return None


def _read_config(directory: pathlib.Path, known: Known) -> dict[str, Any]:
  """Returns a config.json, its values checked against the defaults' kinds."""
  path = directory / 'config.json'
  config = reading.json_object(path, _AGAIN)
  defaults = {**known.defaults, 'study': known.study}
  _check_config(config, defaults, str(path))
  for key, value in flatten(config).items():
    if key not in known.ranges or value is None:
      continue
    least, most = known.ranges[key]
    if not reading.KINDS['number'](value) or not least <= value <= most:
      raise ValueError(
        f'{path}: {key} is {reading.shown(value)}, not of {least:g} to '
        f'{most:g}; {_AGAIN}'
      )
  return config


def _check_config(
  config: Mapping[str, Any], defaults: Any, where: str, prefix: str = ''
) -> None:
  kinds = {}
  for key, held in config.items():
    default = defaults[key] if key in defaults else None
    if isinstance(held, dict) and (isinstance(default, dict) or not default):
      _check_config(held, default or {}, where, f'{prefix}{key}.')
    else:
      kinds[f'{prefix}{key}'] = _kind(key, default)
  held = {f'{prefix}{key}': value for key, value in config.items()}
  reading.require(held, kinds, where, _AGAIN)


def _kind(key: str, default: Any) -> str:
  """Returns the kind of a config key's value, by reading.KINDS."""
  if key.startswith(('lrs_', 'space_')):
    return 'list of numbers'
  for kind, name in (
    (bool, 'truth value'),
    (int, 'whole number'),
    (float, 'number'),
    (str, 'text, number or list of them'),
    (dict, 'object'),
  ):
    if isinstance(default, kind):
      return name
  return 'text, number or list of them'


def _read_run(
  path: pathlib.Path, name: str, known: Known
) -> tuple[dict[str, Any], pd.DataFrame]:
  """Returns a run's row and its logged points."""
  leaves = flatten(_read_config(path, known))
  for key, kind in _REQUIRED.items():
    reading.require(leaves, {key: kind}, f'{path}/config.json', _AGAIN)
  leaves = flatten(known.defaults) | leaves
  if leaves['stage'] not in ('tune', 'final'):
    raise ValueError(
      f'{path}/config.json: stage is {leaves["stage"]!r}; known are tune and '
      'final'
    )
  env: dict[str, Any] = {}
  if (path / 'env.json').exists():
    env = reading.json_object(path / 'env.json', _AGAIN)
    reading.require(env, _ENV, f'{path}/env.json', _AGAIN)
  summary = None
  if (path / 'summary.json').exists():
    summary = _read_summary(path / 'summary.json')
  points = _read_points(path / 'metrics.jsonl')
  optimizer = _stem(leaves['optimizer.name'])
  if optimizer != leaves['optimizer.name'] and 'optimizer' in env:
    reading.require(env['optimizer'], {'name': 'text'}, f'{path}/env.json')
    optimizer = env['optimizer']['name']
  row = {
    'run': name,
    'stage': leaves['stage'],
    'status': 'unfinished',
    'architecture': _stem(leaves['model.name']),
    'optimizer': optimizer,
    'seed': int(leaves['seed']),
    'lr': float(leaves['optimizer.lr']),
    'planned_steps': int(leaves['steps']),
    'planned_tokens': int(
      leaves['steps'] * leaves['batch_size'] * leaves['model.context']
    ),
    'steps': int(points['step'].iloc[-1]) + 1 if len(points) else 0,
    'first_loss': _first_loss(points),
    'loss': math.inf,
  }
  if summary is not None:
    row |= flatten(summary)
    if row['status'] == 'finished':
      if row['steps'] < row['planned_steps']:
        row['status'] = 'unfinished'
      else:
        loss = summary['eval_loss']
        row['loss'] = float(summary['train_loss'] if loss is None else loss)
  row |= {f'config.{k}': v for k, v in leaves.items() if k not in known.ignored}
  devices = env['devices'] if 'devices' in env else []
  kind = env['device_kind'] if 'device_kind' in env else 'unknown device'
  row |= {f'env.{k}': v for k, v in flatten(env).items() if k != 'devices'}
  row['env.device'] = f'{len(devices) or 1} × {kind}'
  points.insert(0, 'run', name)
  if row.get('flops') and row.get('tokens') and 'tokens' in points:
    points['flops'] = points['tokens'] * (row['flops'] / row['tokens'])
  return row, points


def _stem(name: str) -> str:
  """Returns the name of a model or an optimizer given by path."""
  return pathlib.Path(name).stem if name.endswith('.py') else name


def _read_summary(path: pathlib.Path) -> dict[str, Any]:
  summary = reading.json_object(path, _AGAIN)
  reading.require(summary, _SUMMARY, str(path), _AGAIN)
  if summary['status'] not in _STATUSES:
    raise ValueError(
      f'{path}: status is {summary["status"]!r}; known are '
      f'{", ".join(_STATUSES)}'
    )
  kinds = _FINISHED
  if summary['status'] != 'finished':
    kinds = {
      k: f'?{v.removesuffix(" or null")} or null' for k, v in kinds.items()
    }
  reading.require(summary, kinds, str(path), _AGAIN)
  for name in ('eval_loss_by_source', 'eval_bits_per_byte_by_source'):
    if name in summary:
      held = summary[name] or {}
      numbers = dict.fromkeys(held, 'number or null')
      reading.require(held, numbers, f'{path}: {name}', _AGAIN)
  return summary


def _first_loss(points: pd.DataFrame) -> float:
  if not len(points) or 'train/loss' not in points or points['step'][0] != 0:
    return math.nan
  return float(points['train/loss'][0])


def _read_points(path: pathlib.Path) -> pd.DataFrame:
  """Reads metrics.jsonl; a long run's points are thinned (see `Tables`)."""
  regular = _regular(_count_rows(path))
  sums, counts, lasts = [], [], []
  rows = points = 0
  for frame in _frames(path):
    index_P = np.arange(rows, rows + len(frame))
    evaluations = [n for n in frame if n.startswith('eval/')]
    ends_P = np.isin(index_P, regular)
    ends_P |= frame[evaluations].notna().any(axis=1).to_numpy()
    # A point covers the rows up to and including one of these.
    point_P = points + np.cumsum(ends_P) - ends_P
    of_point = frame.groupby(point_P)
    sums.append(of_point.sum())
    counts.append(of_point.count())
    lasts.append(of_point.nth(-1).set_axis(np.unique(point_P)))
    rows, points = rows + len(frame), points + int(ends_P.sum())
  if not rows:
    return pd.DataFrame(columns=['step', 'tokens', 'seconds'], dtype=np.float64)
  total, count = (pd.concat(of).groupby(level=0).sum() for of in (sums, counts))
  means = total / count
  last = pd.concat(lasts).groupby(level=0).nth(-1)
  # Step, tokens, seconds and learning rate are those of a point's last row.
  for name in ('step', 'tokens', 'seconds', 'lr'):
    if name in means:
      means[name] = last[name]
  means['step'] = means['step'].astype(np.int64)
  return means.reset_index(drop=True)


def _regular(n: int) -> np.ndarray:
  """Returns the last row of each point of a thinned curve.

  Evaluations are added to them.
  """
  return np.linspace(0, n - 1, min(n, _POINTS)).round().astype(int)


def _count_rows(path: pathlib.Path) -> int:
  """Returns how many complete rows a file has."""
  count = 0
  with path.open('rb') as file:
    while content := file.read(_BLOCK):
      count += content.count(b'\n')
  _, last = next(reading.lines_backwards(path), (0, b'\n'))
  if not last.endswith(b'\n'):
    count += len(list(reading.objects([last], str(path), growing=True)))
  return count


def _frames(path: pathlib.Path) -> Iterator[pd.DataFrame]:
  """Yields the rows of metrics.jsonl in blocks of numbers.

  Raises:
    ValueError: a row holds anything else; names the row.
  """
  hint = 'start the run again from its checkpoint or remove it'
  for first, content in reading.line_blocks(path, _BLOCK):
    frame = _numbers(content)
    if frame is None:
      lines = content.splitlines(keepends=True)
      rows = list(reading.objects(lines, str(path), first, hint, growing=True))
      for row in rows:
        where = f'{path}, step {reading.shown(row.get("step"))}'
        kinds = dict.fromkeys(row, 'number or null') | {'step': 'count'}
        reading.require(row, kinds, where, hint)
      frame = pd.DataFrame(rows, dtype=np.float64)
    if len(frame):
      yield frame


def _numbers(content: bytes) -> pd.DataFrame | None:
  """Returns rows of numbers; None if anything is out of the ordinary."""
  # Arrow's stack overflows on values nested some 20,000 deep, and a row that is
  # no object, such as null, is a segmentation fault.
  rows = content.rstrip(b'\n').count(b'\n') + 1
  starts = content.startswith(b'{') + content.count(b'\n{')
  ends = content.endswith(b'}') + content.count(b'}\n')
  braces = content.count(b'{'), content.count(b'}')
  if b'[' in content or {starts, ends, *braces} != {rows}:
    return None
  options = arrow_json.ReadOptions(block_size=_PARSED)
  try:
    table = arrow_json.read_json(pa.BufferReader(content), options)
    # Arrow does not check that names are UTF-8.
    list(table.column_names)
  except (pa.ArrowException, UnicodeError):
    return None
  kinds = pa.types
  for field in table.schema:
    if not kinds.is_integer(field.type) and not kinds.is_floating(field.type):
      return None
  frame = table.to_pandas().astype(np.float64)
  steps = frame.get('step')
  if steps is None or not (steps >= 0).all() or steps.max() >= 1 << 53:
    return None
  return None if np.isinf(frame.to_numpy()).any() else frame


def _read_scores(path: pathlib.Path, name: str) -> dict[str, pd.DataFrame]:
  """Returns a run's scores and answers; {} where nothing was scored."""
  if not (path / 'eval' / 'results.json').exists():
    return {}
  where = path / 'eval' / 'results.json'
  info, scores = read_results(where)
  chances = {'chance': 'object of numbers'}
  reading.require(info, chances, f'{where}: info', 'evaluate again')
  rows = []
  for task, metrics in scores.items():
    for metric in METRICS:
      if metric not in metrics:
        continue
      chance = metric != 'perplexity' and task in info['chance']
      stderr = f'{metric}_stderr'
      error = metrics[stderr] if stderr in metrics else None
      rows.append(
        {
          'run': name,
          'task': task,
          'metric': metric,
          'value': float(metrics[metric]),
          # Too few questions to estimate it: take the largest possible.
          'stderr': 0.5 / metrics['n'] ** 0.5 if error is None else error,
          'n': int(metrics['n']),
          'chance': float(info['chance'][task]) if chance else math.nan,
          'questions': _questions(info, task, int(metrics['n'])),
          'limit': info['limit'] if 'limit' in info else 0,
        }
      )
  tables = {'scores': pd.DataFrame(rows, columns=list(COLUMNS['scores']))}
  predictions = path / 'eval' / 'predictions.jsonl'
  if predictions.exists():
    answers = pd.DataFrame(read_predictions(predictions))
    if len(answers):
      tables['answers'] = pd.DataFrame(
        {
          'run': name,
          'task': answers['task'],
          'metric': answers['metric'],
          'question': answers['doc_id'],
          'right': (answers['pred'] == answers['gold']).astype(np.int8),
        }
      )
  return tables


def read_results(
  path: pathlib.Path,
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
  """Returns how a results.json was scored, and task → its scores.

  Raises:
    FileNotFoundError: there is none.
    ValueError: it is damaged.
  """
  results = reading.json_object(path, 'evaluate again')
  kinds = {'info': 'object', 'metrics': 'object of objects'}
  reading.require(results, kinds, str(path), 'evaluate again')
  info, scores = results['info'], results['metrics']
  reading.require(info, _INFO, f'{path}: info', 'evaluate again')
  for entry in info['data'].values():
    reading.require(entry, {'sha256': 'text'}, f'{path}: data')
  for task, of in scores.items():
    kinds = {'n': 'count above 0'}
    for metric in METRICS:
      if metric in of:
        kinds |= {metric: 'number', f'{metric}_stderr': '?number or null'}
    reading.require(of, kinds, f'{path}: {task}', 'evaluate again')
  return info, scores


def read_predictions(path: pathlib.Path) -> list[dict[str, Any]]:
  """Returns the rows of a predictions.jsonl.

  Raises:
    FileNotFoundError: there is none.
    ValueError: a row is damaged; names it.
  """
  rows: list[dict[str, Any]] = []
  for row in reading.json_lines(path, 'evaluate again'):
    where = f'{path}, row {len(rows) + 1}'
    reading.require(row, _PREDICTION, where, 'evaluate again')
    rows.append({key: row[key] for key in _PREDICTION})
  return rows


def _questions(info: Mapping[str, Any], task: str, n: int) -> str:
  """Returns what identifies a task's questions: number and SHA-256 of files."""
  leaves = tasks.GROUPS[task] if task in tasks.GROUPS else (task,)
  files = {tasks.TASKS[leaf].file for leaf in leaves if leaf in tasks.TASKS}
  sums = [
    entry['sha256'][:12]
    for file, entry in sorted(info['data'].items())
    if pathlib.Path(file).name.split('.')[0] in files
  ]
  return ' '.join([str(n), *sums])


def read_timing(path: pathlib.Path, study: str = '') -> list[dict[str, Any]]:
  """Reads a timing pass, one row a repeat of an optimizer.

  Args:
    path: JSON: device, commit and groups, each with its group (architecture
      and axes) and repeats in the order they ran: optimizer and
      seconds_per_step, a number or a list.
    study: name of its study; '' for any.

  Raises:
    ValueError: the file does not have that form.
  """
  timing = reading.json_object(path)
  reading.require(timing, _TIMING, str(path))
  rows = []
  for entry in timing['groups']:
    reading.require(entry, _GROUP, f'{path}: a group')
    reading.require(
      entry['group'], {'architecture': 'text'}, f'{path}: a group'
    )
    counts: dict[str, int] = {}
    for repeat in entry['repeats']:
      reading.require(repeat, {'optimizer': 'text'}, f'{path}: a repeat')
      optimizer, seconds = repeat['optimizer'], repeat.get('seconds_per_step')
      times = seconds if isinstance(seconds, list) and seconds else [seconds]
      if not all(map(reading.KINDS['number above 0'], times)):
        raise ValueError(
          f'{path}: seconds_per_step of {optimizer} is '
          f'{reading.shown(seconds)}; give numbers above 0'
        )
      counts[optimizer] = counts.setdefault(optimizer, 0) + 1
      rows.append(
        {
          'study': study,
          'group': json.dumps(entry['group']),
          'optimizer': optimizer,
          'repeat': counts[optimizer],
          'seconds_per_step': float(np.median(times)),
          'device': timing['device'],
          'commit': timing['commit'],
        }
      )
  return rows


def flatten(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """Returns the leaves of a tree as `group.key`; lists as JSON."""
  leaves: dict[str, Any] = {}
  for key, value in tree.items():
    if isinstance(value, dict):
      leaves |= flatten(value, f'{prefix}{key}.')
    elif isinstance(value, list | tuple):
      leaves[f'{prefix}{key}'] = json.dumps(value)
    else:
      leaves[f'{prefix}{key}'] = value
  return leaves

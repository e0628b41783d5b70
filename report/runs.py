"""Run directories as frames: what was set, what happened, what was scored.

Read as they are written today and as they were before: config.json, env.json,
metrics.jsonl, summary.json, eval/results.json, eval/predictions.jsonl, and of a
study config.json and timing.json.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
import json
import math
import os
import pathlib
from typing import Any

import numpy as np
import pandas as pd

from steepest.eval import tasks

# Every run has these; anything else is read by whoever needs it.
_REQUIRED = (
  'seed stage steps batch_size model.name model.width model.num_layers '
  'model.context optimizer.name optimizer.lr parametrization.kind'
).split()
_SUMMARY = ('status', 'steps', 'tokens', 'seconds', 'data_fingerprint')
_FINISHED = ('train_loss', 'eval_loss', 'tokens_per_second', 'flops')
METRICS = ('acc', 'acc_norm', 'perplexity')
# Logged points kept of a run, beside all that have an evaluation.
_POINTS = 400


COLUMNS = {
  name: columns.split()
  for name, columns in (
    ('points', 'run step tokens seconds train/loss eval/loss'),
    ('scores', 'run task metric value stderr n chance questions limit'),
    ('answers', 'run task metric question right'),
    ('sources', 'run source eval_loss eval_bits_per_byte'),
    (
      'timing',
      'study group optimizer repeat seconds_per_step device commit',
    ),
    ('studies', 'study'),
  )
}


def directories_in(root: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields every run directory at or under `root`."""
  for directory, children, files in os.walk(root):
    children.sort()
    if 'config.json' in files and 'metrics.jsonl' in files:
      children.clear()
      yield pathlib.Path(directory)


def read(
  directories: Mapping[pathlib.Path, pathlib.Path],
  defaults: dict[str, Any],
  ignored: Collection[str],
) -> dict[str, pd.DataFrame]:
  """Returns the frames of `tables.Tables` by name.

  Args:
    directories: resolved path → path as it was given.
    defaults: leaves that a config may lack.
    ignored: leaves that have no effect.

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
        {'study': studies[study]} | flatten(_read_json(study / 'config.json'))
      )
      parts['timing'] += _timing(study, studies[study])
    try:
      run, points = _read_run(path, name, defaults, ignored)
      scored = _read_scores(path, name)
    except (
      ArithmeticError,
      AttributeError,
      LookupError,
      TypeError,
      ValueError,
    ) as error:
      if str(path) in str(error):
        raise
      raise ValueError(
        f'{path}: holds what no run writes ({type(error).__name__}: {error}); '
        'remove the run or write its files again'
      ) from error
    run['study'] = '' if study is None else studies[study]
    parts['runs'].append(run)
    parts['points'].append(points)
    for table, frame in scored.items():
      parts[table].append(frame)
    parts['sources'] += run.pop('sources')
  return {name: as_frame(name, rows) for name, rows in parts.items()}


def as_frame(name: str, parts: Sequence[Any]) -> pd.DataFrame:
  """Returns the frame of a table, with its columns where it has no row."""
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
      return parent if 'study' in _read_json(path) else None
  return None


def _read_run(
  path: pathlib.Path,
  name: str,
  defaults: dict[str, Any],
  ignored: Collection[str],
) -> tuple[dict[str, Any], pd.DataFrame]:
  """Returns a run's row and its logged points."""
  leaves = flatten(_read_json(path / 'config.json'))
  given = {key: value for key, value in leaves.items() if value is not None}
  _require(given, _REQUIRED, path / 'config.json')
  leaves = defaults | leaves
  if leaves['stage'] not in ('tune', 'final'):
    raise ValueError(
      f'{path}/config.json: stage is {leaves["stage"]!r}; known are tune and '
      'final'
    )
  env = _read_json(path / 'env.json') if (path / 'env.json').exists() else {}
  summary = None
  if (path / 'summary.json').exists():
    summary = _read_json(path / 'summary.json')
    _require(summary, _SUMMARY, path / 'summary.json')
    if summary['status'] == 'finished':
      _require(summary, _FINISHED, path / 'summary.json')
  points = _read_points(path / 'metrics.jsonl')
  optimizer = _stem(leaves['optimizer.name'])
  if optimizer != leaves['optimizer.name'] and 'optimizer' in env:
    optimizer = str(env['optimizer']['name'])
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
    'sources': [],
  }
  if summary is not None:
    row |= {k: v for k, v in summary.items() if not isinstance(v, dict | list)}
    if row['status'] == 'finished':
      if row['steps'] < row['planned_steps']:
        row['status'] = 'unfinished'
      else:
        loss = summary['eval_loss']
        row['loss'] = float(summary['train_loss'] if loss is None else loss)
    row['sources'] = _sources(name, summary)
  row |= {f'config.{k}': v for k, v in leaves.items() if k not in ignored}
  devices = env['devices'] if 'devices' in env else []
  kind = env['device_kind'] if 'device_kind' in env else 'unknown device'
  row |= {f'env.{k}': v for k, v in flatten(env).items() if k != 'devices'}
  row['env.device'] = f'{len(devices) or 1} × {kind}'
  points.insert(0, 'run', name)
  if row.get('flops') and row.get('tokens') and 'tokens' in points:
    points['flops'] = points['tokens'] * (row['flops'] / row['tokens'])
  return row, points


def _stem(name: str) -> str:
  """Returns what a model or an optimizer at a path is called."""
  return pathlib.Path(name).stem if name.endswith('.py') else name


def _first_loss(points: pd.DataFrame) -> float:
  if not len(points) or 'train/loss' not in points or points['step'][0] != 0:
    return math.nan
  return float(points['train/loss'][0])


def _sources(name: str, summary: Mapping[str, Any]) -> list[dict[str, Any]]:
  """Returns the run's losses by source; source '' is the mean over all."""
  rows: dict[str, dict[str, Any]] = {}
  for key in ('eval_loss', 'eval_bits_per_byte'):
    if f'{key}_by_source' in summary:
      held = {'': summary[key], **(summary[f'{key}_by_source'] or {})}
      for source, value in held.items():
        of = rows.setdefault(source, {'run': name, 'source': source})
        of[key] = math.nan if value is None else float(value)
  return list(rows.values())


def _read_points(path: pathlib.Path) -> pd.DataFrame:
  """Reads metrics.jsonl; a long run's points are thinned (see `Tables`)."""
  rows = _read_rows(path)
  if not rows:
    return pd.DataFrame(columns=['step', 'tokens', 'seconds'])
  names = list(dict.fromkeys(name for row in rows for name in row))
  values_CxP = np.array(
    [
      [
        math.nan if name not in row or row[name] is None else row[name]
        for row in rows
      ]
      for name in names
    ],
    np.float64,
  )
  # Step, tokens, seconds and rate are those of a point's last row.
  last = [n in ('step', 'tokens', 'seconds', 'lr') for n in names]
  evaluated_P = np.zeros(len(rows), bool)
  for i, name in enumerate(names):
    if name.startswith('eval/'):
      evaluated_P |= ~np.isnan(values_CxP[i])
  ends = _ends(evaluated_P)
  starts = np.concatenate([[0], ends[:-1] + 1])
  counts = np.add.reduceat(~np.isnan(values_CxP), starts, axis=1)
  sums = np.add.reduceat(
    np.nan_to_num(values_CxP, posinf=math.inf, neginf=-math.inf), starts, axis=1
  )
  with np.errstate(invalid='ignore', divide='ignore'):
    means = sums / counts
  means[last] = values_CxP[last][:, ends]
  frame = pd.DataFrame(means.T, columns=names)
  steps_P = values_CxP[names.index('step')] if 'step' in names else [math.nan]
  if not np.all(np.isfinite(steps_P)):
    raise ValueError(f'{path}: a row has no step; remove the run')
  frame['step'] = frame['step'].astype(np.int64)
  return frame


def _ends(evaluated_P: np.ndarray) -> np.ndarray:
  """Returns the rows that a thinned curve's points end with, rising."""
  n = evaluated_P.size
  regular = np.linspace(0, n - 1, min(n, _POINTS)).round().astype(int)
  kept = np.flatnonzero(evaluated_P)
  return np.unique(np.concatenate([[0], regular, kept, [n - 1]]))


def _read_scores(path: pathlib.Path, name: str) -> dict[str, pd.DataFrame]:
  """Returns a run's scores and answers; {} where nothing was scored."""
  if not (path / 'eval' / 'results.json').exists():
    return {}
  results = _read_json(path / 'eval' / 'results.json')
  _require(results, ('info', 'metrics'), path / 'eval' / 'results.json')
  info = results['info']
  rows = []
  for task, metrics in results['metrics'].items():
    for metric in METRICS:
      if metric not in metrics:
        continue
      chance = metric != 'perplexity' and task in info['chance']
      error = metrics[f'{metric}_stderr']
      rows.append(
        {
          'run': name,
          'task': task,
          'metric': metric,
          'value': float(metrics[metric]),
          # Too few questions to estimate it: the largest that it can be.
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
    answers = pd.DataFrame(_read_rows(predictions))
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


def _timing(study: pathlib.Path, name: str) -> list[dict[str, Any]]:
  """Returns the rows of a study's timing pass; [] where there was none."""
  path = study / 'timing.json'
  return read_timing(path, name) if path.exists() else []


def read_timing(path: pathlib.Path, study: str = '') -> list[dict[str, Any]]:
  """Reads a timing pass, one row a repeat of an optimizer.

  Args:
    path: JSON: device, commit and groups, each with its group (architecture
      and axes) and repeats in the order they were run: optimizer and
      seconds_per_step, a number or a list.
    study: name of the study it belongs to; '' for any.

  Raises:
    ValueError: the file is not of that form.
  """
  timing = _read_json(path)
  _require(timing, ('device', 'commit', 'groups'), path)
  rows = []
  for entry in timing['groups']:
    _require(entry, ('group', 'repeats'), path)
    counts: dict[str, int] = {}
    for repeat in entry['repeats']:
      _require(repeat, ('optimizer', 'seconds_per_step'), path)
      optimizer = repeat['optimizer']
      counts[optimizer] = counts.setdefault(optimizer, 0) + 1
      rows.append(
        {
          'study': study,
          'group': json.dumps(entry['group']),
          'optimizer': optimizer,
          'repeat': counts[optimizer],
          'seconds_per_step': float(np.median(repeat['seconds_per_step'])),
          'device': timing['device'],
          'commit': timing['commit'],
        }
      )
  return rows


# Files.


def _read_json(path: pathlib.Path) -> dict[str, Any]:
  try:
    value = json.loads(path.read_text('utf-8'))
  except (json.JSONDecodeError, UnicodeDecodeError) as error:
    raise ValueError(
      f'{path}: not valid JSON ({error}); remove the run or write the file '
      'again'
    ) from error
  if not isinstance(value, dict):
    raise ValueError(f'{path}: holds no JSON object; write the file again')
  return value


def _read_rows(path: pathlib.Path) -> list[dict[str, Any]]:
  """Reads JSON lines; an unfinished last line is one being written."""
  lines = path.read_bytes().split(b'\n')
  rows = []
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    try:
      rows.append(json.loads(line))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
      if number == len(lines):
        break
      raise ValueError(
        f'{path}:{number}: not valid JSON; start the run again from its '
        'checkpoint or remove it'
      ) from error
    if not isinstance(rows[-1], dict):
      raise ValueError(f'{path}:{number}: not a JSON object; remove the run')
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


def _require(
  values: Mapping[str, Any], keys: Iterable[str], path: pathlib.Path
) -> None:
  lacking = [key for key in keys if key not in values]
  if lacking:
    raise ValueError(
      f'{path}: lacks {", ".join(lacking)}; it was written by another '
      'version: run it again'
    )

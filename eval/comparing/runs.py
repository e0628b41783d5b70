"""Reads run directories: what was set, what happened, what was scored."""

from collections.abc import Iterable, Mapping
import dataclasses
import functools
import json
import math
import os
import pathlib
from typing import Any

import numpy as np

# Every run has these; anything else is read by whoever needs it.
_REQUIRED = (
  'seed',
  'stage',
  'steps',
  'batch_size',
  'model.name',
  'model.width',
  'model.num_layers',
  'model.context',
  'optimizer.name',
  'optimizer.lr',
  'parametrization.kind',
)
_SUMMARY = ('status', 'steps', 'tokens', 'seconds', 'data_fingerprint')
_FINISHED = (
  'train_loss',
  'eval_loss',
  'tokens_per_second',
  'parameters',
  'flops',
  'curvature_passes',
)


@dataclasses.dataclass(frozen=True)
class Run:
  """One run directory.

  Attributes:
    path: the directory.
    name: the path as it is shown, relative to what all runs share.
    config: the leaves of config.json as `group.key`.
    env: env.json; empty where there is none.
    rows: metrics.jsonl, a dict per logged step.
    summary: summary.json; None while the run is under way.
    results: eval/results.json; None where nothing was scored.
  """

  path: pathlib.Path
  name: str
  config: dict[str, Any]
  env: dict[str, Any]
  rows: list[dict[str, float]]
  summary: dict[str, Any] | None
  results: dict[str, Any] | None

  @property
  def architecture(self) -> str:
    return str(self.config['model.name'])

  @property
  def optimizer(self) -> str:
    return str(self.config['optimizer.name'])

  @property
  def seed(self) -> int:
    return int(self.config['seed'])

  @property
  def lr(self) -> float:
    return float(self.config['optimizer.lr'])

  @property
  def stage(self) -> str:
    return str(self.config['stage'])

  @property
  def status(self) -> str:
    """'finished', 'diverged' or 'unfinished'."""
    if self.summary is None:
      return 'unfinished'
    status = str(self.summary['status'])
    if status == 'finished' and self.summary['steps'] < self.config['steps']:
      return 'unfinished'
    return status

  @property
  def steps_done(self) -> int:
    """Steps behind the run, by its summary or else its last row."""
    if self.summary is not None:
      return int(self.summary['steps'])
    return int(self.rows[-1]['step']) + 1 if self.rows else 0

  @property
  def planned_tokens(self) -> int:
    """Tokens of the whole run: steps × sequences × context."""
    c = self.config
    return int(c['steps'] * c['batch_size'] * c['model.context'])

  def series(self, y: str, x: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the logged values (x, y) of the rows that have a finite y."""
    pairs = [(row[x], row[y]) for row in self.rows if y in row and x in row]
    pairs = [p for p in pairs if all(v is not None for v in p)]
    pairs = [p for p in pairs if math.isfinite(p[1])]
    xy_Rx2 = np.asarray(pairs, np.float64).reshape(-1, 2)
    return xy_Rx2[:, 0], xy_Rx2[:, 1]

  @functools.cached_property
  def study_config(self) -> dict[str, Any]:
    """The leaves of the config.json of the run's study; {} without one."""
    for parent in list(self.path.resolve().parents)[:4]:
      path = parent / 'config.json'
      if path.exists():
        try:
          config = json.loads(path.read_text('utf-8'))
        except ValueError:
          return {}
        if not isinstance(config, dict) or 'study' not in config:
          return {}
        return _flatten(config)
    return {}

  @functools.cached_property
  def study(self) -> dict[str, Any]:
    """The keys of the study that the run belongs to; {} without one."""
    return {
      key.removeprefix('study.'): value
      for key, value in self.study_config.items()
      if key.startswith('study.')
    }

  @functools.cached_property
  def answers(self) -> dict[str, dict[str, dict[int, int]]]:
    """Right (1) and wrong (0) answers: task -> metric -> question -> 0 or 1.

    From eval/predictions.jsonl; empty without it.
    """
    path = self.path / 'eval' / 'predictions.jsonl'
    answers: dict[str, dict[str, dict[int, int]]] = {}
    for row in _read_rows(path) if path.exists() else ():
      of_metric = answers.setdefault(row['task'], {})
      of_question = of_metric.setdefault(row['metric'], {})
      of_question[row['doc_id']] = int(row['pred'] == row['gold'])
    return answers

  @functools.cached_property
  def ordered_answers(self) -> dict[tuple[str, str], Any]:
    """What comparing/accuracy.py makes of `answers`, for every comparison."""
    return {}


def load_runs(
  paths: Iterable[str | os.PathLike[str]],
  defaults: Mapping[str, Any] | None = None,
) -> list[Run]:
  """Reads every run directory at or under `paths`, each once.

  A run directory holds config.json and metrics.jsonl.

  Args:
    paths: run directories, or directories that hold some.
    defaults: a config's groups and keys; what a run's config lacks, because it
      was made before there was the key, is taken from here. None: it stays
      missing, and runs with the key differ from it.

  Raises:
    FileNotFoundError: a path does not exist or holds no run.
    ValueError: a file is no valid JSON or lacks a key.
  """
  directories: dict[pathlib.Path, pathlib.Path] = {}
  for path in paths:
    root = pathlib.Path(path)
    if not root.is_dir():
      raise FileNotFoundError(
        f'{root}: no such directory; --runs takes run directories or '
        'directories that hold some'
      )
    found = list(_run_directories(root))
    if not found:
      raise FileNotFoundError(
        f'{root}: no run in it (a directory with config.json and '
        'metrics.jsonl); start one with launch.train or launch.study'
      )
    for directory in found:
      directories.setdefault(directory.resolve(), directory)
  shared = pathlib.Path(os.path.commonpath([p.parent for p in directories]))
  return [
    _read_run(
      path, resolved.relative_to(shared).as_posix(), _flatten(defaults or {})
    )
    for resolved, path in directories.items()
  ]


def _run_directories(root: pathlib.Path) -> Iterable[pathlib.Path]:
  for directory, children, files in os.walk(root):
    children.sort()
    if 'config.json' in files and 'metrics.jsonl' in files:
      children.clear()
      yield pathlib.Path(directory)


def _read_run(
  path: pathlib.Path, name: str, defaults: Mapping[str, Any]
) -> Run:
  config = _flatten(_read_json(path / 'config.json'))
  _require(config, _REQUIRED, path / 'config.json')
  config = {**defaults, **config}
  summary = None
  if (path / 'summary.json').exists():
    summary = _read_json(path / 'summary.json')
    _require(summary, _SUMMARY, path / 'summary.json')
    if summary['status'] == 'finished':
      _require(summary, _FINISHED, path / 'summary.json')
  env, results = path / 'env.json', path / 'eval' / 'results.json'
  return Run(
    path=path,
    name=name,
    config=config,
    env=_read_json(env) if env.exists() else {},
    rows=_read_rows(path / 'metrics.jsonl'),
    summary=summary,
    results=_read_json(results) if results.exists() else None,
  )


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
  rows = []
  lines = path.read_bytes().split(b'\n')
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


def _flatten(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  leaves: dict[str, Any] = {}
  for key, value in tree.items():
    if isinstance(value, dict):
      leaves |= _flatten(value, f'{prefix}{key}.')
    else:
      leaves[f'{prefix}{key}'] = value
  return leaves


def _require(
  values: dict[str, Any], keys: Iterable[str], path: pathlib.Path
) -> None:
  missing = [key for key in keys if key not in values]
  if missing:
    raise ValueError(
      f'{path}: lacks {", ".join(missing)}; it was written by another '
      'version: run it again'
    )

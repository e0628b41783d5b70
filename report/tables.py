"""Run directories as tidy tables, the only input of a report.

    tables = read(['runs/study'])      # run directories, or tables written here
    write(tables, 'runs/study/report/tables')

Every table is a pandas frame with one row per observation; `Tables` lists them
with their columns. A topic of the report takes a `Comparison`: the tables and
what verdicts.py concludes from them.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
import dataclasses
import json
import math
import os
import pathlib
from typing import Any

import numpy as np
import pandas as pd

from steepest.report import runs as runs_lib, words

# Axis of a study → config key of its value; `tokens` has none.
AXIS_KEYS = {
  'width': 'model.width',
  'depth': 'model.num_layers',
  'parametrization': 'parametrization.kind',
  'epochs': 'data.epochs',
  'batch_size': 'batch_size',
  'schedule': 'schedule.kind',
}
# Columns of `runs` that a run shares with its copies alone: no two runs take
# equally long, to the last digit of their seconds.
_IDENTITY = ['optimizer', 'seed', 'lr', 'steps', 'loss', 'seconds']
# Columns of `runs` that tables from elsewhere need.
_NEEDED = {'run', 'stage', 'status', 'architecture', 'optimizer', 'seed', 'lr'}


@dataclasses.dataclass(frozen=True)
class Tables:
  """The records of runs, one row per observation.

  Attributes:
    runs: one row per run.
      run: its directory, relative to the common parent; unique.
      study: the directory of its study, likewise; '' without one.
      stage: 'tune' (a trial) or 'final'.
      status: 'finished', 'diverged', 'pruned' or 'unfinished'.
      group: in which optimizers are compared, as displayed: the model and the
        value of each axis ('gpt2', 'llama, epochs 4').
      cell: the group, for axes that get a search of their own, and the
        optimizer: trials served the final runs of the same cell.
      architecture, optimizer, seed, lr; planned_steps, planned_tokens.
      axis.NAME: the value on each axis that studies declare.
      steps, tokens: done; seconds: of training steps alone.
      every other number of summary.json by its name: train_loss, eval_loss,
        tokens_per_second, flops, parameters, eval_loss_by_source.web, …
      first_loss: training loss before the first update; NaN if not logged.
      loss: ranks trials: eval_loss, else train_loss; infinite unless finished.
      config.KEY: every leaf of config.json ('config.optimizer.lr'); lists as
        JSON ('[0.9, 0.95]'); missing if the run has no such key.
      env.KEY: every leaf of env.json; env.device: '1 × cpu'.
    points: run, step, tokens, seconds, flops and every logged name
      ('train/loss', 'eval/loss', 'lr', 'grad_norm', …). Long runs have about
      400 points, each the mean of the numbers logged since the previous one;
      evaluations and the step before the first update stand alone.
    scores: run, task, metric, value, stderr, n (questions), chance, questions
      (which identifies them), limit.
    answers: run, task, metric, question, right (0 or 1); tasks inside a group
      (MMLU's subjects) one by one.
    timing: study, group, optimizer, repeat, seconds_per_step (the median of
      the repeat's steps), device, commit; from the timing pass.
    studies: study and every leaf of the study's config.json by its name;
      withdrawn: why its authors withdraw its rankings, in tables only.
  """

  runs: pd.DataFrame
  points: pd.DataFrame
  scores: pd.DataFrame
  answers: pd.DataFrame
  timing: pd.DataFrame
  studies: pd.DataFrame

  @property
  def axes(self) -> list['Axis']:
    """The axes on which studies plan their final runs to differ."""
    return _axes(self.runs, self.studies)


NAMES = tuple(field.name for field in dataclasses.fields(Tables))


@dataclasses.dataclass(frozen=True)
class Axis:
  """A quantity that a study varies besides model and optimizer.

  Attributes:
    name: 'tokens' or a key of AXIS_KEYS.
    own: the value in the study's own configuration, with which the others are
      compared; with several studies, the first one's.
    values: those of final runs, ascending.
  """

  name: str
  own: Any
  values: tuple[Any, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
  """The tables and the conclusions from them; the input of every topic.

  Attributes:
    tables: the records of runs.
    compared: the rows of tables.runs that are compared: final runs, alike in
      everything but the optimizer and its hyperparameters, one per seed,
      diverged ones included.
    left_out: run, group, reason: final runs that are not compared, and why.
    tuning: one row per cell (group, optimizer): trials, planned, pruned,
      diverged, tokens_per_trial, searched (names), spans and the chosen point.
    fairness: group, optimizer ('' for all), subject, text, refuses (whether it
      keeps losses and scores from being ranked).
    cells: group, optimizer, column, mean, sd (over seeds), stderr (accuracies:
      of questions and seeds), n (seeds), seeds (as planned), diverged.
    pairs: group, column, first, second, difference (first − second), stderr,
      freedom, low, high (95 %), p, p_holm, detectable (the difference that
      would be seen with 80 % probability), n; column `diverged`: of the shares
      of diverged seeds, p by Fisher's exact test.
    verdicts: group, column, winner, reason, p, n: the single decision that all
      output reads; winner is '' where none is claimed.
    insisted: whether the user insists on ranking unequally tuned optimizers.
  """

  tables: Tables
  compared: pd.DataFrame
  left_out: pd.DataFrame
  tuning: pd.DataFrame
  fairness: pd.DataFrame
  cells: pd.DataFrame
  pairs: pd.DataFrame
  verdicts: pd.DataFrame
  insisted: bool = False

  @property
  def groups(self) -> list[str]:
    """The groups that have final runs, in display order."""
    return list(dict.fromkeys(self.verdicts['group']))

  @property
  def contests(self) -> list[str]:
    """The groups of several optimizers; all groups if there are none."""
    runs = self.tables.runs
    finals = runs[runs['stage'] == 'final'].groupby('group')['optimizer']
    several = finals.nunique() > 1
    return [g for g in self.groups if several[g]] or self.groups

  def refused(self, group: str) -> bool:
    """Whether unequal search keeps a group's losses and scores unranked."""
    of = self.fairness[self.fairness['group'] == group]
    return bool(of['refuses'].any()) and not self.insisted

  def winner(self, group: str, column: str) -> str:
    """Returns the optimizer that wins a column; '' if none is claimed."""
    return self._verdict(group, column)['winner']

  def reason(self, group: str, column: str) -> str:
    """Returns why no winner is claimed; '' if one is."""
    return self._verdict(group, column)['reason']

  def _verdict(self, group: str, column: str) -> dict[str, str]:
    v = self.verdicts
    rows = v[(v['group'] == group) & (v['column'] == column)]
    none = {'winner': '', 'reason': 'not measured'}
    return next(iter(rows[list(none)].to_dict('records')), none)


def read(
  paths: Iterable[str | os.PathLike[str]],
  known: runs_lib.Known | None = None,
) -> Tables:
  """Reads every run at or under `paths`, each once.

  A run directory holds config.json and metrics.jsonl. If a path holds none, the
  tables that `write` left there are read instead.

  Args:
    paths: run directories, directories that hold some, or a report's tables.
    known: about their configurations; None: nothing.

  Raises:
    FileNotFoundError: a path does not exist or holds no run.
    ValueError: a file is not valid or lacks a key.
  """
  found: dict[pathlib.Path, pathlib.Path] = {}
  written: list[Tables] = []
  for root in map(pathlib.Path, paths):
    if not root.is_dir():
      raise FileNotFoundError(
        f'{root}: no such directory; --runs takes run directories or '
        'directories that hold some'
      )
    directories = list(runs_lib.directories_in(root))
    tables = [] if directories else sorted(_table_directories(root))
    if not directories and not tables:
      raise FileNotFoundError(
        f'{root}: no run in it (a directory with config.json and '
        'metrics.jsonl); start one with launch.train or launch.study'
      )
    written += [_read_tables(path) for path in tables]
    for directory in directories:
      found.setdefault(directory.resolve(), directory)
  frames = []
  if found:
    frames.append(Tables(**runs_lib.read(found, known or runs_lib.Known())))
  joined = _joined([*frames, *written])
  words.take_labels(_labels(joined.runs))
  return _placed(joined)


def _labels(runs: pd.DataFrame) -> dict[str, str]:
  """Returns optimizer → label, as recorded in its runs."""
  if 'env.optimizer.label' not in runs:
    return {}
  known = runs[runs['env.optimizer.label'].notna()]
  pairs = zip(known['optimizer'], known['env.optimizer.label'], strict=True)
  return {name: str(label) for name, label in pairs}


def write(
  tables: Tables, directory: str | os.PathLike[str], suffix: str = 'parquet'
) -> None:
  """Writes each table that has rows as NAME.parquet or NAME.csv."""
  directory = pathlib.Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  for name in NAMES:
    path = directory / f'{name}.{suffix}'
    frame = getattr(tables, name)
    if len(frame):
      write_table(frame, path)
    else:
      path.unlink(missing_ok=True)


def write_table(frame: pd.DataFrame, path: pathlib.Path) -> None:
  """Writes a frame atomically, in the format of the suffix."""
  partial = path.with_name(f'.{path.name}.partial')
  frame = frame.copy()
  for name in frame.select_dtypes(object).columns:
    kinds = {type(v) for v in frame[name] if not missing(v)}
    if len(kinds) > 1:
      frame[name] = [None if missing(v) else str(v) for v in frame[name]]
  if path.suffix == '.csv':
    frame.to_csv(partial, index=False)
  else:
    frame.to_parquet(partial, index=False, compression='zstd')
  os.replace(partial, path)


def config(run: Mapping[str, Any], key: str) -> Any:
  """Returns the value of a config key in a row of runs; None if missing."""
  name = f'config.{key}'
  value = run[name] if name in run else None
  if isinstance(value, str) and value.startswith(('[', '{')):
    return json.loads(value)
  return None if missing(value) else value


# Other horizons → the hyperparameter that each determines.
_HORIZONS = {'decay_timescale': 'weight_decay', 'warmup': 'warmup_steps'}


def hyperparameters(run: Mapping[str, Any]) -> dict[str, float]:
  """Returns the numbers that a search can vary: lr, b1_half_life, rho, …"""
  found: dict[str, float] = {}
  for name in run.keys():
    group, _, key = str(name).removeprefix('config.').rpartition('.')
    if group not in ('optimizer', 'schedule', 'parametrization'):
      continue
    value = config(run, f'{group}.{key}')
    if key == 'betas' and value is not None:
      found |= {f'b{i}': float(b) for i, b in enumerate(value, 1)}
    elif isinstance(value, int | float) and not isinstance(
      value, bool | np.bool_
    ):
      found[key] = float(value)
  # By default the auxiliary AdamW takes some values from the optimizer itself.
  for name in [n for n in found if n.startswith('auxiliary_')]:
    own = name.removeprefix('auxiliary_')
    if own in found and found[own] == found[name]:
      del found[name]
  # A hyperparameter that a horizon determines is not free; 0 is no horizon.
  for name in [n for n in found if n.endswith('_half_life')] + list(_HORIZONS):
    plain = _HORIZONS[name] if name in _HORIZONS else name[: -len('_half_life')]
    if name in found:
      found.pop(plain if found[name] else name, None)
    if name not in _HORIZONS and name in found and found[name] <= 1:
      # Convert a share of the run to tokens, as for the others.
      found[name] *= float(run['planned_tokens'])
  return found


def axes_label(axes: Mapping[str, Any]) -> str:
  """Returns 'epochs 4, batch size 32'; '' without axes."""
  return ', '.join(
    f'{name.replace("_", " ")} '
    + (f'{value:,}' if isinstance(value, int | np.integer) else str(value))
    for name, value in axes.items()
  )


def group_label(architecture: str, axes: Mapping[str, Any]) -> str:
  """Returns the name of a group: 'gpt2', 'llama, epochs 4'."""
  return ', '.join(filter(None, (architecture, axes_label(axes))))


def missing(value: Any) -> bool:
  """Returns whether a value in a frame is missing."""
  return value is None or (isinstance(value, float) and math.isnan(value))


# Reading tables that a report wrote.


def _table_directories(root: pathlib.Path) -> Iterator[pathlib.Path]:
  for directory, _, files in os.walk(root):
    if 'runs.parquet' in files or 'runs.csv' in files:
      yield pathlib.Path(directory)


def _read_tables(directory: pathlib.Path) -> Tables:
  frames = {}
  for name in NAMES:
    path = directory / f'{name}.parquet'
    if path.exists():
      # Parquet turns flags that some runs lack into None.
      frames[name] = pd.read_parquet(path).fillna(math.nan)
    elif (path := directory / f'{name}.csv').exists():
      frames[name] = pd.read_csv(
        path,
        keep_default_na=False,
        na_values=[''],
        float_precision='round_trip',
      )
    else:
      frames[name] = runs_lib.as_frame(name, [])
  for name in ('study', 'source', 'group'):
    for frame in frames.values():
      if name in frame:
        frame[name] = frame[name].fillna('')
  lacking = _NEEDED - set(frames['runs'].columns)
  if lacking:
    raise ValueError(
      f'{directory}/runs: lacks {", ".join(sorted(lacking))}; write the report '
      'again'
    )
  return Tables(**frames)


def _joined(tables: Sequence[Tables]) -> Tables:
  """Concatenates tables; a copy of a run is left out.

  Different runs with the same name are made distinct.
  """
  if len(tables) == 1:
    return tables[0]
  frames: dict[str, list[pd.DataFrame]] = {name: [] for name in NAMES}
  seen: set[str] = set()
  known: set[tuple[Any, ...]] = set()
  for i, of in enumerate(tables):
    # A run without a summary has no seconds yet.
    ended = of.runs.reindex(columns=['run', *_IDENTITY]).dropna()
    rows = list(ended.itertuples(index=False, name=None))
    copies = [run for run, *rest in rows if tuple(rest) in known]
    known |= {tuple(rest) for _, *rest in rows}
    repeated = not seen.isdisjoint(of.runs['run'])
    for name in NAMES:
      frame = getattr(of, name).copy()
      if 'run' in frame:
        frame = frame[~frame['run'].isin(copies)]
      for column in ('run', 'study'):
        if repeated and column in frame:
          frame[column] = f'{i}/' + frame[column]
      frames[name].append(frame)
    seen |= set(frames['runs'][-1]['run'])
  return Tables(
    **{
      name: pd.concat([f for f in of if len(f)] or of[:1], ignore_index=True)
      for name, of in frames.items()
    }
  )


# Groups and cells.


def _placed(tables: Tables) -> Tables:
  """Gives every run its axes, group and cell."""
  runs, studies = tables.runs.copy(), tables.studies
  axes = _axes(runs, studies)
  for axis in axes:
    # A gap in a column would turn its integers into floats.
    runs[f'axis.{axis.name}'] = pd.Series(
      axis_values(runs, axis.name), runs.index, dtype=object
    )
  runs['group'] = [
    group_label(
      run['architecture'], {a.name: run[f'axis.{a.name}'] for a in axes}
    )
    for _, run in runs.iterrows()
  ]
  runs['cell'] = _cells(runs, studies)
  timing = tables.timing.copy()
  timing['group'] = [_timing_group(g, axes) for g in timing['group']]
  return dataclasses.replace(tables, runs=runs, timing=timing)


def axis_values(runs: pd.DataFrame, name: str) -> list[Any]:
  """Returns each run's value on an axis; tokens are the planned ones."""
  column = 'planned_tokens'
  if name != 'tokens':
    column = f'config.{AXIS_KEYS[name]}'
  if column not in runs:
    return [''] * len(runs)
  values = list(runs[column])
  # A column with gaps holds floats.
  return [
    int(v) if isinstance(v, float) and v.is_integer() else v for v in values
  ]


def _axes(runs: pd.DataFrame, studies: pd.DataFrame) -> list[Axis]:
  finals = runs[runs['stage'] == 'final']
  owners: dict[str, Mapping[str, Any]] = {}
  for study in studies.to_dict('records'):
    if study['study'] in set(finals['study']):
      for name in _declared(study):
        owners.setdefault(name, study)
  axes = []
  for name, study in owners.items():
    values = sorted(set(axis_values(finals, name)), key=_rank)
    if len(values) > 1:
      own = _own(study, name, 'final')
      axes.append(
        Axis(name, own if own in values else values[0], tuple(values))
      )
  return axes


def by_model(
  comparison: Comparison, free: Collection[str]
) -> list[tuple[str, pd.DataFrame]]:
  """Returns finished runs by model and all axes but the `free` ones."""
  axes = [axis.name for axis in comparison.tables.axes]
  runs = comparison.compared
  runs = runs[(runs['status'] == 'finished') & runs['eval_loss'].notna()]
  labels = [
    group_label(
      str(run['architecture']),
      {name: run[f'axis.{name}'] for name in axes if name not in free},
    )
    for run in runs.to_dict('records')
  ]
  return [(str(model), of) for model, of in runs.groupby(labels, sort=False)]


def _rank(value: Any) -> tuple[bool, Any]:
  """Returns a sort key: numbers first, then words."""
  return isinstance(value, str), value


def _declared(study: Mapping[str, Any]) -> list[str]:
  """Returns the axes that a study declares."""
  return [
    key.removeprefix('study.axis_')
    for key, values in study.items()
    if key.startswith('study.axis_') and values not in ('', '[]')
    if not missing(values)
  ]


def _own(study: Mapping[str, Any], name: str, stage: str) -> Any:
  """Returns the value in the study's own configuration; None if unknown."""
  if name != 'tokens':
    key = AXIS_KEYS[name]
    own = study[key] if key in study else None
    if name == 'width' and own is not None and 'study.width_ratio' in study:
      return int(own * (study['study.width_ratio'] if stage == 'final' else 1))
    return own
  steps = 'study.target_steps' if stage == 'final' else 'steps'
  keys = ('batch_size', steps, 'model.context')
  if any(key not in study or missing(study[key]) for key in keys):
    return None
  return math.prod(int(study[key]) for key in keys)


def _cells(runs: pd.DataFrame, studies: pd.DataFrame) -> list[str]:
  """Returns 'model optimizer' with the axes whose values are searched anew.

  Tokens are given as multiples of the study's own, which trials and final runs
  share.
  """
  plans = {study['study']: study for study in studies.to_dict('records')}
  names = {name for study in plans.values() for name in _declared(study)}
  values = {name: axis_values(runs, name) for name in names}
  cells = []
  places = zip(
    runs['architecture'],
    runs['optimizer'],
    runs['study'],
    runs['stage'],
    strict=True,
  )
  for i, (architecture, optimizer, study, stage) in enumerate(places):
    plan = plans[study] if study in plans else {}
    retuned = str(plan['study.retune']) if 'study.retune' in plan else ''
    at = {}
    for name in sorted({word.strip() for word in retuned.split(',')}):
      if name in _declared(plan):
        at[name] = values[name][i]
        own = _own(plan, name, stage)
        if name == 'tokens' and own is not None:
          at[name] = float(f'{at[name] / own:.6g}')
    cells.append(f'{group_label(architecture, at)} · {optimizer}')
  return cells


def _timing_group(group: str, axes: Sequence[Axis]) -> str:
  """Returns the label of a group that timing.json describes as an object."""
  if not group.startswith('{'):
    return group
  given = json.loads(group)
  held = {a.name: given[a.name] for a in axes if a.name in given}
  return group_label(given['architecture'], held)

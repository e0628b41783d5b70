"""Who wins which column: the single decision that all output reads."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pandas as pd

from steepest.eval import tasks
from steepest.report import (
  divergences,
  fairness,
  selection,
  speed,
  statistics,
  words,
)
from steepest.report.tables import Comparison, Tables

LOSSES = ('train_loss', 'eval_loss')
TIMES = ('seconds', 'tokens_per_second')
# Key of the mean over the benchmarks, each counted once.
ACCURACY = 'accuracy'
# Tasks whose answers differ in length: the mean accuracy uses acc_norm.
_BY_LENGTH = ('arc_challenge', 'hellaswag', 'openbookqa', 'piqa')
# Counts that differ by less, relatively, are equal.
_EQUAL = 1e-6


@dataclasses.dataclass(frozen=True)
class Column:
  """One quantity of one group, seed by seed.

  Attributes:
    key: as in summary.json, or TASK/METRIC.
    lower: whether less is better.
    values: optimizer → seed → value, of finished runs.
    variance: of a difference of two optimizers on given seeds due to the
      questions, and the number of questions; None for a loss.
    stderr: optimizer → standard error of its mean due to the questions.
    chance: accuracy of guessing; NaN for a loss.
  """

  key: str
  lower: bool
  values: dict[str, dict[int, float]]
  variance: Callable[[str, str, Sequence[int]], tuple[float, int]] | None = None
  stderr: Mapping[str, float] = dataclasses.field(default_factory=dict)
  chance: float = math.nan


def compare(
  tables: Tables,
  insist: bool = False,
  timing: Sequence[Mapping[str, Any]] | None = None,
) -> Comparison:
  """Compares the final runs within each group.

  Args:
    tables: the records of runs.
    insist: whether to rank losses and scores even if the optimizers of a group
      were tuned with unequal effort.
    timing: rows of a throughput benchmark (`runs.read_timing`), used instead
      of the timing pass of the studies.
  """
  if timing is not None:
    frame = pd.DataFrame(timing, columns=tables.timing.columns)
    tables = dataclasses.replace(tables, timing=frame)
  compared, left_out = selection.select(tables)
  tuned = fairness.tuning(tables, compared)
  judged = fairness.judge(tables, tuned)
  cells: list[dict[str, Any]] = []
  pairs: list[pd.DataFrame] = []
  verdicts: list[dict[str, Any]] = []
  for group, runs in compared.groupby('group', sort=False):
    reason = '' if insist else fairness.refusal(judged, group)
    if reason:
      reason = f'not ranked, the search was unequal: {reason}'
    reason = reason or _under_way(tables, group, runs)
    for column in _columns(tables, runs):
      cells += _cells(group, column, runs)
      table, verdict = _decide(column, runs, reason)
      pairs.append(table.assign(group=group, column=column.key))
      verdicts.append({'group': group, 'column': column.key, **verdict})
    pairs.append(divergences.pairs(runs, bool(reason)).assign(group=group))
    for rows, verdict in _measured(tables, group, runs):
      cells += rows
      verdicts.append({'group': group, **verdict})
  return Comparison(
    tables=tables,
    compared=compared,
    left_out=left_out,
    tuning=tuned,
    fairness=judged,
    cells=pd.DataFrame(cells, columns=_CELLS),
    pairs=pd.concat(
      [of for of in pairs if len(of)] or [pd.DataFrame()], ignore_index=True
    ).reindex(columns=_PAIRS),
    verdicts=pd.DataFrame(verdicts, columns=_VERDICTS),
    insisted=insist,
  )


_CELLS = (
  'group optimizer column mean sd stderr n seeds diverged chance above_chance'
).split()
_PAIRS = (
  'group column first second difference stderr low high p p_holm detectable n'
).split()
_VERDICTS = ['group', 'column', 'winner', 'reason', 'p', 'n']


def _under_way(tables: Tables, group: str, compared: pd.DataFrame) -> str:
  """Says that a study has not ended; '' if it has.

  Seeds are declared in advance. Looking as they come in and stopping once a
  difference shows would find one too often.
  """
  runs = tables.runs
  finals = runs[(runs['stage'] == 'final') & (runs['group'] == group)]
  ended = finals[finals['status'] != 'unfinished']
  waiting = len(finals) - len(ended)
  if waiting:
    return f'{words.plural(waiting, "final run")} still under way'
  if 'study.seeds' not in tables.studies:
    return ''
  declared = tables.studies.set_index('study')['study.seeds']
  for (study, optimizer), of in ended.groupby(['study', 'optimizer']):
    seeds = declared[study] if study in declared.index else math.nan
    if optimizer in set(compared['optimizer']) and len(of) < seeds:
      return (
        f'{words.name(optimizer)} has {len(of)} of the '
        f'{words.plural(int(seeds), "seed")} that the study declares'
      )
  return ''


# Columns.


def _columns(tables: Tables, runs: pd.DataFrame) -> list[Column]:
  done = runs[runs['status'] == 'finished']
  columns = [
    Column(key, True, values)
    for key in LOSSES
    if key in done and (values := _by_seed(done, key))
  ]
  scores = tables.scores[tables.scores['run'].isin(done['run'])]
  shown = outermost(scores)
  columns += [_score_column(tables, done, '/'.join(of), [of]) for of in shown]
  mean = [
    (task, metric)
    for task, metric in shown
    if metric == ('acc_norm' if task in _BY_LENGTH else 'acc')
  ]
  found = _score_column(tables, done, ACCURACY, mean) if len(mean) > 1 else None
  return [*columns, found] if found and found.values else columns


def _by_seed(runs: pd.DataFrame, key: str) -> dict[str, dict[int, float]]:
  values: dict[str, dict[int, float]] = {}
  for optimizer, seed, value in zip(
    runs['optimizer'], runs['seed'], runs[key], strict=True
  ):
    if not pd.isna(value):
      values.setdefault(optimizer, {})[int(seed)] = float(value)
  return values


def outermost(scores: pd.DataFrame) -> list[tuple[str, str]]:
  """Returns the (task, metric) pairs to show, in eval/tasks.py's order.

  Tasks and groups inside a scored group are left out.
  """
  found = {*zip(scores['task'], scores['metric'], strict=True)}
  names = {task for task, _ in found}
  inner: set[str] = set()
  for group in names & set(tasks.GROUPS):
    leaves = set(tasks.GROUPS[group])
    inner |= leaves | {g for g, of in tasks.GROUPS.items() if set(of) < leaves}
  known = [*tasks.TASKS, *tasks.GROUPS]
  order = {name: i for i, name in enumerate(known)}
  return sorted(
    (pair for pair in found if pair[0] not in inner),
    key=lambda pair: (order.get(pair[0], len(order)), pair),
  )


def answers(
  tables: Tables, runs: pd.DataFrame, task: str, metric: str
) -> pd.DataFrame:
  """Returns question × run: 1 where the run answers correctly, else 0.

  Empty if a run's answers are unknown or do not match its score.
  """
  leaves = tasks.GROUPS[task] if task in tasks.GROUPS else (task,)
  a = tables.answers
  a = a[a['task'].isin(leaves) & (a['metric'] == metric)]
  a = a[a['run'].isin(runs['run'])]
  table = a.pivot_table(
    index=['task', 'question'], columns='run', values='right', observed=True
  )
  scores = tables.scores
  scores = scores[(scores['task'] == task) & (scores['metric'] == metric)]
  value = scores.set_index('run')['value']
  known = [run for run in runs['run'] if run in table and run in value]
  if len(known) < len(runs) or table.isna().any(axis=None):
    return table.iloc[:0, :0]
  off = (table[known].mean() - value[known]).abs().max()
  return table if off <= 1.5 / len(table) else table.iloc[:0, :0]


def _score_column(
  tables: Tables,
  runs: pd.DataFrame,
  key: str,
  parts: Sequence[tuple[str, str]],
) -> Column:
  """Returns the mean over (task, metric) `parts`, each counted once.

  Has no values if runs were scored on different questions.
  """
  columns = [_scored(tables, runs, task, metric) for task, metric in parts]
  values = {
    name: {
      seed: float(np.mean([of.values[name][seed] for of in columns]))
      for seed in seeds
      if all(seed in of.values.get(name, {}) for of in columns)
    }
    for name, seeds in columns[0].values.items()
  }
  if key.endswith('/perplexity'):
    return Column(key, True, values)
  if not all(of.values for of in columns):
    values = {}
  k = len(columns)

  def variance(a: str, b: str, seeds: Sequence[int]) -> tuple[float, int]:
    found = [of.variance(a, b, seeds) for of in columns if of.variance]
    return sum(v for v, _ in found) / k**2, min(n for _, n in found)

  errors = {
    name: math.sqrt(sum(of.stderr[name] ** 2 for of in columns)) / k
    for name in columns[0].stderr
    if all(name in of.stderr for of in columns)
  }
  chance = float(np.mean([of.chance for of in columns]))
  return Column(key, False, values, variance, errors, chance)


def _scored(
  tables: Tables, runs: pd.DataFrame, task: str, metric: str
) -> Column:
  """Returns one task's scores."""
  scores = tables.scores
  of = scores[(scores['task'] == task) & (scores['metric'] == metric)]
  rows = runs.merge(of, on='run')
  squares = rows['stderr'].astype(float) ** 2
  errors = (squares.groupby(rows['optimizer']).mean() ** 0.5).to_dict()
  n = int(rows['n'].iloc[0])
  table = answers(tables, rows, task, metric)
  run_of = rows.set_index(['optimizer', 'seed'])['run'].to_dict()

  def variance(a: str, b: str, seeds: Sequence[int]) -> tuple[float, int]:
    if not len(table):
      return errors[a] ** 2 + errors[b] ** 2, n
    first, second = (
      table[[run_of[name, seed] for seed in seeds]].to_numpy().T
      for name in (a, b)
    )
    return float(statistics.question_variance(first, second)), len(table)

  values = _by_seed(rows, 'value') if rows['questions'].nunique() < 2 else {}
  return Column('', False, values, variance, errors, rows['chance'].iloc[0])


def _cells(
  group: str, column: Column, runs: pd.DataFrame
) -> list[dict[str, Any]]:
  rows = []
  for optimizer, of in runs.groupby('optimizer', sort=True):
    values = list(column.values.get(optimizer, {}).values())
    row = {
      'group': group,
      'optimizer': optimizer,
      'column': column.key,
      'n': len(values),
      'seeds': len(of),
      'diverged': int((of['status'] == 'diverged').sum()),
    }
    if values:
      row['mean'], row['sd'] = statistics.sample(values)
      seeds = 0.0 if len(values) < 2 else row['sd'] ** 2 / len(values)
      questions = column.stderr.get(optimizer, 0.0) ** 2
      row['stderr'] = math.sqrt(seeds + questions) or math.nan
      row['chance'] = column.chance
      if not math.isnan(column.chance):
        row['above_chance'] = above_chance(column, optimizer)
    rows.append(row)
  return rows


def above_chance(column: Column, optimizer: str) -> bool:
  """Whether a mean accuracy is above chance, beyond seeds and noise."""
  values = np.array(list(column.values[optimizer].values()))
  if values.size < statistics.FEWEST_SEEDS:
    return False
  error = column.stderr.get(optimizer, 0.0)
  guess = np.full_like(values, column.chance)
  found = statistics.scored(values, guess, error**2, 10**6)
  return bool(found.value > found.critical(statistics.LEVEL))


# Decisions.


def difference(column: Column, a: str, b: str) -> statistics.Differences:
  """Compares two optimizers over the seeds that both finished."""
  first, second = column.values[a], column.values[b]
  seeds = sorted(first.keys() & second.keys())
  if len(seeds) >= min(len(first), len(second), statistics.FEWEST_SEEDS):
    x_S = np.array([first[seed] for seed in seeds])
    y_S = np.array([second[seed] for seed in seeds])
    if column.variance is None:
      return statistics.paired(x_S, y_S)
    return statistics.scored(x_S, y_S, *column.variance(a, b, seeds))
  x_S, y_S = (np.array(list(of.values())) for of in (first, second))
  found = statistics.unpaired(x_S, y_S)
  if column.variance is None:
    return found
  over = np.asarray(column.stderr[a] ** 2 + column.stderr[b] ** 2)
  return dataclasses.replace(found, sources=(*found.sources, (over, 10.0**6)))


def _decide(
  column: Column, runs: pd.DataFrame, reason: str
) -> tuple[pd.DataFrame, dict[str, Any]]:
  """Returns the pairs of a column and its verdict.

  Args:
    column: with the values of finished runs.
    runs: the compared runs of the group.
    reason: why nothing is ranked; '' if nothing prevents it.
  """
  names = sorted(name for name in column.values if column.values[name])
  k = len(names)
  n = min((len(column.values[name]) for name in names), default=0)
  verdict = {'winner': '', 'reason': reason, 'p': math.nan, 'n': n}
  if k < 2:
    why = 'there is one optimizer to compare'
    if not column.values:
      why = 'the runs were scored on different questions'
    elif runs['optimizer'].nunique() > 1:
      why = f'only {words.name(names[0])} finished any seed'
    return pd.DataFrame(), verdict | {'reason': reason or why}
  means = [np.mean(list(column.values[name].values())) for name in names]
  best = int(np.argmin(means) if column.lower else np.argmax(means))
  pairs = pd.DataFrame(
    {'first': a, 'second': b} | difference(column, a, b).row(k - 1)
    for a, b in itertools.combinations(names, 2)
  ).reindex(columns=_PAIRS)
  every = column.variance is None or statistics.holds_scores(n, k)
  p_M = pairs['p'].to_numpy(float)
  pairs['p_holm'] = statistics.corrected(p_M, best, k, every)
  if not reason:
    own = pairs[pairs[['first', 'second']].eq(names[best]).any(axis=1)]
    worst = float(own['p_holm'].max(skipna=False))
    verdict |= _claim(column, runs, names[best], own, worst, k)
  return pairs, verdict


def _claim(
  column: Column,
  runs: pd.DataFrame,
  best: str,
  pairs: pd.DataFrame,
  p: float,
  k: int,
) -> dict[str, Any]:
  """Returns the winner of a column, or '' and why none is claimed."""
  ended = runs.groupby('optimizer')['status'].agg(
    seeds='size', diverged=lambda of: int((of == 'diverged').sum())
  )
  name = words.name(best)
  if ended['seeds'].min() < statistics.FEWEST_SEEDS:
    seeds = words.plural(int(ended['seeds'].min()), 'seed')
    needed = statistics.seeds_needed(4 / math.sqrt(2), k)
    return {
      'reason': f'{seeds} can show nothing: at least {statistics.FEWEST_SEEDS} '
      f'are needed, and {needed} for a gap of four seed standard deviations'
    }
  if ended['diverged'][best]:
    seeds = words.plural(int(ended['seeds'][best]), 'seed')
    return {
      'reason': f'{name} has the best mean, but diverged in '
      f'{ended["diverged"][best]} of {seeds}'
    }
  few = pairs[pairs['n'] < statistics.FEWEST_SEEDS]
  if len(few):
    behind = {*few['first'], *few['second']} - {best}
    listed = words.join(map(words.name, sorted(behind)))
    return {'reason': f'{listed} finished too few seeds to compare with'}
  if not math.isnan(column.chance) and not above_chance(column, best):
    return {'reason': 'the best score is not above chance', 'p': p}
  if p < statistics.LEVEL:
    return {'winner': best, 'reason': '', 'p': p}
  rivals = [
    words.name(b if a == best else a)
    for a, b, shown in zip(pairs['first'], pairs['second'], pairs['p_holm'])
    if not shown < statistics.LEVEL
  ]
  unseen = words.unit(column.key).difference(pairs['detectable'].max())
  return {
    'reason': f'no difference shown between {name} and '
    f'{words.join(rivals, "or")}; one of {unseen.removeprefix("+")} would have '
    f'been found with a probability of {statistics.POWER:.0%}',
    'p': p,
  }


def _measured(
  tables: Tables, group: str, runs: pd.DataFrame
) -> list[tuple[list[dict[str, Any]], dict[str, Any]]]:
  """Returns cells and verdicts of times and operation counts."""
  done = runs[runs['status'] == 'finished']
  optimizers = sorted(done['optimizer'].unique())
  if not optimizers:
    return []
  timed = speed.timing(tables, group, optimizers)
  winner, why = speed.fastest(timed)
  found = []
  for key in TIMES:
    column = Column(key, key == 'seconds', _by_seed(done, key))
    rows = _cells(group, column, runs)
    for row in rows if not timed.reason else ():
      if row['optimizer'] in timed.seconds:
        seconds = (
          timed.seconds[row['optimizer']] * done['planned_steps'].iloc[0]
        )
        tokens = done['planned_tokens'].iloc[0]
        mean = float(seconds if key == 'seconds' else tokens / seconds)
        row |= {'mean': mean, 'sd': math.nan, 'n': timed.repeats}
        row['stderr'] = math.nan
    verdict = {'winner': winner, 'reason': why, 'n': timed.repeats}
    found.append((rows, {'column': key, **verdict}))
  if 'flops' in done:
    rows = _cells(group, Column('flops', True, _by_seed(done, 'flops')), runs)
    ranked = done.groupby('optimizer')['flops'].mean().sort_values()
    winner, why = str(ranked.index[0]), ''
    if len(ranked) < 2:
      winner, why = '', 'there is one optimizer to compare'
    elif ranked.iloc[1] <= ranked.iloc[0] * (1 + _EQUAL):
      winner, why = '', 'equal: several optimizers take as many operations'
    verdict = {'winner': winner, 'reason': why, 'n': len(done)}
    found.append((rows, {'column': 'flops', **verdict}))
  return found

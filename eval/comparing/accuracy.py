"""Benchmark scores of the compared runs: means over seeds and differences."""

from collections.abc import Mapping, Sequence, Set
import dataclasses
import json
import pathlib
from typing import Any

import numpy as np

from steepest.eval import tasks
from steepest.eval.comparing import statistics
from steepest.eval.comparing.runs import Run

# The metrics that the report shows, and whether less is better.
METRICS = {'acc': False, 'acc_norm': False, 'perplexity': True}
# Tasks whose answers differ in length: a mean accuracy takes acc_norm.
_BY_LENGTH = ('arc_challenge', 'hellaswag', 'openbookqa', 'piqa')


@dataclasses.dataclass(frozen=True)
class Score:
  """A benchmark's metric for one cell.

  Attributes:
    mean: over seeds.
    sd: between seeds; None for one seed.
    error: standard error of `mean`, see statistics.accuracy_error.
    per_seed: the seeds' own values.
    questions: how many were scored, the same for every seed.
    chance: the accuracy of guessing; None where not recorded.
  """

  mean: float
  sd: float | None
  error: float
  per_seed: tuple[float, ...]
  questions: int
  chance: float | None

  @property
  def above_chance(self) -> bool | None:
    """Whether `mean` is more than two standard errors above chance."""
    if self.chance is None:
      return None
    return self.mean - self.chance > statistics.ACCURACY_ERRORS * self.error


def list_metrics(runs: Sequence[Run]) -> list[tuple[str, str]]:
  """Returns the (task, metric) pairs to show, see `outermost`."""
  return outermost(
    {
      (task, metric)
      for run in runs
      if run.results is not None
      for task, metrics in run.results['metrics'].items()
      for metric in METRICS
      if metric in metrics
    }
  )


def outermost(found: Set[tuple[str, str]]) -> list[tuple[str, str]]:
  """Returns (task, metric) pairs in the order of eval/tasks.py.

  Tasks and groups inside a group that was scored are left out.
  """
  names = {task for task, _ in found}
  inner: set[str] = set()
  for group in names & set(tasks.GROUPS):
    leaves = set(tasks.GROUPS[group])
    inner |= leaves
    inner |= {g for g, of in tasks.GROUPS.items() if set(of) < leaves}
  known = [*tasks.TASKS, *tasks.GROUPS]
  order = {name: i for i, name in enumerate(known)}
  metric_order = list(METRICS)
  return sorted(
    ((task, metric) for task, metric in found if task not in inner),
    key=lambda tm: (
      order[tm[0]] if tm[0] in order else len(order),
      tm[0],
      metric_order.index(tm[1]),
    ),
  )


def score(runs: Sequence[Run], task: str, metric: str) -> Score | None:
  """Combines the seeds of one cell; None where a seed lacks the score."""
  values, errors = [], []
  for run in runs:
    if run.results is None or not _has(run, task, metric):
      return None
    metrics = run.results['metrics'][task]
    values.append(float(metrics[metric]))
    error = metrics[f'{metric}_stderr']
    # Too few questions to estimate it: the largest that it can be.
    largest = 0.5 / int(metrics['n']) ** 0.5
    errors.append(largest if error is None else float(error))
  first = runs[0].results
  assert first is not None
  between = statistics.spread(values)
  return Score(
    mean=between.mean,
    sd=between.sd,
    error=statistics.accuracy_error(errors, values),
    per_seed=tuple(values),
    questions=int(first['metrics'][task]['n']),
    chance=_chance(first['info'], task, metric),
  )


def difference(
  first: Sequence[Run], second: Sequence[Run], task: str, metric: str
) -> statistics.Difference:
  """Compares two cells: question by question where predictions are on disk."""
  pair = _matched(first, second, task, metric)
  if pair is not None:
    return statistics.paired_accuracy_difference(*pair)
  a, b = score(first, task, metric), score(second, task, metric)
  if a is None or b is None:
    raise ValueError(f'{task}: {metric} is missing in a cell to compare')
  return statistics.accuracy_difference((a.mean, a.error), (b.mean, b.error))


def averaged(found: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
  """Returns the (task, metric) pairs that a mean accuracy is taken over.

  Of each task the one that is usual for it: acc_norm where an answer is a
  sentence (HellaSwag, ARC-Challenge, OpenBookQA, PIQA), else acc.
  """
  chosen: list[tuple[str, str]] = []
  for task in dict.fromkeys(task for task, _ in found):
    has = {metric for t, metric in found if t == task}
    for metric in ('acc_norm', 'acc') if task in _BY_LENGTH else ('acc',):
      if metric in has:
        chosen.append((task, metric))
        break
  return chosen


def average_score(
  runs: Sequence[Run], found: Sequence[tuple[str, str]]
) -> Score | None:
  """Returns the mean of a cell's accuracies, every task counted once.

  error² = sum over tasks of (mean of the seeds' squared question errors) /
  tasks² + sd between the seeds' means² / seeds.

  Args:
    runs: of the cell.
    found: (task, metric) that all of them have; see `averaged`.
  """
  metrics = averaged(found)
  if not metrics or not runs:
    return None
  scores = [score(runs, task, metric) for task, metric in metrics]
  held = [one for one in scores if one is not None]
  if len(held) < len(metrics):
    return None
  values_TxS = np.asarray([one.per_seed for one in held])
  between = statistics.spread(values_TxS.mean(axis=0))
  squared = 0.0
  for one in held:
    seeds = (one.sd or 0.0) ** 2 / len(runs)
    squared += max(0.0, one.error**2 - seeds) / len(held) ** 2
  if between.sd is not None:
    squared += between.sd**2 / between.n
  chances = [one.chance for one in held if one.chance is not None]
  return Score(
    mean=between.mean,
    sd=between.sd,
    error=squared**0.5,
    per_seed=tuple(float(v) for v in values_TxS.mean(axis=0)),
    questions=sum(one.questions for one in held),
    chance=float(np.mean(chances)) if len(chances) == len(held) else None,
  )


def average_difference(
  first: Sequence[Run],
  second: Sequence[Run],
  metrics: Sequence[tuple[str, str]],
) -> statistics.Difference:
  """Compares the mean accuracies of two cells, every task counted once.

  Question by question where predictions are on disk, see
  statistics.paired_average_difference.
  """
  found = [_matched(first, second, task, metric) for task, metric in metrics]
  paired = [pair for pair in found if pair is not None]
  if len(paired) == len(found):
    return statistics.paired_average_difference(paired)
  a, b = average_score(first, metrics), average_score(second, metrics)
  if a is None or b is None:
    raise ValueError('the mean accuracy is missing in a cell to compare')
  return statistics.accuracy_difference((a.mean, a.error), (b.mean, b.error))


def unlike_questions(runs: Sequence[Run], task: str, metric: str) -> list[str]:
  """Says which runs scored other questions than the first that has a score."""
  scored = [run for run in runs if _has(run, task, metric)]
  if not scored:
    return []
  reference = _questions(scored[0], task)
  return [
    f'{run.name} scored {_questions(run, task)[0]} questions of data '
    f'{_questions(run, task)[1]}, {scored[0].name} {reference[0]} of '
    f'{reference[1]}'
    for run in scored[1:]
    if _questions(run, task) != reference
  ]


def infos(runs: Sequence[Run]) -> list[dict[str, Any]]:
  """Returns how each scored run was scored."""
  return [run.results['info'] for run in runs if run.results is not None]


def _has(run: Run, task: str, metric: str) -> bool:
  if run.results is None or task not in run.results['metrics']:
    return False
  return metric in run.results['metrics'][task]


def _questions(run: Run, task: str) -> tuple[int, str]:
  """Returns what identifies the questions: their number and their file."""
  assert run.results is not None
  leaves = tasks.GROUPS[task] if task in tasks.GROUPS else (task,)
  files = {tasks.TASKS[leaf].file for leaf in leaves if leaf in tasks.TASKS}
  data = run.results['info']['data']
  sums = {
    name: entry['sha256'][:12]
    for name, entry in data.items()
    if pathlib.Path(name).name.split('.')[0] in files
  }
  return int(run.results['metrics'][task]['n']), json.dumps(sums)


def _chance(info: Mapping[str, Any], task: str, metric: str) -> float | None:
  if metric == 'perplexity' or task not in info['chance']:
    return None
  return float(info['chance'][task])


def _matched(
  first: Sequence[Run], second: Sequence[Run], task: str, metric: str
) -> tuple[np.ndarray, np.ndarray] | None:
  """Returns both cells' answers (SxQ, 0 or 1) to the same questions."""
  held = [
    [_answers(run, task, metric) for run in runs] for runs in (first, second)
  ]
  known = [one for of in held for one in of if one is not None]
  if len(known) < len(first) + len(second):
    return None
  if any(questions != known[0][0] for questions, _ in known):
    return None
  n = len(first)
  return (
    np.stack([right_Q for _, right_Q in known[:n]]),
    np.stack([right_Q for _, right_Q in known[n:]]),
  )


def _answers(
  run: Run, task: str, metric: str
) -> tuple[list[tuple[str, int]], np.ndarray] | None:
  """Returns a run's questions in order and 0 or 1; None where not known."""
  key = task, metric
  if key not in run.ordered_answers:
    run.ordered_answers[key] = _read_answers(run, task, metric)
  return run.ordered_answers[key]


def _read_answers(
  run: Run, task: str, metric: str
) -> tuple[list[tuple[str, int]], np.ndarray] | None:
  leaves = tasks.GROUPS[task] if task in tasks.GROUPS else (task,)
  answers: dict[tuple[str, int], int] = {}
  for leaf in leaves:
    if leaf in run.answers and metric in run.answers[leaf]:
      of_leaf = run.answers[leaf][metric]
      answers |= {(leaf, doc): right for doc, right in of_leaf.items()}
  assert run.results is not None
  # Those of another evaluation than results.json are of no use.
  metrics = run.results['metrics'][task]
  if not answers or len(answers) != metrics['n']:
    return None
  questions = sorted(answers, key=str)
  right_Q = np.array([answers[q] for q in questions], np.float64)
  if abs(right_Q.mean() - metrics[metric]) > 1.5 / len(questions):
    return None
  return questions, right_Q

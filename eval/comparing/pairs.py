"""Two evaluations of the same questions, compared question by question."""

from collections.abc import Iterator, Mapping
import dataclasses
import json
import os
import pathlib
from typing import Any

import numpy as np

from steepest.eval import tasks
from steepest.eval.comparing import accuracy, statistics

# A question is named by its task and its place in the task's file.
Values = dict[tuple[str, Any], float]


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """What launch.evaluate, or a run in its workdir, left.

  Attributes:
    path: of the directory that holds results.json.
    model: what was scored.
    info: how, as results.json has it.
    metrics: task or group -> metric -> value.
    answers: task -> metric -> question -> 1 if right, 0 if wrong; for
      `perplexity` the log-likelihood.
  """

  path: pathlib.Path
  model: str
  info: dict[str, Any]
  metrics: dict[str, dict[str, Any]]
  answers: dict[str, dict[str, Values]]


@dataclasses.dataclass(frozen=True)
class Pair:
  """A task's metric for both models.

  Attributes:
    task, metric: what is compared.
    questions: that both were asked.
    first, second: the models' own values.
    test: of the differences; of log-likelihoods for `perplexity`.
    p_all: its p-value corrected for the number of pairs (Holm).
  """

  task: str
  metric: str
  questions: int
  first: float
  second: float
  test: statistics.PairedTest
  p_all: float | None


@dataclasses.dataclass(frozen=True)
class Pairing:
  """Two models compared.

  Attributes:
    first, second: the evaluations.
    pairs: in the order of eval/tasks.py.
    notes: what was left out, and what differs besides the model.
  """

  first: Evaluation
  second: Evaluation
  pairs: list[Pair]
  notes: list[str]


def read(directory: str | os.PathLike[str]) -> Evaluation:
  """Reads DIR/results.json and what lies beside it, or DIR/eval/….

  Raises:
    FileNotFoundError: there is none.
    ValueError: a file is damaged.
  """
  path = pathlib.Path(directory)
  if not (path / 'results.json').exists() and (path / 'eval').is_dir():
    path /= 'eval'
  for name in ('results.json', 'predictions.jsonl', 'requests.jsonl'):
    if not (path / name).exists():
      raise FileNotFoundError(
        f'{path}: no {name}; --compare takes directories that launch.evaluate '
        'wrote, or workdirs of runs that scored tasks'
      )
  try:
    results = json.loads((path / 'results.json').read_text('utf-8'))
    answers: dict[str, dict[str, Values]] = {}
    for row in _rows(path / 'predictions.jsonl'):
      of_metric = answers.setdefault(row['task'], {})
      question = row['task'], row['doc_id']
      of_metric.setdefault(row['metric'], {})[question] = float(
        row['pred'] == row['gold']
      )
    _add_words(answers, results['metrics'], path / 'requests.jsonl')
    return Evaluation(
      path,
      str(results['info']['model']),
      results['info'],
      results['metrics'],
      answers,
    )
  except (json.JSONDecodeError, KeyError, TypeError) as error:
    raise ValueError(
      f'{path}: results.json, predictions.jsonl or requests.jsonl is damaged '
      f'({error!r}): evaluate again'
    ) from None


def _rows(path: pathlib.Path) -> Iterator[dict[str, Any]]:
  with path.open(encoding='utf-8') as lines:
    for line in lines:
      yield json.loads(line)


def _add_words(
  answers: dict[str, dict[str, Values]],
  metrics: Mapping[str, Mapping[str, Any]],
  path: pathlib.Path,
) -> None:
  """Adds tasks of one continuation, whose answers stand in the requests."""
  of_words = {name for name, of in metrics.items() if 'perplexity' in of}
  if not of_words:
    return
  for row in _rows(path):
    if row['task'] in of_words:
      of_metric = answers.setdefault(row['task'], {})
      question = row['task'], row['doc_id']
      for metric, value in (
        ('acc', float(row['is_greedy'])),
        ('perplexity', float(row['loglikelihood'])),
      ):
        of_metric.setdefault(metric, {})[question] = value


def compare(first: Evaluation, second: Evaluation) -> Pairing:
  """Compares two evaluations on every task and metric that both have.

  Raises:
    ValueError: a task that both have was asked with other questions, or there
      is none that both have.
  """
  found = [
    {(t, m) for t, of in e.metrics.items() for m in accuracy.METRICS if m in of}
    for e in (first, second)
  ]
  shared = accuracy.outermost(found[0] & found[1])
  if not shared:
    raise ValueError(
      f'{first.path} and {second.path} have no task in common: score both on '
      'the same tasks'
    )
  tests = []
  for task, metric in shared:
    _check_same(first, second, task)
    a, b = (_values(e, task, metric) for e in (first, second))
    if a.keys() != b.keys():
      raise ValueError(
        f'{task}: {first.path} holds {len(a)} questions, {second.path} '
        f'{len(b)}, {len(a.keys() & b.keys())} of them the same: score both '
        'with the same --limit'
      )
    order = sorted(a, key=str)
    tests.append(
      statistics.paired_test(
        np.array([a[q] for q in order]), np.array([b[q] for q in order])
      )
    )
  known = [test.p for test in tests if test.p is not None]
  adjusted = iter(statistics.holm(known))
  pairs = [
    Pair(
      task,
      metric,
      int(first.metrics[task]['n']),
      float(first.metrics[task][metric]),
      float(second.metrics[task][metric]),
      test,
      None if test.p is None else next(adjusted),
    )
    for (task, metric), test in zip(shared, tests)
  ]
  return Pairing(first, second, pairs, _notes(first, second, found))


def _leaves(task: str) -> tuple[str, ...]:
  return tuple(tasks.GROUPS[task]) if task in tasks.GROUPS else (task,)


def _values(evaluation: Evaluation, task: str, metric: str) -> Values:
  """Returns the answers to a task's questions, or a group's."""
  values: Values = {}
  for leaf in _leaves(task):
    if leaf in evaluation.answers and metric in evaluation.answers[leaf]:
      values |= evaluation.answers[leaf][metric]
  if len(values) != evaluation.metrics[task]['n']:
    raise ValueError(
      f'{evaluation.path}: {task} has {len(values)} answers in '
      f'predictions.jsonl, {evaluation.metrics[task]["n"]} in results.json: '
      'evaluate again'
    )
  return values


def _check_same(first: Evaluation, second: Evaluation, task: str) -> None:
  """Raises a ValueError if a task's files or its examples differ."""
  files = {tasks.TASKS[t].file for t in _leaves(task) if t in tasks.TASKS}
  for name in sorted(first.info['data'].keys() & second.info['data'].keys()):
    stem = pathlib.Path(name).name.split('.')[0].removesuffix('_dev')
    a, b = (e.info['data'][name]['sha256'] for e in (first, second))
    if stem in files and a != b:
      raise ValueError(
        f'{task}: {name} of {first.path} has sha256 {a[:12]}…, of '
        f'{second.path} {b[:12]}…: score both on the same --data'
      )
  shots = [
    {t: e.info['shots'][t] for t in _leaves(task) if t in e.info['shots']}
    for e in (first, second)
  ]
  if shots[0] != shots[1]:
    raise ValueError(
      f'{task}: solved examples in front of a question differ between '
      f'{first.path} and {second.path}: score both with the same number'
    )


def _notes(
  first: Evaluation, second: Evaluation, found: list[set[tuple[str, str]]]
) -> list[str]:
  notes = []
  for e, own, other in (
    (first, found[0], found[1]),
    (second, found[1], found[0]),
  ):
    alone = sorted({t for t, _ in own} - {t for t, _ in other})
    outer = [t for t, _ in accuracy.outermost({(t, 'acc') for t in alone})]
    if outer:
      notes.append(f'only {e.path} has {", ".join(outer)}: not compared')
  for e in (first, second):
    if e.info['truncated']:
      notes.append(
        f'{e.path}: {e.info["truncated"]} requests lost their start to a '
        f'context of {e.info["max_length"]} tokens'
      )
    if e.info['limit']:
      notes.append(
        f'{e.path}: limited to {e.info["limit"]} questions a task, so the '
        'scores are not those of the full benchmarks'
      )
  if first.info['tokenizer']['sha256'] != second.info['tokenizer']['sha256']:
    notes.append('the models have unlike tokenizers')
  return notes

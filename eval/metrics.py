"""Turns log-likelihoods into accuracies, standard errors and group scores.

The formulas are those of lm-evaluation-harness 0.4.13.
"""

from collections.abc import Mapping, Sequence
import math
import random
from typing import Any

import numpy as np

from steepest.eval.likelihoods import Score
from steepest.eval.questions import Question

Metrics = dict[str, Any]

_BOOTSTRAP_CHUNK = 1000
_BOOTSTRAPS = 100_000


def predict(question: Question, scores: Sequence[Score], metric: str) -> int:
  """Returns the index of the choice that `metric` ranks highest.

  Ties go to the lowest index.

  Args:
    question: has n choices.
    scores: those of its n requests, then (only for acc_mutual_info) of the n
      requests without context.
    metric: one of tasks.ACCURACIES.
  """
  choices = question.example.choices
  raw = np.array([score.loglikelihood for score in scores])
  values = raw[: len(choices)]
  match metric:
    case 'acc':
      lengths = np.ones(len(choices))
    case 'acc_norm':
      # Code points, as in the harness; acc_bytes counts bytes instead.
      lengths = np.array([len(choice) for choice in choices])
    case 'acc_bytes':
      lengths = np.array([len(choice.encode()) for choice in choices])
    case 'acc_mutual_info':
      values = values - raw[len(choices) :]
      lengths = np.ones(len(choices))
    case _:
      raise ValueError(f'{metric} does not rank choices')
  # An empty choice ranks last.
  with np.errstate(divide='ignore'):
    return int(np.argmax(values / lengths))


def is_right(question: Question, scores: Sequence[Score], metric: str) -> bool:
  """Returns whether the answer is right by `metric`."""
  gold = question.example.gold
  if gold is None:
    return scores[0].is_greedy
  return predict(question, scores, metric) == gold


def summarize(
  questions: Sequence[Question],
  scores: Sequence[Sequence[Score]],
  bootstraps: int = _BOOTSTRAPS,
) -> Metrics:
  """Returns a task's metrics, their standard errors and `n`.

  Args:
    questions: those of one task, at least one.
    scores: those of each question's requests.
    bootstraps: number of replicates for `perplexity_stderr`.

  Returns:
    Accuracies in [0, 1]; perplexity per target word. Standard errors that are
    undefined for a single question are None.
  """
  metrics: Metrics = {}
  for metric in questions[0].task.metrics:
    if metric == 'perplexity':
      values = [score[0].loglikelihood for score in scores]
      metrics[metric] = float(_perplexity(np.array(values)))
      error = _bootstrap_stderr(values, bootstraps)
    else:
      right = [is_right(q, s, metric) for q, s in zip(questions, scores)]
      metrics[metric] = float(np.mean(right))
      error = mean_stderr(right)
    metrics[f'{metric}_stderr'] = error
  return {**metrics, 'n': len(questions)}


def mean_stderr(values: Sequence[float]) -> float | None:
  """Returns the sample standard deviation over √n; None if n is 1."""
  if len(values) < 2:
    return None
  return float(np.std(values, ddof=1) / math.sqrt(len(values)))


def _perplexity(loglikelihoods: np.ndarray) -> np.ndarray:
  # A hopeless model's perplexity overflows.
  with np.errstate(over='ignore'):
    return np.exp(-np.mean(loglikelihoods, axis=-1))


def _bootstrap_stderr(values: Sequence[float], count: int) -> float | None:
  """Returns the standard deviation of the perplexity of resampled values.

  Chunk i of the replicates uses Python's generator with seed i, like the
  harness, so the results are the same.
  """
  if len(values) < 2:
    return None
  items = np.asarray(values)
  replicates = []
  for chunk in range(-(-count // _BOOTSTRAP_CHUNK)):
    # random.Random(chunk).choices(items), 1000 times, as one array: NumPy's
    # Mersenne Twister gives the same numbers from the same state.
    _, (*key, position), _ = random.Random(chunk).getstate()
    bits = np.random.MT19937()
    bits.state = {
      'bit_generator': 'MT19937',
      'state': {'key': np.array(key, np.uint32), 'pos': position},
    }
    shape = (min(count, _BOOTSTRAP_CHUNK), len(items))
    index = np.random.Generator(bits).random(shape) * len(items)
    replicates.append(_perplexity(items[index.astype(int)]))
  return float(np.std(np.concatenate(replicates), ddof=1))


def pool(tasks: Sequence[Mapping[str, Any]]) -> Metrics:
  """Returns a group's `acc`: the mean over all questions of all its tasks.

  The standard error pools the tasks' variances,
  √(Σ (n_t − 1)·n_t·se_t² / (Σ n_t − T) / Σ n_t) over T tasks. It is None when
  no task has two questions.
  """
  count = sum(task['n'] for task in tasks)
  right = sum(task['n'] * task['acc'] for task in tasks)
  freedom = count - len(tasks)
  squares = sum(
    (task['n'] - 1) * task['n'] * task['acc_stderr'] ** 2
    for task in tasks
    if task['n'] > 1
  )
  error = math.sqrt(squares / freedom / count) if freedom else None
  return {'acc': right / count, 'acc_stderr': error, 'n': count}


def chance(questions: Sequence[Question]) -> float | None:
  """Returns the accuracy of guessing; None if there is nothing to guess."""
  if questions[0].example.gold is None:
    return None
  return float(np.mean([1 / len(q.example.choices) for q in questions]))

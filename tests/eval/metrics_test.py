"""Accuracies, standard errors and groups against closed forms."""

import math
import random
import statistics

from hypothesis import given, strategies as st
import numpy as np
import pytest

from steepest.eval import metrics, tasks
from steepest.eval.likelihoods import Score
from steepest.eval.questions import Question


def _question(choices: list[str], gold: int | None, *names: str) -> Question:
  count = len(choices)
  example = tasks.Example(
    ('context',) * count, tuple(f' {c}' for c in choices), tuple(choices), gold
  )
  task = tasks.Task('t', lambda doc: example, names or ('acc',))
  return Question(task, 0, example)


def _scores(*values: float) -> list[Score]:
  return [Score(value, False) for value in values]


def test_ties_go_to_the_lowest_index():
  question = _question(['aa', 'bb', 'cc'], 1)
  for metric in ('acc', 'acc_norm', 'acc_bytes'):
    assert metrics.predict(question, _scores(-2, -1, -1), metric) == 1
    assert metrics.predict(question, _scores(-1, -1, -1), metric) == 0


def test_norm_counts_code_points_and_bytes_count_bytes():
  # 2 code points in 6 bytes against 4 in 4.
  question = _question(['日本', 'abcd'], 0)
  scores = _scores(-6, -8)
  assert metrics.predict(question, scores, 'acc_norm') == 1
  assert metrics.predict(question, scores, 'acc_bytes') == 0
  # Outer blanks of the choice count, the delimiter does not.
  question = _question([' a ', 'b'], 0)
  assert metrics.predict(question, _scores(-2.9, -1), 'acc_norm') == 0
  assert metrics.predict(question, _scores(-3.1, -1), 'acc_norm') == 1


def test_an_empty_choice_comes_last():
  question = _question(['', 'b'], 0)
  assert metrics.predict(question, _scores(-0.1, -99), 'acc_norm') == 1


def test_mutual_information_subtracts_the_score_without_context():
  question = _question(['a', 'b'], 0, 'acc_mutual_info')
  assert question.pairs()[2:] == [('', ' a'), ('', ' b')]
  scores = _scores(-5, -4, -9, -1)
  assert metrics.predict(question, scores, 'acc') == 1
  assert metrics.predict(question, scores, 'acc_mutual_info') == 0


@given(st.lists(st.booleans(), min_size=2, max_size=50))
def test_stderr_of_an_accuracy(right):
  questions = [_question(['a', 'b'], 0) for _ in right]
  scores = [_scores(-1, -2) if ok else _scores(-2, -1) for ok in right]
  result = metrics.summarize(questions, scores)
  n, p = len(right), sum(right) / len(right)
  assert result['n'] == n
  assert result['acc'] == pytest.approx(p)
  expected = math.sqrt(p * (1 - p) / (n - 1))
  assert result['acc_stderr'] == pytest.approx(expected, abs=1e-12)


def test_one_question_has_no_stderr():
  result = metrics.summarize([_question(['a'], 0)], [_scores(-1)])
  assert result == {'acc': 1.0, 'acc_stderr': None, 'n': 1}


@given(
  st.lists(
    st.lists(st.integers(0, 1), min_size=1, max_size=20),
    min_size=1,
    max_size=6,
  ).filter(lambda groups: any(len(g) > 1 for g in groups))
)
def test_group_pools_the_variances_of_its_tasks(groups):
  parts = [
    {'n': len(g), 'acc': np.mean(g), 'acc_stderr': metrics.mean_stderr(g)}
    for g in groups
  ]
  result = metrics.pool(parts)
  everything = sum(groups, [])
  assert result['n'] == len(everything)
  assert result['acc'] == pytest.approx(np.mean(everything))
  # The classical pooled variance, over all questions.
  squares = sum(((np.array(g) - np.mean(g)) ** 2).sum() for g in groups)
  variance = squares / (len(everything) - len(groups))
  expected = math.sqrt(variance / len(everything))
  assert result['acc_stderr'] == pytest.approx(expected, abs=1e-12)


def test_group_of_single_questions_has_no_stderr():
  part = {'n': 1, 'acc': 1.0, 'acc_stderr': None}
  assert metrics.pool([part, part])['acc_stderr'] is None


def test_lambada_is_right_when_greedy():
  question = _question(['word'], None, 'perplexity', 'acc')
  scores = [[Score(-2.0, True)], [Score(-4.0, False)], [Score(-3.0, False)]]
  result = metrics.summarize([question] * 3, scores, bootstraps=1000)
  assert result['acc'] == pytest.approx(1 / 3)
  assert result['perplexity'] == pytest.approx(math.exp(3))
  assert metrics.chance([question]) is None


def test_bootstrap_draws_what_python_draws():
  rng = random.Random(9)
  values = [-10 * rng.random() for _ in range(37)]
  replicates = []
  for chunk in range(2):
    rng = random.Random(chunk)
    for _ in range(1000):
      sample = rng.choices(values, k=len(values))
      replicates.append(math.exp(-statistics.fmean(sample)))
  question = _question(['word'], None, 'perplexity')
  scores = [_scores(value) for value in values]
  result = metrics.summarize([question] * 37, scores, bootstraps=2000)
  expected = statistics.stdev(replicates)
  assert result['perplexity_stderr'] == pytest.approx(expected, rel=1e-9)


def test_chance_is_the_mean_over_questions():
  questions = [_question(['a'] * n, 0) for n in (2, 4, 4)]
  assert metrics.chance(questions) == pytest.approx((0.5 + 0.25 + 0.25) / 3)

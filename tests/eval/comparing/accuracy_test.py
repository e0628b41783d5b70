"""Mean accuracies over tasks: which metrics, errors, pairing."""

import math

import numpy as np
import pytest

from steepest.eval.comparing import accuracy, comparison, statistics


@pytest.fixture
def runs(study_runs, tmp_path):
  """Writes AdamW's and Lion's answers; returns their runs by name."""

  def write(answers):
    for (name, seed), right in answers.items():
      path = tmp_path / f'{name}-{seed}'
      settings = study_runs.config('gpt2', name, seed, 'final')
      study_runs.write_run(path, settings, 3.4, rows=10)
      study_runs.write_scores(path, right)
    found = comparison.load_runs([tmp_path])
    (group,) = comparison.compare(found).groups
    return group

  return write


def _draw(rng, rates, questions):
  return {
    key: [int(x) for x in rng.uniform(size=questions[key]) < rate]
    for key, rate in rates.items()
  }


def test_tasks_with_long_answers_count_by_length():
  found = [
    ('arc_easy', 'acc'),
    ('arc_easy', 'acc_norm'),
    ('hellaswag', 'acc'),
    ('hellaswag', 'acc_norm'),
    ('arc_challenge', 'acc'),
    ('mmlu', 'acc'),
    ('lambada_openai', 'perplexity'),
  ]
  assert accuracy.averaged(found) == [
    ('arc_easy', 'acc'),
    ('hellaswag', 'acc_norm'),
    ('arc_challenge', 'acc'),
    ('mmlu', 'acc'),
  ]


def test_paired_errors_of_a_mean_over_tasks(runs):
  rng = np.random.default_rng(0)
  questions = {'arc_easy/acc': 300, 'boolq/acc': 120}
  answers = {
    (name, seed): _draw(
      rng, {'arc_easy/acc': 0.5 + lift, 'boolq/acc': 0.6}, questions
    )
    for name, lift in (('adamw', 0.1), ('lion', 0.0))
    for seed in range(3)
  }
  group = runs(answers)
  (pair,) = group.pairs['accuracy']
  per_task = []
  squared = 0.0
  for key, n in questions.items():
    a, b = (
      np.array([answers[name, s][key] for s in range(3)], float)
      for name in ('adamw', 'lion')
    )
    per_task.append((a - b).mean(axis=1))
    squared += np.var((a - b).mean(axis=0), ddof=1) / n / 4
  seeds = np.mean(per_task, axis=0)
  squared += np.var(seeds, ddof=1) / 3
  d = pair.difference
  assert d.rule == 'questions, paired'
  assert d.value == pytest.approx(seeds.mean())
  assert d.error == pytest.approx(math.sqrt(squared))
  cell = group.cell('adamw')
  means = [
    np.mean([np.mean(answers['adamw', s][key]) for key in questions])
    for s in range(3)
  ]
  assert cell.accuracy.per_seed == pytest.approx(means)
  assert cell.accuracy.questions == 420
  assert cell.accuracy.chance == pytest.approx(0.25)
  binomial = [
    np.mean([np.var(answers['adamw', s][key], ddof=1) / n for s in range(3)])
    for key, n in questions.items()
  ]
  expected = math.sqrt(sum(binomial) / 4 + np.var(means, ddof=1) / 3)
  assert cell.accuracy.error == pytest.approx(expected)


def test_the_error_covers_what_it_claims():
  # Seeds and questions drawn anew: |difference| exceeds in about 5 %.
  rng = np.random.default_rng(1)
  exceeding = 0
  for _ in range(400):
    tasks = []
    lift_2xS = rng.normal(0, 0.02, (2, 3))
    for n in (150, 80):
      hard_Q = rng.uniform(size=n)
      pair = [
        rng.uniform(size=(3, n)) < 0.2 + 0.6 * hard_Q + lift_S[:, None]
        for lift_S in lift_2xS
      ]
      tasks.append((pair[0], pair[1]))
    found = statistics.paired_average_difference(tasks)
    exceeding += bool(found.exceeds)
  assert 0.01 * 400 < exceeding < 0.09 * 400


def test_unlike_questions_have_no_mean(runs):
  rng = np.random.default_rng(2)
  group = runs(
    {
      ('adamw', 0): _draw(rng, {'boolq/acc': 0.6}, {'boolq/acc': 100}),
      ('lion', 0): _draw(rng, {'boolq/acc': 0.6}, {'boolq/acc': 90}),
    }
  )
  assert 'accuracy' not in group.pairs

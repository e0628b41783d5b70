"""Paired differences against scipy and closed forms; what is refused."""

import io
import json
import math

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from scipy import stats

from steepest.eval import tasks
from steepest.report import pairs, statistics

_EVIL = '<script>alert("x")</script>'
_SUBJECTS = sorted(tasks.GROUPS['mmlu'])[:2]


def _right(seed, count, rate):
  hard = np.random.default_rng(count).uniform(size=count)
  noise = np.random.default_rng(seed).uniform(size=count)
  return (0.7 * hard + 0.3 * noise < rate).astype(float)


def _answers(seed, rate):
  """Right answers by task and metric; log-likelihoods of LAMBADA's words."""
  answers = {
    ('arc_easy', 'acc'): _right(seed, 150, rate),
    ('arc_easy', 'acc_norm'): _right(seed + 10, 150, rate),
    ('boolq', 'acc'): _right(seed, 1, rate),
    **{(s, 'acc'): _right(seed, 40, rate) for s in _SUBJECTS},
  }
  base = np.random.default_rng(5).normal(-4, 2, 60)
  return answers, base + np.random.default_rng(seed).normal(rate, 0.2, 60)


def _write(directory, seed, rate=0.5, model='hf:x', **info):
  """Writes what launch.evaluate would."""
  directory.mkdir(parents=True)
  answers, likelihoods = _answers(seed, rate)
  metrics, predictions = {}, []
  for (task, metric), right in answers.items():
    entry = metrics.setdefault(task, {'n': len(right)})
    entry[metric] = float(right.mean())
    predictions += [
      {'task': task, 'doc_id': i, 'metric': metric, 'pred': int(r), 'gold': 1}
      for i, r in enumerate(right)
    ]
  both = np.concatenate([answers[s, 'acc'] for s in _SUBJECTS])
  metrics['mmlu'] = {'n': len(both), 'acc': float(both.mean())}
  metrics['lambada_openai'] = {
    'n': len(likelihoods),
    'acc': float((likelihoods > -2).mean()),
    'perplexity': math.exp(-likelihoods.mean()),
  }
  requests = [
    {
      'task': 'lambada_openai',
      'doc_id': i,
      'loglikelihood': x,
      'is_greedy': bool(x > -2),
    }
    for i, x in enumerate(likelihoods.tolist())
  ]
  described = {
    'model': model,
    'limit': 0,
    'truncated': 0,
    'max_length': 64,
    'shots': {},
    'data': {f'{t}.jsonl': {'sha256': 'ab' * 32} for t in ('arc_easy', 'mmlu')},
    'tokenizer': {'sha256': 'c'},
    **info,
  }
  results = {'info': described, 'metrics': metrics}
  (directory / 'results.json').write_text(json.dumps(results), 'utf-8')
  for name, rows in (('predictions', predictions), ('requests', requests)):
    text = ''.join(json.dumps(row) + '\n' for row in rows)
    (directory / f'{name}.jsonl').write_text(text, 'utf-8')
  return directory


def _compare(first, second):
  return pairs.compare(pairs.read(first), pairs.read(second))


@pytest.fixture
def two(tmp_path):
  return _write(tmp_path / 'a', 1, 0.6), _write(tmp_path / 'b', 2, 0.45)


def test_error_of_right_and_wrong_by_hand():
  """n discordant b and c: variance (b + c − (b − c)²/n) / (n − 1) / n."""
  first = [1] * 10 + [0] * 4 + [1] * 6
  second = [0] * 10 + [1] * 4 + [1] * 6
  got = statistics.question_test(first, second)
  assert got['value'] == pytest.approx(6 / 20)
  variance = (14 - 6**2 / 20) / 19 / 20
  assert got['stderr'] == pytest.approx(math.sqrt(variance))
  # McNemar's exact test: b of b + c under a fair coin, both tails.
  assert (got['first_only'], got['second_only']) == (10, 4)
  tail = sum(math.comb(14, k) for k in range(5))
  assert got['p_signs'] == pytest.approx(2 * tail / 2**14)


def test_answers_without_a_spread():
  same = statistics.question_test(np.ones(5), np.ones(5))
  assert [same[k] for k in ('value', 'stderr', 'p', 'p_signs')] == [0, 0, 1, 1]
  always = statistics.question_test(np.ones(5), np.zeros(5))
  assert (always['value'], always['p'], always['first_only']) == (1, 0, 5)
  one = statistics.question_test(np.ones(1), np.zeros(1))
  assert all(math.isnan(one[key]) for key in ('stderr', 'low', 'p'))


def test_pairs_are_those_of_the_answers(two):
  found = _compare(*two).pairs
  (a, words_a), (b, words_b) = _answers(1, 0.6), _answers(2, 0.45)
  got = {(r['task'], r['metric']): r for r in found.to_dict('records')}
  # Subjects of a group are in the group.
  assert list(got) == [
    ('arc_easy', 'acc'),
    ('arc_easy', 'acc_norm'),
    ('boolq', 'acc'),
    ('lambada_openai', 'acc'),
    ('lambada_openai', 'perplexity'),
    ('mmlu', 'acc'),
  ]
  joined = [np.concatenate([x[s, 'acc'] for s in _SUBJECTS]) for x in (a, b)]
  for key, first, second in (
    (('arc_easy', 'acc_norm'), *(x['arc_easy', 'acc_norm'] for x in (a, b))),
    (('mmlu', 'acc'), *joined),
    (('lambada_openai', 'perplexity'), words_a, words_b),
    (('lambada_openai', 'acc'), words_a > -2, words_b > -2),
  ):
    wanted = stats.ttest_rel(first.astype(float), second.astype(float))
    interval = wanted.confidence_interval(0.95)
    row = got[key]
    assert row['p'] == pytest.approx(wanted.pvalue)
    assert (row['low'], row['high']) == pytest.approx(tuple(interval))
    assert row['n'] == len(first)
  row = got['lambada_openai', 'perplexity']
  ratio = row['first'] / row['second']
  assert math.exp(-row['value']) == pytest.approx(ratio)
  assert math.isnan(got['boolq', 'acc']['p_all'])
  known = found[found['p'].notna()]
  assert list(known['p_all']) == list(statistics.holm(known['p']))


@pytest.mark.parametrize(
  'change, words',
  [
    ({'data': {'arc_easy.jsonl': {'sha256': 'cd' * 32}}}, 'arc_easy: arc_easy'),
    ({'shots': {'arc_easy': 5}}, 'arc_easy: .* different numbers of few-shot'),
  ],
)
def test_unlike_questions_are_refused(two, tmp_path, change, words):
  other = _write(tmp_path / 'c', 1, **change)
  with pytest.raises(ValueError, match=words):
    _compare(two[0], other)


def test_other_questions_are_refused(two):
  path = two[1] / 'predictions.jsonl'
  text = path.read_text('utf-8').replace('"doc_id": 149,', '"doc_id": 150,')
  path.write_text(text, 'utf-8')
  with pytest.raises(ValueError, match='150 questions, .* 150, 149 of them'):
    _compare(*two)
  rows = [r for r in text.splitlines(True) if '"doc_id": 150,' not in r]
  path.write_text(''.join(rows), 'utf-8')
  with pytest.raises(ValueError, match='has 149 answers .* 150 in results'):
    _compare(*two)


def test_no_task_in_common_is_refused(two):
  path = two[1] / 'results.json'
  results = json.loads(path.read_text('utf-8'))
  results['metrics'] = {'piqa': {'acc': 0.5, 'n': 1}}
  path.write_text(json.dumps(results), 'utf-8')
  with pytest.raises(ValueError, match='have no task in common'):
    _compare(*two)


def test_missing_and_damaged_files_are_named(two):
  (two[0] / 'predictions.jsonl').write_text('{', 'utf-8')
  with pytest.raises(ValueError, match=r'predictions\.jsonl, line 1'):
    pairs.read(two[0])
  (two[0] / 'predictions.jsonl').unlink()
  with pytest.raises(FileNotFoundError, match=r'no predictions\.jsonl'):
    pairs.read(two[0])


def test_what_differs_besides_the_model_is_said(two, tmp_path):
  other = _write(
    tmp_path / 'run' / 'eval',
    3,
    limit=9,
    truncated=2,
    tokenizer={'sha256': 'd'},
  )
  notes = ' '.join(_compare(two[0], other.parent).notes)
  for words in ('2 requests lost', 'limited to 9', 'different tokenizers'):
    assert words in notes


def test_the_page_holds_the_numbers_and_no_markup(tmp_path):
  a = _write(tmp_path / 'a', 1, 0.6, _EVIL)
  b = _write(tmp_path / 'b', 2, 0.45)
  pairing = _compare(a, b)
  path = pairs.write(pairing, tmp_path / 'out', {'Command': _EVIL})
  page = path.read_text('utf-8')
  assert _EVIL not in page and '&lt;script&gt;alert(' in page
  numbers = pd.read_csv(tmp_path / 'out' / 'compare.csv')
  np.testing.assert_allclose(numbers['p'], pairing.pairs['p'])
  stream = io.StringIO()
  pairs.print_table(pairing, Console(file=stream, width=110))
  shown = stream.getvalue()
  assert f'{100 * pairing.pairs["value"][0]:+.1f}' in shown
  assert max(map(len, shown.splitlines())) <= 110
  assert 'A is better on' in pairs.summary(pairing)
  assert pairs.summary(_compare(a, a)) == (
    'No difference is shown on any task.'
  )

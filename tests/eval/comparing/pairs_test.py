"""Paired differences against scipy and closed forms; what is refused."""

import html
import io
import json
import math

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from steepest.eval import tasks
from steepest.eval.comparing import comparison, pairs, statistics
from steepest.eval.report import pairs as report_pairs, report

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
  words = base + np.random.default_rng(seed).normal(rate, 0.2, 60)
  return answers, words


def _write(directory, seed, rate=0.5, model='hf:x', **info):
  """Writes what launch.evaluate would."""
  directory.mkdir(parents=True)
  answers, words = _answers(seed, rate)
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
    'n': len(words),
    'acc': float((words > -2).mean()),
    'perplexity': math.exp(-words.mean()),
  }
  requests = [
    {
      'task': 'lambada_openai',
      'doc_id': i,
      'loglikelihood': x,
      'is_greedy': bool(x > -2),
    }
    for i, x in enumerate(words.tolist())
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


@pytest.mark.parametrize('kind', ['answers', 'reals'])
def test_paired_test_is_scipys(kind):
  rng = np.random.default_rng(3)
  first, second = rng.normal(size=(2, 80)) + [[0.2], [0]]
  if kind == 'answers':
    first, second = (first > 0).astype(int), (second > 0).astype(int)
  got = statistics.paired_test(first, second)
  wanted = stats.ttest_rel(first, second)
  low, high = wanted.confidence_interval(0.95)
  assert got.p == pytest.approx(wanted.pvalue)
  assert (got.low, got.high) == pytest.approx((low, high))
  assert got.error == pytest.approx(stats.sem(first - second))
  # McNemar's exact test: b of b + c under a fair coin, both tails.
  b, c = int((first > second).sum()), int((first < second).sum())
  assert (got.first_only, got.second_only) == (b, c)
  tail = sum(math.comb(b + c, k) for k in range(min(b, c) + 1))
  assert got.p_signs == pytest.approx(min(1, 2 * tail / 2 ** (b + c)))


def test_paired_error_of_right_and_wrong_by_hand():
  """n discordant b and c: variance (b + c - (b - c)²/n) / (n - 1) / n."""
  first = np.array([1] * 10 + [0] * 4 + [1] * 6)
  second = np.array([0] * 10 + [1] * 4 + [1] * 6)
  got = statistics.paired_test(first, second)
  assert got.value == pytest.approx(6 / 20)
  variance = (14 - 6**2 / 20) / 19 / 20
  assert got.error == pytest.approx(math.sqrt(variance))


def test_paired_test_without_a_spread():
  same = statistics.paired_test(np.ones(5), np.ones(5))
  assert (same.value, same.error, same.p, same.p_signs) == (0, 0, 1, 1)
  always = statistics.paired_test(np.ones(5), np.zeros(5))
  assert (always.value, always.p, always.first_only) == (1, 0, 5)
  one = statistics.paired_test(np.ones(1), np.zeros(1))
  assert one.error is one.p is one.low is None


def test_holm_by_hand():
  """Holm (1979): the smallest times 4, the next times 3, never falling."""
  got = statistics.holm([0.01, 0.04, 0.03, 0.005])
  assert got == pytest.approx([0.03, 0.06, 0.06, 0.02])
  assert statistics.holm([]) == []
  assert statistics.holm([0.7, 0.9]) == [1, 1]


def test_pairs_are_those_of_the_answers(two):
  pairing = _compare(*two)
  (a, words_a), (b, words_b) = _answers(1, 0.6), _answers(2, 0.45)
  got = {(p.task, p.metric): p for p in pairing.pairs}
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
    assert got[key].test.p == pytest.approx(wanted.pvalue)
    assert got[key].questions == len(first)
  value = got['arc_easy', 'acc']
  assert value.first - value.second == pytest.approx(value.test.value)
  words = got['lambada_openai', 'perplexity']
  ratio = words.first / words.second
  assert math.exp(-words.test.value) == pytest.approx(ratio)
  assert got['boolq', 'acc'].p_all is None
  known = [p for p in pairing.pairs if p.test.p is not None]
  adjusted = statistics.holm([p.test.p for p in known])
  assert [p.p_all for p in known] == adjusted


@pytest.mark.parametrize(
  'change, words',
  [
    ({'data': {'arc_easy.jsonl': {'sha256': 'cd' * 32}}}, 'arc_easy: arc_easy'),
    ({'shots': {'arc_easy': 5}}, 'arc_easy: solved examples in front'),
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
  with pytest.raises(ValueError, match='is damaged'):
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
  for words in ('2 requests lost', 'limited to 9', 'unlike tokenizers'):
    assert words in notes


def test_the_page_holds_the_numbers_and_no_markup(tmp_path):
  a = _write(tmp_path / 'a', 1, 0.6, _EVIL)
  b = _write(tmp_path / 'b', 2, 0.45)
  pairing = _compare(a, b)
  path = report_pairs.write(pairing, tmp_path / 'out', ['x', _EVIL])
  page = path.read_text('utf-8')
  assert _EVIL not in page and html.escape(_EVIL) in page
  numbers = json.loads((tmp_path / 'out' / 'compare.json').read_text('utf-8'))
  assert [p['test']['p'] for p in numbers['pairs']] == [
    p.test.p for p in pairing.pairs
  ]
  figure = report_pairs._figure(pairing)['data'][0]
  accuracies = [p for p in pairing.pairs if p.metric != 'perplexity'][::-1]
  wanted = [100 * p.test.value for p in accuracies]
  np.testing.assert_allclose(figure['x'], wanted, rtol=1e-5)
  stream = io.StringIO()
  report_pairs.print_table(pairing, Console(file=stream, width=110))
  shown = stream.getvalue()
  assert f'{100 * pairing.pairs[0].test.value:+.1f}' in shown
  assert max(map(len, shown.splitlines())) <= 110
  assert 'A is better on' in report_pairs.summary(pairing)
  same = _compare(a, a)
  assert report_pairs.summary(same) == 'No difference is shown on any task.'


def test_the_reports_section_has_every_pair_of_optimizers(study_dir, tmp_path):
  result = comparison.compare(comparison.load_runs([study_dir]))
  (found,) = report_pairs.study_section(result)
  section = ''.join(found.parts)
  assert section in report.write(result, tmp_path, 'x').read_text('utf-8')
  for pair in ('AdamW − Lion', 'AdamW − Sophia', 'Lion − Sophia'):
    assert section.count(pair) == 2
  group = result.groups[0]
  verdict = group.verdict('arc_easy/acc')
  for other, difference in verdict.differences.items():
    sign = 1 if verdict.best < other else -1
    assert f'<data value="{sign * difference.value!r}"' in section

"""Claims on comparisons whose answers were planted."""

import json

import numpy as np
import pytest

from steepest.eval.comparing import claims, comparison, findings, rate_findings


@pytest.fixture(scope='module')
def planted(study_runs, tmp_path_factory):
  root = tmp_path_factory.mktemp('axes')
  study_runs.write_axis_study(root, rows=40)
  return comparison.compare(comparison.load_runs([root]))


def _conclusions(answers):
  return {answer.key: answer.conclusion for answer in answers}


def test_what_was_planted_is_found(planted, study_runs):
  answers = {a.key: a for a in claims.evaluate(planted)}
  assert _conclusions(answers.values()) | {
    # On noise, and on scores that the losses do not drive.
    'sophia-lowest-training-loss': '',
    'adamw-best-downstream': '',
    'epochs-help-downstream': '',
  } == {
    'sophia-lowest-loss': 'found',
    'sophia-lowest-training-loss': '',
    'sophia-most-in-multi-epoch-gpt': 'found',
    'lion-fewest-hours': 'found',
    'lion-first-at-target': 'contradicted',
    'adamw-best-downstream': '',
    'epochs-help-downstream': '',
    'llama-with-lion': 'contradicted',
    'llama-twice-the-rate': 'not tested',
    'rates-transfer': 'not tested',
  }
  lowest = answers['sophia-lowest-loss'].findings[0]
  rival = study_runs.planted_loss('adamw', 1)
  effect = study_runs.planted_loss('sophia', 1) - rival
  assert lowest.quantity == 'sophia − adamw' and lowest.n == 3
  assert lowest.low < effect < lowest.high
  (multi,) = answers['sophia-most-in-multi-epoch-gpt'].findings
  added = study_runs.EPOCHS_ADD
  assert multi.low < added['sophia'] - added['adamw'] < multi.high


def _duel(study_runs, root, losses, **kwargs):
  for name, of in losses.items():
    for seed, loss in enumerate(of):
      settings = study_runs.config('gpt2', name, seed, 'final')
      path = root / f'{name}-{seed}'
      study_runs.write_run(path, settings, loss, rows=40, **kwargs)
  return comparison.compare(comparison.load_runs([root]))


@pytest.mark.parametrize(
  ('lead', 'expected'),
  [(-0.1, 'found'), (0.1, 'contradicted'), (0.0, 'not resolvable')],
)
def test_three_answers(study_runs, tmp_path, lead, expected):
  noise = np.array([0.0, 0.01, -0.01])
  result = _duel(
    study_runs,
    tmp_path,
    {'adamw': 3.4 + noise, 'sophia': 3.4 + lead - noise},
  )
  (finding,) = findings.best(result, 'eval_loss', 'sophia')
  assert finding.conclusion == expected
  assert finding.value == pytest.approx(lead)
  assert ('would have counted' in finding.remark) == (lead == 0.0)


def test_one_seed_resolves_nothing(study_runs, tmp_path):
  result = _duel(study_runs, tmp_path, {'adamw': [3.0], 'sophia': [2.0]})
  (finding,) = findings.best(result, 'eval_loss', 'sophia')
  assert finding.conclusion == 'not resolvable'
  assert finding.remark == 'one seed: the spread is unknown'


def test_optimizers_that_the_paper_lacks_are_not_asked(study_runs, tmp_path):
  losses = {'adamw': [3.4, 3.41, 3.39], 'sophia': [3.3, 3.31, 3.29]}
  _duel(study_runs, tmp_path, losses)
  for seed in range(3):
    settings = study_runs.config(
      'gpt2', 'adamw', seed, 'final', optimizer__name='muon'
    )
    study_runs.write_run(tmp_path / f'muon-{seed}', settings, 3.0, rows=40)
  result = comparison.compare(comparison.load_runs([tmp_path]))
  assert result.groups[0].verdict('eval_loss').best == 'muon'
  (finding,) = findings.best(result, 'eval_loss', 'sophia')
  assert (finding.conclusion, finding.quantity) == ('found', 'sophia − adamw')


def test_an_optimizer_that_is_not_there_is_not_tested(study_runs, tmp_path):
  result = _duel(study_runs, tmp_path, {'adamw': [3.0, 3.1]})
  conclusions = _conclusions(claims.evaluate(result))
  assert set(conclusions.values()) == {'not tested'}


@pytest.mark.parametrize(
  ('conclusions', 'expected'),
  [
    ([], 'not tested'),
    (['found', 'found'], 'found'),
    (['found', 'not tested'], 'found'),
    (['found', 'not resolvable'], 'found in part'),
    (['contradicted', 'not resolvable'], 'contradicted in part'),
    (['found', 'contradicted', 'not resolvable'], 'mixed'),
    (['not resolvable', 'not tested'], 'not resolvable'),
  ],
)
def test_several_findings_make_one_answer(conclusions, expected):
  found = [findings.Finding('x', c) for c in conclusions]
  assert findings.overall(found) == expected


def _search(study_runs, root, ratio, noise):
  """Writes searches whose parabolas lie a factor apart, and final runs."""
  for model, best in (('gpt2', 2e-3), ('llama', 2e-3 * ratio)):
    for i in range(7):
      lr = 2.5e-4 * 2.0**i
      settings = study_runs.config(model, 'adamw', 0, 'tune', optimizer__lr=lr)
      loss = 3 + 0.1 * np.log2(lr / best) ** 2
      path = root / f'trials/{model}-adamw/{i}'
      study_runs.write_run(path, settings, float(loss), rows=10)
    for seed, move in enumerate((-noise, 0.0, noise)):
      settings = study_runs.config(model, 'adamw', seed, 'final')
      path = root / f'finals/{model}-adamw/{seed}'
      study_runs.write_run(path, settings, 3 + move, rows=10)
  result = comparison.compare(comparison.load_runs([root]))
  (finding,) = rate_findings.rate_ratio(result, 'llama', 'gpt2', 2.0)
  return finding


@pytest.mark.parametrize(
  ('ratio', 'noise', 'expected'),
  [
    (2.0, 0.01, 'found'),
    (1.0, 0.01, 'contradicted'),
    (5.0, 0.01, 'contradicted'),
    (1.4, 0.3, 'not resolvable'),
  ],
)
def test_ratios_of_best_rates(study_runs, tmp_path, ratio, noise, expected):
  finding = _search(study_runs, tmp_path, ratio, noise)
  assert finding.value == pytest.approx(ratio, rel=1e-6)
  assert finding.conclusion == expected


def test_errors_of_a_vertex_are_those_of_simulated_parabolas(
  study_runs, tmp_path
):
  noise = 0.01
  finding = _search(study_runs, tmp_path, 2.0, noise)
  rng = np.random.default_rng(0)
  x = np.arange(-2, 3)
  vertices = []
  for _ in range(2000):
    a, b, _ = np.polyfit(x, 0.1 * x**2 + noise * rng.normal(size=5), 2)
    vertices.append(-b / (2 * a))
  # Both models' vertices vary.
  expected = 1.96 * np.sqrt(2) * np.std(vertices)
  reach = np.log2(finding.high / finding.low) / 2
  assert reach == pytest.approx(expected, rel=0.1)


def _transfer(shifts):
  return {
    'cells': [
      {
        'model': 'gpt2',
        'optimizer': name,
        'parametrization': kind,
        'shift_steps': {'mean': mean, 'error': error, 'seeds': 3},
        'widths': [{'width': 16}, {'width': 128}],
      }
      for name, kind, mean, error in shifts
    ]
  }


def test_rates_that_move_less_than_a_factor_of_two_transfer():
  found = rate_findings.transfers(
    _transfer(
      [
        ('adamw', 'mup', 0.1, 0.2),
        ('lion', 'mup', 0.8, 0.3),
        ('sophia', 'mup', -2.0, 0.25),
        ('adamw', 'sp', -3.0, 0.2),
      ]
    )
  )
  assert [f.conclusion for f in found] == [
    'found',
    'not resolvable',
    'contradicted',
  ]
  # The errors pooled, with twice three degrees of freedom.
  error = np.sqrt((0.2**2 + 0.3**2 + 0.25**2) / 3)
  assert found[0].high - 0.1 == pytest.approx(2.446912 * error, rel=1e-5)


def test_the_page_is_a_table_that_text_cannot_leave(planted, study_runs):
  page = claims.claims_page(planted, _transfer([('a|b<i>', 'mup', 0.0, 0.1)]))
  lines = page.splitlines()
  assert lines[0].startswith('# ')
  assert 'gpt2' not in page and '* GPT-2, epochs 1' in page
  rows = [line for line in lines if line.startswith('|')]
  assert all(line.endswith('|') for line in rows)
  for answer in claims.evaluate(planted):
    assert f'## {answer.statement}' in lines
  assert 'a\\|b&lt;i>' in page and '<i>' not in page
  json.dumps([f.value for a in claims.evaluate(planted) for f in a.findings])

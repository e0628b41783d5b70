"""Claims on tables whose answers were planted, and on the committed studies."""

import math
import pathlib

import numpy as np
import pandas as pd
import pytest

from steepest.report import claims, findings, tables, verdicts
from steepest.report.findings import (
  OPPOSITE,
  SEEN,
  UNRESOLVED,
  UNTESTED,
  Finding,
)

_RESULTS = pathlib.Path(__file__).parents[2] / 'docs' / 'results'
_NOISE = np.array([0.003, -0.002, 0.001, -0.004, 0.002])


def _run(stage, model, optimizer, seed, loss, lr=0.004, **changes):
  name = f'{stage}/{model}-{optimizer}/{changes}/{lr:g}/{seed}'
  row = {
    'run': name,
    'study': '.',
    'stage': stage,
    'status': 'finished' if math.isfinite(loss) else 'diverged',
    'architecture': model,
    'optimizer': optimizer,
    'seed': seed,
    'lr': lr,
    'planned_steps': 100,
    'planned_tokens': 2_000_000,
    'tokens': 2_000_000,
    'steps': 100,
    'first_loss': 7.0,
    'loss': loss,
    'train_loss': loss - 0.2,
    'eval_loss': loss,
    'flops': 1e12,
    'seconds': 60.0,
    'tokens_per_second': 3e4,
    'parameters': 1_000_000,
    'data_fingerprint': 'ab',
    'config.model.width': 64,
    'config.model.num_layers': 2,
    'config.data.epochs': 1,
    'config.parametrization.kind': 'mup',
    'config.optimizer.lr': lr,
  }
  return row | changes


def _finals(losses, model='gpt2', **changes):
  return [
    _run('final', model, name, seed, float(loss), **changes)
    for name, of in losses.items()
    for seed, loss in enumerate(of)
  ]


def _trials(names, model='gpt2', best=0.004, **changes):
  return [
    _run('tune', model, name, 0, float(3 + 0.1 * np.log2(lr / best) ** 2), lr)
    | changes
    for name in names
    for lr in 0.001 * 2.0 ** np.arange(5)
  ]


def _compare(tmp_path, rows, timing=(), insist=False, **study):
  empty = {name: pd.DataFrame() for name in tables.NAMES}
  frames = empty | {
    'runs': pd.DataFrame(rows),
    'timing': pd.DataFrame(timing),
    'studies': pd.DataFrame([{'study': '.'} | study]),
  }
  tables.write(tables.Tables(**frames), tmp_path / 'tables')
  return verdicts.compare(tables.read([tmp_path]), insist)


def _answers(comparison):
  return {a.key: a for a in claims.answers(comparison)}


def _three(lead, adamw=3.4, lion=3.4):
  return {
    'adamw': adamw + _NOISE,
    'lion': lion + _NOISE[::-1],
    'sophia': min(adamw, lion) + lead + np.roll(_NOISE, 2),
  }


@pytest.mark.parametrize(
  ('lead', 'expected'), [(-0.1, SEEN), (0.1, OPPOSITE), (0.0, UNRESOLVED)]
)
def test_three_answers_with_their_scale(tmp_path, lead, expected):
  losses = _three(lead)
  comparison = _compare(tmp_path, _finals(losses) + _trials(losses))
  answer = _answers(comparison)['sophia-lowest-loss']
  assert answer.conclusion == expected
  (finding,) = answer.findings
  assert finding.n == 5
  assert answer.scale == (
    '1.00\u00a0M parameters, 2 tokens per parameter, learning rate alone tuned'
  )
  rows = [
    line
    for line in claims.markdown(comparison).splitlines()
    if line.startswith('| Sophia ends with the lowest validation')
  ]
  assert len(rows) == 1
  assert expected in rows[0] and '2 tokens per parameter' in rows[0]


def test_one_seed_shows_nothing(tmp_path):
  losses = {name: [loss] for name, loss in zip(findings.AMONG, (3.4, 3.2, 3))}
  comparison = _compare(tmp_path, _finals(losses) + _trials(losses))
  conclusions = {a.conclusion for a in _answers(comparison).values()}
  assert conclusions == {UNRESOLVED, UNTESTED}


def test_nothing_is_claimed_of_what_was_not_tuned_alike(tmp_path):
  rows = _finals(_three(-0.2))
  found = _answers(_compare(tmp_path / 'a', rows))['sophia-lowest-loss']
  assert found.conclusion == UNRESOLVED
  assert 'not ranked' in found.findings[0].remark
  assert found.findings[0].tuned == 'nothing tuned'
  insisted = _compare(tmp_path / 'b', rows, insist=True)
  assert _answers(insisted)['sophia-lowest-loss'].conclusion == SEEN


def test_a_withdrawn_study_claims_nothing(tmp_path):
  """As those of docs/results, whose memories were not tuned."""
  losses = _three(-0.2)
  study = {'withdrawn': 'memories were set by hand'}
  comparison = _compare(tmp_path, _finals(losses) + _trials(losses), **study)
  reason = comparison.reason('gpt2', 'eval_loss')
  assert 'withdrawn, since memories were set by hand' in reason
  assert _answers(comparison)['sophia-lowest-loss'].conclusion == UNRESOLVED


def test_a_seed_that_diverged_is_no_best_one(tmp_path):
  losses = _three(-0.2)
  losses['sophia'][3:] = math.inf
  comparison = _compare(tmp_path, _finals(losses) + _trials(losses))
  answers = _answers(comparison)
  assert answers['sophia-lowest-loss'].conclusion == UNRESOLVED
  assert answers['same-range'].conclusion == UNRESOLVED


def test_optimizers_that_the_paper_lacks_are_not_asked(tmp_path):
  losses = _three(-0.1) | {'muon': 2.9 + _NOISE}
  comparison = _compare(tmp_path, _finals(losses) + _trials(losses))
  assert comparison.winner('gpt2', 'eval_loss') == 'muon'
  answer = _answers(comparison)['sophia-lowest-loss']
  assert answer.conclusion == SEEN and 'Muon' not in answer.findings[0].effect


@pytest.mark.parametrize(
  ('lead', 'expected'), [(-0.01, SEEN), (-0.2, OPPOSITE), (-0.068, UNRESOLVED)]
)
def test_about_the_same_range(tmp_path, lead, expected):
  """2 % of the lowest loss, about 0.067 nats."""
  losses = _three(lead)
  comparison = _compare(tmp_path, _finals(losses) + _trials(losses))
  assert _answers(comparison)['same-range'].conclusion == expected


@pytest.mark.parametrize(
  ('low', 'high', 'expected'),
  [
    (2.05, 2.40, SEEN),
    (1.01, 2.60, UNRESOLVED),
    (0.9, 1.3, OPPOSITE),
    (3.0, 9.0, OPPOSITE),
  ],
)
def test_about_twice_is_a_band(low, high, expected):
  assert findings.within(low, high, findings.ABOUT_TWICE) == expected


@pytest.mark.parametrize(
  ('ratio', 'noise', 'expected'),
  [
    (2.0, 0.01, SEEN),
    (1.0, 0.01, OPPOSITE),
    (5.0, 0.01, OPPOSITE),
    (1.4, 0.3, UNRESOLVED),
  ],
)
def test_ratios_of_best_rates(tmp_path, ratio, noise, expected):
  """Parabolas whose vertices lie a factor apart."""
  rows = []
  for model, best in (('gpt2', 2.5e-3), ('llama', 2.5e-3 * ratio)):
    losses = {'adamw': 3 + noise * np.array([-1.0, 0.0, 1.0])}
    rows += _finals(losses, model) + _trials(['adamw'], model, best)
  found = _answers(_compare(tmp_path, rows))['llama-twice-the-rate']
  adamw = found.findings[0]
  if ratio == 5.0:  # The best rate of LLaMA lies at the edge.
    assert adamw.conclusion in (OPPOSITE, UNTESTED)
    return
  assert adamw.effect == f'ratio of the best learning rates: {ratio:.2f}'
  assert adamw.conclusion == expected


@pytest.mark.parametrize(
  ('octaves', 'expected'), [(0.25, SEEN), (-2.0, OPPOSITE), (1.0, UNRESOLVED)]
)
def test_rates_that_carry_over(tmp_path, octaves, expected):
  rows = []
  for width, move in ((32, 0.0), (128, octaves)):
    for seed, jitter in enumerate((-0.1, 0.0, 0.1)):
      best = 0.004 * 2 ** (move + jitter * (width == 128))
      changes = {'config.model.width': width, 'seed': seed}
      changes['run'] = None
      rows += _trials(['lion'], best=best, **changes)
  for i, row in enumerate(rows):
    row['run'] = f'trials/{i}'
  comparison = _compare(tmp_path, rows)
  (finding,) = _answers(comparison)['rates-transfer'].findings
  assert finding.conclusion == expected
  assert f'{abs(octaves):.2f} factors of two' in finding.effect
  assert finding.size == '1.00\u00a0M parameters, 2 tokens per parameter'


@pytest.mark.parametrize(
  ('step_seconds', 'expected'),
  [(0.5, SEEN), (1.9, OPPOSITE), (1.01, UNRESOLVED)],
)
def test_fewest_hours(tmp_path, step_seconds, expected):
  losses = _three(0.0)
  timing = [
    {
      'study': '.',
      'group': 'gpt2',
      'optimizer': name,
      'repeat': repeat,
      'seconds_per_step': step_seconds if name == 'lion' else 1.0,
      'device': 'x',
      'commit': 'y',
    }
    for name in losses
    for repeat in range(3)
  ]
  rows = _finals(losses) + _trials(losses)
  comparison = _compare(tmp_path, rows, timing)
  (hours,) = _answers(comparison)['lion-fewest-hours'].findings
  assert hours.conclusion == expected


def test_without_a_timing_pass_hours_are_not_tested(tmp_path):
  losses = _three(0.0)
  comparison = _compare(tmp_path, _finals(losses) + _trials(losses))
  (finding,) = _answers(comparison)['lion-fewest-hours'].findings
  assert (finding.conclusion, finding.remark) == (UNTESTED, 'no timing pass')


@pytest.mark.parametrize(
  ('extra', 'expected'), [(0.0, UNRESOLVED), (-0.2, SEEN), (0.2, OPPOSITE)]
)
def test_a_lead_that_grows_with_the_epochs(tmp_path, extra, expected):
  one, four = _three(-0.1), _three(-0.1 + extra)
  rows = _finals(one) + _trials(one)
  rows += _finals(four, **{'config.data.epochs': 4})
  study = {'study.axis_epochs': '[1, 4]', 'data.epochs': 1}
  comparison = _compare(tmp_path, rows, **study)
  (finding,) = _answers(comparison)['sophia-most-in-multi-epoch-gpt'].findings
  assert finding.conclusion == expected
  assert finding.where == 'GPT-2: epochs 1 → 4'


@pytest.mark.parametrize(
  ('conclusions', 'expected'),
  [
    ([], UNTESTED),
    ([SEEN, UNTESTED], SEEN),
    ([SEEN, UNRESOLVED], f'{SEEN}, in part'),
    ([OPPOSITE, UNRESOLVED], f'{OPPOSITE}, in part'),
    ([SEEN, OPPOSITE, UNRESOLVED], 'mixed'),
    ([UNRESOLVED, UNTESTED], UNRESOLVED),
  ],
)
def test_several_findings_make_one_answer(conclusions, expected):
  found = [Finding('x', c) for c in conclusions]
  answer = claims.Answer('abstract', 'x', 'X.', found)
  assert answer.conclusion == expected


@pytest.mark.parametrize('study', ['study', 'field', 'transfer'])
def test_committed_claims_are_those_of_the_committed_tables(study):
  """Where its README withdraws every ranking, so do the claims."""
  comparison = verdicts.compare(tables.read([_RESULTS / study / 'tables']))
  text = claims.markdown(comparison)
  assert text == (_RESULTS / study / 'claims.md').read_text('utf-8')
  if study == 'study':
    return
  assert 'contradicted' not in text
  for column in ('train_loss', 'eval_loss', 'accuracy'):
    assert not any(comparison.winner(g, column) for g in comparison.groups)

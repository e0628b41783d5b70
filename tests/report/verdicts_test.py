"""What the report never says again: studies whose truth is known.

Every study is written as run directories and read back; what is checked is the
decision that verdicts.csv holds.
"""

import json

import numpy as np
import pandas as pd
import pytest

from steepest.report import divergences, report, results, tables, verdicts

# Seeds move all optimizers alike, and each a little by itself.
_SEEDS = 0.004 * np.sin(7 * np.arange(5))
_OWN = 0.001 * np.cos(np.outer([3, 5, 11], np.arange(1, 6)))


def _losses(gaps, seeds=5):
  names = ('adamw', 'lion', 'sophia')
  return {
    name: list(3.4 + gap + _SEEDS[:seeds] + own[:seeds])
    for name, gap, own in zip(names, gaps, _OWN)
  }


def _scores(seeds, rates, questions=400):
  """Right answers of every optimizer's seeds to the same questions."""
  found = {}
  hard = np.random.default_rng(1).uniform(size=questions)
  for i, (name, rate) in enumerate(rates.items()):
    rng = np.random.default_rng(i + 2)
    found[name] = [
      {'arc_easy/acc': [int(x) for x in 0.9 * hard + 0.1 * noise < rate]}
      for noise in rng.uniform(size=(seeds, questions))
    ]
  return found


def test_a_planted_winner_is_claimed(plant):
  found = plant(_losses((0.0, 0.02, 0.04)))
  assert found.winner('gpt2', 'eval_loss') == 'adamw'
  row = found.verdicts.set_index('column').loc['eval_loss']
  assert row['p'] < 0.001 and row['n'] == 5 and row['reason'] == ''


def test_winner_needs_to_beat_every_other_one(plant):
  found = plant(_losses((0.0, 0.0002, 0.04)))
  assert found.winner('gpt2', 'eval_loss') == ''
  assert 'no difference shown' in found.reason('gpt2', 'eval_loss')
  reason = found.reason('gpt2', 'eval_loss')
  assert 'would have been found with a probability of 80%' in reason


@pytest.mark.parametrize('seeds', [1, 2])
def test_one_and_two_seeds_claim_nothing(plant, seeds):
  rates = {'adamw': 0.7, 'lion': 0.3, 'sophia': 0.3}
  losses = _losses((0.0, 0.5, 0.5), seeds)
  found = plant(losses, scores=_scores(seeds, rates))
  claimed = found.verdicts[found.verdicts['winner'] != '']
  assert claimed.empty, claimed
  for column in ('eval_loss', 'train_loss', 'arc_easy/acc'):
    assert 'at least 3 are needed' in found.reason('gpt2', column)
  (answer,) = results.answers(found)
  assert 'ends with' not in answer.text


def test_a_diverged_seed_counts(plant):
  losses = _losses((0.1, 0.0, 0.12))
  losses['lion'][1] = losses['lion'][3] = None
  found = plant(losses)
  for column in ('eval_loss', 'train_loss'):
    assert found.winner('gpt2', column) == ''
    assert 'diverged in 2 of 5 seeds' in found.reason('gpt2', column)
  shown = results.table(found, ['eval_loss'])
  lion = shown.rows[2]
  assert lion[0].optimizer == 'lion'
  assert lion[1].note == '2 diverged'
  # 2 of 5 against 0 of 5 is nothing that chance does not do.
  said = divergences.sentence(found, 'gpt2')
  assert 'no optimizer is shown to diverge more often' in said


def test_divergences_are_compared_as_counts(plant):
  """5 of 5 against 0 of 5 among three: Holm's 3 × 2 / C(10, 5), twice."""
  losses = _losses((0.0, 0.1, 0.1))
  losses['lion'] = [None] * 5
  found = plant(losses)
  rows = found.pairs[found.pairs['column'] == 'diverged']
  rows = rows.set_index(['first', 'second'])
  assert rows.loc[('adamw', 'lion'), 'p'] == pytest.approx(2 / 252)
  assert rows.loc[('adamw', 'lion'), 'p_holm'] == pytest.approx(6 / 252)
  assert rows.loc[('adamw', 'lion'), 'difference'] == -1
  assert rows.loc[('adamw', 'sophia'), 'p_holm'] == 1
  said = divergences.sentence(found, 'gpt2')
  assert 'Lion in 5 of 5' in said
  said = said.replace('\u00a0', ' ')
  assert 'Lion diverges more often than AdamW and Sophia (p = 0.024)' in said


def test_divergences_after_an_unequal_search_are_not_compared(plant):
  losses = _losses((0.0, 0.1, 0.1))
  losses['lion'] = [None] * 5
  found = plant(losses, rates={'adamw': ()})
  assert divergences.sentence(found, 'gpt2') == (
    'Seeds that diverged: Lion in 5 of 5; not compared, as losses are not.'
  )


def test_winner_is_claimed_beside_one_that_diverged_and_is_worse(plant):
  losses = _losses((0.0, 0.1, 0.1))
  losses['lion'][1] = None
  assert plant(losses).winner('gpt2', 'eval_loss') == 'adamw'


def test_equal_flops_have_no_winner(plant):
  found = plant({k: v for k, v in _losses((0.0, 0.1, 0.1)).items()})
  assert found.winner('gpt2', 'flops') == ''
  assert 'equal' in found.reason('gpt2', 'flops')


def test_fewer_flops_win(plant):
  losses = _losses((0.0, 0.1, 0.1))
  del losses['adamw']
  assert plant(losses).winner('gpt2', 'flops') == 'lion'


def test_times_without_a_timing_pass_decide_nothing(plant):
  found = plant(_losses((0.0, 0.1, 0.1)))
  for column in ('seconds', 'tokens_per_second'):
    assert found.winner('gpt2', column) == ''
    assert found.reason('gpt2', column) == 'no timing pass'
  # The numbers are still shown.
  assert found.cells.set_index('column').loc['seconds', 'mean'].notna().all()


@pytest.mark.parametrize(
  ('timing', 'winner', 'reason'),
  [
    ({'adamw': [1.0, 1.01, 1.0], 'lion': [0.9, 0.9, 0.91]}, 'lion', ''),
    ({'adamw': [1.0, 1.4, 1.0], 'lion': [0.5, 0.5, 0.5]}, '', 'busy'),
    ({'adamw': [1.0, 1.0, 1.0], 'lion': [0.98, 0.98, 0.98]}, '', 'within'),
    ({'adamw': [1.0], 'lion': [0.5]}, '', 'one repeat'),
    ({'lion': [0.5, 0.5, 0.5]}, '', 'lacks AdamW'),
  ],
)
def test_times_come_from_repeats_that_agree(plant, timing, winner, reason):
  losses = _losses((0.0, 0.1, 0.1))
  del losses['sophia']
  found = plant(losses, timing=timing)
  for column in ('seconds', 'tokens_per_second'):
    assert found.winner('gpt2', column) == winner
    assert reason in found.reason('gpt2', column)
  if winner:
    cells = found.cells[found.cells['column'] == 'seconds']
    mean = cells.set_index('optimizer')['mean']
    # 400 steps of the timing pass, whatever the runs took.
    assert mean['lion'] == pytest.approx(0.9 * 400)


def test_accuracies_are_told_apart_and_chance_is_none(plant):
  losses = _losses((0.0, 0.1, 0.1))
  rates = {'adamw': 0.6, 'lion': 0.4, 'sophia': 0.4}
  found = plant(losses, scores=_scores(5, rates))
  assert found.winner('gpt2', 'arc_easy/acc') == 'adamw'


def test_scores_at_chance_have_no_winner(plant):
  losses = _losses((0.0, 0.1, 0.1))
  rates = {'adamw': 0.25, 'lion': 0.15, 'sophia': 0.15}
  found = plant(losses, scores=_scores(5, rates))
  assert found.winner('gpt2', 'arc_easy/acc') == ''
  assert 'not above chance' in found.reason('gpt2', 'arc_easy/acc')


def test_unlike_questions_are_not_compared(plant, tmp_path):
  losses = _losses((0.0, 0.1, 0.1))
  plant(losses, scores=_scores(5, {k: 0.6 for k in losses}))
  path = tmp_path / 'study/finals/gpt2-lion/seed=0/eval/results.json'
  content = json.loads(path.read_text())
  for entry in content['info']['data'].values():
    entry['sha256'] = 'cd' * 32
  path.write_text(json.dumps(content))
  found = verdicts.compare(tables.read([tmp_path / 'study']))
  assert found.reason('gpt2', 'arc_easy/acc') == (
    'the runs were scored on different questions'
  )


def test_a_study_under_way_claims_nothing(plant):
  found = plant(_losses((0.0, 0.1, 0.1), seeds=3), seeds=5)
  assert found.winner('gpt2', 'eval_loss') == ''
  assert '3 of the 5 seeds' in found.reason('gpt2', 'eval_loss')


def test_losses_of_other_seeds_are_compared_without_pairs(plant, tmp_path):
  losses = _losses((0.0, 0.1, 0.1))
  plant(losses)
  for old in sorted((tmp_path / 'study/finals/gpt2-lion').iterdir()):
    config = json.loads((old / 'config.json').read_text())
    config['seed'] += 10
    (old / 'config.json').write_text(json.dumps(config))
  found = verdicts.compare(tables.read([tmp_path / 'study']))
  assert found.winner('gpt2', 'eval_loss') == 'adamw'


def test_verdicts_csv_has_one_row_a_column(plant, tmp_path):
  losses = _losses((0.0, 0.02, 0.04))
  found = plant(losses, scores=_scores(5, {k: 0.6 for k in losses}))
  report.write(found, tmp_path / 'out', ['test'])
  table = pd.read_csv(tmp_path / 'out/verdicts.csv', keep_default_na=False)
  assert list(table) == ['group', 'column', 'winner', 'reason', 'p', 'n']
  assert set(table['column']) == {
    'eval_loss',
    'train_loss',
    'seconds',
    'tokens_per_second',
    'flops',
    'arc_easy/acc',
  }
  assert (table['group'] == 'gpt2').all()
  assert ((table['winner'] == '') != (table['reason'] == '')).all()

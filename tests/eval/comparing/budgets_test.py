"""Budgets, costs and why optimizers may not be ranked."""

import json

import pytest

from steepest.eval.comparing import budgets, comparison, costs, rules


@pytest.fixture(scope='module')
def group(study_dir):
  return comparison.compare(comparison.load_runs([study_dir])).groups[0]


def _summaries(root, pattern):
  return [json.loads(p.read_text()) for p in sorted(root.glob(pattern))]


def test_costs_are_sums_of_summaries(group, study_dir):
  for cost in group.costs:
    trials = _summaries(
      study_dir, f'trials/gpt2-{cost.optimizer}/*/summary.json'
    )
    finals = _summaries(
      study_dir, f'finals/gpt2-{cost.optimizer}/*/summary.json'
    )
    assert cost.tuning.tokens == sum(s['tokens'] for s in trials)
    assert cost.tuning.seconds == pytest.approx(
      sum(s['seconds'] for s in trials)
    )
    assert cost.run.flops == pytest.approx(
      sum(s['flops'] for s in finals) / len(finals)
    )
    assert cost.total.tokens == cost.run.tokens + cost.tuning.tokens
    assert cost.total.hours == pytest.approx(cost.total.seconds / 3600)
  by_name = {cost.optimizer: cost for cost in group.costs}
  # Without operations of its own, a diverged trial counts at the others' rate.
  sophia = _summaries(study_dir, 'trials/gpt2-sophia/*/summary.json')
  known = [s for s in sophia if 'flops' in s]
  assert len(known) == 4 and len(sophia) == 5
  rate = sum(s['flops'] for s in known) / sum(s['tokens'] for s in known)
  assert by_name['sophia'].tuning.flops == pytest.approx(
    rate * sum(s['tokens'] for s in sophia)
  )


def test_budgets_tell_grid_choice_and_edges(group):
  found = {b.optimizer: b for b in group.budgets}
  sophia = found['sophia']
  assert (sophia.trials, sophia.planned, sophia.extended) == (5, 4, 1)
  assert (sophia.diverged, sophia.pruned, sophia.search) == (1, 0, 'grid')
  (lr,) = sophia.tried
  assert (lr.name, lr.chosen, lr.below, lr.above) == ('lr', 8e-4, 2, 2)
  assert lr.values == (2e-4, 4e-4, 8e-4, 1.6e-3, 3.2e-3)
  assert found['adamw'].tried[0].above == 1
  assert sophia.tokens_per_trial == 200 * 16 * 64


def test_a_search_that_grew_at_an_edge_is_ranked(group):
  assert not group.refusal
  assert group.verdict('eval_loss').conclusion == 'wins'


@pytest.mark.parametrize(
  ('change', 'told'),
  [
    ('one trial less', 'lion had 3 trials'),
    ('longer trials', 'lion had 4 trials of 409,600 tokens'),
    ('no trials', 'lion had no trials'),
  ],
)
def test_unequal_budgets_are_not_ranked(study_runs, tmp_path, change, told):
  for optimizer in ('adamw', 'lion'):
    for seed in range(3):
      settings = study_runs.config('gpt2', optimizer, seed, 'final')
      loss = {'adamw': 3.4, 'lion': 3.5}[optimizer] + 0.001 * seed
      path = tmp_path / f'finals/{optimizer}/seed={seed}'
      study_runs.write_run(path, settings, loss, rows=10)
    lrs = list(study_runs.LRS[optimizer])
    steps = 200
    if optimizer == 'lion':
      lrs = {'one trial less': lrs[1:], 'no trials': []}.get(change, lrs)
      steps = 400 if change == 'longer trials' else 200
    for lr in lrs:
      settings = study_runs.config(
        'gpt2', optimizer, 0, 'tune', optimizer__lr=lr, steps=steps
      )
      path = tmp_path / f'trials/{optimizer}/{lr}'
      study_runs.write_run(path, settings, 3.6, rows=10)
  runs = comparison.load_runs([tmp_path])
  (group,) = comparison.compare(runs).groups
  assert told in group.refusal
  for key in ('eval_loss', 'train_loss'):
    verdict = group.verdict(key)
    assert (verdict.best, verdict.conclusion) == (None, 'incomparable')
    assert verdict.reason == group.refusal
  # Shown all the same, and costs do not depend on the tuning.
  assert group.cell('lion').value('eval_loss') is not None
  assert group.verdict('flops').conclusion == 'equal'
  (accepted,) = comparison.compare(runs, accept_unequal_budgets=True).groups
  assert accepted.verdict('eval_loss').conclusion == 'wins'
  assert not accepted.refusal


def test_overheads_against_the_baseline(group, study_dir):
  found = {o.optimizer: o for o in group.overheads}
  assert set(found) == {'lion', 'sophia'}
  sophia = found['sophia']
  assert sophia.flops == pytest.approx(0.098)
  assert sophia.curvature_passes == 40
  assert sophia.seconds.value == pytest.approx(21000 / 19200)
  assert sophia.state_bytes == sophia.state_bytes_baseline
  assert found['lion'].state_bytes * 2 == sophia.state_bytes
  assert costs.baseline(['lion', 'sophia']) is None


def test_hyperparameters_of_a_run(group):
  run = group.cell('lion').runs[0]
  found = budgets.hyperparameters(run)
  assert (found['b1'], found['b2'], found['lr']) == (0.9, 0.99, run.lr)
  assert found['warmup_steps'] == 20
  assert 'hessian_bias_correction' not in found


@pytest.mark.parametrize(
  ('values', 'chosen', 'expected'),
  [
    ((1.0, 2.0, 4.0), 2.0, (1, 1)),
    ((1.0, 2.0, 4.0), 1.0, (0, 2)),
    ((1.0, 2.0, 4.0), 3.0, (2, 1)),
    ((1.0, 2.0, 4.0), 2.0 * (1 + 1e-7), (1, 1)),
  ],
)
def test_distances_from_the_edges(values, chosen, expected):
  assert budgets.distance(values, chosen) == expected


def test_the_table_of_rules_speaks_of_all_that_is_compared():
  text = ' '.join(rule.subject + rule.told_by for rule in rules.RULES)
  for word in ('order', 'tokens', 'batch', 'seed', 'schedule', 'clip', 'dtype'):
    assert word in text

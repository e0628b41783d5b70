"""Plans of a run's configuration: what its keys change."""

import pytest

from steepest.experiments import base
from steepest.training import chips
from steepest.tuning import plans


def _config(variant):
  config, _ = base.with_variant(variant)
  config.model.vocab_size = 50_304
  config.batch_size = 48
  return config


def test_a_subset_makes_curvature_cheaper_and_has_to_divide():
  """The rows of each device; plans of what trains without are as they were."""
  config = _config('gpt2,sophia')
  compute = {}
  for subset in (1, 2, 3, 4):
    config.optimizer.hessian_subset = subset
    planned = plans.make_planner(config, chips.CHIPS['h100'])
    if subset == 4:
      with pytest.raises(ValueError, match='hessian_subset=4 does not divide'):
        planned.plan(plans.setting(config, 8))
      # Settings that are proposed are of those that will train.
      plan = plans.fastest(planned, 8)
      assert 48 // (plan.setting.mesh[0] * plan.setting.mesh[1]) % 4 == 0
      break
    found = planned.plan(plans.setting(config, 8))
    compute[subset] = found.seconds['compute']
  assert compute[2] / compute[1] == pytest.approx(1.05 / 1.1)
  assert compute[3] / compute[1] == pytest.approx((1 + 0.1 / 3) / 1.1)
  config = _config('gpt2,adamw')
  config.optimizer.hessian_subset = 5
  planned = plans.make_planner(config, chips.CHIPS['h100'])
  planned.plan(plans.setting(config, 8))

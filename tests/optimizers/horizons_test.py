"""Horizons against what an average or a weight does over a run."""

import math

import pytest

from steepest.experiments import base
from steepest.optimizers.optimizer import find, names
from steepest.training import config as config_lib


def _resolved(batch_size=4, steps=1000, context=32, **keys):
  config = base.get_config()
  config.update(batch_size=batch_size, steps=steps)
  config.model.context = context
  config.schedule.warmup = keys.pop('warmup', 0.0)
  config.optimizer.update(keys)
  return config_lib.resolve(config)


def _tokens_to_half(b, tokens):
  """Steps an average that holds 1 through zero gradients until it has half."""
  held, passed = 1.0, 0
  while held > 0.5 + 1e-9:
    held, passed = b * held, passed + tokens
  return passed


@pytest.mark.parametrize('batch_size', [1, 4, 16])
def test_averages_hold_as_many_tokens_at_any_batch(batch_size):
  found = _resolved(
    batch_size, b1_half_life=4096, b2_half_life=0.25, name='adamw'
  )
  tokens, (b1, b2) = batch_size * 32, found.optimizer.betas
  assert _tokens_to_half(b1, tokens) == 4096
  # A quarter of the run, however long it is.
  assert _tokens_to_half(b2, 1) == 250
  assert config_lib.resolve(found) == found


def test_an_average_that_is_updated_now_and_then_holds_as_much():
  found = _resolved(name='sophia', b2_half_life=0.1, hessian_every=20)
  assert _tokens_to_half(found.optimizer.betas[1], 20) == 100
  assert (
    found.optimizer.betas[0] == find('sophia').hyperparameters['b1'].default
  )


@pytest.mark.parametrize('steps', [10_000, 256_000])
def test_long_memories_follow_the_length_unless_they_are_set(steps):
  """AdEMAMix has 0.9999 in its authors' 256,000 steps."""
  b3 = _resolved(steps=steps, name='ademamix').optimizer.b3
  assert 1 - b3 == pytest.approx(1e-4 * 256_000 / steps, rel=0.01)
  assert _resolved(name='ademamix', b3=0.99).optimizer.b3 == 0.99
  of_adopt = _resolved(steps=100_000, name='adopt').optimizer
  assert of_adopt.betas == pytest.approx((0.9, 0.9999), abs=1e-6)
  assert _resolved(name='adopt', betas=(0.8, 0.9)).optimizer.betas == (0.8, 0.9)


@pytest.mark.parametrize(
  ('mode', 'taken'),
  [('independent', lambda o: o.weight_decay)]
  + [
    (m, lambda o: o.lr * o.weight_decay) for m in ('times_lr', 'times_role_lr')
  ],
)
@pytest.mark.parametrize('steps', [2000, 50_000])
def test_decay_takes_a_weight_down_by_e_in_its_timescale(mode, taken, steps):
  found = _resolved(steps=steps, decay_timescale=0.2, decay_mode=mode)
  weight = (1 - taken(found.optimizer)) ** (steps / 5)
  assert weight == pytest.approx(math.exp(-1), rel=2e-3)


def test_warm_up_is_tokens_or_a_share():
  for batch_size in (1, 4):
    found = _resolved(batch_size, warmup=6400)
    assert found.schedule.warmup_steps * batch_size * 32 == 6400
    assert _resolved(batch_size, warmup=0.05).schedule.warmup_steps == 50
  assert _resolved().schedule.warmup_steps == 200


def test_every_optimizer_takes_its_horizons_and_no_other():
  for name in names():
    own = find(name).hyperparameters
    memories = [n for n, x in own.items() if x.scale == 'half_life']
    given = {f'{n}_half_life': 0.1 for n in memories}
    held = _resolved(name=name, **given).optimizer
    plain = _resolved(name=name).optimizer
    shown = dict(zip(('b1', 'b2'), held.betas)) | dict(held.items())
    before = dict(zip(('b1', 'b2'), plain.betas)) | dict(plain.items())
    assert all(shown[k[:-10]] != before[k[:-10]] for k in given), name
  assert 'b2_half_life' not in _resolved(name='signum').optimizer


@pytest.mark.parametrize(
  ('keys', 'said'),
  [
    ({'b1_half_life': -1.0}, 'optimizer.b1_half_life=-1.0: give a number'),
    ({'decay_timescale': math.inf}, 'optimizer.decay_timescale=inf'),
    ({'warmup': '5%'}, "schedule.warmup='5%'|warmup"),
    ({'b2_half_life': 1e12}, 'b2_half_life=1e.12: so long'),
    ({'b4_half_life': 8.0}, 'unknown key optimizer.b4_half_life'),
  ],
)
def test_what_is_no_horizon_takes_one_line(keys, said):
  with pytest.raises((ValueError, TypeError), match=said):
    _resolved(**keys)

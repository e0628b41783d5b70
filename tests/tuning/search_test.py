"""Searches on functions whose optimum is known."""

import itertools
import math
import pathlib

from hypothesis import given, settings, strategies as st
import numpy as np
import pytest

from steepest.experiments import base
from steepest.tuning import cells, search, space

_LRS = (1e-3, 2e-3, 4e-3, 8e-3)


def _config(**study):
  config = base.get_study_config()
  config.study.lrs_adamw = config.study.lrs_sophia = _LRS
  config.study.max_extensions = 6
  config.study.update(study)
  return config


def _run(config, loss, directory=pathlib.Path(), optimizer='adamw'):
  """Searches to the end; returns the trials, losses and the best values."""
  found = search.make(config, optimizer, directory)
  losses = {}
  while True:
    trials = found.trials(losses)
    new = [t for t in trials if t.name not in losses]
    if not new:
      break
    for trial in new:
      losses[trial.name] = loss(trial.values)
  rule = config.study.optimum
  return trials, losses, search.best_values(trials, losses, rule)


def _bowl(best):
  return lambda values: math.log(values['lr'] / best) ** 2


@given(st.floats(1e-4, 8e-2))
def test_the_best_rate_lies_inside_what_the_grid_tried(best):
  trials, _, values = _run(_config(), _bowl(best))
  tried = [t.values['lr'] for t in trials]
  assert min(tried) < values['lr'] < max(tried)
  # Nearest in log: the loss is a parabola there.
  assert values['lr'] == min(tried, key=lambda x: abs(math.log(x / best)))
  assert len(tried) == len(set(tried)) >= 4
  ratios = [b / a for a, b in zip(sorted(tried), sorted(tried)[1:])]
  assert ratios == pytest.approx([2.0] * len(ratios))
  assert all(t.name == f'lr={t.values["lr"]:.6g}' for t in trials)


@pytest.mark.parametrize('kind', ['grid', 'random'])
def test_a_range_is_widened_only_so_often(kind):
  config = _config(search=kind, max_extensions=1)
  with pytest.raises(ValueError, match='at the edge after 1 extensions'):
    _run(config, _bowl(1.0))


def test_diverged_rates_lose():
  losses = {1e-3: 3.0, 2e-3: 2.0, 4e-3: math.inf, 8e-3: math.inf}
  *_, values = _run(_config(), lambda values: losses[values['lr']])
  assert values == {'lr': 2e-3}
  with pytest.raises(ValueError, match='every learning rate'):
    _run(_config(), lambda values: math.inf)


@pytest.mark.parametrize('lrs', [(1e-3, 2e-3, 4e-3), (4e-3, 2e-3, 1e-3, 5e-4)])
def test_a_grid_needs_four_rising_rates(lrs):
  with pytest.raises(ValueError, match='four or more rising'):
    search.make(_config(lrs_adamw=lrs), 'adamw', pathlib.Path())


@pytest.mark.parametrize(
  'kind, count', [('grid', 4 * 2), ('random', 16), ('tpe', 16)]
)
def test_the_first_trials_are_known_before_any_is_done(kind, count):
  config = _config(search=kind, space_b2=(0.9, 0.99))
  names = search.first_names(config, 'adamw')
  assert names == [f'trial={number:03d}' for number in range(count)]


@pytest.mark.parametrize(
  'study, message',
  [
    ({'search': 'bayes'}, "study.search='bayes': must be one of grid, random"),
    ({'optimum': 'mean'}, 'study.optimum'),
    ({'pruning': 'hyperband'}, 'study.pruning'),
    ({'trials': 0}, 'study.trials=0: must be at least 1'),
    ({'edge_fraction': 0.5}, 'below 0.5'),
    ({'space_b1': (0.9, 1.0)}, 'below 1'),
    ({'space_rho': (2.0, 1.0)}, 'rising'),
    ({'search': 'random', 'space_rho': (0.1,)}, 'lowest and a highest'),
    ({'search': 'tpe', 'space_weight_decay': (0.0, 0.1)}, 'above 0'),
  ],
)
def test_wrong_keys_are_named(study, message):
  with pytest.raises(ValueError, match=message.replace('(', r'\(')):
    search.make(_config(**study), 'sophia', pathlib.Path())


def test_a_grid_over_several_is_their_product():
  config = _config(space_b2=(0.95, 0.99), space_rho=(0.02, 0.05, 0.1))

  def loss(values):
    return _bowl(2e-3)(values) + abs(values['b2'] - 0.99) + values['rho']

  trials, _, values = _run(config, loss, optimizer='sophia')
  assert len(trials) == 4 * 2 * 3
  assert trials[0].name == 'trial=000' and trials[-1].name == 'trial=023'
  wanted = set(itertools.product(_LRS, (0.95, 0.99), (0.02, 0.05, 0.1)))
  assert {tuple(t.values.values()) for t in trials} == wanted
  assert values == {'lr': 2e-3, 'b2': 0.99, 'rho': 0.02}
  # AdamW has no rho.
  assert len(_run(config, _bowl(2e-3))[0]) == 4 * 2


def test_a_wider_grid_keeps_the_best_other_values():
  config = _config(space_weight_decay=(1e-4, 1e-3))
  loss = lambda v: _bowl(1.6e-2)(v) + v['weight_decay']
  trials, _, values = _run(config, loss)
  assert values == {'lr': 1.6e-2, 'weight_decay': 1e-4}
  assert [t.values for t in trials[8:]] == [
    {'lr': 1.6e-2, 'weight_decay': 1e-4},
    {'lr': 3.2e-2, 'weight_decay': 1e-4},
  ]


@given(st.floats(2e-4, 4e-2), st.integers(0, 5))
@settings(max_examples=30)
def test_the_best_random_rate_lies_off_the_edges(best, seed):
  config = _config(search='random', search_seed=seed)
  trials, losses, values = _run(config, _bowl(best))
  lr, tried = values['lr'], [t.values['lr'] for t in trials]
  assert losses[f'lr={lr:.6g}'] == min(losses.values())
  # The range is that of the grid, in steps of it.
  steps = (len(trials) - 16) / 6
  assert steps == int(steps)
  # A tenth of the first range lies between the best and either end.
  low, high = 1e-3, 8e-3
  while min(tried) < low:
    low /= 2
  while max(tried) > high:
    high *= 2
  assert low * 8**0.1 <= lr * 1.0001 and lr <= high / 8**0.1 * 1.0001


def test_random_draws_are_even_alike_for_all_and_known_beforehand():
  config = _config(
    search='random',
    trials=400,
    space_b2=(0.9, 0.999),
    space_warmup_steps=(1, 64),
  )
  first = search.make(config, 'adamw', pathlib.Path()).trials({})
  assert first == search.make(config, 'sophia', pathlib.Path()).trials({})
  assert len(first) == 400
  for name, coordinate in (
    ('lr', lambda x: math.log(x / 1e-3, 8)),
    ('b2', lambda x: -math.log10((1 - x) / 0.1) / 2),
    ('warmup_steps', lambda x: math.log(x, 64)),
  ):
    share = sorted(coordinate(t.values[name]) for t in first)
    even = (np.arange(400) + 0.5) / 400
    # Kolmogorov's bound at 1 %, and the rounding of small steps.
    assert np.abs(share - even).max() < 1.63 / 20 + 0.05, name
  assert all(t.values['warmup_steps'].is_integer() for t in first)
  # A killed search goes on with the same trials.
  few = {t.name: 1.0 for t in first[:7]}
  assert search.make(config, 'adamw', pathlib.Path()).trials(few) == first


@given(st.floats(1.2e-3, 6.5e-3))
def test_the_quadratic_optimum_is_the_planted_one(best):
  config = _config(optimum='quadratic')
  *_, values = _run(config, _bowl(best))
  assert values['lr'] == pytest.approx(best, rel=1e-4)


def test_the_quadratic_optimum_falls_back_on_the_best_trial():
  losses = {1e-3: 3.0, 2e-3: 2.0, 4e-3: math.inf, 8e-3: math.inf}
  config = _config(optimum='quadratic')
  assert _run(config, lambda v: losses[v['lr']])[-1] == {'lr': 2e-3}


def _planted(values):
  """A bowl over three coordinates, with its lowest point at 0."""
  parts = (
    math.log(values['lr'] / 3e-3),
    math.log((1 - values['b2']) / 0.02),
    math.log(values['weight_decay'] / 2e-4),
  )
  return sum(part**2 for part in parts)


def _tpe_config(**study):
  return _config(
    search='tpe',
    trials=24,
    space_b2=(0.9, 0.999),
    space_weight_decay=(1e-5, 1e-2),
    **study,
  )


@pytest.fixture(scope='module')
def tpe(tmp_path_factory):
  pytest.importorskip('optuna')
  directory = tmp_path_factory.mktemp('tpe')
  return _run(_tpe_config(), _planted, directory / 'whole')


def test_tpe_finds_a_planted_optimum(tpe):
  trials, losses, values = tpe
  in_order = [losses[t.name] for t in trials]
  random, asked = in_order[:6], in_order[6:]
  assert len(trials) == 24
  # Better than the worst quarter by far, and than drawing at random.
  assert min(asked) < np.quantile(in_order, 0.75) / 4
  assert np.median(asked) < np.median(random)
  assert _planted(values) == min(in_order)


def test_tpe_goes_on_where_it_was_killed(tpe, tmp_path):
  trials, losses, values = tpe
  config = _tpe_config()
  told = {}
  # Another process each time, the last trial asked for but never done.
  for count in (5, 16):
    found = search.make(config, 'adamw', tmp_path)
    while len(told) < count:
      (new,) = [t for t in found.trials(told) if t.name not in told]
      told[new.name] = losses[new.name]
    assert len(found.trials(told)) == count + 1
  again, all_losses, best = _run(config, _planted, tmp_path)
  assert again == trials
  assert (all_losses, best) == (losses, values)


def test_tpe_widens_its_range_and_takes_diverged_trials(tmp_path):
  pytest.importorskip('optuna')
  config = _config(search='tpe', trials=10)

  def loss(values):
    lr = values['lr']
    return math.inf if lr > 3e-2 else _bowl(1.4e-2)(values)

  trials, losses, values = _run(config, loss, tmp_path)
  assert len(trials) > 10 and (len(trials) - 10) % 4 == 0
  assert values['lr'] > 7.9e-3
  assert any(math.isinf(x) for x in losses.values()) or values['lr'] < 3e-2


def test_tpe_has_only_so_many_trials_under_way(tmp_path):
  pytest.importorskip('optuna')
  found = search.make(
    _config(search='tpe', trials=10, parallel_trials=3), 'adamw', tmp_path
  )
  trials = found.trials({})
  assert [t.name for t in trials] == ['trial=000', 'trial=001', 'trial=002']
  assert found.trials({}) == trials
  assert len(found.trials({'trial=001': 1.0})) == 4


def test_values_reach_the_run():
  config = _config()
  values = {
    'lr': 0.01,
    'weight_decay': 0.02,
    'b1': 0.8,
    'b2': 0.97,
    'warmup_steps': 7.0,
    'rho': 0.03,
    'logit_multiplier': 2.0,
    'attention_multiplier': 0.5,
  }
  cell = cells.Cell('gpt2', 'sophia')
  for run in (
    cells.trial_config(config, cell, values),
    cells.target_config(config, cell, values, seed=1),
  ):
    assert tuple(run.optimizer.betas) == (0.8, 0.97)
    assert run.schedule.warmup_steps == 7
    for key in ('lr', 'weight_decay', 'rho'):
      assert run.optimizer[key] == values[key]
    for key in ('logit_multiplier', 'attention_multiplier'):
      assert run.parametrization[key] == values[key]


def test_coordinates_are_logs_and_come_back():
  for name, value in (('lr', 0.003), ('b1', 0.95), ('warmup_steps', 30.0)):
    dimension = space.Dimension(name, (value, value))
    assert dimension.value(dimension.coordinate(value)) == value
  low, high = space.Dimension('b2', (0.9, 0.99)).bounds
  assert (low, high) == pytest.approx((math.log(0.01), math.log(0.1)))

"""Searches on functions whose optimum is known."""

import importlib
import itertools
import json
import math
import pkgutil
import random

from hypothesis import given, settings, strategies as st
import numpy as np
import optuna
import pytest

from steepest import experiments
from steepest.experiments import base
from steepest.optimizers import build, horizons
from steepest.optimizers.optimizer import find, names as optimizer_names
from steepest.training import config as config_lib
from steepest.tuning import cells, pruning, search

_LRS = (1e-3, 2e-3, 4e-3, 8e-3)
_SPACES = {
  'space_b2_half_life': (1e3, 1e5),
  'space_decay_timescale': (0.05, 50.0),
}


def _config(**study):
  config = base.get_study_config()
  config.study.lrs_adamw = config.study.lrs_sophia = _LRS
  config.study.update(search='grid', space='lr', trials=16, max_extensions=6)
  config.study.update(study)
  return config


def _open(config, optimizer='adamw', storage=None):
  storage = storage or optuna.storages.InMemoryStorage()
  optuna.logging.set_verbosity(optuna.logging.ERROR)
  return search.Search(config, cells.Cell('gpt2', optimizer), storage)


def _run(config, loss, optimizer='adamw', slots=1, order=None):
  """Searches to the end; returns the trials, their losses and the best values.

  Args:
    config: of the study.
    loss: (values) → loss.
    optimizer: whose hyperparameters are searched.
    slots: trials under way at once.
    order: draws which of them ends next; by default the first.
  """
  found = _open(config, optimizer)
  losses, running = {}, []
  while True:
    trials = found.trials(losses)
    for trial in trials:
      busy = trial in running or trial.number in losses
      if not busy and len(running) < slots:
        running.append(trial)
    if not running:
      return trials, losses, found.best(losses)
    ended = running.pop(order.randrange(len(running)) if order else 0)
    losses[ended.number] = loss(ended.values)


def _bowl(best):
  return lambda values: math.log(values['lr'] / best) ** 2


@given(st.floats(1e-4, 8e-2))
@settings(max_examples=20, deadline=None)
def test_the_best_rate_lies_inside_what_the_grid_tried(best):
  trials, _, values = _run(_config(), _bowl(best))
  tried = [t.values['lr'] for t in trials]
  assert min(tried) < values['lr'] < max(tried)
  # Nearest in log: the loss is a parabola there.
  assert values['lr'] == min(tried, key=lambda x: abs(math.log(x / best)))
  assert len(tried) == len(set(tried)) >= 4
  ratios = [b / a for a, b in zip(sorted(tried), sorted(tried)[1:])]
  assert ratios == pytest.approx([2.0] * len(ratios))


@pytest.mark.parametrize('kind', ['grid', 'sobol'])
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


def test_a_grid_over_several_is_their_product_and_widens_in_the_rate():
  config = _config(space_b2_half_life=(0.1, 0.4), space_rho=(0.02, 0.05))
  loss = lambda v: _bowl(1.6e-2)(v) - v['b2_half_life'] + v['rho']
  trials, _, values = _run(config, loss, 'sophia')
  wanted = set(itertools.product(_LRS, (0.1, 0.4), (0.02, 0.05)))
  assert {tuple(t.values.values()) for t in trials[:16]} == wanted
  others = {'b2_half_life': 0.4, 'rho': 0.02}
  assert values == {'lr': 1.6e-2, **others}
  assert [t.values for t in trials[16:]] == [
    {'lr': lr, **others} for lr in (1.6e-2, 3.2e-2)
  ]
  # AdamW has no rho.
  assert len(_run(config, _bowl(2e-3))[0]) == 4 * 2


@given(st.floats(2e-4, 4e-2))
@settings(max_examples=15, deadline=None)
def test_a_range_grows_until_the_best_rate_is_off_its_edges(best):
  config = _config(search='sobol')
  trials, losses, values = _run(config, _bowl(best))
  lr, tried = values['lr'], [t.values['lr'] for t in trials]
  assert min(losses.values()) == _bowl(best)(values)
  # A third of 16 trials for each step of the first range.
  assert (len(trials) - 16) % 6 == 0
  low, high = 1e-3, 8e-3
  while min(tried) < low:
    low /= 2
  while max(tried) > high:
    high *= 2
  # A tenth of the first range lies between the best and either end.
  assert low * 8**0.1 <= lr * 1.0001 and lr <= high / 8**0.1 * 1.0001


def test_points_are_spread_evenly_and_shared_by_all_optimizers():
  own = {'space_rho': (0.01, 1.0), 'space_clip_norm': (0.1, 10.0)}
  config = _config(search='sobol', trials=64, **own, **_SPACES)
  sophia = _open(config, 'sophia').trials({})
  adamw = _open(config).trials({})
  assert [{**t.values, 'rho': None} for t in sophia] == [
    {**t.values, 'rho': None} for t in adamw
  ]
  # Sobol (1967): of the first 2^m points, one lies in each of 2^m intervals.
  for name, share in (
    ('lr', lambda x: math.log(x / 1e-3, 8)),
    ('b2_half_life', lambda x: math.log10(x / 1e3) / 2),
    ('decay_timescale', lambda x: math.log10(x / 0.05) / 3),
    ('rho', lambda x: math.log10(x / 0.01) / 2),
    ('clip_norm', lambda x: math.log10(x / 0.1) / 2),
  ):
    held = {math.floor(64 * share(t.values[name])) for t in sophia}
    assert held == set(range(64)), name


def _planted(values):
  """A bowl over three coordinates, with its lowest point at 0."""
  parts = (
    math.log(values['lr'] / 3e-3),
    math.log(values['b2_half_life'] / 5e3),
    math.log(values['decay_timescale'] / 2),
  )
  return sum(part**2 for part in parts)


def test_tpe_finds_a_planted_optimum():
  config = _config(search='tpe', trials=24, **_SPACES)
  trials, losses, values = _run(config, _planted)
  in_order = [losses[t.number] for t in trials]
  # Better than the worst quarter by far, and than points that know nothing.
  assert min(in_order[6:]) < np.quantile(in_order, 0.75) / 4
  assert np.median(in_order[6:]) < np.median(in_order[:6])
  assert _planted(values) == min(in_order)


@pytest.mark.parametrize('kind', ['grid', 'sobol', 'tpe'])
@pytest.mark.parametrize('pruning', ['none', 'median'])
def test_any_number_of_slots_and_any_order_give_the_same_trials(kind, pruning):
  config = _config(
    search=kind, pruning=pruning, trials=10, parallel_trials=3, **_SPACES
  )
  loss = lambda v: math.inf if v['lr'] > 1.5e-2 else _planted(v)
  first, *_ = wanted = _run(config, loss)
  for slots in (2, 3, 8):
    order = random.Random(slots)
    assert _run(config, loss, slots=slots, order=order) == wanted
  # Trial n waits for trial n - 3 alone.
  found, losses = _open(config), {}
  if kind == 'tpe' or pruning == 'median':
    assert found.trials(losses) == first[:3]
    losses |= {t.number: loss(t.values) for t in first[1:3]}
    assert found.trials(losses) == first[:3]
    losses[0] = loss(first[0].values)
    assert found.trials(losses) == first[:6]
    assert list(found.before(5)) == [0, 1, 2]


@pytest.mark.parametrize('kind', ['grid', 'sobol', 'tpe'])
def test_a_search_that_was_killed_goes_on_with_the_same_trials(kind, tmp_path):
  config = _config(search=kind, trials=9, **_SPACES)
  wanted, losses, best = _run(config, _planted)
  told = {}
  # Another process each time, killed in the middle of a line.
  while told != losses:
    found = _open(config, storage=search.open_journal(tmp_path))
    new = [t for t in found.trials(told) if t.number not in told]
    told |= {t.number: _planted(t.values) for t in new[:3]}
    with (tmp_path / search.JOURNAL).open('a') as file:
      file.write('{"op_code": 5, "wor')
  found = _open(config, storage=search.open_journal(tmp_path))
  assert found.trials(losses) == wanted
  assert found.best(losses) == best
  # Optuna reads the same from the journal.
  study = optuna.load_study(
    study_name='gpt2-adamw', storage=search.open_journal(tmp_path)
  )
  assert study.best_value == min(losses.values())
  assert study.best_trial.params['lr'] == best['lr']
  lines = (tmp_path / search.JOURNAL).read_text().splitlines()
  assert all(json.loads(line) for line in lines)


@pytest.mark.parametrize(
  ('begun', 'now', 'said'),
  [
    ({}, {'search': 'tpe'}, "study.search=grid, asked for 'tpe'"),
    ({}, {'lrs_adamw': (1e-3, 2e-3, 4e-3, 9e-3)}, 'study.lrs_adamw='),
    (
      {},
      {'space_b1_half_life': (2.0, 9.0)},
      r'study.space_b1_half_life=\(\), asked for \[2.0',
    ),
    (
      {'search': 'sobol'},
      {'space': 'all', 'trials': 0},
      'study.trials=16, asked for 24',
    ),
    ({'search': 'tpe'}, {'parallel_trials': 2}, 'study.parallel_trials=1'),
  ],
)
def test_a_search_that_has_begun_cannot_be_changed(begun, now, said):
  storage = optuna.storages.InMemoryStorage()
  _open(_config(**begun), storage=storage).trials({})
  _open(_config(**begun, max_extensions=9), storage=storage)
  with pytest.raises(ValueError, match=f'with .*{said}'.replace("'", '')):
    _open(_config(**{**begun, **now}), storage=storage)


def test_a_search_of_an_earlier_version_resumes_if_its_points_are_the_same():
  storage = optuna.storages.InMemoryStorage()
  config = _config(search='sobol')
  _open(config, storage=storage)
  [(name, kept)] = [
    (s.study_name, s.user_attrs['search'])
    for s in optuna.get_all_study_summaries(storage)
  ]
  study = optuna.load_study(study_name=name, storage=storage)
  study.set_user_attr('search', kept[:-1] + ', "search_seed": 0}')
  _open(config, storage=storage)
  study.set_user_attr('search', kept[:-1] + ', "search_seed": 5}')
  with pytest.raises(ValueError, match='with study.search_seed=5, asked for 0'):
    _open(config, storage=storage)


@pytest.mark.parametrize(
  ('study', 'said'),
  [
    ({'search': 'bayes'}, "study.search='bayes': must be one of grid, sobol"),
    ({'pruning': 'hyperband'}, 'study.pruning'),
    ({'space_b1': (0.9, 0.99)}, 'space_b1: no optimizer of the study searches'),
    ({'space': 'lr,rhoo'}, 'study.space=rhoo: no optimizer'),
    ({'space_b1_half_life': ()}, 'increasing'),
    ({'space_rho': (2.0, 1.0)}, 'increasing'),
    ({'search': 'sobol', 'space_rho': (0.1,)}, 'lowest and a highest'),
    ({'search': 'tpe', 'space_b1_half_life': (0.0, 0.1)}, 'above 0'),
    ({'lrs_sophia': (1e-3, 2e-3, 4e-3)}, 'four or more increasing'),
    ({'lrs_sophia': (4e-3, 2e-3, 1e-3, 5e-4)}, 'four or more increasing'),
  ],
)
def test_wrong_keys_are_named(study, said):
  with pytest.raises(ValueError, match=said):
    search.check(_config(**study))


_NO_RANGE = """
import optax
from steepest.optimizers.optimizer import Hyper, Optimizer
OPTIMIZER = Optimizer('mine', 'Mine', 'here', lambda h: optax.identity(),
  {'lr': Hyper(0.1)})
"""


def test_an_optimizer_without_rates_takes_one_line(tmp_path):
  """Else a grid has four rates over the range in the optimizer's file."""
  config = _config(optimizers='muon')
  (lr,) = search.dimensions(config, 'muon')
  assert lr.values == (1e-3, 2e-3, 4e-3, 8e-3)
  path = tmp_path / 'mine.py'
  path.write_text(_NO_RANGE)
  with pytest.raises(ValueError, match='lrs_mine is missing, and .* no range'):
    search.count(config, str(path))


def _ends(finished, losses, steps, log_every=1):
  """Returns after how many steps the pruner ends a trial; None: it does not."""
  pruner = pruning.MedianPruner(finished, steps, log_every)
  for step, loss in enumerate(losses):
    if pruner.ends({'step': step, 'train/loss': loss}):
      return step + 1
  return None


@given(
  st.lists(
    st.lists(st.floats(1.0, 4.0), min_size=40, max_size=40),
    min_size=2,
    max_size=7,
  ),
  st.sampled_from([1, 2]),
)
@settings(max_examples=25, deadline=None)
def test_pruning_equals_a_simulation(runs, log_every):
  """Median of four or more finished trials, after 30 % of the steps."""
  *others, losses = runs
  kept = np.array(runs)[:, ::log_every].reshape(len(runs), 20, -1)
  *means, own = kept.mean(-1)
  wanted = None
  for i in range(20):
    late = len(others) >= 4 and 2 * (i + 1) >= 12
    if late and own[: i + 1].min() > np.median(np.array(means)[:, i]):
      wanted = 2 * (i + 1)
      break
  finished = [
    pruning.curve(
      [
        {'step': step, 'train/loss': loss}
        for step, loss in enumerate(of)
        if step % log_every == 0
      ],
      40,
    )
    for of in others
  ]
  assert _ends(finished, losses, 40, log_every) == wanted


def test_values_reach_the_run():
  config = _config()
  values = {
    'lr': 0.01,
    'decay_timescale': 0.25,
    'b1_half_life': 2e6,
    'b2_half_life': 0.1,
    'warmup': 0.07,
    'clip_norm': 0.3,
    'rho': 0.03,
  }
  config.optimizer.betas = (0.5, 0.6)
  cell = cells.Cell('gpt2', 'sophia')
  for run in (
    cells.trial_config(config, cell, values, seed=0),
    cells.target_config(config, cell, values, seed=1),
  ):
    assert run.schedule.warmup == 0.07
    for key in values.keys() - {'warmup'}:
      assert run.optimizer[key] == values[key]
    # A target, of twice as many steps, remembers as many tokens.
    found = config_lib.resolve(run)
    b1, b2 = found.optimizer.betas
    assert math.log(0.5, b1) * 512 * 1024 == pytest.approx(2e6)
    assert math.log(0.5, b2) * 10 == pytest.approx(run.steps / 10)
    assert found.optimizer.weight_decay == pytest.approx(4 / run.steps)
    assert found.schedule.warmup_steps == round(0.07 * run.steps)


@pytest.mark.parametrize('optimizer', optimizer_names())
def test_each_value_that_is_searched_changes_the_run(optimizer):
  config = _config(
    search='sobol', space='all', models='llama', optimizers=optimizer
  )
  config.model.vocab_size = 256
  (cell,) = cells.cells(config)
  dimensions = search.dimensions(config, optimizer)
  middle = {d.name: d.values[0] for d in dimensions}

  def reached(values):
    run = cells.trial_config(config, cell, values, 0)
    run = config_lib.resolve(run)
    return build.hyperparameters(run.optimizer, run.schedule, run.steps)

  for d in dimensions:
    other = reached(middle | {d.name: d.values[-1]})
    assert other != reached(middle), d.name


_STUDIES = [
  importlib.import_module(f'steepest.experiments.{info.name}')
  for info in pkgutil.iter_modules(experiments.__path__)
  if info.name in ('quickstart', 'paper_study')
  or info.name in ('cpu_study', 'field_study', 'size_study')
]


@pytest.mark.parametrize('recipe', _STUDIES, ids=lambda x: x.__name__[21:])
def test_shipped_studies_search_alike(recipe):
  config = recipe.get_config('')
  assert search.notes(config) == []
  # Nobody's memories, decay or curvature are set by hand.
  for name in cells.optimizers(config):
    own = find(name).hyperparameters
    searched = {d.name for d in search.dimensions(config, name)}
    for key in ('b1', 'b2', 'weight_decay', 'rho', 'auxiliary_lr'):
      # On a sphere nothing decays, and in a ball all do by 1.
      held = key == 'weight_decay' and name in ('adamh', 'muonh', 'scion')
      if key in own and not held:
        assert horizons.key(key, own[key]) in searched, (name, key)
    run = cells.trial_config(config, cells.Cell('gpt2', name), {}, 0)
    assert run.optimizer.betas is None


def test_what_each_optimizer_needs_is_searched_in_trials_by_one_rule():
  config = _config(space='all', search='sobol', trials=0)
  for name in optimizer_names():
    own = find(name).hyperparameters
    searched = search.dimensions(config, name)
    known = {horizons.key(n, h) for n, h in own.items() if h.range}
    assert {d.name for d in searched} == known
    assert search.count(config, name) == 8 + 4 * len(searched)
    for d in searched:
      low, high = d.bounds
      # Half-lives of a step to a quarter of the run; the default may be longer.
      if d.name in ('b1_half_life', 'b2_half_life') and d.values[0] > 1:
        of_step = config.batch_size * config.model.context
        assert of_step <= d.values[0] < d.values[-1]
        assert d.values[-1] <= config.steps * of_step / 4
      assert high - low > math.log(4), (name, d.name)


_MINE = """
import optax
from steepest.optimizers.optimizer import Hyper, Optimizer, lr, momentum
OPTIMIZER = Optimizer('mine', 'Mine', 'here', lambda h: optax.identity(), {
  'lr': lr(0.1, range=(1e-3, 8e-3)), 'b1': momentum(0.9),
  'share': Hyper(0.5, range=(0.0, 1.0), scale='linear'),
  'softness': Hyper(0.1, range=(0.01, 1.0))})
"""


def test_an_optimizer_from_outside_gets_the_same_points(tmp_path):
  path = tmp_path / 'mine.py'
  path.write_text(_MINE)
  config = _config(search='sobol', space='all', trials=32)
  mine = _open(config, str(path)).trials({})
  adamw = _open(config).trials({})
  for a, b in zip(mine, adamw, strict=True):
    for name in ('lr', 'b1_half_life', 'decay_timescale'):
      assert a.values[name] == b.values[name]
  # Its own lie evenly over its own ranges.
  shares = sorted(math.floor(32 * t.values['share']) for t in mine)
  assert shares == list(range(32))
  logs = {
    math.floor(16 * math.log10(t.values['softness'] / 0.01)) for t in mine
  }
  assert logs == set(range(32))


_RHO = {'optimizers': 'adamw,sophia', 'space_rho': (0.01, 0.1)}
_SOBOL = {**_RHO, 'search': 'sobol'}


@pytest.mark.parametrize(
  ('study', 'said'),
  [
    (
      {'lrs_lion': (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)},
      ['grids, in trials: adamw 4, lion 5', 'adamw 8, lion 16'],
    ),
    (
      {'lrs_lion': (1e-3, 4e-3, 1.6e-2, 6.4e-2)},
      ['rates in factors of adamw 2, lion 4', 'factors of adamw 8, lion 64'],
    ),
    # The same span in one gap that is wider.
    ({'lrs_lion': (1e-3, 1.5e-3, 2e-3, 8e-3)}, ['factors of adamw 2, lion 4']),
    (_RHO, ['in trials: adamw 4, sophia 8']),
    (_SOBOL, ['in hyperparameters: adamw 1, sophia 2']),
    # By the rule the one with more to search has more trials.
    ({**_SOBOL, 'trials': 0}, []),
    # Equal factors, rounded.
    ({'lrs_lion': (3.3e-4, 6.67e-4, 1.333e-3, 2.65e-3)}, []),
  ],
)
def test_what_is_unequal_is_said(study, said):
  config = _config(optimizers='adamw,lion', lrs_lion=(1e-4, 2e-4, 4e-4, 8e-4))
  config.study.update(study)
  notes = search.notes(config)
  assert len(notes) == len(said)
  for note, part in zip(notes, said):
    assert part in note

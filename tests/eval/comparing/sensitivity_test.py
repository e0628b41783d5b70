"""Losses off the best value, on curves with a closed form."""

import math

import pytest

from steepest.eval.comparing import comparison, sensitivity

_LRS = tuple(1e-3 * 2.0**i for i in range(7))
_BEST = 8e-3


def _parabola(lr, height=0.1):
  return 3 + height * math.log(lr / _BEST) ** 2


@pytest.fixture
def search(study_runs, tmp_path):
  """Writes trials of Lion and AdamW with the losses of parabolas in log lr."""

  def write(lrs=_LRS, diverging=(), optimizer='lion', height=0.1, **changes):
    for lr in lrs:
      settings = study_runs.config(
        'gpt2', optimizer, 0, 'tune', optimizer__lr=lr, **changes
      )
      status = 'diverged' if lr in diverging else 'finished'
      name = '-'.join(map(str, [f'lr={lr:g}', *changes.values()]))
      study_runs.write_run(
        tmp_path / 'trials' / f'gpt2-{optimizer}' / name,
        settings,
        _parabola(lr, height) - 0.035,
        status=status,
        stop=90 if status == 'diverged' else None,
        rows=20,
      )

  def read():
    result = comparison.compare(comparison.load_runs([tmp_path]))
    return {(s.optimizer, s.name): s for s in result.sensitivities}

  write.read = read
  return write


def test_increases_are_those_of_the_trials(search):
  search()
  found = search.read()['lion', 'lr']
  assert found.best == pytest.approx(_BEST)
  for off in found.offs:
    assert off.status == 'tried'
    expected = 0.1 * math.log(off.factor) ** 2
    assert off.increase == pytest.approx(expected, abs=1e-9)


def test_between_trials_it_is_interpolated():
  # Thirds of a factor of two, every other one: 2 is on the grid, 4 is not.
  rates = [_BEST * 2.0 ** (i / 3) for i in (-9, -7, *range(-5, 6, 2), 7, 9)]
  points = sorted((lr, _parabola(lr)) for lr in [*rates, _BEST])
  for off in sensitivity.offs('lr', _BEST, points):
    expected = 0.1 * math.log(off.factor) ** 2
    on_grid = off.factor in (0.5, 2.0)
    assert off.status == ('tried' if on_grid else 'interpolated')
    assert off.increase == pytest.approx(
      expected, rel=1e-9 if on_grid else 0.02
    )


def test_nothing_is_said_beyond_what_was_tried(search):
  search(lrs=_LRS[1:5])
  offs = {o.factor: o for o in search.read()['lion', 'lr'].offs}
  assert offs[0.25].status == 'tried' and offs[2.0].status == 'tried'
  assert offs[4.0].status == 'not tried' and offs[4.0].increase is None


def test_divergence_is_told_and_counted(search):
  search(diverging=_LRS[4:])
  found = search.read()['lion', 'lr']
  offs = {o.factor: o for o in found.offs}
  assert (found.trials, found.diverged) == (7, 3)
  assert offs[2.0].status == offs[4.0].status == 'diverged'


def test_rate_sensitivity_of_a_parabola(search):
  search()
  found = search.read()['lion', 'lr'].rates
  # The mean of 0.1 x² over [-log 4, log 4].
  expected = 0.1 * math.log(4) ** 2 / 3
  assert (found.low, found.high) == pytest.approx((_BEST / 4, _BEST * 4))
  assert found.value == pytest.approx(expected, rel=0.03)


def test_diverged_trials_count_as_the_loss_at_initialization():
  points = [(1.0, 5.0), (2.0, 3.0), (4.0, math.inf)]
  found = sensitivity.rate_sensitivity(points, 7.0, 2.0, 4.0)
  # A monotone cubic from 3 to 7 with the slopes of its ends, in closed form:
  # more than nothing, less than all of the rise.
  assert 0 < found.value < 4
  flat = sensitivity.rate_sensitivity([(1.0, 9.0), (4.0, 8.0)], 7.0, 1.0, 4.0)
  assert flat.value == pytest.approx(0.0, abs=1e-12)


def test_all_optimizers_get_the_range_that_all_have_tried(search):
  search()
  search(lrs=_LRS[2:6], optimizer='adamw')
  found = search.read()
  for optimizer in ('lion', 'adamw'):
    rates = found[optimizer, 'lr'].rates
    assert rates.high / rates.low == pytest.approx(4.0)
    expected = 0.1 * math.log(2) ** 2 / 3
    assert rates.value == pytest.approx(expected, rel=0.15)


def test_a_range_beyond_the_rates_is_refused():
  with pytest.raises(ValueError, match='do not hold'):
    sensitivity.rate_sensitivity([(1.0, 3.0), (2.0, 3.1)], 7.0, 0.5, 2.0)


def test_other_hyperparameters_are_held_at_the_best(
  search, study_runs, tmp_path
):
  losses = {
    (1e-3, 1e-4, 0.9): 3.5,
    (2e-3, 1e-4, 0.9): 3.2,
    (2e-3, 2e-4, 0.9): 3.0,
    (4e-3, 2e-4, 0.9): 3.1,
    (2e-3, 8e-4, 0.9): 3.7,
    (2e-3, 2e-4, 0.8): 3.3,
  }
  for (lr, decay, b1), loss in losses.items():
    settings = study_runs.config(
      'gpt2',
      'lion',
      0,
      'tune',
      optimizer__lr=lr,
      optimizer__weight_decay=decay,
      optimizer__betas=[b1, 0.99],
    )
    path = tmp_path / 'trials' / 'gpt2-lion' / f'{lr}-{decay}-{b1}'
    study_runs.write_run(path, settings, loss - 0.035, rows=20)
  found = search.read()
  increases = {
    name: {o.factor: o.increase and round(o.increase, 6) for o in s.offs}
    for (_, name), s in found.items()
  }
  assert increases['lr'] == {0.25: None, 0.5: None, 2.0: 0.1, 4.0: None}
  decay = increases['weight_decay']
  assert (decay[0.25], decay[0.5], decay[4.0]) == (None, 0.2, 0.7)
  assert 0 < decay[2.0] < 0.7
  # Twice as far from one.
  assert increases['b1'] == {0.25: None, 0.5: None, 2.0: 0.3, 4.0: None}


def test_decay_rates_are_measured_by_what_is_left_of_one():
  points = [(0.9, 3.2), (0.95, 3.0), (0.975, 3.1)]
  offs = {o.factor: o for o in sensitivity.offs('b2', 0.95, points)}
  assert offs[2.0].increase == pytest.approx(0.2)
  assert offs[0.5].increase == pytest.approx(0.1)
  assert offs[0.25].status == 'not tried'

"""Optima, drifts and penalties of curves whose answers are known."""

import math

from hypothesis import given, strategies as st
import numpy as np
import pytest

from steepest.eval.parametrization import transfer
from steepest.eval.plots import transfer as transfer_plots

_LRS = tuple(1e-3 * 2.0**k for k in range(8))


def _trials(best, widths=(16, 32, 64, 128), seeds=3, noise=0.0, lrs=_LRS):
  """Parabolas in log2 of the rate; `best` maps a width to their minimum."""
  rng = np.random.default_rng(0)
  env = {'git_commit': 'abc', 'device_kind': 'cpu', 'versions': {}}
  return [
    transfer.Trial(
      cell=('gpt2', 'lion', 'mup'),
      width=width,
      base_width=widths[0],
      seed=seed,
      lr=lr,
      loss=(
        3.0
        - 0.1 * math.log2(width)
        + 0.05 * math.log2(lr / best(width)) ** 2
        + noise * rng.normal()
      ),
      unclipped=None,
      seconds=1.0,
      env=env,
    )
    for width in widths
    for seed in range(seeds)
    for lr in lrs
  ]


@given(st.floats(2.2e-3, 6e-2))
def test_optimum_of_a_parabola_is_its_vertex(best):
  losses = {lr: math.log2(lr / best) ** 2 for lr in _LRS}
  assert transfer.optimum(losses) == pytest.approx(math.log2(best))


def test_optimum_at_an_end_or_beside_divergence_is_the_lowest_point():
  assert transfer.optimum({1e-3: 1.0, 2e-3: 2.0, 4e-3: 3.0}) == math.log2(1e-3)
  losses = {1e-3: 3.0, 2e-3: 2.0, 4e-3: math.inf}
  assert transfer.optimum(losses) == math.log2(2e-3)
  assert transfer.optimum({1e-3: math.inf, 2e-3: math.inf}) is None


@pytest.mark.parametrize('power', [0.0, -0.5, 0.25])
def test_drift_is_the_power_of_the_width(power):
  best = lambda width: 1e-2 * (width / 16) ** power
  (cell,) = transfer.analyse(_trials(best))['cells']
  assert cell['drift_steps_per_octave']['mean'] == pytest.approx(power)
  assert cell['drift_steps_per_octave']['error'] == pytest.approx(0, abs=1e-9)
  assert cell['drift_steps_per_octave']['seeds'] == 3
  assert cell['shift_steps']['mean'] == pytest.approx(3 * power)


def test_penalty_is_what_the_narrow_rate_costs_the_wide_model():
  """Two grid steps off costs 0.05·2²; at the base nothing."""
  best = lambda width: 8e-3 if width == 16 else 2e-3
  (cell,) = transfer.analyse(_trials(best))['cells']
  assert cell['proxy_lr'] == 8e-3
  penalties = [w['penalty_of_proxy_lr']['mean'] for w in cell['widths']]
  assert penalties == pytest.approx([0, 0.2, 0.2, 0.2])
  assert cell['widths'][0]['best_loss']['mean'] == pytest.approx(2.6)
  assert cell['widths'][3]['best_lrs'] == [2e-3] * 3


def test_wider_is_better_counts_equal_rates():
  (cell,) = transfer.analyse(_trials(lambda width: 8e-3))['cells']
  pairs = 3 * 3 * len(_LRS)
  assert cell['wider_is_better'] == {
    'better': pairs,
    'pairs': pairs,
    'better_at_proxy_lr': 9,
    'pairs_at_proxy_lr': 9,
  }


def test_seeds_that_tried_few_rates_do_not_bend_the_curve():
  """Seed 1 is higher by 1 and has three rates: the mean is one parabola."""
  y = lambda lr: math.log2(lr / 8e-3) ** 2
  curves = [
    {'seed': 0, 'lrs': list(_LRS), 'losses': [y(lr) for lr in _LRS]},
    {
      'seed': 1,
      'lrs': list(_LRS[2:5]),
      'losses': [1 + y(lr) for lr in _LRS[2:5]],
    },
  ]
  lrs, losses, errors = transfer_plots.points(curves)
  assert lrs == list(_LRS)
  assert losses == pytest.approx([0.5 + y(lr) for lr in _LRS])
  assert errors == pytest.approx([0, 0, 0.5, 0.5, 0.5, 0, 0, 0])


def test_figures_have_all_cells_and_the_same_bytes_again(tmp_path):
  pytest.importorskip('matplotlib')
  trials = _trials(lambda width: 8e-3, noise=0.01)
  result = transfer.analyse(trials)
  (tmp_path / 'again').mkdir()
  for directory in (tmp_path, tmp_path / 'again'):
    transfer_plots.write(result, directory)
  for name in ('transfer', 'drift'):
    svg = (tmp_path / f'{name}.svg').read_bytes()
    assert svg == (tmp_path / 'again' / f'{name}.svg').read_bytes()
    assert (tmp_path / f'{name}.png').read_bytes()[:4] == b'\x89PNG'
  # Titles are drawn as paths; their text stands in comments.
  text = (tmp_path / 'transfer.svg').read_text('utf-8')
  assert '<!-- gpt2, lion, mup -->' in text and '<!-- width 128 -->' in text

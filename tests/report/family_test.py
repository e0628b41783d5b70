"""How often equal optimizers are told apart, and a gap is found: simulated.

Normal seeds, drawn here; what decides is the code that decides in a report.
"""

import numpy as np
import pytest

from steepest.report import statistics

# Simulations of each study; the standard error of a rate of 5 % is 0.3 points.
_DRAWS = 5000
_QUESTIONS = 10_000
# Variance over questions of what is an optimizer's own in its answers.
_OWN = 0.1


def _spreads(kind, k):
  """Returns each optimizer's seed deviation over the usual one."""
  if kind == 'equal':
    return np.ones(k)
  if kind == 'one noisy':
    return np.r_[5.0, np.ones(k - 1)]
  return np.geomspace(0.2, 5.0, k)


def _decisions(values_NxKxS, lower, differences, every=True):
  """Returns of each study the winner (−1: none), and if any two differ."""
  k = values_NxKxS.shape[1]
  first, second = statistics.pairs(k)
  means_NxK = values_NxKxS.mean(-1)
  best = (means_NxK if lower else -means_NxK).argmin(-1)
  found = differences(values_NxKxS[:, first], values_NxKxS[:, second])
  p = statistics.corrected(found.p, best, k, every)
  own = (first == best[:, None]) | (second == best[:, None])
  wins = np.where(own, p < statistics.LEVEL, True).all(-1)
  return np.where(wins, best, -1), (p < statistics.LEVEL).any(-1)


@pytest.mark.slow
@pytest.mark.parametrize('compare', [statistics.paired, statistics.unpaired])
@pytest.mark.parametrize('kind', ['equal', 'one noisy', 'rising'])
@pytest.mark.parametrize('n', [3, 5, 10])
@pytest.mark.parametrize('k', [2, 3, 14])
def test_equal_losses_are_rarely_told_apart(k, n, kind, compare):
  rng = np.random.default_rng([k, n])
  draws = _DRAWS if k < 14 else _DRAWS // 2
  values = rng.normal(size=(draws, k, n)) * _spreads(kind, k)[:, None]
  if compare is statistics.paired:
    values += 3 * rng.normal(size=(draws, 1, n))
  winner, any_pair = _decisions(values, True, compare)
  assert (winner >= 0).mean() <= 0.06
  assert any_pair.mean() <= 0.06


@pytest.mark.slow
@pytest.mark.parametrize('points', [0.5, 1.0])
@pytest.mark.parametrize('lasting', [0.0, 0.5, 1.0])
@pytest.mark.parametrize('kind', ['equal', 'one noisy', 'rising'])
@pytest.mark.parametrize('n', [3, 5, 10])
@pytest.mark.parametrize('k', [2, 3, 14])
def test_equal_accuracies_are_rarely_told_apart(k, n, kind, lasting, points):
  """`lasting`: share of what is an optimizer's own that its seeds share."""
  rng = np.random.default_rng([k, n, int(10 * points)])
  draws = _DRAWS if k < 14 else _DRAWS // 3
  lasts, once = _OWN * lasting / _QUESTIONS, _OWN * (1 - lasting) / _QUESTIONS
  seeds = points / 100 * _spreads(kind, k)[:, None]
  values = rng.normal(size=(draws, k, 1)) * np.sqrt(lasts)
  values = values + rng.normal(size=(draws, k, n)) * np.sqrt(seeds**2 + once)

  def compare(first, second):
    variance = 2 * (lasts + once / n)
    return statistics.scored(first, second, variance, _QUESTIONS)

  every = statistics.holds_scores(n, k)
  winner, any_pair = _decisions(values, False, compare, every)
  assert (winner >= 0).mean() <= 0.06
  assert any_pair.mean() <= 0.06


def test_a_gap_of_four_deviations_is_found():
  rng = np.random.default_rng(0)
  values = rng.normal(size=(_DRAWS, 3, 5))
  values[:, 0] -= 4
  winner, _ = _decisions(values, True, statistics.paired)
  assert (winner == 0).mean() >= 0.8
  assert np.isin(winner, [0, -1]).all()


@pytest.mark.parametrize('k', [2, 3, 14])
def test_seeds_needed_have_the_power_that_is_named(k):
  """The least number of seeds sees the gap, one seed fewer does not."""
  gap = 1.5
  needed = statistics.seeds_needed(gap, k)
  rng = np.random.default_rng(k)
  seen = []
  for n in (needed - 1, needed):
    p = statistics.paired(rng.normal(gap, 1, size=(20_000, n)), np.zeros(n)).p
    seen.append((p < statistics.LEVEL / (k - 1)).mean())
  assert seen[0] < 0.82 and 0.75 < seen[1] < 0.95

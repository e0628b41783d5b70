"""What figures draw is what the tables hold, and what was planted is found."""

import math

import numpy as np
import pandas as pd
import pytest

from steepest.report import (
  axes,
  curves,
  differences,
  scaling,
  scores,
  speedups,
  tables,
  tuning,
  verdicts,
  widths,
)


def _figure(sections, key):
  figures = [figure for part in sections for figure in part.figures]
  return next(f for f in figures if f.key == key).content


def _runs(**columns):
  """Tables of final runs or trials with the given columns."""
  frame = pd.DataFrame(columns)
  frame['run'] = [str(i) for i in range(len(frame))]
  empty = pd.DataFrame()
  return tables.Tables(frame, *[empty] * 5)


def test_loss_lines_are_means_over_seeds(compared):
  content = _figure(curves.loss(compared), 'loss')
  line = next(
    trace
    for trace in content['data']
    if trace['meta']['optimizer'] == 'lion'
    and trace['meta']['kind'] == 'eval'
    and trace['meta']['when']['seeds'] == 'mean'
  )
  runs = compared.compared
  own = runs[(runs['group'] == 'gpt2') & (runs['optimizer'] == 'lion')]
  points = compared.tables.points.dropna(subset=['eval/loss'])
  of = points[points['run'].isin(own['run'])].groupby('step')
  assert line['y'] == pytest.approx(list(of['eval/loss'].mean()), rel=1e-5)
  seconds = list(of['seconds'].mean())
  assert line['xs']['seconds'] == pytest.approx(seconds, rel=1e-5)
  band = [
    trace['y']
    for trace in content['data']
    if trace['meta']['optimizer'] == 'lion'
    and trace['meta']['kind'].startswith('eval, ')
  ][:2]
  assert band[0] == pytest.approx(list(of['eval/loss'].min()), rel=1e-5)
  assert band[1] == pytest.approx(list(of['eval/loss'].max()), rel=1e-5)


def test_single_seeds_are_on_demand_and_diverged_ones_always_drawn(plant):
  found = plant({'adamw': [3.4, 3.41, 3.42], 'lion': [3.5, None, 3.52]})
  data = _figure(curves.loss(found), 'loss')['data']
  marks = [t for t in data if t['meta']['kind'] == 'mark']
  (mark,) = marks
  assert mark['meta']['optimizer'] == 'lion' and mark['meta']['seed'] == 1
  assert 'seeds' not in mark['meta']['when']
  single = [t for t in data if t['meta']['when'].get('seeds') == 'single']
  assert {t['meta']['seed'] for t in single} == {0, 1, 2}
  means = [t['name'] for t in data if 'mean of' in t['name']]
  assert set(means) == {'AdamW, mean of 3 seeds', 'Lion, mean of 2 seeds'}


def test_scores_are_those_of_the_cells(compared):
  content = _figure(scores.sections(compared), 'scores')
  cells = compared.cells.set_index(['group', 'optimizer', 'column'])
  checked = 0
  for trace in content['data']:
    if trace['meta']['kind'] != 'score':
      continue
    group = 'gpt2' if trace['xaxis'] == 'x' else 'llama'
    for column, x, error in zip(
      trace['meta']['labels'],
      trace['x'],
      trace['error_x']['array'],
      strict=True,
    ):
      cell = cells.loc[group, trace['meta']['optimizer'], column]
      assert x == pytest.approx(100 * cell['mean'], rel=1e-5)
      assert error == pytest.approx(100 * cell['stderr'], rel=1e-5)
      checked += 1
  assert checked == 6 * 7


@pytest.mark.parametrize('optimizers', [3, 6])
def test_differences_are_those_of_the_pairs(plant, optimizers):
  names = ['adamw', 'lion', 'sophia', 'muon', 'signum', 'nadamw'][:optimizers]
  noise = np.random.default_rng(0).normal(0, 0.002, (len(names), 4))
  found = plant(
    {
      name: [
        float(3.4 + 0.02 * i + 0.01 * seed + e) for seed, e in enumerate(of)
      ]
      for i, (name, of) in enumerate(zip(names, noise, strict=True))
    }
  )
  pairs = found.pairs[found.pairs['column'] == 'eval_loss']
  made = differences.sections(found)
  if optimizers == 3:
    drawn = [t['x'][0] for t in _figure(made, 'differences')['data']]
    assert drawn == pytest.approx(list(pairs['difference']), rel=1e-5)
    return
  best = _figure(made, 'leaders')['data']
  of_best = pairs[pairs['first'] == 'adamw']['difference'].sort_values()
  # Each minus the best one, the nearest first.
  drawn = [t['x'][0] for t in best]
  assert drawn == pytest.approx(list(-of_best)[::-1], rel=1e-5)
  assert all(t['error_x']['array'][0] > 0 for t in best)


@pytest.mark.parametrize('searched', [True, False])
def test_without_an_equal_search_every_mark_is_open(plant, searched):
  losses = {
    name: [3.4 + gap + 0.01 * seed + own * seed for seed in range(4)]
    for name, gap, own in (('adamw', 0, 1e-4), ('lion', 0.3, -1e-4))
  }
  found = plant(losses, rates={} if searched else {'lion': ()})
  data = _figure(differences.sections(found), 'differences')['data']
  assert data[0]['marker']['symbol'].endswith('-open') is not searched


def test_tuning_marks_are_the_trials(compared):
  content = _figure(tuning.sections(compared), 'tuning')
  runs = compared.tables.runs
  trials = runs[
    (runs['stage'] == 'tune')
    & (runs['status'] == 'finished')
    & (runs['group'] == 'gpt2')
    & (runs['optimizer'] == 'sophia')
  ].sort_values('lr')
  drawn = next(
    trace
    for trace in content['data']
    if trace['meta']['optimizer'] == 'sophia'
    and trace['meta']['kind'] == 'trial'
  )
  assert drawn['x'] == pytest.approx(list(trials['lr']), rel=1e-5)
  assert drawn['y'] == pytest.approx(list(trials['loss']), rel=1e-5)
  diverged = [t for t in content['data'] if t['meta']['kind'] == 'diverged']
  assert {t['meta']['optimizer'] for t in diverged} == {'sophia'}


def test_planted_axes_and_budgets_are_found(study_runs, tmp_path):
  study_runs.write_axis_study(tmp_path, models=('gpt2',))
  found = verdicts.compare(tables.read([tmp_path]))
  effects = axes.effects(found)
  of_epochs = effects[effects['axis'] == 'epochs'].set_index('optimizer')
  for name, added in study_runs.EPOCHS_ADD.items():
    row = of_epochs.loc[name]
    assert row['difference'] == pytest.approx(added, abs=1.5e-3)
    assert row['low'] < added < row['high'] and row['n'] == 3
  # Between AdamW's three budgets; of one size nothing is read beyond them.
  ((model, points),) = speedups.models(found).items()
  assert model == 'gpt2, epochs 1'
  rows = speedups.measure(points, None).dropna(subset='speedup')
  assert list(rows['optimizer']) == ['lion', 'lion', 'sophia', 'sophia']
  for row in rows.to_dict('records'):
    planted = study_runs.SPEEDUPS[row['optimizer']]
    assert row['speedup'] == pytest.approx(planted, rel=0.03)
    assert row['low'] < planted < row['high']
  (made,) = scaling.sections(found)
  assert [b.title for b in made.blocks[1:]] == ['Speed-ups by size']
  drawn = _figure([made], 'budgets')['data']
  assert [len(trace['x']) for trace in drawn] == [3] * 3


def test_drift_of_a_planted_optimum_is_found():
  """log2 of the best rate falls by 0.5 a doubling of the width."""
  rows = [
    (
      width,
      seed,
      lr,
      4 + 0.1 * (math.log2(lr) + 8 + 0.5 * math.log2(width)) ** 2,
    )
    for width in (16, 32, 64)
    for seed in range(3)
    for lr in 2.0 ** np.arange(-14, -7)
  ]
  width, seed, lr, loss = map(list, zip(*rows, strict=True))
  curves_ = widths.curves(
    _runs(
      stage='tune',
      status=['finished'] * len(rows),
      architecture='gpt2',
      optimizer='adamw',
      seed=seed,
      lr=lr,
      loss=loss,
      **{'config.parametrization.kind': 'sp', 'config.model.width': width},
    )
  )
  found = widths.optima(curves_)
  assert len(found) == 9
  best = -8 - 0.5 * np.log2(found['width'])
  np.testing.assert_allclose(found['best'], best, atol=1e-6)
  # The narrowest's best rate, 2^-10, is one doubling too high at width 64.
  at_64 = found[found['width'] == 64]
  np.testing.assert_allclose(at_64['cost'], 0.1, atol=1e-6)
  (drift,) = widths.drifts(found)['mean']
  assert drift == pytest.approx(-0.5, abs=1e-6)

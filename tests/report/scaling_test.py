"""Speed-ups over sizes, against planted laws and by simulation."""

import json
import math
import re
import shutil

import numpy as np
import pandas as pd
import pytest

from steepest.report import (
  batches,
  laws,
  report,
  results,
  scaling,
  speedups,
  tables,
  verdicts,
)

_SIZES = (1e5, 3e5, 1e6)
_RATIOS = (10, 20, 40)


def _loss(parameters, tokens, faster=1.0):
  """The law of arXiv 2203.15556, its parts made alike at these sizes."""
  return 1.7 + 8 / parameters**0.34 + 82 / (faster * np.asarray(tokens)) ** 0.28


def _points(rng, noise=2e-3, ratios=_RATIOS, seeds=3, **faster):
  """Runs of AdamW at all ratios, and of others that read tokens faster."""
  rows = []
  for name, times in {'adamw': 1.0, **faster}.items():
    for size in _SIZES:
      for ratio in ratios if name == 'adamw' else ratios[-2:-1]:
        for _ in range(seeds):
          loss = _loss(size, ratio * size, times) + rng.normal(0, noise)
          rows.append((name, size, ratio * size, loss))
  return pd.DataFrame(
    rows, columns=['optimizer', 'parameters', 'tokens', 'loss']
  )


def test_a_planted_law_is_found():
  points = _points(np.random.default_rng(0), 1e-5)
  law = laws.fit(points)
  floor, _, alpha, _, beta = law.unknowns_U
  assert math.exp(floor) == pytest.approx(1.7, abs=0.02)
  assert alpha == pytest.approx(0.34, abs=0.02)
  assert beta == pytest.approx(0.28, abs=0.01)
  # Ten times the size that was trained.
  far = law.tokens_for('adamw', 1e7, float(_loss(1e7, 2e8)))
  assert far == pytest.approx(2e8, rel=0.02)


def test_outliers_do_not_bend_a_law():
  """What Huber's loss is for."""
  points = _points(np.random.default_rng(0), 1e-5)
  points.loc[4, 'loss'] += 0.5
  law = laws.fit(points)
  assert math.exp(law.unknowns_U[0]) == pytest.approx(1.7, abs=0.05)
  assert law.unknowns_U[4] == pytest.approx(0.28, abs=0.02)


def test_planted_speed_ups_are_read_off_with_and_without_a_law():
  points = _points(np.random.default_rng(1), lion=1.3, muon=2.6)
  law = laws.fit(points)
  assert law.optimizers == ('adamw',)
  both = speedups.measure(points, law).set_index('optimizer')
  lion, muon = both.loc['lion'], both.loc['muon']
  assert list(lion['speedup']) == pytest.approx([1.3] * 3, rel=0.03)
  assert not lion['extrapolated'].any()
  # At twice the tokens AdamW's budgets end.
  assert list(muon['speedup']) == pytest.approx([2.6] * 3, rel=0.06)
  assert muon['extrapolated'].all()
  assert (
    (both['low'] < both['speedup']) & (both['speedup'] < both['high'])
  ).all()
  alone = speedups.measure(points, None).set_index('optimizer')
  pd.testing.assert_frame_equal(alone.loc['lion'], lion)
  assert alone.loc['muon', 'speedup'].isna().all()


def test_only_what_holds_at_every_size_is_claimed():
  rng = np.random.default_rng(7)
  points = _points(rng, lion=1.3, muon=2.6, sophia=0.7, soap=1.0)
  rows = speedups.measure(points, None)
  said = scaling._at_every_size(rows, pd.DataFrame())
  number = r'(\d\.\d\d)'
  numbers = rf'{number}, {number} and {number}\.'
  held = re.fullmatch(
    'Lion needs fewer tokens than AdamW for the same loss at every size: by '
    rf'factors of {numbers} Sophia needs more tokens than AdamW for the same '
    rf'loss at every size: by factors of {numbers} Neither faster nor slower '
    'at every size: SOAP. Outside AdamW’s budgets: Muon.',
    said,
  )
  assert held, said
  begun = rows[(rows['optimizer'] != 'lion') | (rows['parameters'] < 1e6)]
  said = scaling._at_every_size(begun, pd.DataFrame())
  assert 'Lion needs' not in said
  assert 'Not trained at every size: Lion.' in said
  planted = [1.3] * 3 + [1 / 0.7] * 3
  assert [*map(float, held.groups())] == pytest.approx(planted, rel=0.05)


def test_a_law_of_both_says_how_the_speed_up_goes_on():
  rng = np.random.default_rng(2)
  points = pd.concat(
    [
      _points(rng),
      *(
        _points(rng, ratios=(ratio, 1), muon=1.5).query('optimizer == "muon"')
        for ratio in _RATIOS
      ),
    ]
  )
  law = laws.fit(points)
  found = laws.trend(law, 'muon', 20.0, np.array([1e5, 1e6, 1e7]))
  assert list(found['speedup'][:2]) == pytest.approx([1.5] * 2, rel=0.05)
  assert ((found['low'] < 1.5) & (1.5 < found['high'])).all()
  width = np.log(found['high'] / found['low'])
  # Ten times beyond what was trained less is known.
  assert width[2] > 2 * width[0]


@pytest.mark.parametrize(
  'change, reason',
  [
    (lambda p: p[p['tokens'] == 20 * p['parameters']], 'only with the size'),
    (lambda p: p[p['parameters'] > 1e5], 'need 3 sizes, there are 2'),
  ],
  ids=['one ratio', 'two sizes'],
)
def test_runs_that_cannot_carry_a_law_are_refused(change, reason):
  points = change(_points(np.random.default_rng(0)))
  with pytest.raises(ValueError, match=reason):
    laws.fit(points)


def test_equal_optimizers_have_a_speed_up_of_one():
  """Of 180 comparisons of equals about 9 intervals leave 1 out."""
  rng = np.random.default_rng(3)
  found = [
    speedups.measure(_points(rng, 5e-3, lion=1.0), None).assign(model='llama')
    for _ in range(60)
  ]
  missed, trends = (
    [not row.low <= 1 <= row.high for of in frames for row in of.itertuples()]
    for frames in (found, map(speedups.trends, found))
  )
  # Three standard deviations above one in twenty.
  assert len(missed) == 180 and sum(missed) <= 17
  assert len(trends) == 60 and sum(trends) <= 8


def test_a_speed_up_that_shrinks_has_a_trend():
  rng = np.random.default_rng(8)
  shrinking = [
    _points(rng, 1e-3, muon=1.6 * (size / 1e5) ** -0.1, lion=1.3).query(
      f'parameters == {size}'
    )
    for size in _SIZES
  ]
  rows = speedups.measure(pd.concat(shrinking), None).assign(model='llama')
  trends = speedups.trends(rows).set_index('optimizer')
  assert list(trends['sizes']) == [3, 3]
  muon, lion = trends.loc['muon'], trends.loc['lion']
  assert muon['change'] == pytest.approx(10**-0.1, rel=0.05)
  assert muon['low'] < 10**-0.1 < muon['high'] < 1
  assert lion['low'] < 1 < lion['high']
  assert scaling._at_every_size(rows, trends).count('(a trend: × 0.') == 1
  # One size inside the budgets has none.
  assert not len(speedups.trends(rows[rows['parameters'] == 1e5]))


def _write_study(study_runs, root):
  """AdamW at 10, 20 and 40 tokens a parameter, Lion, twice as fast, at 20."""
  rng = np.random.default_rng(4)
  plan = study_runs.config('gpt2', 'adamw', 0, 'final')
  plan['study'] = {
    'axis_width': [1, 4],
    'axis_tokens': [0.5, 2.0],
    'retune': '',
    'width_ratio': 2,
    'tokens_per_parameter': 20.0,
    'target_steps': plan['steps'],
    'search': 'sobol',
  }
  (root / 'config.json').write_text(json.dumps(plan))
  for name, times in (('adamw', 1.0), ('lion', 1.5)):
    for width in (128, 256, 512):
      for ratio in _RATIOS if name == 'adamw' else (20,):
        size = 48 * width**2 + 2048 * width
        steps = round(size * ratio / (16 * study_runs.CONTEXT))
        for seed in range(2):
          settings = study_runs.config(
            'gpt2', name, seed, 'final', model__width=width, steps=steps
          )
          loss = float(_loss(size, ratio * size, times) + rng.normal(0, 2e-3))
          path = root / f'finals/gpt2-{name}-{width}-{ratio}/seed={seed}'
          study_runs.write_run(path, settings, loss - 0.035, rows=20)


def test_a_study_over_sizes_gets_its_section(study_runs, tmp_path):
  _write_study(study_runs, tmp_path)
  found = verdicts.compare(tables.read([tmp_path]))
  [made] = scaling.sections(found)
  assert not made.folded
  # Six of nine groups are AdamW's alone.
  sizes, *contests = results.answers(found)
  assert len(contests) == 3
  # Nothing was searched.
  assert sizes.text == 'No speed-up over AdamW is claimed.' and not sizes.fair
  insisted = verdicts.compare(tables.read([tmp_path]), insist=True)
  assert 'Lion needs fewer tokens' in results.answers(insisted)[0].text
  report.write(found, tmp_path / 'report', [])
  pd.testing.assert_frame_equal(
    pd.read_csv(tmp_path / 'report/tables/speedups.csv'),
    speedups.of(found).rows,
  )
  figure, losses, table, trends, fitted, note = made.blocks
  # AdamW's three budgets and Lion's one at each of three widths.
  drawn = [len(trace['x']) for trace in losses.content['data']]
  assert drawn == [3, 1] * 3
  [measured] = [
    trace
    for trace in figure.content['data']
    if trace['meta']['kind'] == 'measured'
  ]
  assert measured['y'] == pytest.approx([1.5] * 3, rel=0.05)
  sizes = figure.content['layout']['xaxis']['tickvals'][:3]
  assert measured['meta']['x'] == pytest.approx(sizes, rel=1e-5)
  heading, *rows = table.rows
  assert heading == 'GPT-2' and len(rows) == 3
  assert [row[1] for row in rows] == ['1.05\xa0M', '3.67\xa0M', '13.6\xa0M']
  assert len(fitted.rows) == 2
  assert 'no law of Lion: tokens change only with the size' in note.text
  # Of a study under way, the baseline may have more sizes than the others.
  for width in (256, 512):
    shutil.rmtree(tmp_path / f'finals/gpt2-lion-{width}-20')
  [begun] = scaling.sections(verdicts.compare(tables.read([tmp_path])))
  assert begun.blocks[0].content['data'][-1]['x'] == [1048580.0]
  # The baseline alone has its law, and no table of none.
  for path in (tmp_path / 'finals').glob('gpt2-lion*'):
    shutil.rmtree(path)
  [alone] = scaling.sections(verdicts.compare(tables.read([tmp_path])))
  assert [block.title for block in alone.blocks[1:]] == ['The fitted laws']


def test_sizes_with_one_budget_each_say_nothing(study_runs, tmp_path):
  _write_study(study_runs, tmp_path)
  for path in (tmp_path / 'finals').glob('gpt2-adamw-*-[14]0'):
    shutil.rmtree(path)
  found = verdicts.compare(tables.read([tmp_path]))
  [made] = scaling.sections(found)
  assert made.folded
  assert 'tokens change only with the size' in made.blocks[-1].text
  assert len(results.answers(found)) == 3
  assert not len(speedups.of(found).rows)


def _batches(rng, critical, noise=0.0):
  rows = []
  for batch in (1e3, 4e3, 1.6e4, 6.4e4):
    for tokens in (4e6, 8e6, 1.6e7):
      useful = tokens / (1 + batch / critical)
      loss = 3 + 50 / useful**0.3 + rng.normal(0, noise)
      rows.append((batch, tokens, loss))
  return pd.DataFrame(rows, columns=['batch', 'tokens', 'loss'])


def test_a_planted_critical_batch_is_found():
  rng = np.random.default_rng(5)
  exact = batches.critical(_batches(rng, 4e4))
  assert exact['batch'] == pytest.approx(4e4, rel=0.03)
  noisy = batches.critical(_batches(rng, 4e4, 1e-3))
  assert noisy['low'] < 4e4 < noisy['high']
  # At the fewest tokens, small batches get to the loss.
  loss = 3 + 50 / exact['fewest'] ** 0.3
  assert exact['loss'] == pytest.approx(loss, abs=1e-3)


def test_batches_that_meet_at_no_loss_are_refused():
  points = _batches(np.random.default_rng(6), 10.0)
  with pytest.raises(ValueError, match='no loss lies between'):
    batches.critical(points)
  with pytest.raises(ValueError, match='needs 3 batch sizes'):
    batches.critical(points[points['batch'] < 1e4])

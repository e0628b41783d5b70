"""Time to a loss on curves that are known, and what the trade-off marks."""

from hypothesis import given, settings, strategies as st
import numpy as np
import pytest

from steepest.report import speed, statistics, tables, verdicts


@settings(deadline=None)
@given(st.lists(st.floats(0, 9, allow_nan=False), min_size=1, max_size=12))
def test_smoothing_is_the_closest_falling_curve(losses):
  found_P = statistics.smoothed(np.array(losses))
  # The minimax formula: min over starts of max over ends of the means.
  n = len(losses)
  for i in range(n):
    expected = min(
      max(np.mean(losses[a : b + 1]) for b in range(i, n)) for a in range(i + 1)
    )
    assert found_P[i] == pytest.approx(expected, abs=1e-9)


def test_crossing_lies_between_points():
  x_P, losses_P = np.array([1.0, 2.0, 3.0]), np.array([5.0, 4.0, 4.0])
  assert speed.crossing(x_P, losses_P, 6.0) == 1.0
  assert speed.crossing(x_P, losses_P, 4.5) == 1.5
  assert speed.crossing(x_P, losses_P, 4.0) == 2.0
  assert np.isnan(speed.crossing(x_P, losses_P, 3.9))


def _race(study_runs, root, pace):
  """Writes runs whose validation loss is 3 + 2 / √(pace · step)."""
  for name, factor in pace.items():
    for seed in range(3):
      config = study_runs.config('gpt2', name, seed, 'final')
      path = root / f'{name}-{seed}'
      end = 3 + 2 / np.sqrt(factor * 400) - 0.035
      study_runs.write_run(path, config, end, rows=10)
      per_step = 16 * study_runs.CONTEXT
      lines = [
        f'{{"step": {s - 1}, "tokens": {s * per_step}, "seconds": {s}, '
        f'"eval/loss": {3 + 2 / np.sqrt(factor * s)}}}\n'
        for s in range(2, 401, 2)
      ]
      (path / 'metrics.jsonl').write_text(''.join(lines))


def test_speed_ups_are_the_planted_ones(study_runs, tmp_path):
  _race(study_runs, tmp_path, {'adamw': 1.0, 'lion': 0.7, 'sophia': 1.6})
  comparison = verdicts.compare(tables.read([tmp_path]))
  reached = speed.to_target(comparison).set_index('optimizer')
  assert reached.loc['sophia', 'speedup'].to_numpy() == pytest.approx(
    1.6, rel=0.01
  )
  assert reached.loc['lion', 'tokens'].isna().all()
  gap = 2 / np.sqrt(280) - 2 / np.sqrt(400)
  assert reached.loc['lion', 'gap'].to_numpy() == pytest.approx(gap)
  *_, spent = speed.sections(comparison)
  _, *rows = spent.blocks[0].rows
  assert [cell.text for cell in rows[0]] == ['AdamW', '90.0%', '4.0%', '6.0%']


def _marks(found):
  (section,) = speed.trade_off(found)
  (figure,) = section.blocks
  return {t['meta']['optimizer']: t for t in figure.content['data']}


_LOSSES = {
  'adamw': [3.40, 3.41, 3.42, 3.41],
  'lion': [3.50, 3.51, 3.52, 3.505],
}
_TIMES = {'adamw': [0.9, 0.9, 0.9], 'lion': [1.0, 1.0, 1.01]}


def test_a_mark_is_open_where_another_is_shown_to_be_better(plant):
  marks = _marks(plant(_LOSSES, timing=_TIMES))
  assert marks['adamw']['marker']['symbol'] == 'circle'
  assert marks['lion']['marker']['symbol'] == 'circle-open'


def test_without_comparable_times_there_is_no_front(plant):
  marks = _marks(plant(_LOSSES))
  assert {t['marker']['symbol'] for t in marks.values()} == {'circle-open-dot'}


@pytest.mark.parametrize(
  ('rates', 'labelled'),
  [
    ({'adamw': 0.7, 'lion': 0.4}, True),
    # No difference shown, and no better than guessing.
    ({'adamw': 0.5, 'lion': 0.5}, False),
    ({'adamw': 0.22, 'lion': 0.1}, False),
  ],
)
def test_marks_show_scores_above_chance_and_noise(plant, rates, labelled):
  hard = np.random.default_rng(1).uniform(size=400)
  scores = {}
  for i, (name, rate) in enumerate(rates.items()):
    noise = np.random.default_rng(i).uniform(size=(4, 400))
    right = [[int(x) for x in 0.9 * hard + 0.1 * row < rate] for row in noise]
    scores[name] = [{'arc_easy/acc': r, 'mmlu/acc': r} for r in right]
  marks = _marks(plant(_LOSSES, timing=_TIMES, scores=scores))
  texts = [t['text'][0] for t in marks.values()]
  assert any('%' in text for text in texts) == labelled

"""Scores during training and losses by source against the runs' files."""

import html
import json
import re

import numpy as np
import pytest

from steepest.eval.comparing import comparison
from steepest.eval.plots import curves
from steepest.eval.report import report, tables


def _compare(path):
  return comparison.compare(comparison.load_runs([path]))


def _rows(path):
  lines = (path / 'metrics.jsonl').read_text('utf-8').splitlines()
  return [json.loads(line) for line in lines]


def test_curves_are_the_logged_scores(study_dir):
  """A line per seed, the mean over seeds, and chance."""
  result = _compare(study_dir)
  figure = curves.curve_figure(result)
  # Groups' counts are no scores, and neither is the loss.
  columns = {t['meta']['when']['column'] for t in figure['data']}
  assert columns == {'arc_easy/acc', 'mmlu/acc'}
  assert figure['first'] == 'arc_easy/acc'
  seeds = [t for t in figure['data'] if 'run' in t['meta']]
  means = [t for t in figure['data'] if 'runs' in t['meta']]
  chance = [t for t in figure['data'] if t['meta']['kind'] == 'chance']
  assert (len(seeds), len(means), len(chance)) == (2 * 12, 2 * 6, 2 * 2)
  for trace in (*seeds, *means):
    key = f'eval/{trace["meta"]["when"]["column"]}'
    runs = trace['meta'].get('runs') or [trace['meta']['run']]
    values = [
      [row[key] for row in _rows(study_dir / run) if key in row] for run in runs
    ]
    wanted = 100 * np.mean(values, axis=0)
    np.testing.assert_allclose(trace['y'], wanted, rtol=1e-5)
  for trace in chance:
    assert trace['y'] == [25, 25]


def test_seeds_that_stopped_early_shorten_the_mean(study_runs, tmp_path):
  for seed, stop in ((0, None), (1, 240)):
    settings = study_runs.config('gpt2', 'adamw', seed, 'final')
    status = 'unfinished' if stop else 'finished'
    study_runs.write_run(
      tmp_path / str(seed), settings, 3.4, status=status, stop=stop, curves=True
    )
  figure = curves.curve_figure(_compare(tmp_path))
  lengths = {
    'runs' in t['meta']: len(t['y'])
    for t in figure['data']
    if t['meta']['when']['column'] == 'mmlu/acc'
  }
  assert lengths[True] == 12


def test_no_curves_where_only_the_end_was_scored(study_runs, tmp_path):
  settings = study_runs.config('gpt2', 'adamw', 0, 'final')
  study_runs.write_run(tmp_path / 'run', settings, 3.4)
  assert curves.curve_figure(_compare(tmp_path)) is None


def test_losses_by_source(study_dir, study_runs, tmp_path):
  result = _compare(study_dir)
  table = tables.by_source(result.groups[0], 0)
  heads = re.findall(r'<th class="num">(\w+)<small>([\w ]+)</small>', table)
  assert heads == [
    ('all', 'nats per token'),
    ('books', 'nats per token'),
    ('web', 'nats per token'),
    ('all', 'bits per byte'),
    ('web', 'bits per byte'),
  ]
  row = re.findall(r'/mean">([\d.]+)</data>', table)[:5]
  summaries = [
    json.loads(
      (study_dir / f'finals/gpt2-adamw/seed={s}/summary.json').read_text()
    )
    for s in (0, 1)
  ]
  wanted = [
    np.mean([pick(s) for s in summaries])
    for pick in (
      lambda s: s['eval_loss'],
      lambda s: s['eval_loss_by_source']['books'],
      lambda s: s['eval_loss_by_source']['web'],
      lambda s: s['eval_bits_per_byte'],
      lambda s: s['eval_bits_per_byte_by_source']['web'],
    )
  ]
  assert [float(v) for v in row] == pytest.approx(wanted, abs=1e-4)


def test_runs_from_before_bits_per_byte_are_shown(study_runs, tmp_path):
  """And names of sources are text, whatever they are."""
  evil = '<script>alert(1)</script>'
  settings = study_runs.config('gpt2', 'adamw', 0, 'final')
  study_runs.write_run(tmp_path / 'run', settings, 3.4)
  path = tmp_path / 'run' / 'summary.json'
  summary = json.loads(path.read_text('utf-8'))
  old = {k: v for k, v in summary.items() if 'bits_per_byte' not in k}
  old['eval_loss_by_source'] = {evil: 3.4}
  path.write_text(json.dumps(old), 'utf-8')
  text = report.write(_compare(tmp_path), tmp_path / 'out', 'x').read_text()
  assert 'nats per token</small>' in text
  assert 'bits per byte</small>' not in text
  assert evil not in text and html.escape(evil) in text

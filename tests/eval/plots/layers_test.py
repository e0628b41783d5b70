"""Layers over the depth against the runs' files."""

import json

import numpy as np

from steepest.eval.comparing import comparison
from steepest.eval.plots import layers, training

_LAYERS = ['embedding', 'block_0', 'block_2', 'block_10', 'norm', 'readout']


def _write(study_runs, path, optimizer, seed, quantities):
  """Writes a run with numbers of layers; returns them, layer → rows."""
  settings = study_runs.config('gpt2', optimizer, seed, 'final')
  study_runs.write_run(path, settings, 3.4)
  file = path / 'metrics.jsonl'
  rows = [json.loads(line) for line in file.read_text('utf-8').splitlines()]
  rng = np.random.default_rng(seed)
  values = rng.lognormal(size=(len(quantities), len(_LAYERS), len(rows)))
  for i, quantity in enumerate(quantities):
    for j in rng.permutation(len(_LAYERS)):
      for row, value in zip(rows, values[i, j]):
        row[f'{quantity}/layer/{_LAYERS[j]}'] = value
  file.write_text(''.join(json.dumps(row) + '\n' for row in rows), 'utf-8')
  return values


def test_lines_are_averages_over_the_run_and_the_seeds(study_runs, tmp_path):
  wanted = {
    optimizer: np.array(
      [
        _write(
          study_runs, tmp_path / f'{optimizer}{s}', optimizer, s, quantities
        )
        for s in range(3)
      ]
    ).mean(-1)
    for optimizer, quantities in (
      ('adamw', ['grad_norm', 'update_rms']),
      ('sophia', ['grad_norm', 'update_rms', 'unclipped_fraction']),
    )
  }
  result = comparison.compare(comparison.load_runs([tmp_path]))
  figure = layers.layer_figure(result)
  assert figure['limits']['types'] == {
    'grad_norm': 'log',
    'update_rms': 'log',
    'unclipped_fraction': 'linear',
  }
  assert len(figure['data']) == 2 + 3
  names = [name.replace('_', ' ') for name in _LAYERS]
  assert figure['layout']['xaxis']['ticktext'] == names
  for trace in figure['data']:
    meta = trace['meta']
    place = list(figure['limits']['of']).index(meta['quantity'])
    values_SxN = wanted[meta['optimizer']][:, place]
    assert meta['labels'] == _LAYERS
    np.testing.assert_allclose(trace['y'], values_SxN.mean(0), rtol=1e-5)
    sd_N = values_SxN.std(0, ddof=1)
    np.testing.assert_allclose(trace['error_y']['array'], sd_N, rtol=1e-5)
    (low, high), ends = figure['limits']['of'][meta['quantity']][0], trace['y']
    if figure['limits']['types'][meta['quantity']] == 'log':
      ends = np.log10(ends)
    assert low <= min(ends) and max(ends) <= high
  # No panel for each of them among the curves.
  assert not [
    key for key, _ in training.list_quantities(result) if '/layer/' in key
  ]


def test_runs_that_logged_no_layers_have_no_figure(study_runs, tmp_path):
  settings = study_runs.config('gpt2', 'adamw', 0, 'final')
  study_runs.write_run(tmp_path / 'run', settings, 3.4)
  result = comparison.compare(comparison.load_runs([tmp_path]))
  assert layers.layer_figure(result) is None

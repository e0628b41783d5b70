"""The notebook runs as it stands, and is kept without what it printed."""

import json
import os
import pathlib

import pytest

from steepest.data import prepare

nbformat = pytest.importorskip('nbformat')

ROOT = pathlib.Path(__file__).parent.parent.parent
_NOTEBOOKS = sorted((ROOT / 'notebooks').glob('*.ipynb'))


@pytest.mark.parametrize('path', _NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_are_kept_without_outputs(path):
  notebook = nbformat.read(path, as_version=4)
  nbformat.validate(notebook)
  for cell in notebook.cells:
    if cell.cell_type == 'code':
      assert not cell.outputs
      assert cell.execution_count is None
      compile(cell.source, path.name, 'exec')


def test_the_sweep_runs(command_env, tmp_path, monkeypatch):
  nbclient = pytest.importorskip('nbclient')
  pytest.importorskip('ipykernel')
  import argparse

  from rich.console import Console

  options = prepare.Options(
    inputs=argparse.__file__,
    tokenizer='bpe-train:300',
    out=tmp_path / 'shards',
    validation_fraction=0.5,
    source='code',
  )
  prepare.prepare(options, Console(stderr=True))
  notebook = nbformat.read(
    ROOT / 'notebooks' / 'proxy_sweep.ipynb', as_version=4
  )
  (index,) = [
    i
    for i, cell in enumerate(notebook.cells)
    if 'parameters' in cell.metadata.get('tags', ())
  ]
  values = {
    'data.source': f'shards:{tmp_path / "shards"}',
    'eval_tasks': '',
    'model.width': 16,
    'model.num_layers': 1,
    'model.context': 16,
    'batch_size': 4,
    'steps': 8,
    'schedule.warmup_steps': 2,
    'eval_sequences': 4,
    'checkpoint_every': 0,
    'study.target_steps': 8,
    'study.seeds': 1,
    'study.max_extensions': 12,
  }
  parameters = nbformat.v4.new_code_cell(
    f'WORKDIR = {str(tmp_path / "sweep")!r}\n'
    'OPTIMIZERS = "adamw"\n'
    f'OPTIONS = {values!r}\n'
  )
  notebook.cells.insert(index + 1, parameters)
  monkeypatch.setenv('PLOTLY_RENDERER', 'json')
  monkeypatch.setenv('PYTHONPATH', os.environ.get('PYTHONPATH', ''))
  monkeypatch.setenv('XLA_FLAGS', command_env['XLA_FLAGS'])
  client = nbclient.NotebookClient(
    notebook, timeout=600, resources={'metadata': {'path': str(tmp_path)}}
  )
  client.execute()
  printed = ''.join(
    output.text
    for cell in notebook.cells
    for output in cell.get('outputs', ())
    if output.output_type == 'stream'
  )
  report = tmp_path / 'sweep' / 'report' / 'report.html'
  assert f'report: {report}' in printed and report.exists()
  assert 'gpt2 adamw: best rate' in printed and '%|' in printed
  figures = [
    output.data['application/json']
    for cell in notebook.cells
    for output in cell.get('outputs', ())
    if 'application/json' in output.get('data', {})
  ]
  assert len(figures) == 2
  # The trials stand in the first one, each once.
  trials = {
    json.loads(path.read_text())['optimizer']['lr']
    for path in tmp_path.glob('sweep/trials/*/*/config.json')
  }
  marks = [
    x
    for trace in figures[0]['data']
    if trace['meta']['kind'] in ('trial', 'ended early', 'diverged')
    for x in trace['x']
  ]
  assert len(marks) == len(trials) and set(marks) == trials

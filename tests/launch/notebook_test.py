"""The notebook as its reader runs it: installed by its own cell, elsewhere."""

import argparse
import json
import pathlib
import sys
import venv

import pytest

from steepest.data import prepare

nbformat = pytest.importorskip('nbformat')

_NOTEBOOK = (
  pathlib.Path(__file__).parent.parent.parent
  / 'notebooks'
  / 'proxy_sweep.ipynb'
)
_SMALL = {
  'eval_tasks': '',
  'model.num_layers': 1,
  'model.context': 16,
  'batch_size': 4,
  'steps': 8,
  'eval_sequences': 4,
  'checkpoint_every': 0,
  'study.target_steps': 8,
  'study.seeds': 1,
  'study.trials': 3,
  'study.max_extensions': 12,
}


def _kernel(where: pathlib.Path) -> pathlib.Path:
  """An environment without the package, as the kernel `bare`."""
  venv.create(where / 'venv', symlinks=True)
  [site] = (where / 'venv').glob('lib/python*/site-packages')
  # Paths that a .pth file adds are searched for packages, not for .pth files,
  # which is how the package is installed in the tests' own environment.
  others = [path for path in sys.path if path.endswith('-packages')]
  (site / 'others.pth').write_text('\n'.join(others))
  kernel = where / 'jupyter' / 'kernels' / 'bare' / 'kernel.json'
  kernel.parent.mkdir(parents=True)
  python = str(where / 'venv' / 'bin' / 'python')
  argv = [python, '-m', 'ipykernel_launcher', '-f', '{connection_file}']
  kernel.write_text(json.dumps({'argv': argv, 'display_name': 'bare'}))
  return site


def test_it_is_kept_without_outputs():
  notebook = nbformat.read(_NOTEBOOK, as_version=4)
  nbformat.validate(notebook)
  for cell in notebook.cells:
    if cell.cell_type == 'code':
      assert not cell.outputs
      assert cell.execution_count is None


def test_it_installs_trains_and_shows_the_report(
  installed, command_env, tmp_path, monkeypatch
):
  nbclient = pytest.importorskip('nbclient')
  pytest.importorskip('ipykernel')
  from rich.console import Console

  options = prepare.Options(
    inputs=argparse.__file__,
    tokenizer='bpe-train:300',
    out=tmp_path / 'shards',
    validation_fraction=0.5,
    source='code',
  )
  prepare.prepare(options, Console(stderr=True))
  [wheel] = (installed.parents[2] / 'source' / 'dist').glob('*.whl')
  notebook = nbformat.read(_NOTEBOOK, as_version=4)
  [index] = [
    i
    for i, cell in enumerate(notebook.cells)
    if 'parameters' in cell.metadata.get('tags', ())
  ]
  values = {'data.source': f'shards:{tmp_path / "shards"}', **_SMALL}
  parameters = nbformat.v4.new_code_cell(
    f'PACKAGE = {str(wheel)!r}\nOPTIMIZERS = "adamw"\nOPTIONS = {values!r}'
  )
  notebook.cells.insert(index + 1, parameters)
  site = _kernel(tmp_path)
  monkeypatch.setenv('JUPYTER_PATH', str(tmp_path / 'jupyter'))
  monkeypatch.setenv('XLA_FLAGS', command_env['XLA_FLAGS'])
  client = nbclient.NotebookClient(
    notebook,
    kernel_name='bare',
    timeout=600,
    resources={'metadata': {'path': str(tmp_path)}},
  )
  client.execute()
  assert (site / 'steepest-9.8.7.dist-info').is_dir()
  shown = [
    output
    for cell in notebook.cells
    for output in cell.get('outputs', ())
    if output.output_type != 'stream'
  ]
  progress, report = (output.data for output in shown)
  assert progress['text/plain'].startswith('100 % after ')
  assert 'AdamW' in report['text/html']
  printed = sum(
    len(output.text)
    for cell in notebook.cells
    for output in cell.get('outputs', ())
    if output.output_type == 'stream'
  )
  assert printed < 1000

"""Targets of a study as jobs of their own: sent, trained, collected."""

import json
import pathlib
import sys

from absl import flags
from ml_collections import config_flags
import pytest

from steepest.experiments import base, field_study, paper_study, quickstart
from steepest.launch.submitters import targets
from steepest.tuning import cells

_ROOT = pathlib.Path(__file__).parent.parent.parent
# The study of the paper with models of 3,000 parameters.
_SMALL = {
  'data.source': f'flat:{_ROOT}/tests/golden/tokens.npy',
  'eval_tasks': '',
  'eval_every': 0,
  'eval_sequences': 0,
  'model.width': 16,
  'model.num_layers': 1,
  'model.num_heads': 2,
  'model.head_dim': 8,
  'model.context': 16,
  'model.vocab_size': 0,
  'batch_size': 8,
  'microbatches': 1,
  'steps': 12,
  'schedule.warmup_steps': 2,
  'study.width_ratio': 2,
  'study.target_steps': 20,
  'study.target.microbatches': 1,
  'study.target.mesh.fsdp': 2,
  'study.trials': 2,
  'study.max_extensions': 9,
}
_STUDY = (
  '--config=experiments/paper_study.py',
  *(f'--config.{key}={value}' for key, value in _SMALL.items()),
  '--targets=files',
  '--workers=1',
)


@pytest.mark.parametrize(
  'models, processes',
  [('gpt2', 2), pytest.param('gpt2,llama', 4, marks=pytest.mark.slow)],
)
def test_targets_go_out_once_and_are_collected(
  run_command, start_processes, tmp_path, models, processes
):
  """Those of four epochs train elsewhere, the others stay away."""
  study = tmp_path / 'study'
  command = (*_STUDY, f'--config.study.models={models}', '--optimizers=adamw')
  command += (f'--processes={processes}', f'--workdir={study}')
  first = run_command('study', *command)
  assert first.returncode == 0, first.stderr
  assert not list(study.glob('finals/*/*/summary.json'))
  sent = {path.stem: path for path in study.glob('submit/*.json')}
  names = models.split(',')
  assert set(sent) == {
    f'{n}-adamw{e}' for n in names for e in ('', '-epochs-4')
  }
  for name in names:
    # As another launcher would do what the file says.
    path = sent[f'{name}-adamw-epochs-4']
    described = json.loads(path.read_text('utf-8'))
    assert described['processes'] == processes
    [run] = described['runs']
    words = run['command'][1:]
    for process in start_processes(
      processes, words, **described['environment']
    ):
      _, err = process.communicate(timeout=300)
      assert process.returncode == 0, err
  written = {path: path.stat().st_mtime_ns for path in sent.values()}
  again = run_command('study', *command)
  assert again.returncode == 0, again.stderr
  for name in names:
    assert f'{name}-adamw seed=0: sent to files at' in again.stdout
    assert f'{name}-adamw-epochs=4 seed=0: sent' not in again.stdout
  assert written == {path: path.stat().st_mtime_ns for path in written}
  text = (study / 'report' / 'report.md').read_text('utf-8')
  for name in names:
    summary = study / 'finals' / f'{name}-adamw-epochs=4/seed=0/summary.json'
    loss = json.loads(summary.read_text('utf-8'))['train_loss']
    assert f'{loss:.4f}' in text


@pytest.mark.parametrize('recipe', [paper_study, quickstart, field_study])
def test_a_targets_flags_are_its_configuration(recipe, monkeypatch):
  config = recipe.get_config()
  for cell in cells.cells(config):
    wanted = cells.target_config(config, cell, {'lr': 3e-4, 'b2': 0.97}, 1)
    found = flags.FlagValues()
    holder = config_flags.DEFINE_config_file(
      'config',
      flag_values=found,
      lock_config=False,
      accept_new_attributes=True,
    )
    first, *rest = targets.overrides(wanted)
    assert first == '--config=experiments/base.py'
    words = ['train', f'--config={base.__file__}', *rest]
    # Where the library looks for keys, whatever it is told to parse.
    monkeypatch.setattr(sys, 'argv', words)
    found(words)
    assert base.flatten(holder.value) == base.flatten(wanted)


@pytest.mark.slow
@pytest.mark.parametrize('chip', ['h100', 'v5p'])
def test_the_papers_twelve_targets_on_64_chips(run_command, tmp_path, chip):
  done = run_command(
    'study',
    '--config=experiments/paper_study.py',
    *('--targets=slurm', '--dry_run', f'--chip={chip}', '--devices=64'),
    # The data need not be here.
    '--nocheck',
    f'--workdir={tmp_path}/paper',
  )
  assert done.returncode == 0, done.stderr
  lines = done.stdout.splitlines()
  names = {x.split(':')[0] for x in lines if 'one run of' in x}
  assert names == {
    f'# {model}-{optimizer}{epochs}'
    for model in ('gpt2', 'llama')
    for optimizer in ('adamw', 'lion', 'sophia')
    for epochs in ('', '-epochs-4')
  }
  meshes = [x for x in lines if 'mesh data=8 fsdp=8 tensor=1' in x]
  assert len(meshes) == 12
  assert not (tmp_path / 'paper').exists()

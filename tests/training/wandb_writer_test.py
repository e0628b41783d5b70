"""The writer to Weights & Biases, against a package that takes notes."""

import sys
import types

import pytest

from steepest.experiments import tiny
from steepest.launch import assemble
from steepest.training import metrics
from steepest.training import wandb_writer


class _Notes(dict):
  """A summary or a configuration."""

  def update(self, values, allow_val_change=True):
    super().update(values)


class _Run:
  def __init__(self, **given):
    self.given = given
    self.rows = []
    self.metrics = []
    self.summary, self.config = _Notes(), _Notes()
    self.finished = False

  def define_metric(self, name, step_metric=None):
    self.metrics.append((name, step_metric))

  def log(self, row):
    assert not self.finished
    self.rows.append(row)

  def finish(self):
    self.finished = True


@pytest.fixture
def runs(monkeypatch):
  made = []

  def init(**given):
    made.append(_Run(**given))
    return made[-1]

  module = types.SimpleNamespace(init=init, __spec__='a package')
  monkeypatch.setitem(sys.modules, 'wandb', module)
  return made


def test_a_run_is_shown_and_gone_on_with(runs, tmp_path, golden):
  config = tiny.get_config('gpt2,adamw')
  config.update_from_flattened_dict(
    {
      'data.source': f'flat:{golden}/tokens.npy',
      'model.num_layers': 1,
      'model.width': 32,
      'model.context': 16,
      'mesh.data': 1,
      'schedule.kind': 'constant',
      'steps': 3,
      'checkpoint_every': 2,
    }
  )
  # It may be turned on, and off, at any restart.
  workdir = tmp_path / 'a-run'
  for steps, project in ((3, ''), (4, 'proj'), (6, 'proj')):
    config.steps, config.wandb_project = steps, project
    assemble.train(config, workdir, {})
  assert len(runs) == 2
  first, second = runs
  assert first.given == second.given
  assert first.given['project'] == 'proj' and first.given['name'] == 'a-run'
  assert first.given['resume'] == 'allow' and len(first.given['id']) == 32
  assert first.metrics == [('step', None), ('*', 'step')]
  assert first.rows + second.rows == metrics.read_rows(workdir)[3:]
  assert first.finished and second.finished


def test_texts_and_hyperparameters_arrive(runs, tmp_path):
  writer = wandb_writer.WandbWriter(tmp_path, 'proj')
  writer.write_hparams({'seed': 0})
  writer.write_texts(0, {'parameters': 'many'})
  writer.flush()
  writer.close()
  assert dict(runs[0].config) == {'seed': 0}
  assert dict(runs[0].summary) == {'parameters': 'many'}


def test_without_the_package_it_says_what_to_install(monkeypatch, tmp_path):
  monkeypatch.setitem(sys.modules, 'wandb', None)
  with pytest.raises(ValueError, match=r"pip install 'steepest\[wandb\]'"):
    wandb_writer.WandbWriter(tmp_path, 'proj')

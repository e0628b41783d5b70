"""The writer to Weights & Biases, against a package that takes notes."""

import json
import sys
import types

import pytest

from steepest.experiments import tiny
from steepest.training import metrics, run as assemble, wandb


class _Notes(dict):
  """A summary or a configuration."""

  def update(self, values, allow_val_change=True):
    super().update(values)


class _CommError(Exception):
  """As the package raises where it cannot reach its service."""


class _Run:
  fails: frozenset[str] = frozenset()

  def __init__(self, **given):
    self._may_fail('init')
    self.given = given
    self.rows = []
    self.metrics = []
    self.hidden = []
    self.summary, self.config = _Notes(), _Notes()
    self.finished = False

  def _may_fail(self, what):
    if what in self.fails:
      raise _CommError(f'{what} timed out\nand so on')

  def define_metric(self, name, step_metric=None, hidden=False):
    self.metrics.append((name, step_metric))
    if hidden:
      self.hidden.append(name)

  def log(self, row):
    assert not self.finished
    if len(self.rows) == 2:
      self._may_fail('log')
    self.rows.append(row)

  def finish(self):
    self._may_fail('finish')
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


@pytest.fixture
def config(golden):
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
  return config


@pytest.fixture
def told():
  return []


def test_a_run_is_shown_and_gone_on_with(runs, tmp_path, config):
  # It may be turned on, and off, at any restart.
  workdir = tmp_path / 'a-run'
  for steps, project in ((3, ''), (4, 'proj'), (6, 'proj')):
    config.steps, config.wandb_project = steps, project
    assemble.train(config, workdir)
  assert len(runs) == 2
  first, second = runs
  assert first.given == second.given
  assert first.given['project'] == 'proj' and first.given['name'] == 'a-run'
  assert first.given['resume'] == 'allow' and len(first.given['id']) == 32
  assert first.metrics[:2] == [('step', None), ('*', 'step')]
  # No panel for each layer, of a model that may have a hundred.
  layers = [name for name in first.rows[0] if '/layer/' in name]
  assert 'update_rms/layer/block_0' in layers and len(layers) >= 6
  assert sorted(first.hidden) == sorted(layers)
  assert first.metrics[2:] == [(name, 'step') for name in first.hidden]
  assert first.rows + second.rows == metrics.read_rows(workdir)[3:]
  assert first.finished and second.finished


def test_a_run_of_a_sweep_is_the_one_that_its_agent_names(
  runs, tmp_path, config, monkeypatch
):
  """And stays it when it goes on by hand."""
  config.wandb_project = 'proj'
  for steps, ids in ((3, {'WANDB_RUN_ID': 'abc123'}), (5, {})):
    with monkeypatch.context() as patched:
      for name, value in ids.items():
        patched.setenv(name, value)
      config.steps = steps
      assemble.train(config, tmp_path)
  assert [run.given['id'] for run in runs] == ['abc123', 'abc123']


@pytest.mark.parametrize('what', ['log', 'finish'])
def test_training_goes_on_without_it(
  runs, tmp_path, config, monkeypatch, capsys, what
):
  """The service fails; the next start finds it away, the one after there."""
  config.wandb_project = 'proj'
  losses = []
  for steps, fails in ((5, what), (7, 'init'), (9, '')):
    monkeypatch.setattr(_Run, 'fails', frozenset([fails]))
    config.steps = steps
    losses.append(assemble.train(config, tmp_path)['train_loss'])
  rows = metrics.read_rows(tmp_path)
  assert [row['step'] for row in rows] == list(range(9)) and all(losses)
  first, last = runs
  assert first.rows == rows[: 2 if what == 'log' else 5]
  assert last.rows == rows[7:] and last.finished
  assert first.given['id'] == last.given['id']
  text = (tmp_path / 'events.jsonl').read_text('utf-8')
  events = [json.loads(line) for line in text.splitlines()]
  assert [e['kind'] for e in events] == ['metrics', 'metrics']
  said = f'no more rows: _CommError: {what} timed out; all are in metrics.jsonl'
  assert said in events[0]['text'] and '_CommError: init' in events[1]['text']
  assert capsys.readouterr().err.count('Weights & Biases') == 2


def test_failing_at_the_very_first_start_is_an_error(
  runs, tmp_path, config, monkeypatch
):
  config.wandb_project = 'proj'
  monkeypatch.setattr(_Run, 'fails', frozenset(['init']))
  with pytest.raises(ValueError, match=r"'proj': _CommError: init timed") as e:
    assemble.train(config, tmp_path)
  assert '\n' not in str(e.value) and 'wandb login' in str(e.value)
  assert not metrics.read_rows(tmp_path)


def test_texts_and_hyperparameters_arrive(runs, tmp_path, told):
  writer = wandb.WandbWriter(tmp_path, 'proj', told.append)
  writer.write_hparams({'seed': 0})
  writer.write_texts(0, {'parameters': 'many'})
  writer.flush()
  writer.close()
  assert dict(runs[0].config) == {'seed': 0}
  assert dict(runs[0].summary) == {'parameters': 'many'}
  assert not told


def test_without_the_package_it_says_what_to_install(
  monkeypatch, tmp_path, told
):
  monkeypatch.setitem(sys.modules, 'wandb', None)
  with pytest.raises(ValueError, match=r"pip install 'steepest\[wandb\]'"):
    wandb.WandbWriter(tmp_path, 'proj', told.append)

"""Jobs of a slot, in this process: what is refused first, and trial meshes."""

import json
import pathlib
import types

import pytest

from steepest.data import buckets
from steepest.experiments import base
from steepest.tuning import engine, study as studies, worker

_TOKENS = pathlib.Path(__file__).parent.parent / 'golden' / 'tokens.npy'
_AXES = ('data', 'fsdp', 'tensor', 'sequence')


def _config(**keys):
  config = base.get_study_config()
  config.data.source = f'flat:{_TOKENS}'
  config.update(batch_size=8, steps=4, log_every=1, eval_sequences=0)
  config.model.update(num_layers=1, width=16, num_heads=2, context=16)
  config.dtype.compute = 'float32'
  config.study.update(models='gpt2', optimizers='adamw', seeds=1)
  config.study.update(target_steps=4, lrs_adamw=(1.0, 4.0, 16.0, 64.0))
  config.update_from_flattened_dict(keys)
  return config


@pytest.mark.parametrize(
  'keys, message',
  [
    ({'data.source': 'flat:/nowhere.npy'}, '^trials of gpt2-adamw: .*nowhere'),
    (
      {'study.trial_mesh.fsdp': 3},
      '^trials of gpt2-adamw: batch_size=8 is not',
    ),
    (
      {'study.target': {'mesh': {'tensor': 4}}},
      '^targets of gpt2-adamw: .*multiple of mesh.tensor',
    ),
    ({'eval_tasks': 'arc_easy'}, '^targets of gpt2-adamw: .*needs a tokenizer'),
    ({'model.vocab_size': 2}, '^trials of gpt2-adamw: .*set model.vocab_size'),
  ],
)
def test_what_cannot_run_is_named_before_the_first_trial(
  tmp_path, keys, message
):
  target = keys.pop('study.target', {})
  config = _config(**keys)
  config.study.target = target
  study = studies.Study(config, tmp_path)
  with engine.InProcess() as slots:
    with pytest.raises(engine.JobFailedError, match=message) as error:
      studies.check(study, slots, 8)
  assert '\n' not in str(error.value)
  assert not list(tmp_path.glob('trials/*/*'))


def test_trials_have_the_mesh_of_trials_and_targets_their_own(
  tmp_path, monkeypatch
):
  kept = []
  monkeypatch.setattr(worker.mesh_lib, 'keep_programs', kept.append)
  config = _config(**{'study.trial_mesh.fsdp': 2})
  config.study.target = {'mesh': {'data': 1}}
  study = studies.Study(config, tmp_path)
  with engine.InProcess() as slots:
    studies.check(study, slots, 8)
    for kinds, _ in studies.phases(config, 8):
      studies.run(study, slots, kinds)
  meshes = {
    kind: {
      tuple(json.loads(path.read_text())['mesh'][axis] for axis in _AXES)
      for path in tmp_path.glob(f'{kind}/*/*/config.json')
    }
    for kind in ('trials', 'finals')
  }
  assert meshes == {'trials': {(1, 2, 1, 1)}, 'finals': {(1, 1, 1, 1)}}
  # All of them share what is compiled.
  assert set(kept) == {tmp_path / 'programs'}
  attempts = [
    json.loads(path.read_text())['attempt']
    for path in tmp_path.rglob('env.json')
  ]
  assert {attempt['number'] for attempt in attempts} == {1}


def test_a_run_saves_at_the_deadline_and_goes_on_from_there(
  tmp_path, monkeypatch
):
  config = _config(checkpoint_every=100, eval_sequences=2)
  study = studies.Study(config, tmp_path / 'whole')
  run = study.planned(('targets',))[0]
  loss = worker.train(study.job(run))
  # The clock reaches the deadline with the second step.
  clock = iter([4.0, 5.0])
  with monkeypatch.context() as patch:
    patch.setattr(worker, 'time', types.SimpleNamespace(time=clock.__next__))
    stopped = study.job(run, 5.0) | {'directory': str(tmp_path / 'stopped')}
    assert worker.train(stopped) == worker.STOPPED
  assert not (tmp_path / 'stopped' / 'summary.json').exists()
  assert next((tmp_path / 'stopped' / 'checkpoints').glob('[0-9]*')).name == '2'
  assert worker.train({**stopped, 'deadline': None}) == loss


# tests/launch/buckets_test.py has both kinds of buckets.
@pytest.mark.parametrize('bucket', ['gs'], indirect=True)
def test_workers_elsewhere_bring_their_runs_to_the_bucket(
  bucket, tmp_path, monkeypatch
):
  """Slots that see nothing of the driver's copy, as those of other machines."""
  monkeypatch.setenv('STEEPEST_CACHE', str(tmp_path))
  monkeypatch.setenv('STEEPEST_SLOT', '3')
  config = _config(checkpoint_every=2)
  config.study.update(trials=1, max_extensions=0)
  with buckets.staged(bucket, 'at this study') as stage:
    study = studies.Study(config, stage.directory, stage=stage)
    with engine.InProcess() as slots:
      studies.run(study, slots)
    study.raise_failures()
    assert study.over and study.has_results
    seen = {path.name for path in stage.directory.glob('*/*/*/checkpoints/*/*')}
  left = buckets.read(bucket)
  ended = [p.parent.parent.parent.name for p in left.glob('*/*/*/summary.json')]
  assert sorted(ended) == ['finals', 'trials']
  assert list(left.glob('finals/*/*/checkpoints/4/state'))
  # What the driver sees of a run, and what a worker leaves.
  assert seen == {'checksums.json'}
  assert not list(tmp_path.glob('buckets/write-3/*/*/*/*/*/*/*'))

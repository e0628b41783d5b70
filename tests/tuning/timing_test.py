"""The timing pass: whose turn it is, and what the report reads of it."""

import json
import pathlib

import pytest

from steepest.experiments import base
from steepest.report import runs
from steepest.training import config as config_lib
from steepest.tuning import cells, engine, timing

_TOKENS = pathlib.Path(__file__).parent.parent / 'golden' / 'tokens.npy'


def _study():
  config = base.get_study_config()
  config.data.source = f'flat:{_TOKENS}'
  config.model.update(
    num_layers=1, width=16, num_heads=2, context=16, vocab_size=512
  )
  config.dtype.compute = 'float32'
  config.batch_size, config.steps, config.eval_sequences = 8, 10, 0
  config.study.update(
    models='gpt2', optimizers='adamw,lion', target_steps=10, seeds=1
  )
  config.study.axis_epochs = (2,)
  config.study.timing_repeats = 2
  return config


def test_optimizers_of_a_group_take_turns(tmp_path):
  config = _study()
  for cell in cells.cells(config):
    run = cells.target_config(config, cell, {}, 0)
    directory = cells.target_dir(tmp_path, cell, 0)
    directory.mkdir(parents=True)
    text = json.dumps(config_lib.as_json(run))
    (directory / 'config.json').write_text(text)
  with engine.InProcess() as slots:
    timing.run(config, tmp_path, slots)
    path = tmp_path / timing.FILE
    found = json.loads(path.read_text())
    groups = [of['group'] for of in found['groups']]
    assert [of['epochs'] for of in groups] == [1, 2]
    assert [of['tokens'] for of in groups] == [1280, 1280]
    for of in found['groups']:
      turns = [turn['optimizer'] for turn in of['repeats']]
      assert turns == ['adamw', 'lion'] * 2
    rows = runs.read_timing(path)
    assert [row['repeat'] for row in rows] == [1, 1, 2, 2] * 2
    assert all(0 < row['seconds_per_step'] < 10 for row in rows)
    # What has been timed is not timed again, and no CPU by default.
    modified = path.stat().st_mtime_ns
    timing.run(config, tmp_path, slots)
    assert path.stat().st_mtime_ns == modified
    path.unlink()
    config.study.timing_repeats = -1
    timing.run(config, tmp_path, slots)
    assert not path.exists()


def test_a_batch_that_does_not_fit_is_named(tmp_path):
  config = _study()
  cell = cells.Cell('gpt2', 'adamw')
  run = config_lib.as_json(cells.target_config(config, cell, {}, 0))
  run['microbatches'] = 3
  directory = cells.target_dir(tmp_path, cell, 0)
  directory.mkdir(parents=True)
  (directory / 'config.json').write_text(json.dumps(run))
  with engine.InProcess() as slots:
    with pytest.raises(engine.JobFailedError, match='batch_size'):
      timing.run(config, tmp_path, slots)

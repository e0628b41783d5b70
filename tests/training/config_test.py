"""What a run may be given, and what a restart may change."""

import json

import pytest

from steepest.experiments import base
from steepest.training import config as validation


@pytest.mark.parametrize('kind', ['cosine', 'linear', 'wsd', 'constant'])
def test_fewer_steps_are_refused_where_they_change_the_schedule(tmp_path, kind):
  config = validation.resolve(base.get_config())
  config.schedule.kind = kind
  saved = json.dumps(validation.as_json(config))
  (tmp_path / 'config.json').write_text(saved, 'utf-8')
  validation.check_same(config, tmp_path)
  config.steps -= 1
  if kind == 'constant':
    validation.check_same(config, tmp_path)
    return
  with pytest.raises(ValueError, match='steps=10000, asked for 9999'):
    validation.check_same(config, tmp_path)


def test_runs_made_with_keys_of_earlier_versions(tmp_path, monkeypatch):
  removed = {'model.turns': '', 'colour': validation._ANY, 'odd.kept': 0}
  monkeypatch.setattr(validation, '_REMOVED', removed)
  config = validation.resolve(base.get_config())

  def save(**values):
    saved = validation.as_json(config) | {'colour': 'red', 'odd': {'kept': 0}}
    saved['model']['turns'] = ''
    for key, value in values.items():
      saved[key] |= value
    (tmp_path / 'config.json').write_text(json.dumps(saved), 'utf-8')

  save()
  validation.check_same(config, tmp_path)
  read = base.flatten(validation.read_config(tmp_path))
  assert not read.keys() & removed.keys()
  # What only training needs is no obstacle to scoring the model.
  save(odd={'kept': 3})
  validation.read_config(tmp_path)
  with pytest.raises(ValueError, match='odd.kept=3, which this version does'):
    validation.check_same(config, tmp_path)
  save(model={'turns': 'linear:2'})
  for read in (
    validation.read_config,
    lambda w: validation.check_same(config, w),
  ):
    with pytest.raises(ValueError, match='model.turns=linear:2'):
      read(tmp_path)


@pytest.mark.parametrize(
  'key, value, said',
  [
    ('schedule.warmup_steps', -(2**63) - 1, 'must be at least -2147483647'),
    ('schedule.warmup_steps', 2**70, 'must be at most 2147483647'),
    ('optimizer.lr', 3.4028234663852890e38, 'must be finite as a float32'),
    ('optimizer.lr', float('nan'), 'must be finite as a float32'),
    ('optimizer.betas', (0.9, float('inf')), 'must be finite as a float32'),
    ('profile_steps', (3,), 'the first step to trace'),
    ('profile_steps', (3, 3), 'the first step to trace'),
    ('profile_steps', (0.5, 3), 'the first step to trace'),
  ],
)
def test_numbers_that_the_devices_do_not_hold_are_refused(key, value, said):
  config = validation.resolve(base.get_config())
  validation.check_ranges(config)
  with config.ignore_type():
    config.update_from_flattened_dict({key: value})
  with pytest.raises(ValueError) as error:
    validation.check_ranges(config)
  assert str(error.value).startswith(f'{key}=')
  assert said in str(error.value)

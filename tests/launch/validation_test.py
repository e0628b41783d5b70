"""What a restart may change."""

import json

import pytest

from steepest.experiments import base
from steepest.launch import validation


@pytest.mark.parametrize('kind', ['cosine', 'linear', 'wsd', 'constant'])
def test_fewer_steps_are_refused_where_they_change_the_schedule(tmp_path, kind):
  config = base.get_config()
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

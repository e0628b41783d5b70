"""Shards at an address of a bucket, served from a local directory."""

import os

from array_record.python import array_record_data_source, array_record_module
from etils.epath import testing as epath_testing
import numpy as np
import pytest

from steepest.data import pipeline

_ADDRESS = 'gs://bucket/text'


@pytest.fixture
def bucket(shards_dir, monkeypatch):
  """Maps the bucket's addresses; every other way to it fails."""

  def local(path) -> str:
    path = os.fspath(path)
    return path.replace(_ADDRESS, str(shards_dir))

  def moved(original, path, *arguments, **named):
    return original(local(path), *arguments, **named)

  # The reader speaks to buckets itself.
  reader = array_record_module.ArrayRecordReader
  opened = []

  def open_reader(path, *arguments, **named):
    opened.append(path)
    return reader(local(path), *arguments, **named)

  for module in (array_record_module, array_record_data_source):
    held = getattr(module, 'array_record_module', module)
    monkeypatch.setattr(held, 'ArrayRecordReader', open_reader)
  with epath_testing.mock_epath(
    open=moved, exists=moved, isdir=moved, stat=moved
  ):
    yield opened


@pytest.mark.parametrize('mode', ['full', 'sampled', 'size'])
def test_batches_are_those_of_the_local_copy(
  shards_dir, data_config, bucket, mode
):
  arguments = {
    'context': 64,
    'batch_size': 4,
    'steps': 3,
    'seed': 0,
    'eval_sequences': 2,
  }
  data_config.verify = mode
  data_config.source = f'shards:{shards_dir}'
  local = pipeline.open_data(data_config, **arguments)
  data_config.source = f'shards:{_ADDRESS}'
  remote = pipeline.open_data(data_config, **arguments)
  assert remote.fingerprint == local.fingerprint
  assert remote.tokenizer_dir == _ADDRESS
  for name, array in local.batch(2).items():
    np.testing.assert_array_equal(remote.batch(2)[name], array)
  assert remote.validation().keys() == local.validation().keys()
  assert any(path.startswith(_ADDRESS) for path in bucket)
  data_config.source = 'shards:gs://bucket/nothing'
  with pytest.raises(FileNotFoundError, match='no manifest.json in gs://'):
    pipeline.open_data(data_config, **arguments)

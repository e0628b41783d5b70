"""Datasets of the hub and of TFDS as inputs of a preparation."""

import json
import pathlib
import subprocess
import sys

import pyarrow as pa
from pyarrow import parquet
import pytest

from steepest.data import prepare
from steepest.data.preparing import documents, inputs

_TFDS = """
import sys
import tensorflow_datasets as tfds

class Pages(tfds.core.GeneratorBasedBuilder):
  VERSION = tfds.core.Version('1.0.0')

  def _info(self):
    features = {'text': tfds.features.Text(), 'source': tfds.features.Text()}
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(features),
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager):
    return {'train': self._generate_examples()}

  def _generate_examples(self):
    for i in range(600):
      yield i, {'text': f'page {i} ' * 30, 'source': f's{i % 2}'}

builder = Pages(data_dir=sys.argv[1], file_format='array_record')
builder.download_and_prepare()
print(builder.data_dir)
assert 'tensorflow' not in sys.modules
"""


@pytest.fixture(scope='module')
def rows() -> list[dict]:
  return [
    {
      'text': f'row {i} of some text ' * 20,
      'meta': {'redpajama_set_name': ('C4', 'Github')[i % 2]},
      'id': i,
    }
    for i in range(1300)
  ]


def _read(spec: str) -> list[documents.Document | documents.Reject]:
  (found,) = inputs.find(spec)
  blocks = list(found.blocks(1 << 20))
  assert len({b.first for b in blocks}) == len(blocks) > 1
  return [item for b in blocks for _, item in documents.parse(b)]


@pytest.fixture
def mirror(tmp_path, rows) -> pathlib.Path:
  """A dataset as it lies on the hub, in two files of a split."""
  folder = tmp_path / 'mirror' / 'data'
  folder.mkdir(parents=True)
  for i, part in enumerate((rows[:700], rows[700:])):
    name = f'train-0000{i}-of-00002.parquet'
    parquet.write_table(pa.Table.from_pylist(part), folder / name)
  return folder.parent


def test_hub_rows_are_documents(mirror, rows, tmp_path, console, shards_dir):
  pytest.importorskip('datasets')
  assert _read(f'hf:{mirror}') == [
    (r['text'], r['meta']['redpajama_set_name']) for r in rows
  ]
  same = tmp_path / 'same.jsonl'
  same.write_text(''.join(json.dumps(r) + '\n' for r in rows))
  made = {}
  for name, spec in (('hub', f'hf:{mirror}'), ('lines', str(same))):
    options = prepare.Options(
      spec, f'hf:{shards_dir}', tmp_path / name, workers=1
    )
    made[name] = prepare.prepare(options, console)
  assert made['hub'].shards == made['lines'].shards
  assert made['hub'].inputs == [{'name': f'hf:{mirror}', 'bytes': 0}]
  with pytest.raises(OSError, match='--input=hf:.*test') as error:
    _read(f'hf:{mirror}::test')
  assert '\n' not in str(error.value)


def test_tfds_examples_are_documents(tmp_path):
  done = subprocess.run(
    [sys.executable, '-c', _TFDS, str(tmp_path)],
    capture_output=True,
    text=True,
    timeout=600,
  )
  assert done.returncode == 0, done.stderr
  directory = done.stdout.split()[-1]
  expected = [(f'page {i} ' * 30, f's{i % 2}') for i in range(600)]
  assert _read(f'tfds:{directory}') == expected
  assert len(_read(f'tfds:{directory}:train[:590]')) == 590
  with pytest.raises(OSError, match='--input=tfds:') as error:
    _read(f'tfds:{directory}:nothing')
  assert '\n' not in str(error.value)


def test_a_damaged_text_of_a_dataset_is_a_reject():
  row = inputs._plain({'text': b'\xff\xfe', 'source': 'x', 'id': 3})
  block = documents.Block('hf:x', 'x', 5, [row, {'source': 'x'}])
  first, second = (item for _, item in documents.parse(block))
  assert (first.line, first.reason) == (5, 'no Unicode')
  assert (second.line, second.reason) == (6, 'no `text`')

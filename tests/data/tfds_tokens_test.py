"""Training reads TFDS datasets of tokens, and what it reads are the shards."""

import json
import os
import subprocess
import sys

import numpy as np

_PROGRAM = """
import sys

import numpy as np
import tensorflow_datasets as tfds

from steepest.data import pipeline, tfds_builder
from steepest.experiments import base

shards, out = sys.argv[1:]
builder = tfds_builder.SteepestTokens(shards=shards, data_dir=out)
builder.build()


class Foreign(tfds.core.GeneratorBasedBuilder):
  VERSION = tfds.core.Version('1.0.0')

  def _info(self):
    tokens = tfds.features.Tensor(shape=(70,), dtype=np.int64)
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict({'tokens': tokens}),
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager):
    return {'train': self._generate_examples()}

  def _generate_examples(self):
    for i in range(20):
      yield i, {'tokens': np.arange(70, dtype=np.int64) + i}


foreign = Foreign(data_dir=out, file_format='array_record')
foreign.download_and_prepare()


def batches(source, context=64, vocab_size=0, **changed):
  config = base.get_config().unlock().data
  config.source = source
  config.update(changed)
  data = pipeline.open_data(
    config, context=context, batch_size=4, steps=5, seed=1, eval_sequences=6,
    vocab_size=vocab_size,
  )
  held = data.validation()
  first = np.stack([b['inputs'] for s in sorted(held) for b in held[s]] or [0])
  train = [np.stack([*b.values()]) for b in data.train(0)]
  return np.stack(train), first, data.fingerprint


said = []
for name, words in (
  ('foreign', {}),
  ('foreign', {'vocab_size': 128, 'context': 70}),
  (f'{out}/gone', {}),
):
  try:
    batches(f'tfds:{name}', **words)
  except (OSError, ValueError) as error:
    said.append(str(error))
read = {
  'shards': batches(f'shards:{shards}', mask_documents=True),
  'named': batches('tfds:steepest_tokens', mask_documents=True),
  'plain': batches(f'shards:{shards}'),
  'placed': batches(f'tfds:{builder.data_dir}'),
  'foreign': batches(
    f'tfds:{foreign.data_dir}', context=23, vocab_size=128, shuffle=False
  ),
}
parts = {f'{n}{i}': part for n, of in read.items() for i, part in enumerate(of)}
np.savez(f'{out}/read.npz', said=said, **parts)
assert 'tensorflow' not in sys.modules
print(builder.data_dir)
"""


def test_a_tfds_dataset_gives_the_batches_of_its_shards(
  shards_dir, tmp_path, run_command
):
  """Without TensorFlow, by name and by directory; and a run trains on it."""
  done = subprocess.run(
    [sys.executable, '-c', _PROGRAM, str(shards_dir), str(tmp_path)],
    env={**os.environ, 'TFDS_DATA_DIR': str(tmp_path)},
    capture_output=True,
    text=True,
    timeout=600,
  )
  assert done.returncode == 0, done.stderr
  directory = done.stdout.split()[-1]
  read = np.load(tmp_path / 'read.npz')
  for found, wanted in (('named', 'shards'), ('placed', 'plain')):
    # Training batches, validation, and the hash of what fixes the data.
    for i in range(3):
      np.testing.assert_array_equal(read[f'{found}{i}'], read[f'{wanted}{i}'])
  assert read['foreign0'].shape == (5, 2, 4, 23)
  # (70 - 1) // 23 windows a record, one after the other.
  windows = [np.arange(24) + 23 * (i % 3) + i // 3 for i in range(20)]
  rows = np.concatenate([batch[0] for batch in read['foreign0']])
  np.testing.assert_array_equal(rows, [w[:-1] for w in windows])
  unknown, short, gone = read['said'].tolist()
  assert unknown.endswith('set model.vocab_size')
  assert 'those of tfds:foreign have 70' in short
  assert gone.startswith(f'data.source=tfds:{tmp_path}/gone: ')

  train = run_command(
    'train',
    '--config=experiments/tiny.py:gpt2,adamw',
    f'--config.data.source=tfds:{directory}',
    '--config.steps=2',
    '--config.eval_sequences=4',
    f'--workdir={tmp_path}/run',
  )
  assert train.returncode == 0, train.stderr
  summary = json.loads((tmp_path / 'run' / 'summary.json').read_text())
  assert summary['steps'] == 2 and summary['eval_loss'] > 0

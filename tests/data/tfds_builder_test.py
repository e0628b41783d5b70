"""The TFDS dataset holds the records of the shards, without TensorFlow."""

import subprocess
import sys

from etils import epath
import numpy as np

from steepest.data import manifest as manifests, shards

_PROGRAM = """
import sys

import grain
import numpy as np
import tensorflow_datasets as tfds

from steepest.data import tfds_builder

shards, out = sys.argv[1:]
tfds_builder.SteepestTokens(shards=shards, data_dir=out).build()
source = tfds.data_source('steepest_tokens', data_dir=out, split='train')
directory = tfds_builder.SteepestTokens(data_dir=out).data_dir
again = tfds.builder_from_directory(directory).as_data_source()
dataset = grain.MapDataset.source(source).shuffle(seed=0).batch(4)
batch = dataset[0]
assert batch['tokens'].shape == (4, 2049)
assert 'tensorflow' not in sys.modules
np.savez(
  f'{out}/read.npz',
  train=np.stack([source[i]['tokens'] for i in range(len(source))]),
  validation=np.stack([r['tokens'] for r in again['validation']]),
  sources=np.array([source[i]['source'].decode() for i in range(len(source))]),
)
"""


def test_dataset_is_the_shards(shards_dir, tmp_path):
  done = subprocess.run(
    [sys.executable, '-c', _PROGRAM, str(shards_dir), str(tmp_path)],
    capture_output=True,
    text=True,
    timeout=600,
  )
  assert done.returncode == 0, done.stderr
  read = np.load(tmp_path / 'read.npz')
  manifest = manifests.load(shards_dir)
  assert read['train'].dtype == np.uint32
  for split in ('train', 'validation'):
    held = [
      shards.ShardWindows(
        epath.Path(shards_dir), manifest, manifest.select(split, source), 2048
      )
      for source in manifest.sources_of(split)
    ]
    expected = [windows.read(range(len(windows))) for windows in held]
    np.testing.assert_array_equal(read[split], np.concatenate(expected))
  assert sorted(set(read['sources'])) == manifest.sources_of('train')

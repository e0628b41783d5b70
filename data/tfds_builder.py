"""Token shards as a TFDS dataset, for training and for other programs.

    tfds_builder.SteepestTokens(shards='shards', data_dir='tfds').build()
    source = tfds.data_source('steepest_tokens', data_dir='tfds', split='train')

Records have R + 1 tokens, as in the shards. Neither writing nor reading needs
TensorFlow. data.source=tfds:steepest_tokens trains on it, with the same batches
as the shards: their manifest and tokenizer are beside the records.
"""

from collections.abc import Iterator
from typing import Any

from array_record.python import array_record_data_source
from etils import epath
import numpy as np
import tensorflow_datasets as tfds

from steepest.data import checks, manifest as manifests


class SteepestTokens(tfds.core.GeneratorBasedBuilder):
  """The records of a directory that launch.prepare wrote, in order."""

  VERSION = tfds.core.Version('1.0.0')
  # TFDS would look for the namespace package in one directory.
  pkg_dir_path = epath.Path(__file__).parent
  code_path = epath.Path(__file__)

  def __init__(
    self, *, shards: epath.PathLike | None = None, **arguments: Any
  ) -> None:
    """Takes the directory of the shards, needed only for writing.

    Args:
      shards: directory with a manifest.json; only to write the dataset.
      **arguments: common to all builders, such as data_dir.
    """
    self._shards = None if shards is None else epath.Path(shards)
    self._manifest = manifests.load(shards) if shards is not None else None
    arguments.setdefault('file_format', 'array_record')
    super().__init__(**arguments)

  def build(self) -> None:
    """Writes the dataset unless it exists already.

    Raises:
      FileNotFoundError: a shard is missing.
      ValueError: a shard is damaged, or no shards were given.
    """
    if self._shards is None or self._manifest is None:
      raise ValueError('no shards are given: write SteepestTokens(shards=DIR)')
    checks.verify(self._shards, self._manifest, 'full')
    # There are no downloads, hence no checksums.
    config = tfds.download.DownloadConfig(
      register_checksums=False, try_download_gcs=False
    )
    self.download_and_prepare(download_config=config)
    for path in (
      *self._shards.glob('tokenizer*'),
      self._shards / manifests.NAME,
    ):
      path.copy(epath.Path(self.data_dir) / path.name, overwrite=True)

  def _info(self) -> tfds.core.DatasetInfo:
    return self.dataset_info_from_configs(
      description='Tokenised text: records of R + 1 tokens, the last of which '
      "is the next record's first; documents end with the end of text.",
      features=tfds.features.FeaturesDict(
        {
          'tokens': tfds.features.Tensor(
            shape=(manifests.RECORD_TOKENS + 1,), dtype=np.uint32
          ),
          'source': tfds.features.Text(),
        }
      ),
      # Shards are already shuffled by document; records continue each other.
      disable_shuffling=True,
    )

  def _split_generators(
    self, dl_manager: tfds.download.DownloadManager
  ) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
    del dl_manager
    assert self._manifest is not None
    splits = {s.split for s in self._manifest.shards}
    return {
      s: self._generate_examples(s) for s in manifests.SPLITS if s in splits
    }

  def _generate_examples(
    self, split: str
  ) -> Iterator[tuple[int, dict[str, Any]]]:
    assert self._manifest is not None and self._shards is not None
    number = 0
    for shard in self._manifest.shards:
      if shard.split != split:
        continue
      path = str(self._shards / shard.name)
      for record in array_record_data_source.ArrayRecordDataSource([path]):
        tokens = np.frombuffer(record, self._manifest.dtype).astype(np.uint32)
        yield number, {'tokens': tokens, 'source': shard.source}
        number += 1

"""Token records of a TFDS dataset, read in windows without TensorFlow.

T is the context, M the tokens of a record, n a number of windows.
"""

from collections.abc import Sequence
import json
import os
from typing import Any, NamedTuple

from etils import epath
import numpy as np

from steepest.data import downloads, manifest as manifests


class TfdsWindows:
  """Windows of T + 1 tokens in some records of a source.

  A record has (M - 1) // T of them; its remaining tokens are not read.
  """

  def __init__(
    self, source: Any, numbers: Sequence[int], tokens: int, context: int
  ):
    """Reads nothing yet.

    Args:
      source: from `tfds.data_source`.
      numbers: of the records.
      tokens: M.
      context: T.
    """
    self._source, self._numbers, self._context = source, numbers, context
    self._per_record = (tokens - 1) // context

  def __len__(self) -> int:
    return self._per_record * len(self._numbers)

  def read(self, numbers: Sequence[int]) -> np.ndarray:
    """Returns n windows, [n, T + 1]; reads each record once."""
    size = self._context
    located = [divmod(i, self._per_record) for i in numbers]
    wanted = list(dict.fromkeys(self._numbers[r] for r, _ in located))
    rows = self._source.__getitems__(wanted)
    tokens = {i: row['tokens'] for i, row in zip(wanted, rows)}
    return np.stack(
      [
        tokens[self._numbers[record]][part * size : (part + 1) * size + 1]
        for record, part in located
      ]
    )


class Dataset(NamedTuple):
  """A TFDS dataset of token records.

  Attributes:
    directory: of the dataset.
    windows: split → source → windows.
    manifest: of the shards that it was made from, None without one.
    content: text that identifies its tokens.
  """

  directory: epath.Path
  windows: dict[str, dict[str, TfdsWindows]]
  manifest: manifests.Manifest | None
  content: str


def open_dataset(name: str, context: int) -> Dataset:
  """Opens a dataset whose examples have `tokens`, int[M] of one length.

  Args:
    name: in TFDS, NAME[/CONFIG][:VERSION], from its data directory
      ($TFDS_DATA_DIR), or the directory of a prepared dataset.
    context: T.

  Raises:
    OSError: TFDS cannot open it.
    ValueError: its examples are not such tokens, or shorter than T + 1.
  """
  import tensorflow_datasets as tfds

  # Importing it registers its name.
  from steepest.data import tfds_builder

  del tfds_builder
  try:
    # A name may hold a configuration: NAME/CONFIG.
    place = os.path.expanduser(name)
    if name.startswith(('/', '.', '~', 'gs://')) or os.path.isdir(place):
      builder = tfds.builder_from_directory(place)
    else:
      builder = tfds.builder(name)
    splits = {
      split: builder.as_data_source(split=split)
      for split in manifests.SPLITS
      if split in builder.info.splits
    }
  except Exception as error:  # TFDS's errors share no base class.
    line = downloads.first_line(error)
    raise OSError(f'data.source=tfds:{name}: {line}') from error
  features = builder.info.features
  shape = features['tokens'].shape if 'tokens' in features else None
  if shape is None or len(shape) != 1 or shape[0] is None:
    raise ValueError(
      f'data.source=tfds:{name}: examples need `tokens`, integers of one '
      f'length, and have {", ".join(features)}: launch.prepare '
      f'--input=tfds:{name} makes tokens of text'
    )
  if context >= shape[0]:
    raise ValueError(
      f'model.context={context} needs records of {context + 1} tokens, those '
      f'of tfds:{name} have {shape[0]}'
    )
  directory = epath.Path(builder.data_dir)
  manifest = None
  if (directory / manifests.NAME).exists():
    manifest = manifests.load(directory)
  windows = {
    split: {
      source: TfdsWindows(records, numbers, shape[0], context)
      for source, numbers in _by_source(
        manifest, split, builder.name, len(records)
      ).items()
    }
    for split, records in splits.items()
  }
  info = builder.info
  held = {s: [i.shard_lengths, i.num_bytes] for s, i in info.splits.items()}
  content = json.dumps([info.full_name, held])
  return Dataset(directory, windows, manifest, content)


def _by_source(
  manifest: manifests.Manifest | None, split: str, name: str, count: int
) -> dict[str, list[int] | range]:
  """Returns the numbers of each source's records."""
  if manifest is None:
    return {name: range(count)}
  found: dict[str, list[int]] = {}
  first = 0
  for shard in manifest.shards:
    if shard.split == split:
      numbers = range(first, first + shard.records)
      found.setdefault(shard.source, []).extend(numbers)
      first += shard.records
  if first != count:
    raise ValueError(
      f'{split} has {count} records, its manifest {first}: build it again'
    )
  return dict(sorted(found.items()))

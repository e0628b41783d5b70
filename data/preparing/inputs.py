"""What launch.prepare reads: local files, hub datasets, TFDS datasets."""

from collections.abc import Callable, Iterable, Iterator, Mapping
import glob
import itertools
import os
import pathlib
from typing import Any, NamedTuple

from steepest.data.preparing import documents

# Rows of a stream in a block.
_ROWS = 512


class Input(NamedTuple):
  """A file or a dataset.

  Attributes:
    name: path, or 'hf:…' or 'tfds:…'.
    bytes: size of a file, 0 for a dataset.
    mtime_ns: of a file, 0 for a dataset.
    blocks: yields its blocks, of lines about as large as asked; the same each
      time.
  """

  name: str
  bytes: int
  mtime_ns: int
  blocks: Callable[[int], Iterator[documents.Block]]


def find(spec: str) -> list[Input]:
  """Returns the inputs of a comma-separated list, sorted, each once.

  Args:
    spec: globs of local files, 'hf:DATASET[:CONFIG[:SPLIT]]' (a dataset of
      the Hugging Face hub, or a local directory of that layout) and
      'tfds:NAME[:SPLIT]' (a TFDS dataset with a text, or the directory of a
      prepared one). SPLIT is 'train' by default.

  Raises:
    FileNotFoundError: a glob matches no file.
    OSError: a package that reads the dataset is missing.
  """
  found: dict[str, Input] = {}
  for item in spec.split(','):
    kind, _, name = item.partition(':')
    if kind == 'hf' and name:
      found[item] = Input(item, 0, 0, _rows(item, _hub_rows(name)))
    elif kind == 'tfds' and name:
      found[item] = Input(item, 0, 0, _rows(item, _tfds_rows(name)))
    else:
      found |= {str(path): _file(path) for path in _files(item)}
  return sorted(found.values(), key=lambda i: pathlib.PurePath(i.name))


def _files(pattern: str) -> list[pathlib.Path]:
  paths = map(pathlib.Path, glob.glob(pattern, recursive=True))
  files = [p for p in paths if p.is_file()]
  if not files:
    hint = ': write DIR/*' if pathlib.Path(pattern).is_dir() else ''
    raise FileNotFoundError(f'no file matches --input={pattern!r}{hint}')
  return files


def _file(path: pathlib.Path) -> Input:
  stat = path.stat()
  return Input(
    str(path),
    stat.st_size,
    stat.st_mtime_ns,
    lambda size: documents.blocks(path, size),
  )


def _rows(
  name: str, read: Callable[[], Iterable[Mapping[str, Any]]]
) -> Callable[[int], Iterator[documents.Block]]:
  """Returns what yields the rows of a dataset as blocks."""
  stem = pathlib.PurePath(name.split(':')[1]).name

  def blocks(size: int) -> Iterator[documents.Block]:
    del size  # Rows are counted: how large they are is seen later.
    try:
      rows = iter(read())
      for first in itertools.count(1, _ROWS):
        held = [_plain(row) for row in itertools.islice(rows, _ROWS)]
        if not held:
          return
        yield documents.Block(name, stem, first, held)
    except Exception as error:  # Those of a library, which share no class.
      lines = str(error).strip().splitlines() or [type(error).__name__]
      raise OSError(f'--input={name}: {lines[0]}') from error

  return blocks


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
  """Keeps the columns that are read; TFDS gives text as bytes."""
  return {
    k: row[k].decode(errors='surrogateescape')
    if isinstance(row[k], bytes)
    else row[k]
    for k in documents.COLUMNS
    if k in row
  }


def _hub_rows(name: str) -> Callable[[], Iterable[Mapping[str, Any]]]:
  try:
    import datasets
  except ImportError as error:
    raise OSError(
      f'--input=hf:{name} needs the package datasets: pip install '
      "'steepest[hub]'"
    ) from error
  dataset, config, split, *rest = [*name.split(':'), '', '', '']
  if rest[0]:
    raise ValueError(
      f'--input=hf:{name}: write hf:DATASET, hf:DATASET:CONFIG or '
      'hf:DATASET:CONFIG:SPLIT'
    )

  def read() -> Iterable[Mapping[str, Any]]:
    return datasets.load_dataset(
      dataset, config or None, split=split or 'train', streaming=True
    )

  return read


def _tfds_rows(name: str) -> Callable[[], Iterable[Mapping[str, Any]]]:
  dataset, _, split = name.partition(':')

  def read() -> Iterable[Mapping[str, Any]]:
    import tensorflow_datasets as tfds

    if os.path.isdir(dataset):
      builder = tfds.builder_from_directory(dataset)
      return builder.as_data_source(split=split or 'train')
    return tfds.data_source(dataset, split=split or 'train')

  return read

"""manifest.json: the contents of a directory of shards, written last."""

import dataclasses
import json
import pathlib
import types
import typing
from typing import Any

from etils import epath
import numpy as np

from steepest.data import files, reading

# Raised when readers of the former version cannot read the files. Version 1
# lacks the fields that have defaults below.
VERSION = 2
_READABLE = (1, 2)
# R: a record has R + 1 tokens, the last of them the next record's first.
RECORD_TOKENS = 2048
NAME = 'manifest.json'
SPLITS = ('train', 'validation')
# The source for documents whose own source fills no record.
POOLED = 'small sources'


@dataclasses.dataclass(frozen=True)
class Source:
  """The documents kept from one source.

  `tokens` and `bytes` (UTF-8) are totals over the documents; `tokens` includes
  end-of-text tokens.
  """

  documents: int
  tokens: int
  bytes: int


@dataclasses.dataclass(frozen=True)
class Shard:
  """One file of records, all of one source and split.

  `tokens` is records · R, `documents` counts those that begin in it, `bytes`
  and `sha256` are the file's, `sampled_sha256` is the hash of some places in it
  (files.py), '' if not taken.
  """

  name: str
  split: str
  source: str
  records: int
  tokens: int
  documents: int
  bytes: int
  sha256: str
  sampled_sha256: str = ''


@dataclasses.dataclass(frozen=True)
class TokenizerInfo:
  """The tokenizer beside the shards, in tokenizer.json."""

  name: str
  sha256: str
  vocab_size: int


@dataclasses.dataclass(frozen=True)
class Manifest:
  """The description of a directory of shards."""

  version: int
  # Arguments that decided the contents, and the input files with their sizes.
  command: dict[str, Any]
  inputs: list[dict[str, Any]]
  seed: int
  record_tokens: int
  # NumPy name of the tokens' dtype on disk, little-endian.
  dtype: str
  documents: int
  duplicates: int
  rejected: int
  tokens: int
  # Tokens after each source's last full record, which are in no shard.
  unused_tokens: int
  sources: dict[str, Source]
  shards: list[Shard]
  tokenizer: TokenizerInfo
  # Notes for the reader, such as on a source without validation text.
  notes: list[str]
  # Documents kept for validation, by the sources of the shards.
  validation: dict[str, Source] = dataclasses.field(default_factory=dict)
  # Documents that repeat a benchmark, by source; None: not looked for.
  contaminated: dict[str, int] | None = None
  # Name and version of the program that wrote it.
  program: str = ''

  def sources_of(self, split: str) -> list[str]:
    """Returns the sources with shards in a split."""
    return sorted({s.source for s in self.shards if s.split == split})

  def select(self, split: str, source: str) -> list[Shard]:
    """Returns the shards of a split and source in the order of the text."""
    return [s for s in self.shards if (s.split, s.source) == (split, source)]

  def bytes_per_token(self) -> dict[str, float]:
    """Returns bytes per token by source, of validation documents if any."""
    sources = sorted({**self.sources, **self.validation}.items())
    return {n: s.bytes / s.tokens for n, s in sources if s.tokens}


def token_dtype(vocab_size: int) -> np.dtype:
  """Returns the smallest dtype on disk that holds every id."""
  return np.dtype('<u2' if vocab_size <= 1 << 16 else '<u4')


def save(manifest: Manifest, directory: pathlib.Path) -> None:
  """Writes manifest.json."""
  text = json.dumps(dataclasses.asdict(manifest), indent=1)
  files.write(directory / NAME, [(text + '\n').encode()])


def load(directory: epath.PathLike) -> Manifest:
  """Reads manifest.json.

  Raises:
    FileNotFoundError: the directory has none.
    ValueError: it is damaged or of another version.
  """
  directory = epath.Path(directory)
  path = directory / NAME
  if not path.is_file():
    raise FileNotFoundError(
      f'no {NAME} in {directory}: is it the --out of a finished launch.prepare?'
    )
  try:
    content = reading.parse(path.read_text())
    version = content['version']
    if version not in _READABLE:
      raise ValueError(
        f'version {version!r} is unknown: this program reads up to {VERSION}'
      )
    # Earlier versions counted documents by length.
    content.pop('lengths', None)
    manifest = _read(Manifest, content, 'it')
    _check(manifest)
    return manifest
  except (KeyError, TypeError, ValueError, RecursionError) as error:
    raise ValueError(
      f'{path} is damaged ({error}): prepare the text again'
    ) from error


def _read(hint: Any, value: Any, name: str) -> Any:
  """Returns a JSON value as a field's declared type.

  Raises:
    TypeError: it has another type; names the value.
  """
  if dataclasses.is_dataclass(hint):
    if not isinstance(value, dict):
      raise TypeError(f'{name} is no JSON object')
    hints = typing.get_type_hints(hint)
    unknown = sorted(set(value) - set(hints))
    if unknown:
      raise TypeError(f'{name} has an unknown field {unknown[0]!r}')
    fields = {k: _read(hints[k], v, repr(k)) for k, v in value.items()}
    return typing.cast(Any, hint)(**fields)
  kind, inner = typing.get_origin(hint), typing.get_args(hint)
  if kind is types.UnionType:
    return None if value is None else _read(inner[0], value, name)
  if kind is list and isinstance(value, list):
    return [_read(inner[0], v, f'an entry of {name}') for v in value]
  if kind is dict and isinstance(value, dict):
    return {k: _read(inner[1], v, f'{name}[{k!r}]') for k, v in value.items()}
  # JSON's true is no number, although Python's bool is an int.
  whole = hint is int and type(value) is int and 0 <= value < 1 << 63
  if hint is Any or whole or (hint is str and isinstance(value, str)):
    return value
  raise TypeError(f'{name} is {value!r}')


def _check(manifest: Manifest) -> None:
  """Raises ValueError if a value could not have been written."""
  if manifest.record_tokens != RECORD_TOKENS:
    raise ValueError(f'records of {manifest.record_tokens} tokens')
  if manifest.dtype not in ('uint16', 'uint32'):
    raise ValueError(f'tokens of type {manifest.dtype!r}')
  for shard in manifest.shards:
    # A name with folders could point outside the directory.
    if pathlib.PurePath(shard.name).name != shard.name or '\0' in shard.name:
      raise ValueError(f'a shard named {shard.name!r}')
    sources = {*manifest.sources, POOLED}
    if shard.split not in SPLITS or shard.source not in sources:
      raise ValueError(
        f'{shard.name} of split {shard.split!r}, source {shard.source!r}'
      )

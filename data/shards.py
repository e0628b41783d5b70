"""Token shards in ArrayRecord files: written once, checked at every open.

R is a record's tokens less the one it shares with the next, T the context,
N the tokens of a stream.
"""

from collections.abc import Sequence
import functools
import hashlib
import os
import pathlib

from array_record.python import array_record_data_source
from array_record.python import array_record_module
import numpy as np

from steepest.data import manifest as manifests
from steepest.data import tokenizers


class ShardWindows:
  """Windows of T + 1 tokens in the shards of one source and split."""

  def __init__(
    self,
    directory: pathlib.Path,
    manifest: manifests.Manifest,
    shards: Sequence[manifests.Shard],
    context: int,
  ):
    self._context = context
    self._dtype = np.dtype(manifest.dtype).newbyteorder('<')
    self._per_record = manifest.record_tokens // context
    self._length = self._per_record * sum(s.records for s in shards)
    # With its range of records a file need not be opened to count them.
    paths = [f'{directory / s.name}[0:{s.records}]' for s in shards]
    self._records = (
      array_record_data_source.ArrayRecordDataSource(paths) if paths else ()
    )

  def __len__(self) -> int:
    return self._length

  def read(self, numbers: Sequence[int]) -> np.ndarray:
    """Returns some windows, [n, T + 1]; each record is read once."""
    located = [divmod(i, self._per_record) for i in numbers]
    records = list(dict.fromkeys(record for record, _ in located))
    held = dict(zip(records, self._records.__getitems__(records)))
    windows = np.empty((len(located), self._context + 1), self._dtype)
    for window, (record, part) in zip(windows, located):
      window[:] = np.frombuffer(
        held[record],
        self._dtype,
        self._context + 1,
        part * self._context * self._dtype.itemsize,
      )
    return windows


def write(
  path: pathlib.Path, tokens_N: np.ndarray, record_tokens: int
) -> tuple[int, str]:
  """Writes the records of a stream of records · R + 1 tokens.

  Args:
    path: the file.
    tokens_N: the tokens, in the type in which they are stored.
    record_tokens: R.

  Returns:
    Size and sha256 of the file.
  """
  # One record a group: any record is read without its neighbours.
  writer = array_record_module.ArrayRecordWriter(str(path), 'group_size:1')
  for start in range(0, len(tokens_N) - 1, record_tokens):
    writer.write(tokens_N[start : start + record_tokens + 1].tobytes())
  writer.close()
  return path.stat().st_size, _sha256(path)


def verify(
  directory: pathlib.Path, manifest: manifests.Manifest, mode: str
) -> None:
  """Checks that the shards are those of the manifest.

  Args:
    directory: where they lie.
    manifest: what they should be.
    mode: 'full' (sizes and checksums) or 'size'. An unchanged file is read
      once in a process.

  Raises:
    FileNotFoundError: a shard is missing.
    ValueError: a shard is damaged.
  """
  if mode not in ('full', 'size'):
    raise ValueError(f"data.verify={mode!r}: write 'full' or 'size'")
  for shard in manifest.shards:
    path = directory / shard.name
    if not path.is_file():
      raise FileNotFoundError(
        f'shard {path} is missing: copy it again or prepare the text again'
      )
    if path.stat().st_size != shard.bytes:
      raise ValueError(
        f'shard {path} has {path.stat().st_size} bytes, its manifest says '
        f'{shard.bytes}: copy it again or prepare the text again'
      )
  for shard in manifest.shards if mode == 'full' else ():
    path = directory / shard.name
    stat = path.stat()
    if _known_sha256(path, stat.st_size, stat.st_mtime_ns) != shard.sha256:
      raise ValueError(
        f'shard {path} has another checksum than its manifest says: copy it '
        'again or prepare the text again'
      )


def check_tokenizer(
  directory: pathlib.Path, manifest: manifests.Manifest, wanted: str | None
) -> None:
  """Checks the tokenizer beside the shards, and against the model's.

  Args:
    directory: of the shards.
    manifest: theirs.
    wanted: sha256 of the model's tokenizer, None where it has none.

  Raises:
    ValueError: one of them is another than made the shards.
  """
  made = manifest.tokenizer
  stat = (directory / 'tokenizer.json').stat()
  held = _known_tokenizer(directory, stat.st_size, stat.st_mtime_ns)
  if held != made.sha256:
    raise ValueError(
      f'{directory / "tokenizer.json"} is not the tokenizer {made.name} that '
      f'made the shards (sha256 {held[:12]}, manifest {made.sha256[:12]})'
    )
  if wanted is not None and wanted != made.sha256:
    raise ValueError(
      f'the shards in {directory} are made with tokenizer {made.name} '
      f'(sha256 {made.sha256[:12]}), the model with another '
      f"({wanted[:12]}): prepare the text with the model's"
    )


def check_fit(
  directory: pathlib.Path,
  manifest: manifests.Manifest,
  context: int,
  vocab_size: int,
) -> None:
  """Checks the shards against a model's vocabulary (0: any) and context.

  Raises:
    ValueError: they do not fit.
  """
  if vocab_size and vocab_size < manifest.tokenizer.vocab_size:
    raise ValueError(
      f'the shards in {directory} have a vocabulary of '
      f'{manifest.tokenizer.vocab_size}, the model {vocab_size} rows: set '
      f'model.vocab_size to 0 or to {manifest.tokenizer.vocab_size} or more'
    )
  tokens = manifest.record_tokens
  if context < 1 or tokens % context:
    valid = [str(tokens // n) for n in range(1, tokens + 1) if not tokens % n]
    raise ValueError(
      f'model.context={context} does not divide the records of {tokens} '
      f'tokens in {directory}: use one of {", ".join(valid)}'
    )


@functools.lru_cache(maxsize=65536)
def _known_sha256(path: pathlib.Path, size: int, mtime_ns: int) -> str:
  del size, mtime_ns  # They only tell a changed file from a known one.
  return _sha256(path)


@functools.lru_cache(maxsize=64)
def _known_tokenizer(directory: pathlib.Path, size: int, mtime_ns: int) -> str:
  del size, mtime_ns
  return tokenizers.load(f'hf:{directory}').sha256


def _sha256(path: str | os.PathLike[str]) -> str:
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()

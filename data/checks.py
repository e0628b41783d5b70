"""What is checked of a directory of shards when it is opened."""

from collections.abc import Callable
from concurrent import futures
import functools

from array_record.python import array_record_module
from etils import epath
import numpy as np

from steepest.data import files, manifest as manifests, tokenizers

_MODES = ('full', 'sampled', 'size')
# Shards that are looked at side by side, and records that are read at a time.
_THREADS = 16
_RECORDS = 1024


def verify(
  directory: epath.Path, manifest: manifests.Manifest, mode: str
) -> None:
  """Checks that the shards are those of the manifest.

  Args:
    directory: where they lie.
    manifest: what they should be.
    mode: 'full' (sizes and checksums), 'sampled' (sizes, and checksums of
      some places in every shard) or 'size'. A process reads an unchanged file
      once.

  Raises:
    FileNotFoundError: a shard is missing.
    ValueError: a shard is damaged, or not the one of the manifest.
  """
  if mode not in _MODES:
    raise ValueError(f"data.verify={mode!r}: write 'full', 'sampled' or 'size'")
  _each(manifest, functools.partial(_check_size, directory))
  if mode == 'sampled' and not all(s.sampled_sha256 for s in manifest.shards):
    raise ValueError(
      f'{directory / manifests.NAME} has no sampled checksums (it is of an '
      "older version): set data.verify to 'full' or 'size'"
    )
  if mode != 'size':
    _each(manifest, functools.partial(_check_sum, directory, mode))


def check_tokenizer(
  directory: epath.Path, manifest: manifests.Manifest, wanted: str | None
) -> None:
  """Checks that the tokenizer beside the shards made them, and the model's.

  Args:
    directory: of the shards.
    manifest: theirs.
    wanted: sha256 of the model's tokenizer, None where it has none.

  Raises:
    ValueError: another tokenizer made the shards.
  """
  made = manifest.tokenizer
  found = _tokenizer(directory, files.sha256(directory / 'tokenizer.json'))
  if found != made.sha256:
    raise ValueError(
      f'{directory / "tokenizer.json"} is not the tokenizer {made.name} that '
      f'made the shards (sha256 {found[:12]}, manifest {made.sha256[:12]})'
    )
  if wanted is not None and wanted != made.sha256:
    raise ValueError(
      f'the shards in {directory} are made with tokenizer {made.name} '
      f'(sha256 {made.sha256[:12]}), the model with another '
      f"({wanted[:12]}): prepare the text with the model's"
    )


def check_fit(
  directory: epath.Path,
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


def check_records(
  directory: epath.Path, manifest: manifests.Manifest, mode: str
) -> None:
  """Checks number and length of records and the range of token ids.

  Args:
    directory: of the shards.
    manifest: theirs.
    mode: as for `verify`: every record, the first and the last of each shard,
      or none.

  Raises:
    ValueError: a shard holds something else.
  """
  if mode != 'size':
    _each(
      manifest, functools.partial(_check_records, directory, manifest, mode)
    )


def _each(
  manifest: manifests.Manifest, check: Callable[[manifests.Shard], None]
) -> None:
  """Checks all shards; raises what the first bad one of the manifest does."""
  with futures.ThreadPoolExecutor(_THREADS) as pool:
    for _ in pool.map(check, manifest.shards):
      pass


def _check_size(directory: epath.Path, shard: manifests.Shard) -> None:
  path = directory / shard.name
  try:
    size = files.stamp(path).bytes
  except FileNotFoundError as error:
    raise FileNotFoundError(
      f'shard {path} is missing: copy it again or prepare the text again'
    ) from error
  if size != shard.bytes:
    raise ValueError(
      f'shard {path} has {size} bytes, its manifest says {shard.bytes}: copy '
      'it again or prepare the text again'
    )


def _check_sum(
  directory: epath.Path, mode: str, shard: manifests.Shard
) -> None:
  path = directory / shard.name
  if mode == 'full':
    same = files.sha256(path) == shard.sha256
  else:
    same = files.sampled_sha256(path) == shard.sampled_sha256
  if not same:
    raise ValueError(
      f'shard {path} has another checksum than its manifest says: copy it '
      'again or prepare the text again'
    )


def _check_records(
  directory: epath.Path,
  manifest: manifests.Manifest,
  mode: str,
  shard: manifests.Shard,
) -> None:
  path = directory / shard.name
  found = _records(path, manifest.dtype, mode)
  expected = (shard.records, {manifest.record_tokens + 1})
  if found[:2] != expected:
    raise ValueError(
      f'shard {path} has {found[0]} records of {sorted(found[1])} tokens, its '
      f'manifest says {shard.records} of {manifest.record_tokens + 1}: prepare '
      'the text again'
    )
  if found[2] >= manifest.tokenizer.vocab_size:
    raise ValueError(
      f'shard {path} holds token id {found[2]}, its tokenizer has '
      f'{manifest.tokenizer.vocab_size}: prepare the text again'
    )


@files.once
def _records(
  path: epath.Path, dtype: str, mode: str
) -> tuple[int, set[int], int]:
  """Returns number of records, their lengths in tokens and the largest id."""
  reader = array_record_module.ArrayRecordReader(
    str(path), options='readahead_buffer_size:0'
  )
  count = reader.num_records()
  step = _RECORDS if mode == 'full' else max(count - 1, 1)
  lengths: set[int] = set()
  largest = 0
  for start in range(0, count, step):
    end = min(start + _RECORDS, count) if mode == 'full' else start + 1
    records = reader.read(start, end)
    lengths |= {len(r) // np.dtype(dtype).itemsize for r in records}
    tokens = np.frombuffer(b''.join(records), np.dtype(dtype).newbyteorder('<'))
    largest = max(largest, int(tokens.max(initial=0)))
  reader.close()
  return count, lengths, largest


@functools.lru_cache(maxsize=64)
def _tokenizer(directory: epath.Path, file_sha256: str) -> str:
  del file_sha256
  return tokenizers.load(f'hf:{directory}').sha256

"""Checks of a directory of shards when it is opened."""

from collections.abc import Callable, Sequence
from concurrent import futures
import functools
import sys

from array_record.python import array_record_module
from etils import epath
import numpy as np

from steepest.data import files, manifest as manifests, tokenizers

_MODES = ('auto', 'full', 'sampled', 'size')
# Shards checked in parallel.
_THREADS = 16
# Bytes from which on 'auto' means 'sampled'.
_LARGE = 10_000_000_000


def verify(
  directory: epath.Path,
  manifest: manifests.Manifest,
  mode: str,
  part: tuple[int, int] = (0, 1),
) -> None:
  """Checks that the shards are those of the manifest.

  Args:
    directory: of the shards.
    manifest: what they should be.
    mode: 'full' (sizes, checksums, and the first and last record of every
      shard), 'sampled' (the same with checksums of some places in every shard),
      'auto' (full below 10 GB, else sampled) or 'size'. A process reads an
      unchanged file only once.
    part: (i, n) for shards i, i + n, …: what one of n processes checks.

  Raises:
    FileNotFoundError: a shard is missing.
    ValueError: a shard is damaged, or not the manifest's.
  """
  first, step = part
  mode = _resolve(directory, manifest, mode, says=first == 0)
  own = manifest.shards[first::step]
  _each(own, functools.partial(_check_size, directory))
  if mode != 'size':
    _each(own, functools.partial(_check_sum, directory, mode))
    _each(own, functools.partial(_check_records, directory, manifest))


def _resolve(
  directory: epath.Path, manifest: manifests.Manifest, mode: str, says: bool
) -> str:
  """Returns what `auto` means for these shards; any other mode unchanged."""
  if mode not in _MODES:
    raise ValueError(
      f"data.verify={mode!r}: write 'auto', 'full', 'sampled' or 'size'"
    )
  has_samples = all(s.sampled_sha256 for s in manifest.shards)
  if mode == 'sampled' and not has_samples:
    raise ValueError(
      f'{directory / manifests.NAME} has no sampled checksums (an older '
      "version wrote it): set data.verify to 'full' or 'size'"
    )
  if mode != 'auto':
    return mode
  size = sum(s.bytes for s in manifest.shards)
  if size < _LARGE or not has_samples:
    return 'full'
  if says:
    print(
      f'note: {directory} has {size / 1e9:,.0f} GB: 16 places of every shard '
      'are checked (data.verify=full reads all)',
      file=sys.stderr,
    )
  return 'sampled'


def check_tokenizer(
  directory: epath.Path, manifest: manifests.Manifest, wanted: str | None
) -> None:
  """Checks that the shards were made with their tokenizer and the model's.

  Args:
    directory: of the shards.
    manifest: of the shards.
    wanted: sha256 of the model's tokenizer, None if it has none.

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
      f'the shards in {directory} were made with tokenizer {made.name} '
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
      f'{manifest.tokenizer.vocab_size}, but the model {vocab_size} rows: set '
      f'model.vocab_size to 0 or to {manifest.tokenizer.vocab_size} or more'
    )
  tokens = manifest.record_tokens
  if context < 1 or tokens % context:
    valid = [str(tokens // n) for n in range(1, tokens + 1) if not tokens % n]
    raise ValueError(
      f'model.context={context} does not divide the records of {tokens} '
      f'tokens in {directory}: use one of {", ".join(valid)}'
    )


def _each(
  shards: Sequence[manifests.Shard], check: Callable[[manifests.Shard], None]
) -> None:
  """Checks shards; raises the error of the first bad one."""
  with futures.ThreadPoolExecutor(_THREADS) as pool:
    for _ in pool.map(check, shards):
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
  directory: epath.Path, manifest: manifests.Manifest, shard: manifests.Shard
) -> None:
  path = directory / shard.name
  found = _records(path, manifest.dtype)
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
def _records(path: epath.Path, dtype: str) -> tuple[int, set[int], int]:
  """Returns a shard's number of records, and facts on the first and last one.

  These are their lengths in tokens and the largest id in them.
  """
  reader = array_record_module.ArrayRecordReader(
    str(path), options='readahead_buffer_size:0,footer_prefetch_bytes:0'
  )
  count = reader.num_records()
  records = reader.read(sorted({0, count - 1})) if count else []
  reader.close()
  tokens = np.frombuffer(b''.join(records), np.dtype(dtype).newbyteorder('<'))
  lengths = {len(r) // tokens.itemsize for r in records}
  return count, lengths, int(tokens.max(initial=0))


@functools.lru_cache(maxsize=64)
def _tokenizer(directory: epath.Path, file_sha256: str) -> str:
  del file_sha256
  return tokenizers.load(f'hf:{directory}').sha256

"""Text to token shards.

Two passes: documents are read, told apart and tokenized into one spool file
a source; then data/cutting.py splits, shuffles and cuts each source.
"""

from collections.abc import Iterator
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
from typing import Any

import numpy as np
from rich import console as rich_console
from rich import progress as rich_progress

from steepest.data import cutting
from steepest.data import documents
from steepest.data import manifest as manifests
from steepest.data import tokenizers

_R = manifests.RECORD_TOKENS
# Characters that are tokenized at a time, and that train a tokenizer.
_BATCH_CHARACTERS = 1 << 22
_TRAINING_CHARACTERS = 1 << 28
# More rejects than both of these stop the job.
_MAX_REJECTS = 10
_MAX_REJECTED = 0.01
# Lines that are seen before the share of bad ones means anything.
_EARLY = 10_000


@dataclasses.dataclass(frozen=True)
class Options:
  """Arguments of a preparation.

  Attributes:
    inputs: comma-separated globs.
    tokenizer: as for tokenizers.load, or 'bpe-train:N'.
    out: directory to write.
    validation_tokens: of each source, kept from training.
    validation_fraction: of a source's tokens, the most that are kept from it.
    shard_tokens: in a file.
    seed: fixes the order of documents.
    source: the source of all documents; '': as the files tell.
  """

  inputs: str
  tokenizer: str
  out: pathlib.Path
  validation_tokens: int = 1 << 18
  validation_fraction: float = 0.05
  shard_tokens: int = 1 << 27
  seed: int = 0
  source: str = ''

  def command(self) -> dict[str, Any]:
    """Returns what decides the contents of the directory."""
    fields = dataclasses.asdict(self)
    del fields['out']
    return fields


@dataclasses.dataclass
class _Tally:
  """What became of the documents."""

  kept: int = 0
  duplicates: int = 0
  rejected: int = 0
  first_reject: documents.Reject | None = None


def prepare(
  options: Options,
  console: rich_console.Console,
  cache: pathlib.Path | None = None,
) -> manifests.Manifest:
  """Writes a directory of shards, or finds that it is there already.

  The directory appears, complete, at the end. The same input and options give
  the same bytes.

  Raises:
    FileNotFoundError: a glob matches nothing, a tokenizer is missing.
    FileExistsError: the directory holds something else.
    ValueError: unreadable input, or too little of it.
  """
  _check(options)
  files = documents.find(options.inputs)
  inputs = [{'name': str(f), 'bytes': f.stat().st_size} for f in files]
  if (held := _existing(options, inputs)) is not None:
    return held
  part = options.out.with_name(f'.{options.out.name}.part')
  shutil.rmtree(part, ignore_errors=True)
  part.mkdir(parents=True)
  try:
    with rich_progress.Progress(
      rich_progress.TextColumn('{task.description}'),
      rich_progress.BarColumn(),
      rich_progress.TaskProgressColumn(),
      rich_progress.TimeElapsedColumn(),
      console=console,
    ) as progress:
      manifest = _write(options, files, inputs, part, progress, cache)
    if options.out.exists():
      options.out.rmdir()
    os.replace(part, options.out)
  finally:
    shutil.rmtree(part, ignore_errors=True)
  return manifest


def _check(options: Options) -> None:
  if options.validation_tokens < 0 or not 0 <= options.validation_fraction < 1:
    raise ValueError(
      f'--validation_tokens={options.validation_tokens} and '
      f'--validation_fraction={options.validation_fraction}: give 0 or more '
      'tokens, and a fraction of [0, 1)'
    )
  if options.shard_tokens < _R:
    raise ValueError(
      f'--shard_tokens={options.shard_tokens}: a record alone has {_R}'
    )


def _existing(
  options: Options, inputs: list[dict[str, Any]]
) -> manifests.Manifest | None:
  out = options.out
  if not out.exists() or (out.is_dir() and not any(out.iterdir())):
    return None
  if not (out / manifests.NAME).is_file():
    raise FileExistsError(
      f'{out} exists and is no directory of shards: choose another --out'
    )
  held = manifests.load(out)
  new = options.command()
  differ = [k for k in new if held.command[k] != new[k]]
  if held.inputs != inputs:
    differ.append('the input files')
  if differ:
    raise FileExistsError(
      f'{out} was prepared with other arguments ({", ".join(differ)}): choose '
      'another --out or delete it'
    )
  return held


def _write(
  options: Options,
  files: list[pathlib.Path],
  inputs: list[dict[str, Any]],
  part: pathlib.Path,
  progress: rich_progress.Progress,
  cache: pathlib.Path | None,
) -> manifests.Manifest:
  kind, _, size = options.tokenizer.partition(':')
  if kind == 'bpe-train':
    if not size.isdigit():
      raise ValueError(f'--tokenizer={options.tokenizer}: write bpe-train:N')
    progress.add_task('training the tokenizer', total=None)
    tokenizer = tokenizers.train_bpe(_training_texts(files), int(size))
  else:
    tokenizer = tokenizers.load(options.tokenizer, cache)
  dtype = manifests.token_dtype(tokenizer.vocab_size)
  tally = _Tally()
  spools = _tokenize(options, files, part, tokenizer, tally, progress)
  rules = cutting.Rules(
    options.validation_tokens,
    options.validation_fraction,
    options.shard_tokens,
    options.seed,
  )
  written, notes = cutting.write_shards(spools, part, dtype, rules, progress)
  sources = {
    name: manifests.Source(len(spool.lengths), sum(spool.lengths), spool.bytes)
    for name, spool in sorted(spools.items())
  }
  tokens = sum(s.tokens for s in sources.values())
  shutil.rmtree(part / 'spool')
  tokenizer.save(part)
  manifest = manifests.Manifest(
    version=manifests.VERSION,
    command=options.command(),
    inputs=inputs,
    seed=options.seed,
    record_tokens=_R,
    dtype=dtype.name,
    documents=tally.kept,
    duplicates=tally.duplicates,
    rejected=tally.rejected,
    tokens=tokens,
    unused_tokens=tokens - sum(s.tokens for s in written),
    sources=sources,
    shards=written,
    tokenizer=manifests.TokenizerInfo(
      tokenizer.name, tokenizer.sha256, tokenizer.vocab_size
    ),
    notes=notes,
  )
  manifests.save(manifest, part)
  return manifest


def _training_texts(files: list[pathlib.Path]) -> Iterator[str]:
  characters = 0
  for path in files:
    for document in documents.read(path):
      if isinstance(document, documents.Document):
        yield document.text
        characters += len(document.text)
        if characters > _TRAINING_CHARACTERS:
          return


def _tokenize(
  options: Options,
  files: list[pathlib.Path],
  part: pathlib.Path,
  tokenizer: tokenizers.Tokenizer,
  tally: _Tally,
  progress: rich_progress.Progress,
) -> dict[str, cutting.Spool]:
  """Writes the tokens of every distinct document to its source's spool."""
  (part / 'spool').mkdir()
  dtype = manifests.token_dtype(tokenizer.vocab_size)
  spools: dict[str, cutting.Spool] = {}
  task = progress.add_task('tokenizing', total=len(files))
  for batch in _batches(options, files, part, tally, progress, task):
    ids = tokenizer.encode_documents([d.text for d, _ in batch])
    by_source: dict[str, list[np.ndarray]] = {}
    for (document, digest), tokens in zip(batch, ids):
      name = document.source
      if name not in spools:
        spools[name] = cutting.Spool(part / 'spool' / str(len(spools)))
      spool = spools[name]
      spool.hashes.append(int.from_bytes(digest[:8], 'little'))
      spool.lengths.append(len(tokens))
      spool.bytes += len(document.text.encode())
      by_source.setdefault(name, []).append(np.array(tokens, dtype))
    for name, arrays in by_source.items():
      with spools[name].path.open('ab') as file:
        np.concatenate(arrays).tofile(file)
  return spools


def _batches(
  options: Options,
  files: list[pathlib.Path],
  part: pathlib.Path,
  tally: _Tally,
  progress: rich_progress.Progress,
  task: rich_progress.TaskID,
) -> Iterator[list[tuple[documents.Document, bytes]]]:
  """Yields distinct documents with their hashes, some megabytes at a time."""
  seen: set[bytes] = set()
  batch: list[tuple[documents.Document, bytes]] = []
  characters = 0
  with (part / 'rejects.jsonl').open('w') as rejects:
    for path in files:
      for item in documents.read(path):
        if isinstance(item, documents.Reject):
          tally.rejected += 1
          tally.first_reject = tally.first_reject or item
          rejects.write(json.dumps(item._asdict()) + '\n')
          _check_rejects(tally, _EARLY)
          continue
        digest = hashlib.sha256(item.text.encode()).digest()[:16]
        if digest in seen:
          tally.duplicates += 1
          continue
        seen.add(digest)
        tally.kept += 1
        source = options.source or item.source
        batch.append((item._replace(source=source), digest))
        characters += len(item.text)
        if characters >= _BATCH_CHARACTERS:
          yield batch
          batch, characters = [], 0
          about = f'tokenizing: {tally.kept} documents'
          progress.update(task, description=about)
      progress.advance(task)
  if batch:
    yield batch
  _check_rejects(tally, 0)


def _check_rejects(tally: _Tally, least: int) -> None:
  """Stops the job when too much of at least `least` lines is bad."""
  lines = tally.kept + tally.duplicates + tally.rejected
  bad, first = tally.rejected, tally.first_reject
  if first is None or lines < least:
    return
  if bad > _MAX_REJECTS and bad > _MAX_REJECTED * lines:
    raise ValueError(
      f'{bad} of {lines} lines give no document, the first is line '
      f'{first.line} of {first.file} ({first.reason}): {first.quoted}'
    )

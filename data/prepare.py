"""Text to token shards, in three resumable stages.

Text to token chunks (preparing/tokenize.py, on all cores), chunks to an order
of all documents (sorting.py, one scan of some bytes per document), and that
order to shards (cutting.py, on all cores). The directory of shards appears at
the end, complete. The same input and options give the same bytes, on any number
of cores and however often the preparation was stopped.
"""

import collections
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import functools
from importlib import metadata
import itertools
import json
import os
import pathlib
import shutil
from typing import Any

from rich import console as rich_console, progress as rich_progress

from steepest.data import (
  decontamination,
  files,
  locks,
  manifest as manifests,
  tokenizers,
)
from steepest.data.preparing import (
  cutting,
  documents,
  parsing,
  sorting,
  tokenize,
)
from steepest.data.preparing.options import Options

_R = manifests.RECORD_TOKENS
# Most characters that train a tokenizer.
_TRAINING_CHARACTERS = 1 << 28
# Chunks of the whole input, and the bounds of a chunk's bytes.
_CHUNKS = 64
_CHUNK_BYTES = (1 << 20, 1 << 25)
# Bytes of text up to which one process, with a tokenizer thread per core, is
# done before others would have started.
_SMALL = 1 << 25
# Rejects that never stop a preparation, and lines read before their share may.
_FEW_REJECTS = 10
_EARLY = 10_000
_JOB = 'job.json'

# (function, tasks) → results as they complete, such as `map`. Functions are at
# module level; tasks and results can be pickled.
Run = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]


def prepare(
  options: Options,
  console: rich_console.Console,
  run: Run = map,
  cache: pathlib.Path | None = None,
) -> manifests.Manifest:
  """Writes a directory of shards unless it exists already.

  Args:
    options: what to write.
    console: shows progress.
    run: runs the tasks of the first and the last stage.
    cache: as for downloads.cache_dir.

  Raises:
    FileNotFoundError: a glob matches nothing, or a tokenizer is missing.
    FileExistsError: the directory holds something else.
    OSError: the disk is full, or another process writes the directory.
    ValueError: unreadable input, or too little of it.
  """
  # Replace a link's target, not the link.
  options = dataclasses.replace(options, out=options.out.resolve())
  options.check()
  found = documents.find(options.inputs, options.text_field)
  named = [{'name': i.name, 'bytes': i.bytes} for i in found]
  if (manifest := _existing(options, named)) is not None:
    # The preparation may have been stopped just before it cleaned up.
    _clear(options.out)
    return manifest
  part = unfinished(options.out)
  with locks.hold(part, f'preparing {options.out}'):
    # Another process may have finished it before this one got the lock.
    if (manifest := _existing(options, named)) is not None:
      shutil.rmtree(part)
      return manifest
    try:
      with _progress(console) as progress, files.room_for(part):
        manifest = _Preparation(options, found, part, progress, run).write(
          cache
        )
    finally:
      if not (part / 'chunks').exists():
        shutil.rmtree(part)
    os.replace(part / 'out', options.out)
    shutil.rmtree(part)
  return manifest


def processes(inputs: str) -> int:
  """Returns the fastest number of processes for inputs: 1, or all cores.

  Args:
    inputs: as for documents.find.
  """
  found = documents.find(inputs)
  files_alone = all(i.mtime_ns for i in found)
  if files_alone and sum(i.bytes for i in found) < _SMALL:
    return 1
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def _progress(console: rich_console.Console) -> rich_progress.Progress:
  return rich_progress.Progress(
    rich_progress.TextColumn('{task.description}', markup=False),
    rich_progress.BarColumn(),
    rich_progress.TaskProgressColumn(),
    rich_progress.TimeElapsedColumn(),
    console=console,
  )


def _existing(
  options: Options, named: list[dict[str, Any]]
) -> manifests.Manifest | None:
  """Returns the manifest that these options wrote, None if there is none.

  Raises:
    FileExistsError: the directory holds something else.
  """
  out = options.out
  if not out.exists() or (out.is_dir() and not any(out.iterdir())):
    return None
  if not (out / manifests.NAME).is_file():
    raise FileExistsError(
      f'{out} exists and is no directory of shards: choose another --out'
    )
  manifest = manifests.load(out)
  defaults = {f.name: f.default for f in dataclasses.fields(Options)}
  # The directory may predate an option.
  command = {**defaults, **manifest.command}
  differ = [k for k, v in options.command().items() if command[k] != v]
  if manifest.inputs != named:
    differ.append('the input files')
  if differ:
    raise FileExistsError(
      f'{out} was prepared with other arguments ({", ".join(differ)}): choose '
      'another --out or delete it'
    )
  return manifest


# ------------------------------------------- the directory of unfinished work


def unfinished(out: pathlib.Path) -> pathlib.Path:
  """Returns the directory of unfinished work."""
  return out.with_name(f'.{out.name}.part')


def _clear(out: pathlib.Path) -> None:
  """Removes what a finished preparation left beside `out`."""
  if unfinished(out).exists():
    # Another process that holds it will clean up itself.
    part = unfinished(out)
    with contextlib.suppress(OSError), locks.hold(part, f'preparing {out}'):
      shutil.rmtree(part)


def _resume(
  part: pathlib.Path,
  command: Mapping[str, Any],
  found: Sequence[documents.Input],
) -> None:
  """Keeps what the same command left in the directory, and nothing else.

  If inputs changed, keeps the chunks of those before the first changed one.
  """
  job = {'command': dict(command), 'inputs': [list(i[:3]) for i in found]}
  path = part / _JOB
  before = json.loads(path.read_text('utf-8')) if path.exists() else {}
  same = 0
  # Compare it in the form in which it would be read back.
  job = json.loads(json.dumps(job))
  if before.keys() == job.keys() and before['command'] == job['command']:
    pairs = zip(before['inputs'], job['inputs'])
    same = len(list(itertools.takewhile(lambda p: p[0] == p[1], pairs)))
  if before != job:
    # A tokenizer trained here depends on all inputs.
    same *= not str(command['tokenizer']).startswith('bpe-train:')
    kept = [locks.NAME, _JOB, *(['chunks', 'tokenizer'] if same else [])]
    for left in part.iterdir():
      if left.name not in kept:
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    tokenize.keep(part / 'chunks', [i.name for i in found[:same]])
    files.write(path, [json.dumps(job).encode()])
  for left in part.rglob('*.part'):
    left.unlink(missing_ok=True)


# ---------------------------------------------------------------- the stages


@dataclasses.dataclass(frozen=True)
class _Preparation:
  """One preparation in its directory, to which it holds the lock."""

  options: Options
  found: list[documents.Input]
  part: pathlib.Path
  progress: rich_progress.Progress
  run: Run

  def write(self, cache: pathlib.Path | None) -> manifests.Manifest:
    """Runs the stages; returns the manifest in `out`."""
    options, out = self.options, self.part / 'out'
    # The limit on bad lines does not affect the contents.
    _resume(self.part, {**options.command(), 'max_rejected': None}, self.found)
    tokenizer = self._tokenizer(cache)
    if (out / manifests.NAME).exists():
      return manifests.load(out)
    finished = self._tokenize(tokenizer, cache)
    chunks = [chunk for done in finished for chunk in done.chunks]
    distinct, found = self._sort(chunks)
    out.mkdir(exist_ok=True)
    plans = cutting.plan(
      found, options.shard_tokens, self.part, tokenizer.vocab_size
    )
    shards = self._cut(plans)
    tokenizer.save(out)
    self._lines('rejects', finished)
    contaminated = None
    if options.decontaminate:
      self._lines('contaminated', finished)
      counts: collections.Counter[str] = collections.Counter()
      for chunk in chunks:
        counts.update(chunk.contaminated)
      contaminated = dict(sorted(counts.items()))
    tokens = sum(s.tokens for s in distinct.sources.values())
    manifest = manifests.Manifest(
      version=manifests.VERSION,
      command=options.command(),
      inputs=[{'name': i.name, 'bytes': i.bytes} for i in self.found],
      seed=options.seed,
      record_tokens=_R,
      dtype=manifests.token_dtype(tokenizer.vocab_size).name,
      documents=sum(s.documents for s in distinct.sources.values()),
      duplicates=distinct.duplicates,
      rejected=sum(chunk.rejected for chunk in chunks),
      tokens=tokens,
      unused_tokens=tokens - sum(s.tokens for s in shards),
      sources=distinct.sources,
      shards=shards,
      tokenizer=manifests.TokenizerInfo(
        tokenizer.name, tokenizer.sha256, tokenizer.vocab_size
      ),
      notes=_notes(options, distinct, found, shards),
      validation={s.source: s.counts for s in found if s.split == 'validation'},
      contaminated=contaminated,
      program=f'steepest {metadata.version("steepest")}',
    )
    manifests.save(manifest, out)
    return manifest

  def _tokenizer(self, cache: pathlib.Path | None) -> tokenizers.Tokenizer:
    """Returns the tokenizer, and keeps it for the workers."""
    directory = self.part / 'tokenizer'
    kind, _, size = self.options.tokenizer.partition(':')
    if kind != 'bpe-train':
      tokenizer = tokenizers.load(self.options.tokenizer, cache)
      tokenizer.find_end()
      kept = (directory / 'tokenizer.json').exists()
      if kept and tokenizers.load(f'hf:{directory}').sha256 != tokenizer.sha256:
        raise ValueError(
          f'the tokenizer {self.options.tokenizer} has changed since this '
          f'preparation began: restore it, or delete {self.part}'
        )
      tokenizer.save(directory)
      return tokenizer
    if not (directory / 'tokenizer.json').exists():
      self.progress.add_task('training the tokenizer', total=None)
      tokenizer = tokenizers.train_bpe(
        _training_texts(self.found, self.options.document_bytes), int(size)
      )
      tokenizer.save(directory)
    tokenizer = tokenizers.load(f'hf:{directory}')
    tokenizer.name = self.options.tokenizer
    return tokenizer

  def _tokenize(
    self, tokenizer: tokenizers.Tokenizer, cache: pathlib.Path | None
  ) -> list[tokenize.Done]:
    """Tokenizes the whole input into chunks; returns the tasks in order."""
    options, directory = self.options, self.part / 'chunks'
    if tokenizer.eos_id is None:
      tokenizer.encode_documents([])
    benchmarks: list[pathlib.Path] = []
    if options.decontaminate:
      benchmarks = decontamination.find(options.decontaminate_data, cache)
    low, high = _CHUNK_BYTES
    size = high
    if all(i.mtime_ns for i in self.found):
      size = min(max(sum(i.bytes for i in self.found) // _CHUNKS, low), high)
    rules = tokenize.Rules(
      directory,
      size,
      options.document_bytes,
      self.part / 'tokenizer',
      options.source,
      options.seed,
      options.decontaminate,
      tuple(benchmarks),
    )
    every = list(tokenize.tasks(self.found, size))
    if len(every) > tokenize.MOST_TASKS:
      raise ValueError(
        f'{len(every):,} tasks of {size:,} bytes: prepare the input in parts'
      )
    loaded = (tokenize.load(directory, task) for task in every)
    done = {one.task.number: one for one in loaded if one is not None}
    tally = _Tally(options.max_rejected)
    for one in done.values():
      tally.add(one)
    shown = self.progress.add_task('tokenizing', total=len(every))
    missing = [task for task in every if task.number not in done]
    for one in self.run(functools.partial(tokenize.write, rules), missing):
      done[one.task.number] = one
      tally.add(one)
      tally.check(_EARLY)
      self.progress.update(
        shown,
        completed=len(done),
        description=f'tokenizing: {tally.documents:,} documents, '
        f'{tally.tokens:,} tokens',
      )
    self.progress.update(shown, completed=len(every))
    tally.check(0)
    return [done[task.number] for task in every]

  def _sort(
    self, chunks: list[tokenize.Chunk]
  ) -> tuple[sorting.Distinct, list[sorting.SortedDocuments]]:
    """Sorts all documents; reuses a finished sorting."""
    options, directory = self.options, self.part / 'sorted'
    path = self.part / 'sorted.json'
    if not path.exists():
      shutil.rmtree(directory, ignore_errors=True)
      sorter = sorting.Sorting(
        directory, self.part / 'chunks', chunks, options.seed
      )
      task = self.progress.add_task('sorting', total=None)
      distinct = sorter.sort(lambda: self.progress.advance(task))
      validation = sorting.Validation(
        options.validation_tokens, options.validation_fraction
      )
      sorting.save(path, distinct, sorter.split(distinct, validation))
    return sorting.load(path)

  def _cut(self, plans: list[cutting.Plan]) -> list[manifests.Shard]:
    """Writes the missing shards; returns all in order."""
    done = {p.shard['name']: cutting.written(p) for p in plans}
    missing = [p for p in plans if done[p.shard['name']] is None]
    task = self.progress.add_task(
      'writing shards',
      total=len(plans),
      completed=len(plans) - len(missing),
    )
    for shard in self.run(cutting.write, missing):
      done[shard.name] = shard
      self.progress.advance(task)
    return [s for s in done.values() if s is not None]

  def _lines(self, kind: str, finished: Iterable[tokenize.Done]) -> None:
    lines = tokenize.load_lines(self.part / 'chunks', finished, kind)
    files.write(self.part / 'out' / f'{kind}.jsonl', lines)


class _Tally:
  """Counts of the lines kept and rejected so far."""

  def __init__(self, most: float):
    self._most = most
    self.documents = self.tokens = self._rejected = 0
    # The first task with a bad line: its number and pieces, and that line.
    self._first: tuple[int, list[documents.Piece], dict[str, Any]] | None = None

  def add(self, done: tokenize.Done) -> None:
    """Counts the chunks of a task."""
    task = done.task
    for chunk in done.chunks:
      self.documents += chunk.documents
      self.tokens += chunk.tokens
      self._rejected += chunk.rejected
      bad = chunk.first_reject
      if bad and (self._first is None or task.number < self._first[0]):
        self._first = task.number, task.pieces, bad

  def check(self, least: int) -> None:
    """Raises ValueError if too many of at least `least` lines are bad."""
    lines, bad = self.documents + self._rejected, self._rejected
    if self._first is None or lines < least:
      return
    if bad > _FEW_REJECTS and bad > self._most * lines:
      _, pieces, first = self._first
      line = first['line']
      for piece in pieces:
        if piece.input == first['file'] and piece.bytes and piece.end:
          line += documents.lines_before(piece.input, piece.begin)
      unread = first['reason'].startswith('no `')
      raise ValueError(
        f'{bad} of {lines} lines contain no document, more than '
        f'--max_rejected={self._most:g}; the first is line {line} of '
        f'{first["file"]} ({first["reason"]}): {first["quoted"]}'
        + ('; --text_field=KEY names the field with the text' if unread else '')
      )


def _training_texts(
  found: Sequence[documents.Input], most: int
) -> Iterator[str]:
  characters = 0
  for document in documents.read(found, most):
    if isinstance(document, parsing.Document):
      for text in parsing.pieces(document.text):
        yield text
        characters += len(text)
      if characters > _TRAINING_CHARACTERS:
        return


def _notes(
  options: Options,
  distinct: sorting.Distinct,
  found: Sequence[sorting.SortedDocuments],
  shards: Sequence[manifests.Shard],
) -> list[str]:
  notes = []
  if distinct.pooled:
    notes.append(
      f'{len(distinct.pooled)} sources with fewer than {_R + 1} tokens, such '
      f'as {min(distinct.pooled)!r}, are merged into the source '
      f'{manifests.POOLED!r} in the shards'
    )
  validated = {s.source for s in shards if s.split == 'validation'}
  for name in sorted({s.source for s in found} - validated):
    if options.validation_tokens:
      notes.append(
        f'source {name!r} gives no validation: no documents of {_R + 1} '
        f'tokens are within {options.validation_fraction:.2g} of it '
        '(--validation_fraction)'
      )
  return notes

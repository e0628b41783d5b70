"""The three stages of a preparation, each of which goes on where it stopped.

Text to runs (runs.py, on all cores), runs to the order of all documents
(tables.py, a scan over some bytes a document), and that order to shards
(cutting.py, on all cores).
"""

import collections
from collections.abc import Iterator, Sequence
import functools
from importlib import metadata
import pathlib
import shutil
from typing import Any

from rich import progress as rich_progress

from steepest.data import (
  decontamination,
  files,
  manifest as manifests,
  tokenizers,
)
from steepest.data.preparing import (
  cutting,
  documents,
  inputs,
  job,
  options as option,
  runs,
  tables,
  workers,
)

_R = manifests.RECORD_TOKENS
# Characters that train a tokenizer.
_TRAINING_CHARACTERS = 1 << 28
# Bytes of a run: a part of all, within bounds.
_RUNS = 64
_RUN_BYTES = (1 << 20, 1 << 25)
# Less input than this is read in one process, whose tokenizer has a thread
# for each core, sooner than others would have started.
_ALONE = 1 << 25
# Rejects that never stop a job, and lines that are seen before their share
# may.
_FEW_REJECTS = 10
_EARLY = 10_000


class Stages:
  """One preparation in its directory, which a lock keeps to it."""

  def __init__(
    self,
    options: option.Options,
    found: Sequence[inputs.Input],
    part: pathlib.Path,
    progress: rich_progress.Progress,
  ):
    self._options, self._found = options, list(found)
    self._part, self._progress = part, progress
    size = sum(i.bytes for i in found)
    streams = any(not i.mtime_ns for i in found)
    self._workers = options.workers or workers.cores()
    if not options.workers and size < _ALONE and not streams:
      self._workers = 1
    low, high = _RUN_BYTES
    self._run_bytes = high if streams else min(max(size // _RUNS, low), high)

  def write(self, cache: pathlib.Path | None) -> manifests.Manifest:
    """Goes through the stages; returns what stands in `out`."""
    # How many bad lines are too many decides no contents.
    command = {**self._options.command(), 'max_rejected': None}
    job.resume(self._part, command, self._found)
    tokenizer = self._tokenizer(cache)
    out = self._part / 'out'
    if (out / manifests.NAME).exists():
      return manifests.load(out)
    held = self._runs(tokenizer, cache)
    found, streams = self._tables(held)
    plans = cutting.plan(
      streams, self._options.shard_tokens, self._part, tokenizer.vocab_size
    )
    out.mkdir(exist_ok=True)
    written = self._shards(plans)
    tokenizer.save(out)
    self._lines('rejects', len(held))
    contaminated = None
    if self._options.decontaminate:
      self._lines('contaminated', len(held))
      counts: collections.Counter[str] = collections.Counter()
      for run in held:
        counts.update(run.contaminated)
      contaminated = dict(sorted(counts.items()))
    tokens = sum(s.tokens for s in found.sources.values())
    manifest = manifests.Manifest(
      version=manifests.VERSION,
      command=self._options.command(),
      inputs=[{'name': i.name, 'bytes': i.bytes} for i in self._found],
      seed=self._options.seed,
      record_tokens=_R,
      dtype=manifests.token_dtype(tokenizer.vocab_size).name,
      documents=sum(s.documents for s in found.sources.values()),
      duplicates=found.duplicates,
      rejected=sum(run.rejected for run in held),
      tokens=tokens,
      unused_tokens=tokens - sum(s.tokens for s in written),
      sources=found.sources,
      shards=written,
      tokenizer=manifests.TokenizerInfo(
        tokenizer.name, tokenizer.sha256, tokenizer.vocab_size
      ),
      notes=_notes(self._options, found, streams, written),
      validation={s.source: s.held for s in streams if s.split == 'validation'},
      contaminated=contaminated,
      lengths=found.lengths,
      program=f'steepest {metadata.version("steepest")}',
    )
    manifests.save(manifest, out)
    return manifest

  def _tokenizer(self, cache: pathlib.Path | None) -> tokenizers.Tokenizer:
    """Returns the tokenizer, and keeps it for the workers."""
    directory = self._part / 'tokenizer'
    kind, _, size = self._options.tokenizer.partition(':')
    if kind != 'bpe-train':
      tokenizer = tokenizers.load(self._options.tokenizer, cache)
      tokenizer.find_end()
      kept = (directory / 'tokenizer.json').exists()
      if kept and tokenizers.load(f'hf:{directory}').sha256 != tokenizer.sha256:
        raise ValueError(
          f'the tokenizer {self._options.tokenizer} has changed since this '
          'preparation began: run the same command again to begin anew'
        )
      tokenizer.save(directory)
      return tokenizer
    if not (directory / 'tokenizer.json').exists():
      self._progress.add_task('training the tokenizer', total=None)
      tokenizer = tokenizers.train_bpe(_training_texts(self._found), int(size))
      tokenizer.save(directory)
    tokenizer = tokenizers.load(f'hf:{directory}')
    tokenizer.name = self._options.tokenizer
    return tokenizer

  def _runs(
    self, tokenizer: tokenizers.Tokenizer, cache: pathlib.Path | None
  ) -> list[runs.Run]:
    """Brings the whole input into runs; returns them in order."""
    options, directory = self._options, self._part / 'runs'
    if tokenizer.eos_id is None:
      tokenizer.encode_documents([])
    scored: list[pathlib.Path] = []
    if options.decontaminate:
      scored = decontamination.find(options.decontaminate_data, cache)
    rules = runs.Rules(
      directory,
      self._part / 'tokenizer',
      options.source,
      options.seed,
      options.decontaminate,
      tuple(scored),
    )
    held: dict[int, runs.Run] = {}
    after = runs.Position(0, 0)
    while (run := runs.load(directory, len(held))) is not None:
      held[len(held)] = run
      after = run.after
    tally = _Tally(options.max_rejected)
    for number in held:
      tally.add(held[number])
    task = self._progress.add_task('tokenizing', total=len(self._found))
    tasks = runs.tasks(self._found, self._run_bytes, len(held), after)
    for number, run in workers.run(
      functools.partial(runs.write, rules), tasks, self._workers
    ):
      held[number] = run
      tally.add(run)
      tally.check(_EARLY)
      self._progress.update(
        task,
        completed=run.after.input,
        description=f'tokenizing: {tally.documents:,} documents, '
        f'{tally.tokens:,} tokens',
      )
    self._progress.update(task, completed=len(self._found))
    tally.check(0)
    return [held[number] for number in range(len(held))]

  def _tables(
    self, held: list[runs.Run]
  ) -> tuple[tables.Documents, list[tables.Stream]]:
    """Sorts all documents; a finished sorting is taken as it is."""
    options, directory = self._options, self._part / 'tables'
    path = self._part / 'tables.json'
    if not path.exists():
      shutil.rmtree(directory, ignore_errors=True)
      sorting = tables.Tables(
        directory, self._part / 'runs', held, options.seed
      )
      task = self._progress.add_task('sorting', total=None)
      found = sorting.sort(lambda: self._progress.advance(task))
      split = tables.Split(
        options.validation_tokens, options.validation_fraction
      )
      tables.save(path, found, sorting.split(found, split))
    return tables.load(path)

  def _shards(self, plans: list[cutting.Plan]) -> list[manifests.Shard]:
    written = {p.shard['name']: cutting.written(p) for p in plans}
    missing = [p for p in plans if written[p.shard['name']] is None]
    task = self._progress.add_task(
      'writing shards',
      total=len(plans),
      completed=len(plans) - len(missing),
    )
    for shard in workers.run(
      cutting.write, missing, min(self._workers, max(len(missing), 1))
    ):
      written[shard.name] = shard
      self._progress.advance(task)
    return [s for s in written.values() if s is not None]

  def _lines(self, kind: str, count: int) -> None:
    lines = runs.load_lines(self._part / 'runs', range(count), kind)
    files.write(self._part / 'out' / f'{kind}.jsonl', lines)


class _Tally:
  """What became of the lines so far."""

  def __init__(self, most: float):
    self._most = most
    self.documents = self.tokens = self._rejected = 0
    self._first: tuple[Any, ...] | None = None

  def add(self, run: runs.Run) -> None:
    """Counts a run."""
    self.documents += run.documents
    self.tokens += run.tokens
    self._rejected += run.rejected
    if run.first_reject is not None:
      first = tuple(
        run.first_reject[k] for k in ('file', 'line', 'reason', 'quoted')
      )
      self._first = min(self._first or first, first)

  def check(self, least: int) -> None:
    """Stops the job when too much of at least `least` lines is bad."""
    lines, bad = self.documents + self._rejected, self._rejected
    if self._first is None or lines < least:
      return
    if bad > _FEW_REJECTS and bad > self._most * lines:
      file, line, reason, quoted = self._first
      raise ValueError(
        f'{bad} of {lines} lines give no document, more than '
        f'--max_rejected={self._most:g}; the first is line {line} of {file} '
        f'({reason}): {quoted}'
      )


def _training_texts(found: Sequence[inputs.Input]) -> Iterator[str]:
  characters = 0
  for held in found:
    for block in held.blocks(1 << 20):
      for _, document in documents.parse(block):
        if isinstance(document, documents.Document):
          yield document.text
          characters += len(document.text)
          if characters > _TRAINING_CHARACTERS:
            return


def _notes(
  options: option.Options,
  found: tables.Documents,
  streams: Sequence[tables.Stream],
  written: Sequence[manifests.Shard],
) -> list[str]:
  notes = []
  if found.pooled:
    notes.append(
      f'{len(found.pooled)} sources of less than {_R + 1} tokens, as '
      f'{min(found.pooled)!r}, are together the source {manifests.POOLED!r} in '
      'the shards'
    )
  validated = {s.source for s in written if s.split == 'validation'}
  for name in sorted({s.source for s in streams} - validated):
    if options.validation_tokens:
      notes.append(
        f'source {name!r} gives no validation: no documents of {_R + 1} '
        f'tokens are within {options.validation_fraction:.2g} of it '
        '(--validation_fraction)'
      )
  return notes

"""Turns text into token shards.

    python -m launch.prepare --input='corpus/*.jsonl.zst' --tokenizer=gpt2 \\
        --out=shards
    python -m launch.prepare --describe=shards

Reads .jsonl, .jsonl.gz, .jsonl.zst and .parquet files with a `text` in each
record, any other file as one document, and Hugging Face and TFDS datasets. It
drops duplicates, holds out validation documents from every source and ends each
document with the end-of-text token. If it is interrupted, the same command
resumes, and the result is the same, byte for byte.
"""

from collections.abc import Callable
import contextlib
import os
import sys
from typing import TYPE_CHECKING

from absl import flags

from steepest.launch import cli

if TYPE_CHECKING:
  from steepest.data.preparing.options import Options


def main() -> None:
  """The command."""
  describe = flags.DEFINE_string(
    'describe', None, 'Check a directory of shards and describe its contents.'
  )
  workers = flags.DEFINE_integer(
    'workers', 0, 'Processes that tokenize; 0: one per core.'
  )
  address = flags.DEFINE_string(
    'engine',
    '',
    'HOST:PORT of a running Ray cluster, or auto: work on its machines '
    '(docs/launching.md). Default: only this machine.',
  )
  text = cli.define_preparation()
  cli.run(
    lambda: _run(describe.value, workers.value, address.value, text),
    __doc__,
    addresses=('out', 'describe'),
  )


def _run(
  describe: str | None,
  workers: int,
  address: str,
  text: Callable[[], 'Options'],
) -> None:
  # The tokenizers library reads it when it starts its threads.
  if workers == 1:
    os.environ['RAYON_NUM_THREADS'] = '1'
  from steepest.data import buckets
  from steepest.data.terminal import Console

  if describe is not None:
    from steepest.data import describe as describing

    describing.describe(buckets.for_records(describe), Console())
    return
  if workers < 0:
    raise ValueError(f'--workers={workers}: give 0 or more')
  from steepest.data import prepare
  from steepest.tuning import engine

  console = Console(stderr=True)
  with contextlib.ExitStack() as stack:
    out = flags.FLAGS['out']
    if out.value and buckets.is_address(out.value):
      staged = buckets.staged(out.value, 'preparing there')
      out.value = str(stack.enter_context(staged).directory)
    options = text()
    logs = prepare.unfinished(options.out) / 'logs'
    run: prepare.Run = map
    if address:
      machines = stack.enter_context(engine.machines(address, workers))
      run = stack.enter_context(machines.cores(logs)).run
    elif (count := workers or prepare.processes(options.inputs)) > 1:
      places = [engine.Place()] * count
      run = stack.enter_context(engine.local(places, logs)).run
    manifest = prepare.prepare(options, console, run)
  for note in manifest.notes:
    print(f'note: {note}', file=sys.stderr)
  print(
    f'{manifest.documents:,} documents, {manifest.tokens:,} tokens, '
    f'{manifest.duplicates:,} duplicates and {manifest.rejected:,} bad lines '
    f'left out: {options.out}'
  )
  if manifest.contaminated is not None:
    print(
      f'{sum(manifest.contaminated.values()):,} documents repeat a benchmark '
      f'({"kept" if options.decontaminate == "report" else "left out"}): see '
      f'{options.out / "contaminated.jsonl"}'
    )


if __name__ == '__main__':
  main()
